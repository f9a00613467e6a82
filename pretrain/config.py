"""The options of a pretraining run with any method."""
import os
from dataclasses import dataclass

from common.cli import option
from common.config import EpochOptions, require
from common.networks.users import USERS_NETWORKS
from common.paths import require_images, require_weights


@dataclass(frozen=True)
class PretrainingOptions(EpochOptions):
    """What a user decides of a pretraining run, whatever the method. A method adds its own. Raises ValueError."""

    resume: str = option(None, 'go on from this <model>_still_pretraining.pth; the one in the run folder if '
                         'not given', 'run', ('resume_from',), str, may_change=True)
    init: str = option(None, "start from weights: our files, official ones, others, or 'timm' for timm's "
                       "own; FILE:KEY for one of several networks in a file", 'run', ('init_weight',), str,
                       may_change=True)

    data_path: str = option(None, 'folder of images, flat or nested (its train/ if there is one), or of tar '
                            'shards of images; one such tar; or a text file with one path a line', 'data',
                            parse=str, may_change=True)
    val_path: str = option(None, 'held-out images; val/, valid/ or validation/ beside train/ if not given '
                           'and there is one', 'data', parse=str, may_change=True)
    list_root: str = option(None, 'folder that the paths of a list of images are relative to, and must lie '
                            'in; that of the list if not given', 'data', parse=str, may_change=True)
    decode: str = option('pillow', 'how JPEGs are decoded; fast: no larger than their crops need, and '
                         'resized faster; gpu (experimental): on the GPU, by nvJPEG. With both of these '
                         'pixels differ a little', 'data', choices=('pillow', 'fast', 'gpu'),
                         replaces={'fast_decode': {True: 'fast', False: 'pillow'}})

    interpolation: str = option('bicubic', 'filter by which crops are resized', 'data', choices=('bicubic', 'bilinear'))

    method: str = option('spark', 'how the network is pretrained: spark, a2mim, mae or convmae; --method=NAME --help '
                         'shows the options of another method', 'method', parse=str)
    register: str = option(USERS_NETWORKS, 'module in which your own networks are registered with timm',
                           'method', parse=str, may_change=True)
    drop_path: float = option(None, "stochastic depth; the model's recipe if not given, else none", 'method',
                              ('dp',), float)

    warmup_epochs: float = option(None, '40 if not given, or a tenth of the epochs where those are fewer '
                                  'than 400', 'optimisation', ('wp_ep',), float)
    opt: str = option('lamb', 'optimiser', 'optimisation', choices=('lamb', 'adamw', 'sgd'))
    weight_decay: float = option(0.04, 'at the start', 'optimisation', ('wd',))
    weight_decay_end: float = option(0.2, 'at the end', 'optimisation', ('wde',))
    clip_grad: float = option(5.0, 'largest norm of the whole gradient; inf for no clipping', 'optimisation',
                              ('clip',), may_change=True)

    val_every: int = option(10, 'epochs between held-out losses', 'log', may_change=True)
    picture_every: int = option(10, 'epochs between pictures of 8 reconstructions; 0 for none', 'log',
                                may_change=True)

    def __post_init__(self):
        super().__post_init__()
        require(not (self.fresh and self.resume), '--fresh starts over and --resume goes on: give one of '
                                                  'them')
        require(self.list_root is None or any(path and not os.path.isdir(path) for path in (self.data_path, self.val_path)),
                '--list_root is for lists of images: give one as --data_path or --val_path')
        require(self.val_every >= 1, f'val_every must be 1 or more, not {self.val_every}')
        require(self.picture_every >= 0, f'picture_every must be 0 or more, not {self.picture_every}')
        require(self.clip_grad > 0, f'clip_grad must be more than 0, not {self.clip_grad}; inf means no '
                                    'clipping')
        require(self.drop_path is None or 0 <= self.drop_path < 1,
                f'drop_path must be 0 or more and less than 1, not {self.drop_path}')
        require(self.weight_decay >= 0 and self.last_weight_decay >= 0, 'weight_decay must be 0 or more')

    def require_paths(self):
        super().require_paths()
        if self.dataset is None:
            if self.data_path is None:
                raise ValueError('say where the images are: --data_path=DIR')
            require_images(self.data_path)
        if self.val_path is not None:
            require_images(self.val_path)
        if self.begins:
            require_weights(self.init)

    published_warmup = 40.0  # epochs, of the method's paper
    epochs_per_warmup = 10  # a warm-up that is not given is at most one of so many equal parts of the epochs

    @property
    def warmup(self):
        """Epochs of warm-up."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return min(self.published_warmup, self.epochs / self.epochs_per_warmup)

    @property
    def last_weight_decay(self):
        """The weight decay at the end."""
        return self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
