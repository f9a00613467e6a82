"""The options of a fine-tuning run, and its recipes: those of the paper, and for other networks that of a
similar one.
"""
from dataclasses import dataclass

from common.about import About
from common.cli import numbers, option, parse
from common.config import RunOptions, require
from common.networks.users import USERS_NETWORKS, register
from common.paths import require_file, require_weights
from downstream_imagenet.layout import training_folder

CONVNEXT = {'batch_size': 4096, 'epochs': 400, 'warmup_epochs': 20.0, 'opt': 'adamw', 'base_lr': 2e-4,
            'layer_decay': 0.7, 'weight_decay': 0.01, 'mixup': 0.8, 'repeats': 3, 'drop_path': 0.3,
            'ema': 0.9999}
RESNET = {'batch_size': 2048, 'epochs': 300, 'warmup_epochs': 5.0, 'opt': 'lamb', 'base_lr': 2e-3,
          'layer_decay': 0.7, 'weight_decay': 0.02, 'mixup': 0.1, 'repeats': 0, 'drop_path': 0.05,
          'ema': 0.9999}
DEEPER_RESNET = {**RESNET, 'base_lr': 1e-3, 'layer_decay': 0.8, 'drop_path': 0.2}
RECIPES = {
    'convnext_small': CONVNEXT,
    'convnext_base': {**CONVNEXT, 'base_lr': 1e-4, 'drop_path': 0.4},
    'convnext_large': {**CONVNEXT, 'base_lr': 1e-4, 'drop_path': 0.5, 'epochs': 200, 'warmup_epochs': 10.0,
                       'weight_decay': 0.02},
    'convnext_large at 384 px': {**CONVNEXT, 'base_lr': 6e-5, 'drop_path': 0.5, 'epochs': 200,
                                 'batch_size': 1024, 'ema': 0.99995},
    'resnet50': RESNET,
    'resnet101': DEEPER_RESNET,
    'resnet152': DEEPER_RESNET,
    'resnet200': DEEPER_RESNET,
}

# What is chosen when the number of images is known (downstream_imagenet/recipe.py).
CHOSEN = ('recipe', 'batch_size', 'epochs', 'warmup_epochs', 'base_lr', 'lr', 'ema', 'accum')


def clip(text):
    """'-1' -> inf: the official way of saying that nothing is clipped."""
    value = float(text)
    return float('inf') if value < 0 else value


