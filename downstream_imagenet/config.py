"""The options of a fine-tuning run. The recipes that set them are in published.py and recipe.py."""
import re
from dataclasses import dataclass

from common.about import About
from common.cli import numbers, option, parse
from common.config import EpochOptions, recipe_option, require, size
from common.networks.users import USERS_NETWORKS, register
from common.paths import require_file, require_weights
from downstream_imagenet.layout import training_source, validation_source
from downstream_imagenet.published import MAES, NAMED, NAMES, PROBES, is_large, named_recipe, recipe_of

# What is chosen when the number of images is known (downstream_imagenet/recipe.py).
CHOSEN = ('recipe', 'batch_size', 'epochs', 'warmup_epochs', 'base_lr', 'lr', 'lr_steps', 'ema', 'accum')

AUGMENTATIONS = 'trivial', 'v0', 'none'
RAND_AUGMENT = re.compile(r'rand(-(m\d+|n[1-9]\d*|p(0?\.\d+|1)|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]))+')  # timm's notation


def clip(text):
    """'-1' -> inf: the official way of saying that nothing is clipped."""
    value = float(text)
    return float('inf') if value < 0 else value


@dataclass(frozen=True)
class Options(EpochOptions):
    """What a user decides, besides what every program has. Raises ValueError."""

    resume: str = option(None, 'go on from this <model>_1kfinetuned_last.pth; the one in the run folder if '
                         'not given. A file of weights is taken as --finetune_from', 'run', ('resume_from',),
                         str, may_change=True)
    finetune_from: str = option(None, "weights to start from: ours, official, timm's or torchvision's files, "
                                "or 'timm' for timm's own; random if not given", 'run', ('weights',), str,
                                may_change=True)
    eval: str = option(None, 'measure the accuracy of this file on the validation images, and stop', 'run',
                       parse=str, may_change=True)

    data_path: str = option(None, "a folder in ImageNet's layout: train/ and val/ with a folder a class, or with "
                            'tars that have a folder a class inside; with --val_fraction one such folder is '
                            'enough', 'data', parse=str, may_change=True)
    val_path: str = option(None, 'folder or tar of validation images; val/, valid/ or validation/ in data_path '
                           'if not given', 'data', parse=str, may_change=True)
    num_classes: int = option(None, 'counted if not given', 'data', parse=int)
    label_fraction: float = option(1.0, 'share of the training images of each class that are used', 'data')
    crop_scale: tuple = option((0.08, 1.0), 'area of the random crop, from,to', 'data', parse=numbers)
    crop_retries: bool = option(True, 'a random crop that does not lie in the image is drawn again, up to ten times; else it '
                                'is cut to the image (MAE, in its linear probe)', 'data')
    test_size: int | tuple = option(None, 'side of a validation image in pixels, or height,width, as --eval and predict '
                                    'take it too; input_size if not given', 'data', parse=size)
    crop: float = option(None, 'share of an image in the evaluation crop; 0.95 if not given, from 384 px on '
                         'all, resized to the square', 'data', ('crop_pct',), float)
    augment: str = option(None, 'trivial (TrivialAugmentWide), v0 (AutoAugment), none, or a RandAugment as timm writes it, '
                          'such as rand-m7-n2-mstd0.5-inc1; trivial if not given, v0 from 384 px on, none for images of '
                          'other than 1 or 3 channels', 'data', parse=str)
    erase: float = option(0.25, 'share of images of which a rectangle is erased', 'data')
    repeats: int = option(0, 'times an image is augmented for a batch; an epoch then sees 1 / repeats of the '
                          'images', 'data', ('rep_aug',))

    register: str = option(USERS_NETWORKS, 'module in which your own networks are registered with timm',
                           'method', parse=str, may_change=True)
    drop_path: float = option(None, "stochastic depth; the recipe's if not given, none where the network has "
                              "none", 'method', ('dp',), float)
    freeze: bool = option(False, 'train a linear classifier on frozen features (linear probing)', 'method')
    probe_norm: bool = option(True, 'of a linear probe: BatchNorm without parameters in front of the classifier (MAE)',
                              'method')
    head_std: float = option(None, "standard deviation of the classifier's weights at the start; the network's own if not "
                             'given', 'method', parse=float)
    mixup: float = option(0.1, 'alpha of mixup; 0 for none', 'method')
    cutmix: float = option(1.0, 'alpha of CutMix; 0 for none. With both, each batch gets one of them',
                           'method')
    smoothing: float = option(0.1, 'label smoothing', 'method')
    loss: str = option(None, 'bce (binary cross-entropy, its mean over the classes), bce_sum (its sum over them) or ce '
                       '(soft-target cross-entropy); bce for LAMB if not given, else ce', 'method', parse=str,
                       choices=('bce', 'bce_sum', 'ce'))
    ema: float = option(None, 'decay of the average of the weights; 0 for none; by --recipe if not given',
                        'method', parse=float)
    ema_warmup: float = option(0.0, 'epochs in which that decay rises to its value, from 0.9 of it', 'method')

    recipe: str = recipe_option(**NAMES)
    warmup_epochs: float = option(None, "epochs of rising learning rate; the paper's, and at most a tenth of "
                                  'all, if not given', 'optimisation', ('wp_ep',), float)
    lr_schedule: str = option('cosine', 'cosine: from 0.005 of the peak, down to final_lr at the last step. mae, as in the '
                              'program of MAE: from 0, down to final_lr one step after the last. With layer_decay the end is '
                              "multiplied by a layer's share, as the rate is", 'optimisation', choices=('cosine', 'mae'))
    final_lr: float = option(None, 'learning rate at the end of the cosine; 0.001 of the peak if not given, 0 with '
                             '--lr_schedule=mae', 'optimisation', parse=float)
    lr_by_epoch: bool = option(False, 'the cosine falls between epochs only, not at each step', 'optimisation')
    lr_steps: tuple = option(None, 'epochs after which the learning rate falls to a tenth, such as 60,80, instead of along '
                             'a cosine', 'optimisation', parse=numbers)
    opt: str = option('lamb', 'optimiser', 'optimisation', choices=('lamb', 'adamw', 'sgd', 'lars'))
    layer_decay: float = option(None, "a layer's learning rate as a share of the next one's; the recipe's if "
                                "not given, for other networks 0.7, or more such that the stem of a deep one "
                                "has a ResNet-50's share", 'optimisation', ('lr_scale',), float)
    weight_decay: float = option(0.02, 'constant', 'optimisation', ('wd',))
    clip_grad: float = option(None, 'largest norm of the whole gradient; inf (or -1) for no clipping; 1 for '
                              'LAMB if not given, else no clipping', 'optimisation', ('clip',), clip,
                              may_change=True)
    official_lamb: bool = option(False, "LAMB as the original had it: no clipping, no bias correction, every "
                                 "parameter's step scaled by its norm. It explodes for some", 'optimisation')
    sync_bn: bool = option(False, 'share BatchNorm statistics between ranks', 'optimisation', ('sbn',))

    val_every: int = option(1, 'epochs between evaluations', 'log', may_change=True)

    def __post_init__(self):
        super().__post_init__()
        require(self.val_every >= 1, f'val_every must be 1 or more, not {self.val_every}')
        for field in ('mixup', 'cutmix', 'weight_decay', 'repeats', 'ema_warmup'):
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
        require(self.augment in (None, *AUGMENTATIONS) or RAND_AUGMENT.fullmatch(self.augment) is not None,
                f'augment is {", ".join(AUGMENTATIONS)}, or a RandAugment as timm writes it, such as '
                f'rand-m7-n2-mstd0.5-inc1, not {self.augment}')
        sides = self.evaluated_size
        require(len(sides) == 2 and min(sides) > 0 and all(isinstance(side, int) for side in sides),
                f'test_size is a side or height,width, not {self.test_size}')
        for field in ('head_std', 'final_lr'):
            value = getattr(self, field)
            require(value is None or 0 < value < float('inf'), f'{field} must be more than 0, not {value}')
        require(not self.freeze or self.recipe not in NAMED or self.recipe in PROBES,
                f'--recipe={self.recipe} trains the whole network, and --freeze only a classifier on it: give '
                '--recipe=linear_probe or mae_probe, or leave --freeze out')
        require(self.lr_schedule == 'cosine' or not self.lr_by_epoch,
                '--lr_schedule=mae falls at each step: leave --lr_by_epoch out')
        self.check_lr_steps()

    def check_lr_steps(self):
        """Raise a ValueError if the learning rate cannot fall at these epochs."""
        steps = self.lr_steps
        if steps is None:
            return
        require(min(steps, default=0) > 0 and list(steps) == sorted(set(steps)),
                f'lr_steps are numbers of epochs in ascending order, such as 60,80, not {steps}')
        require(self.epochs is None or steps[-1] < self.epochs,
                f'lr_steps {steps} do not lie within {self.epochs} epochs: give others, or leave them out')
        require(self.final_lr is None and not self.lr_by_epoch and self.lr_schedule == 'cosine',
                '--lr_steps is instead of a cosine: leave --final_lr, --lr_by_epoch and --lr_schedule out')

    def require_paths(self):
        super().require_paths()
        if self.eval is not None:
            require_file(self.eval)
            return
        if self.dataset is None:
            training_source(self.data_path, self.val_path, self.val_fraction is not None)
            if self.val_fraction is None:
                validation_source(self.data_path, self.val_path)
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
    def evaluated_size(self):
        """(height, width) of a validation image, in pixels."""
        size = self.input_size if self.test_size is None else self.test_size
        return (size,) * 2 if isinstance(size, int) else size

    @property
    def is_large(self):
        return is_large(self.size)

    @property
    def augmentation(self):
        if self.augment:
            return self.augment
        if self.in_chans not in (1, 3):
            return 'none'
        return 'v0' if self.is_large else 'trivial'


def recipe(given):
    """The options of a model's recipe as a dict, to be overridden by those in the dict `given`.

    Those that depend on the images too are left to `settled` (downstream_imagenet/recipe.py). Raises ValueError.
    """
    register(given.get('register', USERS_NETWORKS))
    name, model = given.get('recipe'), given.get('model', 'resnet50')
    if name in NAMED:
        options = named_recipe(name, model)
        require(not options.get('freeze') or given.get('freeze', True),
                f'--recipe={name} is a linear probe, which needs --freeze: leave --no_freeze out, or give another recipe')
        if 'input_size' in given:
            options.pop('test_size', None)  # Validation images are as large as training images then.
    else:
        name, options = recipe_of(model, given.get('input_size', 224))
    if name in MAES and is_large(given.get('test_size') or given.get('input_size') or 224):
        options = {**options, 'crop': 1.0}  # The short side is as long as the crop then, as in MAE's evaluation.
    return {name: value for name, value in options.items() if name not in CHOSEN}


def recommended(**given):
    """The Options that the command line would make of the given ones: all others are those of the model's recipe."""
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
