"""The options of a pretraining run with A2MIM, and the recipes of its authors by model. Nothing here needs torch.

The defaults are the recipe of ResNet-50. `recipe` has what other networks get, and the recipe of SimMIM.
Numbers of images and epochs, and the learning rate, are in pretrain/a2mim_recipe.py.
"""
import re
from dataclasses import dataclass

from common.cli import numbers, option
from common.config import recipe_option, require
from pretrain.config import PretrainingOptions
from pretrain.group_sizes import reason_against

NAME = 'a2mim'  # the value of --method
TITLE = 'A2MIM: masked pretraining of any network, dense, with a loss on spectra.'  # for --help
SIMMIM = 'simmim'  # a value of --recipe

# What the released recipes have that differs from ResNet-50's (arXiv 2205.13943; the authors' code).
RESNETS = {'resnet101': {'fourier': 'spectral', 'fourier_weight': 0.1}, 'resnet152': {'fourier': 'none'},
           'resnet200': {'fourier': 'none'}}
CONVNEXT = {'fourier': 'none'}
VIT = {'token': 'residual', 'spatial_loss': 'l1', 'fourier_weight': 0.1, 'fourier_visible': 0.0,
       'crop_scale': (0.67, 1.0), 'clip_grad': 5.0, 'token_lr_scale': 1.0, 'lr_schedule': 'drop'}
DEIT = {**VIT, 'lr_schedule': 'cosine'}
# SimMIM as A2MIM's authors ran it, for comparison: nothing but hidden pixels, by L1, and a token at the first layers.
SIMMIMS = {'token': 'replace', 'image_fill': 'none', 'spatial_loss': 'l1', 'fourier': 'none'}
SIMMIMS_TOKEN_AT = {'resnet': 'maxpool', 'convnext': 'stem', 'vit': 'patch_embed', 'deit': 'patch_embed',
                    'swin': 'patch_embed'}


