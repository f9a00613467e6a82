"""The options of a pretraining run with A2MIM, and the authors' recipes. Nothing here needs torch."""
from dataclasses import dataclass

from common.cli import option
from common.config import require
from pretrain.config import PretrainingOptions

A2MIM = 'a2mim'  # the value of --method
TITLE = 'A2MIM: masked pretraining of any network, dense, with a loss on spectra.'  # for --help


@dataclass(frozen=True)
class A2MIMOptions(PretrainingOptions):
    """What a user decides of a pretraining run with A2MIM. Raises ValueError."""

    method: str = option(A2MIM, 'how the network is pretrained', 'method', parse=str)
    mask_ratio: float = option(0.6, 'share of hidden cells', 'method', ('mask',))
    cell_size: int = option(None, "side of a cell in pixels; if not given 32, or the network's total stride if that is "
                            'larger', 'method', parse=int)
    token_at: str = option(None, 'submodule behind which the token is added; found if not given', 'method', parse=str)
    token: str = option('gain', 'what becomes of the features of hidden positions, to which the token is added: they are '
                        'multiplied by a learned gain, stay (residual), or are left out (replace)', 'method',
                        choices=('gain', 'residual', 'replace'))
    image_fill: str = option('mean', "what hidden pixels become: their image's mean colour, or what they are (none)",
                             'method', choices=('mean', 'none'))
    spatial_loss: str = option('focal_l1', 'error of a hidden pixel', 'method', choices=('focal_l1', 'l1', 'mse'))
    fourier: str = option('focal', 'loss on spectra', 'method', choices=('focal', 'spectral', 'none'))
    fourier_weight: float = option(0.5, 'its weight', 'method')
    fourier_visible: float = option(1e-3, 'weight of visible pixels in what the spectra are of', 'method')
    fourier_fill: str = option('mixed', 'what stands for the rest of them: half prediction and half image, or one of both, '
                               "or the image's mean", 'method', choices=('mixed', 'target', 'prediction', 'mean'))
    fourier_group: int = option(None, 'images over which the focal loss averages spectra', 'method', parse=int)
    recompute: str = option('none', 'what is not kept for the backward pass, but computed again: less memory, more time',
                            'machine', ('checkpoint',), choices=('none', 'all'), harmless=True)

    def __post_init__(self):
        super().__post_init__()
        require(self.method == A2MIM, f'these are options of {A2MIM}, not of {self.method}')
        require(0 < self.mask_ratio < 1, f'mask_ratio must lie between 0 and 1, not {self.mask_ratio}')

    @property
    def network(self):
        """The arguments of `build_a2mim`."""
        names = ('model', 'input_size', 'mask_ratio', 'drop_path', 'cell_size', 'in_chans', 'token_at', 'token', 'image_fill',
                 'spatial_loss', 'fourier', 'fourier_weight', 'fourier_visible', 'fourier_fill', 'fourier_group')
        return {name: getattr(self, name) for name in names}


def recipe(given):
    """What the authors of A2MIM use for the options that are given, as a dictionary of options."""
    return {'opt': 'adamw', 'crop_scale': (0.8, 1.0), 'weight_decay': 0.05, 'weight_decay_end': 0.05, 'clip_grad': float('inf')}
