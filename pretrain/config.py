"""The options of a pretraining run, and the paper's recipes by model (sections 4 and appendix)."""
import os
from dataclasses import dataclass

from common.cli import option, parse
from common.config import RunOptions, require

DROP_PATH = {'resnet50': 0.05, 'resnet101': 0.08, 'resnet152': 0.10, 'resnet200': 0.15,
             'convnext_small': 0.2, 'convnext_base': 0.3, 'convnext_large': 0.4}


@dataclass(frozen=True)
class Options(RunOptions):
    """What a user decides, besides what every program has. Raises ValueError."""

    resume: str = option(None, 'go on from this <model>_still_pretraining.pth; the one in the run folder if not given',
                         'run', ('resume_from',), str, harmless=True)
    init: str = option(None, "start from weights: our files, official ones, others, or 'timm' for timm's own; FILE:KEY "
                       'for one of several networks in a file', 'run',
                       ('init_weight',), str, harmless=True)

    data_path: str = option(None, 'folder of images, flat or nested (its train/ if there is one), or of tar shards of images; '
                            'one such tar; or a text file with one path a line', 'data', parse=str, harmless=True)
    val_path: str = option(None, 'held-out images; val/, valid/ or validation/ beside train/ if not given and there is one',
                           'data', parse=str, harmless=True)

    list_root: str = option(None, 'folder that the paths of a list of images are relative to, and must lie in; that of the '
                            'list if not given', 'data', parse=str, harmless=True)

    fast_decode: bool = option(False, 'decode JPEGs no larger than their crops need, and resize them faster: pixels differ a '
                               'little', 'data')

    mask_ratio: float = option(0.6, 'share of hidden cells', 'method', ('mask',))
    cell_size: int = option(None, "side of a cell in pixels; by the network's total stride if not given", 'method',
                            parse=int)
    levels: str = option(None, "submodules whose outputs are the feature pyramid, large to small, with commas between; the "
                         "network's own if not given", 'method', parse=str)
    decoder: str = option('unet', "the paper's, or one that ends at the encoder's finest level, where each position makes "
                          'its pixels: less work, another method', 'method', choices=('unet', 'light'))
    target: str = option('normalised', "what is predicted of a hidden cell: its pixels, normalised by the cell's own mean "
                         "and deviation (the paper's; MAE's norm_pix_loss), or pixels as the network takes them, "
                         'normalised with --mean and --std alone', 'method', choices=('normalised', 'pixels'))
    decoder_width: int = option(768, "channels of the decoder's smallest map", 'method')
    drop_path: float = option(None, "stochastic depth; the model's recipe if not given, else none", 'method', ('dp',),
                              float)

    warmup_epochs: float = option(None, '40 if not given, or a tenth of the epochs where those are fewer than 400',
                                  'optimisation', ('wp_ep',), float)
    opt: str = option('lamb', 'optimiser', 'optimisation', choices=('lamb', 'adamw', 'sgd'))
    beta2: float = option(None, '0.95 for networks with BatchNorm, 0.999 for others if not given', 'optimisation',
                          ('ada',), float)
    weight_decay: float = option(0.04, 'at the start', 'optimisation', ('wd',))
    weight_decay_end: float = option(0.2, 'at the end', 'optimisation', ('wde',))
    clip_grad: float = option(5.0, 'largest norm of the whole gradient; inf for no clipping', 'optimisation', ('clip',),
                              harmless=True)

    recompute: str = option('none', 'what is not kept for the backward pass, but computed again: less memory, more time',
                            'machine', ('checkpoint',), choices=('none', 'decoder', 'all'), harmless=True)

    val_every: int = option(10, 'epochs between held-out losses', 'log', harmless=True)
    picture_every: int = option(10, 'epochs between pictures of 8 reconstructions; 0 for none', 'log', harmless=True)

    def __post_init__(self):
        super().__post_init__()
        require(not (self.fresh and self.resume), '--fresh starts over and --resume goes on: give one of them')
        require(self.list_root is None or any(path and not os.path.isdir(path) for path in (self.data_path, self.val_path)),
                '--list_root is for lists of images: give one as --data_path or --val_path')
        require(self.recompute == 'none' or not self.compile, '--compile decides by itself what is computed again: leave out '
                '--recompute, or --compile')
        for field in ('val_every', 'decoder_width'):
            require(getattr(self, field) >= 1, f'{field} must be 1 or more, not {getattr(self, field)}')
        require(self.picture_every >= 0, f'picture_every must be 0 or more, not {self.picture_every}')
        require(0 < self.mask_ratio < 1, f'mask_ratio must lie between 0 and 1, not {self.mask_ratio}')
        require(self.clip_grad > 0, f'clip_grad must be more than 0, not {self.clip_grad}; inf means no clipping')
        require(self.drop_path is None or 0 <= self.drop_path < 1, f'drop_path must be 0 or more and less than 1, '
                f'not {self.drop_path}')
        require(self.beta2 is None or 0 <= self.beta2 < 1, f'beta2 must be 0 or more and less than 1, not {self.beta2}')
        require(self.cell_size is None or self.cell_size > 0, f'cell_size must be more than 0, not {self.cell_size}')
        require(self.weight_decay >= 0 and self.weight_decay_end >= 0, 'weight_decay must be 0 or more')

    @property
    def warmup(self):
        """Epochs of warm-up."""
        return min(40.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def network(self):
        """The arguments of `build_spark`."""
        names = ('model', 'input_size', 'mask_ratio', 'drop_path', 'cell_size', 'in_chans', 'decoder_width',
                 'decoder', 'target')
        return {**{name: getattr(self, name) for name in names}, 'levels': self.levels and self.levels.split(',')}


def recipe(given):
    """What the paper uses for a model, as options."""
    model = given.get('model', 'resnet50').split('.')[0]  # without the tag of pretrained weights
    return {'drop_path': DROP_PATH[model]} if model in DROP_PATH else {}


def recommended(**given):
    """Options from Python as the command line would have them: with the recipe of the model under what is given."""
    return Options(**{**recipe(given), **given})


def parse_options(argv=None):
    return parse(Options, 'pretrain.main', 'SparK: masked pretraining of any convolutional network.', argv, recipe)