@dataclass(frozen=True)
class A2MIMOptions(PretrainingOptions):
    """What a user decides of a pretraining run with A2MIM. Raises ValueError.

    Defaults are those of ResNet-50. Help texts say what other networks get, by the family that their name tells.
    """

    crop_scale: tuple = option((0.8, 1.0), 'area of the random crop, from,to; 0.67,1 for ViTs if not given',
                               'data', parse=numbers)
    model: str = option('resnet50', 'a network by its timm name, or your own in pretrain/models', 'method',
                        parse=str)
    interpolation: str = option('bilinear', 'filter by which crops are resized', 'data',
                                choices=('bicubic', 'bilinear'))

    method: str = option(NAME, 'how the network is pretrained; --method=NAME --help shows the options of '
                         'another method', 'method', parse=str)
    drop_path: float = option(None, 'stochastic depth; none if not given', 'method', ('dp',), float)
    mask_ratio: float = option(0.6, 'share of hidden cells', 'method', ('mask',))
    cell_size: int = option(None, "side of a cell in pixels; if not given the smallest multiple of the network's "
                            'total stride that is 32 or more', 'method', parse=int)
    token_at: str = option(None, 'submodule whose output gets the token at hidden positions; if not given '
                           'the patch embedding of a ViT, the layers in front of the last stage of a ConvNeXt, and '
                           'else a submodule of half the total stride that nothing leads around', 'method',
                           parse=str)
    token: str = option('gain', 'how the token comes in at hidden positions: beside features multiplied by a '
                        'learned gain, added to features (residual; ViTs if not given), or in their place '
                        '(replace)', 'method', choices=('gain', 'residual', 'replace'))
    image_fill: str = option('mean', 'what hidden pixels are overwritten with: the mean of each channel of '
                             'the image, or none: they are not', 'method', choices=('mean', 'none'))
    spatial_loss: str = option('focal_l1', 'error of a hidden pixel; l1 for ViTs if not given', 'method',
                               choices=('focal_l1', 'l1', 'mse'))
    fourier: str = option('focal', 'loss on spectra: of mean residuals over a group of images (focal), of '
                          'each image (spectral; ResNet-101 if not given), or none (ResNet-152, ResNet-200 '
                          'and ConvNeXts if not given)', 'method', choices=('focal', 'spectral', 'none'))
    fourier_weight: float = option(0.5, 'of the loss on spectra; 0.1 for ResNet-101 and ViTs if not given',
                                   'method')
    fourier_visible: float = option(1e-3, 'share of the reconstruction in the visible pixels of which '
                                    'spectra are made; 0 for ViTs if not given', 'method')
    fourier_fill: str = option('mixed', 'what the rest of these pixels are: half reconstruction and half '
                               'image (mixed), image (target), reconstruction (prediction), or the mean of '
                               'each channel', 'method', choices=('mixed', 'target', 'prediction', 'mean'))
    fourier_group: int = option(None, 'images over which the focal loss averages; a part of the objective. '
                                'If not given 256 (128 for ViT-B and larger), or the largest number below '
                                'that fits the batch', 'method', parse=int)

    recipe: str = recipe_option(simmim='SimMIM, whose batch_size, epochs and learning rate are chosen as if '
                                'recipe was not given')
    warmup_epochs: float = option(None, '10 if not given, or a tenth of the epochs where those are fewer '
                                  'than 100', 'optimisation', ('wp_ep',), float)
    opt: str = option('adamw', 'optimiser', 'optimisation', choices=('lamb', 'adamw', 'sgd'))
    beta2: float = option(0.999, 'of the optimiser', 'optimisation', ('ada',))
    lr_schedule: str = option('cosine', 'after the warm-up: a cosine that ends at 1e-5, or the peak and a '
                              'tenth of it for the last eighth of the epochs (drop; ViTs, but not DeiTs, if not given)',
                              'optimisation', choices=('cosine', 'drop'))
    token_lr_scale: float = option(0.1, "learning rate of token and gain, as a share of the others'; 1 for "
                                   'ViTs if not given', 'optimisation')
    weight_decay: float = option(0.05, 'at the start', 'optimisation', ('wd',))
    weight_decay_end: float = option(None, 'at the end; weight_decay if not given', 'optimisation', ('wde',),
                                     float)
    clip_grad: float = option(float('inf'), 'largest norm of the whole gradient; inf for no clipping; 5 for '
                              'ViTs if not given', 'optimisation', ('clip',), may_change=True)

    recompute: str = option('none', 'what is not kept for the backward pass, but computed again: less '
                            'memory, more time', 'machine', ('checkpoint',), choices=('none', 'all'),
                            may_change=True)

    published_warmup = 10.0

    def __post_init__(self):
        super().__post_init__()
        require(self.method == NAME, f'these are options of {NAME}, not of {self.method}')
        require(0 < self.mask_ratio < 1, f'mask_ratio must lie between 0 and 1, not {self.mask_ratio}')
        require(self.cell_size is None or self.cell_size > 0,
                f'cell_size must be more than 0, not {self.cell_size}')
        require(0 < self.fourier_weight < float('inf'),
                f'fourier_weight must be more than 0, not {self.fourier_weight}; --fourier=none leaves the loss '
                'on spectra out')
        require(0 <= self.fourier_visible <= 1,
                f'fourier_visible must lie between 0 and 1, not {self.fourier_visible}')
        require(0 <= self.beta2 < 1, f'beta2 must be 0 or more and less than 1, not {self.beta2}')
        require(0 < self.token_lr_scale <= 1,
                f'token_lr_scale must be more than 0 and at most 1, not {self.token_lr_scale}')
        if self.fourier_group is not None:
            self.check_group()

    def check_group(self):
        """Raise a ValueError if the group that was given fits no number of ranks."""
        require(self.fourier_group >= 1, f'fourier_group must be 1 or more, not {self.fourier_group}')
        require(self.fourier == 'focal',
                f'--fourier_group is for --fourier=focal, and it is {self.fourier} here, given or by the recipe '
                f'for {self.model}: leave it out, or give --fourier=focal')
        parts = self.accum if isinstance(self.accum, int) else 1
        if self.batch_size is not None and self.batch_size % parts == 0:
            # What fits on several ranks fits on one, too.
            why_not = reason_against(self.fourier_group, self.batch_size, 1, parts)
            require(why_not is None, why_not)

    @property
    def network(self):
        """The arguments of `build_a2mim`; a run makes the groups of images itself, for all ranks."""
        names = ('model', 'input_size', 'mask_ratio', 'drop_path', 'cell_size', 'in_chans', 'token_at', 'token',
                 'image_fill', 'spatial_loss', 'fourier', 'fourier_weight', 'fourier_visible', 'fourier_fill')
        return {name: getattr(self, name) for name in names}

    def reason_against_parts(self, ranks, parts, goes_on=False):
        if self.fourier_group is None:
            return None
        return reason_against(self.fourier_group, self.batch_size, ranks, parts, goes_on)

    def against_memory(self, goes_on):
        """What to give where a part that holds whole groups does not fit in memory, as the object of "give"."""
        ways = '--recompute=all, or start more processes'
        return ways if goes_on else f'a smaller --fourier_group, which is another objective, a smaller --input_size, {ways}'


def family(model):
    """'resnet', 'convnext', 'deit', 'vit' or 'swin' by timm's name of a network; None for others."""
    name = model.split('.')[0]  # without the tag of pretrained weights
    patterns = {'resnet': r'resnext\d|(wide_)?resnet\d', 'convnext': 'convnext', 'deit': 'deit',
                'vit': 'vit_|beit', 'swin': 'swin'}
    return next((known for known, pattern in patterns.items() if re.match(pattern, name)), None)


def models_recipe(model):
    """What the authors of A2MIM use for the family of a network, where it is not ResNet-50's; {} for other families."""
    by_family = {'convnext': CONVNEXT, 'deit': DEIT, 'vit': VIT}
    return RESNETS.get(model.split('.')[0], by_family.get(family(model), {}))


def recipe(given):
    """What the authors of A2MIM use for the options that are given, as a dictionary of options.

    Raises ValueError where the recipe does not know the first layers of a network.
    """
    model = given.get('model', 'resnet50')
    if given.get('recipe') != SIMMIM:
        return dict(models_recipe(model))
    place = SIMMIMS_TOKEN_AT.get(family(model))
    require(place or given.get('token_at'),
            f'--recipe={SIMMIM} puts the token at the first layers, and which those of {model} are is not known '
            'here: give the name of a submodule as --token_at')
    return {**models_recipe(model), **SIMMIMS, 'token_at': place}
