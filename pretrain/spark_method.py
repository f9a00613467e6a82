"""SparK as the trainer sees it: what it answers of `Method` (pretrain/methods.py). Its options are in
pretrain/spark_options.py.
"""
from common.networks.create import drop_path_of
from common.training.compilation import repeated_blocks
from common.training.optim import NO_DECAY
from common.training.schedule import Cosine
from pretrain import spark_weights
from pretrain.method_base import MethodBase
from pretrain.recipe import Recipe
from pretrain.results.meaning import SQUARED_ERROR_OF_PIXELS, LossMeaning, Paper
from pretrain.results.pictures import TARGETS
from pretrain.spark import build_spark
from pretrain.spark_options import SPARK, SparKOptions  # noqa: F401  (they belong together)
from pretrain.sparse.geometry import is_accelerated

PAPER = Paper('Keyu Tian, Yi Jiang, Qishuai Diao, Chen Lin, Liwei Wang, Zehuan Yuan',
              'Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling', 'ICLR 2023', '2301.03580')
IDEA = ('A convolutional network pretrained without labels: most cells of an image are hidden, the network encodes the '
        'others, a decoder reconstructs what was hidden')
LOSSES = {  # by what a run predicts
    'normalised': LossMeaning(
        'normalised', 'The loss is a squared error on normalised cells: near 1 at the start, about 0.6 after the first '
        'epochs, 0.2 to 0.4 at the end of long runs.', '1 is what a decoder gets that says nothing',
        ((1.0, 'a decoder that says nothing'), (0.6, 'normal after the first epochs')), (0.2, 0.4)),
    'pixels': SQUARED_ERROR_OF_PIXELS}


class SparKMethod(MethodBase):
    """SparK (Tian et al., ICLR 2023); see `Method` in pretrain/methods.py for what each part is."""
    name = SPARK
    recipe = Recipe()
    no_decay = (*NO_DECAY, 'mask_tokens', 'pos_embed')
    title = 'SparK'
    paper = PAPER
    idea = IDEA
    whole_file = 'a *_withdecoder_1kpretrained_spark_style.pth'
    encoder_options = ('levels', 'target')
    step_options = ('decoder_width', 'decoder')

    def curve(self, options):
        return Cosine(0.005, 0.001)

    def departures(self, options, precision):
        return self.recipe.departures(options, precision)

    def build(self, options, record=None, cnn=None):
        arguments = options.network if cnn is None else {**options.network, 'model': cnn}
        spark = build_spark(**arguments, record=record)
        spark.recompute(options.recompute)
        return spark

    def record(self, network):
        return network.encoder.record

    def load_init(self, network, options):
        return spark_weights.load_init(network, options.init, options.model, options.adapt_input_conv)

    def betas(self, network, options):
        """The paper's networks with BatchNorm were trained with a beta2 of 0.95, the others with 0.999."""
        beta2 = {'bn': 0.95, 'ln': 0.999}[network.encoder.norm] if options.beta2 is None else options.beta2
        return 0.9, beta2

    def describe(self, network, options):
        encoder = network.encoder
        trained = [sum(p.numel() for p in module.parameters() if p.requires_grad) for module in (encoder, network)]
        (h, w), (height, width) = encoder.grid, encoder.input_size
        return [
            ('model', f'{options.model}: {trained[0] / 1e6:.1f} M parameters, '
                      f'and {(trained[1] - trained[0]) / 1e6:.1f} M in densify and {options.decoder} decoder'),
            ('pyramid', f'strides {", ".join(map(str, encoder.reductions))}; channels '
                        f'{", ".join(map(str, encoder.channels))}'),
            ('cells', f'{encoder.cell_size} px: {h} x {w} = {network.cells} in an image of '
                      f'{height} x {width}, {network.visible_cells} visible'),
            ('target', TARGETS[options.target]),
            *(('note', note) for note in encoder.notes),
            ('drop path', drop_path_of(network)),
        ]

    def warnings(self, network, options):
        encoder = network.encoder
        remedy = f'--cell_size={encoder.stride}' if encoder.cell_size > encoder.stride else \
            f'an --input_size of {6 * encoder.stride} or more, a network whose stride is smaller than ' \
            f'{encoder.stride} (a cell is as large as that at least), or fewer --levels (docs/your_images.md)'
        return network.remarks_on_cells(remedy)

    def parts_to_compile(self, network):
        """The blocks of the encoder, or all of it where it repeats none, and those of the decoder.

        The accelerated form, which has no such blocks, is one part; with `recompute` it is not compiled.
        """
        if is_accelerated(network.accelerated, network.mask_tokens[0].device):
            return [] if network.recomputed != 'none' else [network]
        encoder = network.encoder
        blocks = [] if encoder.uncompiled else repeated_blocks(encoder.cnn) or [encoder]
        return [*blocks, *network.dense_decoder.dec]

    # -- for the commands that read a run ---------------------------------------------------------------------

    def find_init(self, network, state, path='the given object', which=None, adapt=False):
        return spark_weights.find_init(network, state, path, which, adapt)

    def is_whole(self, state):
        return spark_weights.is_whole(state)

    def is_part_of_whole(self, found):
        return spark_weights.is_part_of_whole(found)

    def options_in_weights(self, state):
        return {'decoder_width': spark_weights.decoder_width(state)}

    def settings(self, network, options):
        return [('target', TARGETS[options.target]),
                ('decoder', f'{options.decoder}, {options.decoder_width} channels wide')]

    def in_words(self, options):
        return f'decoder {options.decoder}, {options.decoder_width} wide'

    def loss_meaning(self, config):
        """Runs from before there was a choice predict normalised cells."""
        return LOSSES[config.get('target', 'normalised')]
