"""SparK as the trainer sees it: its options and recipe, and what it answers of `Method`
(pretrain/methods.py).
"""
from dataclasses import dataclass

from common.cli import option
from common.config import require
from common.networks.create import drop_path_of
from common.training.compilation import repeated_blocks
from common.training.optim import NO_DECAY
from pretrain.config import PretrainingOptions
from pretrain.results.pictures import TARGETS, rows_of, views
from pretrain.spark import build_spark
from pretrain.spark_weights import load_init
from pretrain.sparse.geometry import is_accelerated

# Stochastic depth of the paper's networks (official code).
DROP_PATH = {'resnet50': 0.05, 'resnet101': 0.08, 'resnet152': 0.10, 'resnet200': 0.15,
             'convnext_small': 0.2, 'convnext_base': 0.3, 'convnext_large': 0.4}

FEW_CELLS = 25  # fewer in an image are warned of; the paper's images have 49


@dataclass(frozen=True)
class SparKOptions(PretrainingOptions):
    """What a user decides of a pretraining run with SparK. Raises ValueError."""

    mask_ratio: float = option(0.6, 'share of hidden cells', 'method', ('mask',))
    cell_size: int = option(None, "side of a cell in pixels; by the network's total stride if not given",
                            'method', parse=int)
    levels: str = option(None, "submodules whose outputs are the feature pyramid, large to small, with "
                         "commas between; the network's own if not given", 'method', parse=str)
    decoder: str = option('unet', "the paper's, or one that ends at the encoder's finest level, where each "
                          "position makes its pixels: less work, another method", 'method',
                          choices=('unet', 'light'))
    target: str = option('normalised', "what is predicted of a hidden cell: its pixels, normalised by the "
                         "cell's own mean and deviation (the paper's; MAE's norm_pix_loss), or pixels as the "
                         "network takes them, normalised with --mean and --std alone", 'method',
                         choices=('normalised', 'pixels'))
    decoder_width: int = option(768, "channels of the decoder's smallest map", 'method')

    beta2: float = option(None, '0.95 for networks with BatchNorm, 0.999 for others if not given',
                          'optimisation', ('ada',), float)

    recompute: str = option('none', 'what is not kept for the backward pass, but computed again: less '
                            'memory, more time', 'machine', ('checkpoint',),
                            choices=('none', 'decoder', 'all'), harmless=True)

    def __post_init__(self):
        super().__post_init__()
        require(self.method == SparKMethod.name, f'these are options of {SparKMethod.name}, not of '
                                                 f'{self.method}')
        require(self.decoder_width >= 1, f'decoder_width must be 1 or more, not {self.decoder_width}')
        require(0 < self.mask_ratio < 1, f'mask_ratio must lie between 0 and 1, not {self.mask_ratio}')
        require(self.beta2 is None or 0 <= self.beta2 < 1, 'beta2 must be 0 or more and less than 1, not '
                                                           f'{self.beta2}')
        require(self.cell_size is None or self.cell_size > 0, 'cell_size must be more than 0, not '
                                                              f'{self.cell_size}')

    @property
    def network(self):
        """The arguments of `build_spark`."""
        names = ('model', 'input_size', 'mask_ratio', 'drop_path', 'cell_size', 'in_chans', 'decoder_width',
                 'decoder', 'target')
        return {**{name: getattr(self, name) for name in names}, 'levels': self.levels and self.levels.split(',')}


class SparKMethod:
    """SparK (Tian et al., ICLR 2023); see `Method` in pretrain/methods.py for what each part is."""
    name = 'spark'
    title = 'SparK: masked pretraining of any convolutional network.'
    options = SparKOptions
    learning_rate_ends = (0.005, 0.001)
    no_decay = (*NO_DECAY, 'mask_tokens')

    def recipe(self, given):
        model = given.get('model', 'resnet50').split('.')[0]  # without the tag of pretrained weights
        return {'drop_path': DROP_PATH[model]} if model in DROP_PATH else {}

    def build(self, options, record=None):
        spark = build_spark(**options.network, record=record)
        spark.recompute(options.recompute)
        return spark

    def record(self, network):
        return network.encoder.record

    def load_init(self, network, options):
        return load_init(network, options.init, options.model, options.adapt_input_conv)

    def betas(self, network, options):
        """The paper's networks with BatchNorm were trained with a beta2 of 0.95, the others with 0.999."""
        beta2 = {'bn': 0.95, 'ln': 0.999}[network.encoder.norm] if options.beta2 is None else options.beta2
        return 0.9, beta2

    def exported(self, network):
        return network.encoder.cnn

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
        encoder, cells = network.encoder, network.cells
        share = 1 - network.visible_cells / cells
        smaller = encoder.cell_size > encoder.stride
        if cells < FEW_CELLS:
            yield (f'an image has {cells} cells of {encoder.cell_size} px only, of which {cells - network.visible_cells} '
                   f'({share:.0%}) are hidden: little of it can be learned from so few. Give '
                   + (f'--cell_size={encoder.stride}' if smaller else
                      f'an --input_size of {6 * encoder.stride} or more, or a network of smaller stride: this one has '
                      f'{encoder.stride}, and a cell (--cell_size) is no smaller than that'))
        elif abs(share - options.mask_ratio) > 0.02:
            yield f'{share:.0%} of the {cells} cells are hidden, since whole cells are, not {options.mask_ratio:.0%}'

    def parts_to_compile(self, network):
        """The blocks of the encoder, or all of it where it repeats none, and those of the decoder.

        The accelerated form, which has no such blocks, is one part; with `recompute` it is not compiled.
        """
        decoder = network.dense_decoder
        if is_accelerated(network.accelerated, network.mask_tokens[0].device):
            return [] if network.recomputes or decoder.recomputes else [network]
        encoder = network.encoder
        blocks = [] if encoder.uncompiled else repeated_blocks(encoder.cnn) or [encoder]
        return [*blocks, *decoder.dec]

    def picture(self, network, images, visible, normalisation):
        return rows_of(views(network, images, visible, normalisation)), 'input, masked, reconstruction'
