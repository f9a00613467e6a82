"""The options of a pretraining run with SparK, and the paper's recipe. Nothing here needs torch."""
from dataclasses import dataclass

from common.cli import option
from common.config import require
from pretrain.config import PretrainingOptions

SPARK = 'spark'  # the value of --method
TITLE = 'SparK: masked pretraining of any convolutional network.'  # for --help
# Stochastic depth of the paper's networks (official code).
DROP_PATH = {'resnet50': 0.05, 'resnet101': 0.08, 'resnet152': 0.10, 'resnet200': 0.15,
             'convnext_small': 0.2, 'convnext_base': 0.3, 'convnext_large': 0.4}


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
                            choices=('none', 'decoder', 'all'), may_change=True)

    def __post_init__(self):
        if isinstance(self.levels, (list, tuple)):  # from Python, as `build_spark` takes them
            object.__setattr__(self, 'levels', ','.join(self.levels))
        super().__post_init__()
        require(self.method == SPARK, f'these are options of {SPARK}, not of {self.method}')
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


def recipe(given):
    """What the authors of SparK use for the options that are given, as a dictionary of options."""
    model = given.get('model', 'resnet50').split('.')[0]  # without the tag of pretrained weights
    return {'drop_path': DROP_PATH[model]} if model in DROP_PATH else {}
