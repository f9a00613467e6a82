"""Pretraining with one idea of the paper taken out (section 4.4), to see what it is worth.

    python -m benchmarks.ablations zeroed --name=zeroed --data_path=DIR ...       options as of pretrain.main

zeroed: hidden pixels are set to 0 and the dense network is run on the whole image, instead of strips of
visible cells. single_level: the decoder gets the encoder's smallest map only, instead of one of each stride.
"""
import sys

from common.cli import errors_in_one_sentence
from pretrain.encoder import SparseEncoder
from pretrain.main import pretrain
from pretrain.methods import parse_options
from pretrain.spark import SparK
from pretrain.spark_method import SparKMethod


class ZeroedEncoder(SparseEncoder):
    """The dense network on the image with hidden pixels 0; what it gives at visible cells is handed on."""

    def forward(self, images, geometry=None):
        if geometry is None:
            return super().forward(images)
        zeroed = geometry.to_canvas(geometry.to_strip(images))
        return [geometry.to_strip(out) for out in super().forward(zeroed)]


class SingleLevelSparK(SparK):
    """Of the pyramid only the smallest map reaches the decoder."""

    def densify(self, strips, geometry):
        smallest = geometry.to_canvas(self.densify_norms[0](strips[-1]), fill=self.mask_tokens[0])
        return {self.encoder.stride: self.densify_projs[0](smallest)}


class Zeroed(SparKMethod):
    def build(self, options, record=None, cnn=None):
        spark = super().build(options, record, cnn)
        spark.encoder.__class__ = ZeroedEncoder
        return spark


class SingleLevel(SparKMethod):
    def build(self, options, record=None, cnn=None):
        spark = super().build(options, record, cnn)
        spark.__class__ = SingleLevelSparK
        for part in (*spark.densify_norms[1:], *spark.densify_projs[1:], *spark.mask_tokens[1:]):
            part.requires_grad_(False)
        return spark


ABLATIONS = {'zeroed': Zeroed(), 'single_level': SingleLevel()}


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in ABLATIONS:
        sys.exit(f'error: say which idea to take out: {" or ".join(ABLATIONS)}')
    options = parse_options(sys.argv[2:])
    with errors_in_one_sentence(resumes=True):
        pretrain(options, method=ABLATIONS[sys.argv[1]])


if __name__ == '__main__':
    main()