@dataclass(frozen=True)
class Options(RunOptions):
    """What a user decides, besides what every program has. Raises ValueError."""

    resume: str = option(None, 'go on from this <model>_1kfinetuned_last.pth; the one in the run folder if '
                         'not given. A file of weights is taken as --finetune_from', 'run', ('resume_from',),
                         str, harmless=True)
    finetune_from: str = option(None, "weights to start from: ours, official, timm's or torchvision's files, "
                                "or 'timm' for timm's own; random if not given", 'run', ('weights',), str,
                                harmless=True)
    eval: str = option(None, 'measure the accuracy of this file on the validation images, and stop', 'run',
                       parse=str, harmless=True)

    data_path: str = option(None, "a folder in ImageNet's layout: train/ and val/ with a folder a class; with "
                            '--val_fraction one folder with a folder a class is enough', 'data', parse=str, harmless=True)
    val_path: str = option(None, 'validation images; val/, valid/ or validation/ in data_path if not given',
                           'data', parse=str, harmless=True)
    num_classes: int = option(None, 'counted if not given', 'data', parse=int)
    label_fraction: float = option(1.0, 'share of the training images of each class that are used', 'data')
    crop_scale: tuple = option((0.08, 1.0), 'area of the random crop, from,to', 'data', parse=numbers)
    crop: float = option(None, 'share of an image in the evaluation crop; 0.95 if not given, from 384 px on '
                         'all, resized to the square', 'data', parse=float)
    augment: str = option(None, 'trivial (TrivialAugmentWide), v0 (AutoAugment) or none; trivial if not '
                          'given, v0 from 384 px on, none for images of other than 1 or 3 channels', 'data',
                          parse=str, choices=('trivial', 'v0', 'none'))
    erase: float = option(0.25, 'share of images of which a rectangle is erased', 'data')
    repeats: int = option(0, 'times an image is augmented for a batch; an epoch then sees 1 / repeats of the '
                          'images', 'data', ('rep_aug',))

    register: str = option(USERS_NETWORKS, 'module in which your own networks are registered with timm',
                           'method', parse=str, harmless=True)
    drop_path: float = option(None, "stochastic depth; the recipe's if not given, none where the network has "
                              "none", 'method', ('dp',), float)
    freeze: bool = option(False, 'train a linear classifier on frozen features (linear probing)', 'method')
    mixup: float = option(0.1, 'alpha of mixup; 0 for none', 'method')
    cutmix: float = option(1.0, 'alpha of CutMix; 0 for none. With both, each batch gets one of them',
                           'method')
    smoothing: float = option(0.1, 'of the labels', 'method')
    loss: str = option(None, 'bce (binary cross-entropy) or ce (soft-target cross-entropy); bce for LAMB if '
                       'not given, else ce', 'method', parse=str, choices=('bce', 'ce'))
    ema: float = option(None, 'decay of the average of the weights; 0 for none; by --recipe if not given',
                        'method', parse=float)

    warmup_epochs: float = option(None, "epochs of rising learning rate; the paper's, and at most a tenth of "
                                  'all, if not given', 'optimisation', ('wp_ep',), float)
    opt: str = option('lamb', 'optimiser', 'optimisation', choices=('lamb', 'adamw', 'sgd', 'lars'))
    layer_decay: float = option(None, "a layer's learning rate as a share of the next one's; the recipe's if "
                                "not given, for other networks 0.7, or more such that the stem of a deep one "
                                "has a ResNet-50's share", 'optimisation', ('lr_scale',), float)
    weight_decay: float = option(0.02, 'constant', 'optimisation', ('wd',))
    clip_grad: float = option(None, 'largest norm of the whole gradient; inf (or -1) for no clipping; 1 for '
                              'LAMB if not given, else no clipping', 'optimisation', ('clip',), clip,
                              harmless=True)
    official_lamb: bool = option(False, "LAMB as the original had it: no clipping, no bias correction, every "
                                 "parameter's step scaled by its norm. It explodes for some", 'optimisation')
    sync_bn: bool = option(False, 'share BatchNorm statistics between ranks', 'optimisation', ('sbn',))

    val_every: int = option(1, 'epochs between evaluations', 'log', harmless=True)

    def __post_init__(self):
        super().__post_init__()
        require(self.val_every >= 1, f'val_every must be 1 or more, not {self.val_every}')
        for field in ('mixup', 'cutmix', 'weight_decay', 'repeats'):
            require(getattr(self, field) >= 0, f'{field} must be 0 or more, not {getattr(self, field)}')
        for field in ('smoothing', 'ema', 'erase', 'drop_path'):
            value = getattr(self, field)
            require(value is None or 0 <= value < 1 or field == 'erase' and value == 1,
                    f'{field} must be 0 or more and less than 1, not {value}')
        for field in ('label_fraction', 'layer_decay', 'crop'):
            value = getattr(self, field)
            require(value is None or 0 < value <= 1,
                    f'{field} must be more than 0 and at most 1, not {value}')
        require(self.clip_grad is None or self.clip_grad > 0,
                f'clip_grad must be more than 0, not {self.clip_grad}; inf or -1 means no clipping')
        require(self.num_classes is None or self.num_classes > 1,
                f'num_classes must be 2 or more, not {self.num_classes}')
        require(not self.official_lamb or self.opt == 'lamb', '--official_lamb is for --opt=lamb')

    def require_paths(self):
        super().require_paths()
        if self.eval is not None:
            require_file(self.eval)
            return
        if self.dataset is None:
            training_folder(self.data_path, self.val_path, self.val_fraction is not None)
        if self.begins:
            require_weights(self.finetune_from)

    @property
    def needs_folder(self):
        return self.eval is None

    @property
    def warmup(self):
        return self.warmup_epochs

    @property
    def clipping(self):
        default = 1.0 if self.opt == 'lamb' and not self.official_lamb else float('inf')
        return default if self.clip_grad is None else self.clip_grad

    @property
    def loss_name(self):
        return self.loss or ('bce' if self.opt == 'lamb' else 'ce')

    @property
    def is_large(self):
        return min(self.size) >= 384

    @property
    def augmentation(self):
        if self.augment:
            return self.augment
        if self.in_chans not in (1, 3):
            return 'none'
        return 'v0' if self.is_large else 'trivial'


