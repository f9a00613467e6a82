"""The options of a segmentation run. The recipes that set them are in published.py and recipe.py."""
from dataclasses import dataclass

from common.about import About
from common.cli import boolean, numbers, option, parse
from common.config import RunOptions, fill_in, require, size
from common.networks.users import USERS_NETWORKS
from common.paths import require_file, require_weights
from downstream_ade20k import published
from downstream_ade20k.layout import folders

# What options are if they are not given; with --eval, those of the file are taken instead (checkpoints.py).
NOT_GIVEN = {'ignore': (255,), 'input_size': 512, 'keep_size': False, 'test_scales': (1.0,), 'test_flip': False}


def whole_numbers(text):
    """'0,255' -> (0, 255)."""
    return numbers(text, int)


@dataclass(frozen=True)
class Options(RunOptions):
    """What a user decides, besides what every program has. Raises ValueError."""

    resume: str = option(None, 'go on from this <model>_ade20k_last.pth; the one in the run folder if not given', 'run',
                         ('resume_from',), str, may_change=True)
    finetune_from: str = option(None, "weights of the network to start from: ours, official, timm's or torchvision's "
                                "files, or 'timm' for timm's own; random if not given", 'run', ('weights',), str,
                                may_change=True)
    eval: str = option(None, 'measure the mIoU of this file on the validation images, and stop', 'run', parse=str,
                       may_change=True)

    data_path: str = option(None, "a folder in ADE20K's layout, or with images/train, images/val, annotations/train and "
                            'annotations/val, whose files have the same names', 'data', parse=str, may_change=True)
    train_images: str = option(None, 'folder of the training images, where the layout is another', 'data', parse=str,
                               may_change=True)
    train_masks: str = option(None, 'folder of their masks', 'data', parse=str, may_change=True)
    val_images: str = option(None, 'folder of the validation images', 'data', parse=str, may_change=True)
    val_masks: str = option(None, 'folder of their masks', 'data', parse=str, may_change=True)
    classes: str = option(None, "a text file with a class a line: its value in the masks, its name and perhaps its "
                          "colour (#rrggbb); or ade20k. If not given: ADE20K's in its layout, else all values in the "
                          'training masks', 'data', parse=str)
    ignore: tuple = option(None, 'values in the masks that are neither trained on nor measured; 255 if not given. With '
                           "--eval, more of them than the file's", 'data', parse=whole_numbers)
    input_size: int | tuple = option(None, "side of a crop in pixels, or height,width; by the network's recipe if not given, "
                                     '512 for most', 'data', ('img_size', 'crop_size'), parse=size)
    short_side: int = option(None, 'an image is resized until its short side is this; the smaller side of input_size if '
                             'not given', 'data', parse=int)
    long_side: int = option(None, 'the most of its long side; where that would be more, the short one is less; 4 times '
                            'short_side if not given', 'data', parse=int)
    keep_size: bool = option(None, 'do not resize images', 'data', parse=boolean)
    scales: tuple = option((0.5, 2.0), 'from,to: what the size of an image is multiplied by in training', 'data',
                           parse=numbers)
    most_of_one: float = option(0.75, 'the most that one class may cover of a crop; the first of up to ten that fits is '
                                'taken, or else the last. 1 for no limit', 'data', ('cat_max_ratio',))
    distort: bool = option(True, 'change brightness, contrast, saturation and hue in training; --no_distort for none',
                           'data')

    register: str = option(USERS_NETWORKS, 'module in which your own networks are registered with timm', 'method',
                           parse=str, may_change=True)
    head: str = option('upernet', 'upernet, or fpn: a lighter one', 'method', choices=('upernet', 'fpn'))
    head_channels: int = option(512, "channels of the head; by the network's recipe if not given", 'method', by_recipe=True)
    map_norm: bool = option(False, "a LayerNorm on each of the network's maps in front of the head; by the network's recipe "
                            'if not given', 'method', by_recipe=True)
    head_dropout: float = option(0.1, 'share of the channels that are dropped in front of a classifier', 'method')
    aux_weight: float = option(0.4, 'of the loss of the auxiliary head; 0 for none', 'method')
    drop_path: float = option(None, "stochastic depth; the recipe's if not given", 'method', ('dp',), float)
    freeze: bool = option(False, 'do not train the network, only the head on it', 'method')
    frozen_bn: bool = option(False, "keep the network's BatchNorms as they were loaded, statistics and all", 'method')
    ema: float = option(0.0, 'decay of an average of the weights; 0 for none', 'method')

    iterations: int = option(None, 'steps of the run; a finished run that is given more of them goes on. By --recipe if '
                             'not given', 'optimisation', ('iters',), int)
    warmup_iterations: int = option(None, 'steps of rising learning rate; by --recipe if not given', 'optimisation',
                                    ('warmup_iters',), int)
    base_lr: float = option(None, 'peak learning rate for a batch of 16: that of the run is base_lr * batch_size / 16. '
                            'If not given, by --recipe: with auto, the peak grows with the root of the batch instead',
                            'optimisation', parse=float, may_change=True)
    lr: float = option(None, 'peak learning rate, instead of base_lr * batch_size / 16; by --recipe if not given',
                       'optimisation', parse=float, may_change=True)
    power: float = option(1.0, "of the polynomial by which the learning rate falls; by the network's recipe if not given",
                         'optimisation', by_recipe=True)
    end_lr: float = option(0.0, "learning rate at its end, which is below the peak; by the network's recipe if not given",
                          'optimisation', by_recipe=True)
    opt: str = option('adamw', "optimiser; by the network's recipe if not given", 'optimisation', choices=('adamw', 'sgd'),
                      by_recipe=True)
    layer_decay: float = option(None, "a layer's learning rate as a share of the next one's; the recipe's if not given, "
                                "for other networks 0.7, or more such that the stem of a deep one has a ResNet-50's share",
                                'optimisation', ('lr_scale',), float)
    layer_decay_by: str = option('layers', "what counts as a layer: layers, as in fine-tuning; or stages, of a ConvNeXt, as "
                                 "its authors do in segmentation; by the network's recipe if not given", 'optimisation',
                                 choices=('layers', 'stages'), by_recipe=True)
    weight_decay: float = option(0.05, "constant; by the network's recipe if not given", 'optimisation', ('wd',),
                                 by_recipe=True)
    clip_grad: float = option(float('inf'), 'largest norm of the whole gradient; inf for no clipping', 'optimisation',
                              ('clip',), may_change=True)

    stall_minutes: float = option(120.0, 'minutes without progress, such as in waiting for a rank that is gone or for the '
                                  'main one to check the masks, after which the run ends; 0 for never', 'machine',
                                  may_change=True)

    slide: bool = option(None, 'measure with a window of input_size that slides over an image, instead of the whole; by '
                         "the network's recipe if not given", 'evaluation', parse=boolean, may_change=True)
    slide_stride: int = option(None, 'pixels by which the window of --slide moves; two thirds of its smaller side if not '
                              'given', 'evaluation',
                               parse=int, may_change=True)
    test_scales: tuple = option(None, 'sizes of an image whose probabilities are averaged, such as '
                                '0.5,0.75,1,1.25,1.5,1.75; 1 if not given', 'evaluation', parse=numbers, may_change=True)
    test_flip: bool = option(None, 'average over the mirrored image too', 'evaluation', parse=boolean, may_change=True)

    val_every: int = option(None, 'iterations between evaluations, which divides iterations; a tenth of them or so if not '
                            'given', 'log', parse=int)
    save_every: int = option(1, 'evaluations between checkpoints, besides those of --save_every_minutes', 'log',
                             may_change=True)
    keep_every: int = option(None, 'evaluations between checkpoints that stay for good', 'log', parse=int, may_change=True)

    def __post_init__(self):
        super().__post_init__()
        if self.eval is None:
            fill_in(self, NOT_GIVEN)
        for field in ('iterations', 'val_every', 'head_channels', 'short_side', 'long_side', 'slide_stride'):
            value = getattr(self, field)
            require(value is None or value >= 1, f'{field} must be 1 or more, not {value}')
        for field in ('ema', 'drop_path', 'head_dropout'):
            value = getattr(self, field)
            require(value is None or 0 <= value < 1, f'{field} must be 0 or more and less than 1, not {value}')
        for field in ('layer_decay', 'most_of_one'):
            value = getattr(self, field)
            require(value is None or 0 < value <= 1, f'{field} must be more than 0 and at most 1, not {value}')
        for field in ('weight_decay', 'aux_weight', 'end_lr'):
            require(0 <= getattr(self, field) < float('inf'), f'{field} must be 0 or more, not {getattr(self, field)}')
        for field in ('clip_grad', 'power'):
            require(getattr(self, field) > 0, f'{field} must be more than 0, not {getattr(self, field)}')
        require(len(self.scales) == 2 and 0 < self.scales[0] <= self.scales[1],
                f'scales is from,to with 0 < from <= to, not {self.scales}')
        require(self.test_scales is None or min(self.test_scales, default=0) > 0,
                f'test_scales are numbers above 0, not {self.test_scales}')
        require(all(value >= 0 for value in self.ignore or ()),
                f'ignore are values of masks, 0 or more, not {self.ignore}')
        if self.input_size is not None:
            self.check_sides()
        require(not (self.keep_size and (self.short_side or self.long_side)),
                '--keep_size leaves images as large as they are: leave --short_side and --long_side out')
        require(not (self.freeze and self.frozen_bn), '--freeze keeps the BatchNorms too: leave --frozen_bn out')
        require(not (self.fresh and self.resume), '--fresh starts over and --resume goes on: give one of them')
        require(self.dataset is None, '--dataset is for classes of images; masks come from files')
        self.check_iterations()
        self.check_rate()

    def check_sides(self):
        """Raise a ValueError if the sizes of images and of windows do not fit input_size."""
        require(self.long_side is None or self.long_side >= self.resized_short_side,
                f'long_side {self.long_side} must be short_side {self.resized_short_side} or more')
        require(self.slide_stride is None or self.slide_stride <= min(self.size),
                f'slide_stride {self.slide_stride} must be at most the smaller side of input_size, {min(self.size)}: between '
                'windows that are further apart nothing would be seen')

    def check_iterations(self):
        """Raise a ValueError if the numbers of iterations do not fit each other."""
        total, every, warmup = self.iterations, self.val_every, self.warmup_iterations
        if None not in (total, every) and total % every:
            near = published.nearest_divisor(total, every)
            raise ValueError(f'val_every {every} must divide iterations {total}: give '
                             f'--iterations={-(-total // every) * every}; or, if the run is a new one, --val_every={near}')
        require(warmup is None or warmup >= 0, f'warmup_iterations must be 0 or more, not {warmup}')
        require(None in (warmup, total) or warmup < total,
                f'warmup_iterations {warmup} must be less than iterations {total}, which --recipe chooses where they are '
                'not given: nothing would be left to train at the full rate')

    def check_rate(self):
        """Raise a ValueError if the learning rate would not fall, as far as its peak is known."""
        if self.lr is not None or None not in (self.base_lr, self.batch_size):
            require(self.peak_lr > self.end_lr,
                    f'the learning rate falls to end_lr {self.end_lr:g}, which is not below its peak of {self.peak_lr:g}: give '
                    'a smaller --end_lr, such as 0, or a larger --lr')

    def unused(self):
        """Sentences on options that are given and have no effect."""
        return ['--slide_stride is not used: it is of windows, and images are measured whole. For windows give --slide'
                ] if self.slide_stride and not self.slide else []

    @property
    def needs_folder(self):
        return self.eval is None

    @property
    def peak_lr(self):
        return self.base_lr * self.batch_size / 16 if self.lr is None else self.lr

    @property
    def resized_short_side(self):
        """Pixels that the short side of an image is resized to."""
        return min(self.size) if self.short_side is None else self.short_side

    @property
    def resized_long_side(self):
        """The most pixels of its long side."""
        return 4 * self.resized_short_side if self.long_side is None else self.long_side

    def require_paths(self):
        super().require_paths()
        if self.eval is not None:
            require_file(self.eval)
        splits = ('val',) if self.eval is not None else ('train', 'val')
        for split in splits if self.val_fraction is None else ('train',):
            folders(self, split)
        if self.classes not in (None, 'ade20k'):
            require_file(self.classes)
        if self.eval is None and self.begins:
            require_weights(self.finetune_from)
            if self.iterations is not None and self.val_every is None:
                # What the recipe will choose is refused here already, before all masks are read.
                published.iterations_between_evaluations(self.iterations)


def recommended(**given):
    """The Options that the command line would make of the given ones: all others are those of the model's recipe."""
    return Options(**{**published.recipe(given), **given})


ABOUT = About(
    'Train a network for semantic segmentation on images and their masks.',
    (('bash downstream_ade20k/main.sh my_segmenter --data_path=DIR --model=resnet50 --finetune_from=FILE',
      'train on images/ and annotations/ in DIR; the same command again goes on where it stopped'),
     ('bash downstream_ade20k/main.sh my_segmenter --model=resnet50 --train_images=DIR --train_masks=DIR --val_images=DIR '
      '--val_masks=DIR', 'train on images in another layout')),
    ('name', 'data_path', 'classes', 'model', 'finetune_from', 'eval', 'input_size', 'recipe', 'batch_size', 'iterations',
     'lr'))


def parse_options(argv=None):
    return parse(Options, 'downstream_ade20k.main', ABOUT, argv, published.recipe)


def check_options(argv=None):
    """Exit as `parse_options` does if the options of a command line are wrong, without loading torch.

    Returns Options without the recipe of the model, but for the size of its crops, which other sizes must fit.
    """
    return parse(Options, 'downstream_ade20k.main', ABOUT, argv, published.size_of_crops)
