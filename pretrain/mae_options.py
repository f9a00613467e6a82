"""The options of a pretraining run with MAE. Nothing here needs torch.

The defaults are the recipe of MAE's authors (arXiv 2111.06377). Numbers of images and epochs, and the learning
rate, are in pretrain/mae_recipe.py.
"""
from dataclasses import dataclass

from common.cli import numbers, option
from common.config import require
from pretrain.config import PretrainingOptions

NAME = 'mae'  # the value of --method
TITLE = 'MAE: masked autoencoding of vision transformers (experimental: not compared with the original).'  # for --help


@dataclass(frozen=True)
class MAEOptions(PretrainingOptions):
    """What a user decides of a pretraining run with MAE. Raises ValueError."""

    crop_scale: tuple = option((0.2, 1.0), 'area of the random crop, from,to', 'data', parse=numbers)
    model: str = option('vit_base_patch16_224', 'a vision transformer by its timm name, or your own in pretrain/models',
                        'method', parse=str)

    method: str = option(NAME, 'how the network is pretrained; --method=NAME --help shows the options of '
                         'another method', 'method', parse=str)
    drop_path: float = option(None, 'stochastic depth; none if not given', 'method', ('dp',), float)
    mask_ratio: float = option(0.75, 'share of hidden cells; 1 - 1/n if not given with --masks_per_image=n',
                               'method', ('mask',))
    masks_per_image: int = option(1, 'masks that each image of a step is used with (FastConvMAE has 4). A cell is '
                                  'visible in exactly one of them. An image is then read and augmented once, and costs '
                                  'the time and memory of so many images', 'method')
    target: str = option('normalised', "what is predicted of a hidden cell: its pixels, normalised by the "
                         "cell's own mean and deviation (the paper's norm_pix_loss), or pixels as the network takes "
                         'them, normalised with --mean and --std alone', 'method', choices=('normalised', 'pixels'))
    decoder_width: int = option(512, 'channels of the decoder', 'method')
    decoder_depth: int = option(8, 'transformer blocks of the decoder', 'method')
    decoder_heads: int = option(16, 'attention heads of the decoder', 'method')

    warmup_epochs: float = option(None, '40 if not given, or a tenth of the epochs where those are fewer than 400; '
                                  'with n masks an image 40/n, or a fifth of the epochs if that is less',
                                  'optimisation', ('wp_ep',), float)
    opt: str = option('adamw', 'optimiser', 'optimisation', choices=('lamb', 'adamw', 'sgd'))
    beta2: float = option(0.95, 'of the optimiser', 'optimisation', ('ada',))
    weight_decay: float = option(0.05, 'at the start', 'optimisation', ('wd',))
    weight_decay_end: float = option(None, 'at the end; weight_decay if not given', 'optimisation', ('wde',), float)
    clip_grad: float = option(float('inf'), 'largest norm of the whole gradient; inf for no clipping',
                              'optimisation', ('clip',), may_change=True)

    recompute: str = option('none', 'what is not kept for the backward pass, but computed again: less '
                            'memory, more time', 'machine', ('checkpoint',), choices=('none', 'decoder', 'all'),
                            may_change=True)

    own_method = NAME  # the value of --method that these options are for

    def __post_init__(self):
        super().__post_init__()
        require(self.method == self.own_method, f'these are options of {self.own_method}, not of {self.method}')
        require(0 < self.mask_ratio < 1, f'mask_ratio must lie between 0 and 1, not {self.mask_ratio}')
        require(0 <= self.beta2 < 1, f'beta2 must be 0 or more and less than 1, not {self.beta2}')
        for name in ('masks_per_image', 'decoder_width', 'decoder_depth', 'decoder_heads'):
            require(getattr(self, name) >= 1, f'{name} must be 1 or more, not {getattr(self, name)}')
        require(self.decoder_width % 4 == 0, f'decoder_width must be a multiple of 4, which the sines and cosines of '
                                             f'positions need, not {self.decoder_width}')
        require(self.decoder_width % self.decoder_heads == 0,
                f'decoder_width {self.decoder_width} must be a multiple of decoder_heads {self.decoder_heads}: give '
                'another of the two')
        self.check_masks()

    def check_masks(self):
        """Raise a ValueError if the masks of an image do not show each cell exactly once."""
        masks = self.masks_per_image
        shown_once = masks == 1 or abs(1 - 1 / masks - self.mask_ratio) <= 1e-6
        require(shown_once, f'--masks_per_image={masks} shows 1/{masks} of an image in each mask, so that each cell is '
                            f'visible once, and mask_ratio is {self.mask_ratio:g}: give --mask_ratio={1 - 1 / masks:g}, '
                            'or another --masks_per_image')

    @property
    def published_warmup(self):
        """Epochs of warm-up in the authors' runs; FastConvMAE, with four masks an image, has 10."""
        return round(40 / self.masks_per_image, 1)

    @property
    def epochs_per_warmup(self):
        """A tenth of the epochs is the most; with several masks an image a fifth, as in FastConvMAE's runs."""
        return 10 if self.masks_per_image == 1 else 5

    @property
    def network(self):
        """The arguments of the function that builds the network: `build_mae`, or another method's."""
        names = ('model', 'input_size', 'mask_ratio', 'drop_path', 'in_chans', 'decoder_width', 'decoder_depth',
                 'decoder_heads', 'masks_per_image')
        return {**{name: getattr(self, name) for name in names}, 'norm_pix': self.target == 'normalised'}


def recipe(given):
    """What the authors use for the options that are given, as a dictionary of options."""
    masks = given.get('masks_per_image', 1)
    return {'mask_ratio': round(1 - 1 / masks, 6)} if masks > 1 else {}