def papers_recipe(model, input_size=224):
    """The name of the paper's recipe for a model; None if there is none. input_size: in pixels, or (height,
    width).
    """
    name = model.split('.')[0]  # timm's tag of pretrained weights is cut off.
    shorter_side = min(input_size) if isinstance(input_size, tuple) else input_size
    if name == 'convnext_large' and shorter_side >= 384:
        name = 'convnext_large at 384 px'
    return name if name in RECIPES else None


def relatives_recipe(cnn):
    """The name of the recipe for any other network: ResNet-50's if most of its norms are BatchNorms, else
    ConvNeXt-S's.
    """
    from torch import nn  # here, so that options are checked without it
    norm_types = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    is_batchnorm = [isinstance(module, nn.modules.batchnorm._BatchNorm) for module in cnn.modules()
                    if isinstance(module, norm_types)]
    return 'resnet50' if sum(is_batchnorm) > len(is_batchnorm) / 2 else 'convnext_small'


def recipe_of(model, input_size=224):
    """(the name of the recipe for a model, its options). Raises ValueError for a name that timm does not
    know.

    A network that is not the paper's is made, to look at it; only this loads torch.
    """
    name = papers_recipe(model, input_size)
    if name:
        return name, RECIPES[name]
    from common.networks.create import create_cnn
    has_drop_path = True
    try:
        # The network is made on the CPU, since some versions of timm cannot make every network on the meta
        # device.
        cnn = create_cnn(model, drop_path=0.1)
    except ValueError:
        has_drop_path = False
        cnn = create_cnn(model)
    name = relatives_recipe(cnn)
    drop_path = {'resnet50': 0.05, 'convnext_small': 0.1}[name] if has_drop_path else None
    return name, {**RECIPES[name], 'layer_decay': None, 'drop_path': drop_path}


def recipe(given):
    """The options of a model's recipe as a dict, to be overridden by those in the dict `given`.

    Those that depend on the images too are left to `settled` (downstream_imagenet/recipe.py).
    """
    register(given.get('register', USERS_NETWORKS))
    _, options = recipe_of(given.get('model', 'resnet50'), given.get('input_size', 224))
    return {name: value for name, value in options.items() if name not in CHOSEN}


def recommended(**given):
    """The Options that the command line would make of the given ones: all others are those of the model's
    recipe.
    """
    return Options(**{**recipe(given), **given})


ABOUT = About(
    'Fine-tune a CNN on images with labels.',
    (('bash downstream_imagenet/main.sh my_tune --data_path=DIR --model=resnet50 --finetune_from=FILE',
      'fine-tune pretrained weights on the classes of a folder; the same command again goes on where it stopped'),
     ('bash downstream_imagenet/main.sh my_tune --data_path=DIR --model=resnet50 --eval=FILE',
      'measure the accuracy of a file on the validation images')),
    ('name', 'data_path', 'model', 'finetune_from', 'eval', 'input_size', 'val_fraction', 'batch_size', 'epochs', 'lr'))


def parse_options(argv=None):
    return parse(Options, 'downstream_imagenet.main', ABOUT, argv, recipe)


def check_options(argv=None):
    """Exit as `parse_options` does if the options of a command line are wrong, without loading torch.

    Returns Options without the recipe of the model.
    """
    return parse(Options, 'downstream_imagenet.main', ABOUT, argv)
