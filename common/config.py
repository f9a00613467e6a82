"""Options that several programs have: images and a network; and for training, the run, optimisation, machine, log."""
import dataclasses
import os
from dataclasses import dataclass

from common.cli import boolean, numbers, option, plain_fields
from common.images.reading import Reading, is_range
from common.paths import require_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def size(text):
    """'224' -> 224, '192,256' -> (192, 256)."""
    sides = numbers(text, int)
    return sides[0] if len(sides) == 1 else sides


def accumulation(text):
    return text if text == 'auto' else int(text)


accumulation.__name__ = 'number of parts, or auto:'  # what argparse calls it in an error


def fill_in(options, values):
    """Set the options that are None to the values of a dictionary, {name: value}; for `__post_init__` of a frozen dataclass."""
    for name, value in values.items():
        if getattr(options, name) is None:
            object.__setattr__(options, name, value)


def normalisation_of(mean, std, in_chans):
    """(mean, std) of each channel, where None stands for ImageNet's; of the mean of its channels where there is one."""
    one = in_chans == 1
    mean = mean or ((sum(IMAGENET_MEAN) / 3,) if one else IMAGENET_MEAN)
    return mean, std or ((sum(IMAGENET_STD) / 3,) if one else IMAGENET_STD)


def require(good, message):
    if not good:
        raise ValueError(message)


def recipe_option(**named):
    """The option `recipe` of a program. named: {name: what it is}, the recipes that it has besides paper and auto."""
    which = ''.join(f'. {name}: {what}' for name, what in named.items())
    return option(None, 'which batch_size, length and learning rate a run has where they are not given: those of the paper, '
                  'or those that a rule chooses for the number of images and the device (auto). If recipe is not '
                  f'given: paper where that can work, else auto{which}', 'optimisation', parse=str,
                  choices=('paper', 'auto', *named))


@dataclass(frozen=True)
class ImageOptions:
    """Images and a network for them. None means not given: what then holds is said in the help. Raises ValueError."""

    dataset: str = option(None, "timm's name of a map-style data set, such as hfds/user/name", 'data',
                          parse=str, may_change=True)
    in_chans: int = option(3, 'channels of an image', 'data')
    adapt_input_conv: bool = option(False, 'take weights that are for images of other channels too: the '
                                    'convolutions over the image are summed or repeated, as timm does',
                                    'data', may_change=True)
    mean: tuple = option(None, 'of each channel, for normalisation, of values from 0 to 1; ImageNet if not given', 'data',
                         parse=numbers)
    std: tuple = option(None, 'of each channel, for normalisation, of values from 0 to 1; ImageNet if not given', 'data',
                        parse=numbers)
    pixel_range: tuple = option(None, 'from,to: the values that become 0 and 1 in image files of more than 8 '
                                'bits (16-bit, signed, float); others are clipped. If not given: all that '
                                'unsigned integers of up to 16 bits can hold; floats must lie in 0 ... 1',
                                'data', parse=numbers)
    max_pixels: int = option(None, "of the largest image file that is read; Pillow's limit, 178,956,970, if "
                             "not given", 'data', parse=int, may_change=True)
    val_fraction: float = option(None, 'share of the images that is held out and never trained on, such as 0.1; where '
                                 'there is no folder of held-out images. Which ones they are depends on the seed and '
                                 'their names alone; with labels it is the same share of every class', 'data', parse=float)
    workers: int = option(None, 'processes that load images, a rank; by the number of cores if not given',
                          'data', ('dataloader_workers',), int, may_change=True)

    model: str = option('resnet50', 'a CNN by its timm name, or your own in pretrain/models', 'method',
                        parse=str)
    input_size: int | tuple = option(224, 'side of an image in pixels, or height,width', 'method',
                                     ('img_size',), parse=size)

    batch_size: int = option(None, 'images an optimiser step, on all ranks together; by --recipe if not given',
                             'optimisation', ('bs',), int)
    seed: int = option(0, 'of all that is drawn', 'run')
    precision: str = option(None, 'bf16 or fp16 (autocast), or fp32. If not given: bf16 on a GPU that has it, '
                            'else fp32', 'machine', parse=str, choices=('fp32', 'bf16', 'fp16'), may_change=True)

    def __post_init__(self):
        for field, value in plain_fields(self).items():
            # the one moment at which a frozen dataclass may be completed
            object.__setattr__(self, field, value)
        for field in ('batch_size', 'in_chans'):
            value = getattr(self, field)
            require(value is None or value >= 1, f'{field} must be 1 or more, not {value}')
        require(self.seed >= 0, f'seed must be 0 or more, not {self.seed}')
        sides = (self.input_size,) * 2 if isinstance(self.input_size, int) else self.input_size
        require(sides is None or len(sides) == 2 and min(sides) > 0 and all(isinstance(side, int) for side in sides),
                f'input_size is a side or height,width, not {self.input_size}')
        require(self.std is None or min(self.std, default=0) > 0, f'std must be more than 0, not {self.std}')
        require(self.pixel_range is None or is_range(self.pixel_range),
                f'pixel_range is from,to with from < to, not {self.pixel_range}')
        require(self.max_pixels is None or self.max_pixels >= 1,
                f'max_pixels must be 1 or more, not {self.max_pixels}')
        require(self.dataset is None or self.reading == Reading(),
                '--pixel_range and --max_pixels are for image files: '
                'those of --dataset are read by timm, with 8 bits')
        require(self.val_fraction is None or 0 < self.val_fraction < 1,
                f'val_fraction must be more than 0 and less than 1, not {self.val_fraction}')
        require(self.workers is None or self.workers >= 0, f'workers must be 0 or more, not {self.workers}')
        for field in ('mean', 'std'):
            value = getattr(self, field)
            require(value is None or len(value) == self.in_chans,
                    f'{field} must have one number for each channel, {self.in_chans} in all, not {value}')
        require(self.in_chans in (1, 3) or self.mean is not None and self.std is not None,
                f'for {self.in_chans} channels give --mean and --std, {self.in_chans} numbers each')
        for field in dataclasses.fields(self):
            choices, value = field.metadata['choices'], getattr(self, field.name)
            require(value is None or not choices or value in choices, f'{field.name} is one of {choices}, '
                                                                      f'not {value}')

    @property
    def size(self):
        """(height, width) in pixels."""
        return (self.input_size,) * 2 if isinstance(self.input_size, int) else self.input_size

    @property
    def normalisation(self):
        """(mean, std) of each channel."""
        return normalisation_of(self.mean, self.std, self.in_chans)

    @property
    def reading(self):
        """How image files are read."""
        return Reading(self.pixel_range, self.max_pixels)

    def as_dict(self):
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class RunOptions(ImageOptions):
    """What a user decides of any training run. Raises ValueError."""

    name: str = option(None, "the experiment's name; the first argument of main.sh", 'run', ('exp_name',), str,
                      may_change=True)
    run_dir: str = option(None, 'its folder; output_<name> here if not given', 'run', ('exp_dir',), str,
                          may_change=True)
    resume: str = option(None, "go on from this run's checkpoint; the one in the run folder if not given",
                         'run', ('resume_from',), str, may_change=True)
    fresh: bool = option(False, 'start over: the run folder is moved aside', 'run', may_change=True)

    allow_changed_data: bool = option(False, 'go on although the training images are not those of before',
                                      'data', may_change=True)
    read_timeout: float = option(120.0, 'seconds after which an image that cannot be read is given up',
                                 'data', may_change=True)
    flip: bool = option(True, 'mirror half of the images; --no_flip for none', 'data')

    recipe: str = recipe_option()
    accum: int | str = option(None, 'parts that a rank cuts its batch into, one after the other (gradient '
                              'accumulation); or auto: as many as memory asks for. If not given: 1 for a batch that '
                              'is given, else auto', 'optimisation', parse=accumulation, may_change=True)
    base_lr: float = option(None, 'peak learning rate for a batch of 256; it grows with the batch; by --recipe '
                            'if not given', 'optimisation', parse=float, may_change=True)
    lr: float = option(None, 'peak learning rate, instead of base_lr * batch_size / 256; by --recipe if not given',
                       'optimisation', parse=float, may_change=True)
    max_skips: int = option(10, 'steps in a row whose loss or gradient is not finite, at which the run '
                            'stops; such a step changes nothing', 'optimisation', may_change=True)
    rewind: bool = option(False, 'after --max_skips such steps, go back to the last checkpoint and go on '
                          'without their images, in place of stopping', 'optimisation', may_change=True)
    sync_bn: bool = option(True, 'share BatchNorm statistics between ranks', 'optimisation', ('sbn',))

    stall_minutes: float = option(30.0, 'minutes without progress, such as in waiting for a rank that is '
                                  'gone, after which the run ends; 0 for never', 'machine', may_change=True)
    compile: bool = option(None, "torch.compile the network's blocks; if not given, on CUDA if a rank has a million "
                           'images or more left, and as before in a run that is resumed', 'machine',
                           parse=boolean, may_change=True)
    graph: bool = option(None, 'launch the whole step as one CUDA graph, which keeps the inputs of a step in memory; '
                         'on CUDA if not given, where all batches have the same shape', 'machine', parse=boolean,
                         may_change=True)
    bf16_gradients: bool = option(False, 'exchange gradients between ranks in bf16: half the bytes, but '
                                  'rounded', 'machine', may_change=True)

    save_every: int = option(1, 'epochs between checkpoints', 'log', may_change=True)
    save_every_steps: int = option(None, 'steps between checkpoints, besides those of --save_every', 'log', parse=int,
                                   may_change=True)
    save_every_minutes: float = option(30.0, 'minutes between checkpoints, besides those of --save_every; 0 for none',
                                       'log', may_change=True)
    keep: int = option(2, 'checkpoints that stay, the newest counted', 'log', may_change=True)
    keep_every: int = option(None, 'epochs between checkpoints that stay for good', 'log', parse=int,
                             may_change=True)
    log_every: int = option(10, 'steps between two reports of the loss', 'log', may_change=True)
    tensorboard_dir: str = option(None, 'tensorboard_log in the run folder if not given', 'log',
                                  ('tb_lg_dir',), str, may_change=True)

    tracker: str = option(None, 'a service that gets the scalars and pictures as well; it must be installed', 'log',
                          parse=str, choices=('wandb', 'trackio'), may_change=True)

    def __post_init__(self):
        super().__post_init__()
        for field in ('save_every', 'log_every', 'keep', 'max_skips'):
            value = getattr(self, field)
            require(value is None or value >= 1, f'{field} must be 1 or more, not {value}')
        require(self.accum in (None, 'auto') or isinstance(self.accum, int) and self.accum >= 1,
                f'accum must be auto, 1 or more, not {self.accum}')
        for field in ('base_lr', 'lr'):
            value = getattr(self, field)
            require(value is None or 0 < value < float('inf'), f'{field} must be more than 0, not {value}')
        for field in ('save_every_minutes', 'stall_minutes'):
            require(getattr(self, field) >= 0, f'{field} must be 0 or more, not {getattr(self, field)}')
        require(0 < self.read_timeout < float('inf'), f'read_timeout must be more than 0, and finite, not {self.read_timeout}')
        require(self.keep_every is None or self.keep_every >= 1, 'keep_every must be 1 or more, not '
                                                                 f'{self.keep_every}')
        require(self.save_every_steps is None or self.save_every_steps > 0, 'save_every_steps must be 1 or '
                                                                            'more')
        require(self.name or self.run_dir or not self.needs_folder, 'give the experiment a name: '
                                                                    '--name=my_run')

    needs_folder = True

    def reason_against_parts(self, ranks, parts, goes_on=False):
        """Why each of so many ranks cannot cut its batch into so many parts, in a sentence with the remedy; None if it can.

        It is asked of parts that divide the batch. goes_on: whether the run goes on, so that its batch is as it was.
        """
        return

    def against_memory(self, goes_on):
        """What to give, as the object of "give", where the smallest part that the options allow does not fit in memory."""
        return 'a smaller --bs or --input_size'

    def require_paths(self):
        """Raise a ValueError if a path that the options name is not there. It does not load torch."""
        if self.resume is not None:
            require_file(self.resume)

    @property
    def begins(self):
        """Whether the run certainly begins, rather than going on from a checkpoint in its folder."""
        return self.fresh or self.resume is None and not os.path.isdir(self.folder)

    @property
    def folder(self):
        return self.run_dir or f'output_{self.name}'

    @property
    def parts(self):
        """Parts that a rank cuts its batch into, or 'auto' for as many as memory asks for."""
        return self.accum or ('auto' if self.batch_size is None else 1)

    @property
    def peak_lr(self):
        """The peak learning rate, of options whose recipe was settled."""
        return self.base_lr * self.batch_size / 256 if self.lr is None else self.lr


@dataclass(frozen=True)
class EpochOptions(RunOptions):
    """What a user decides of a run whose length is a number of epochs. Raises ValueError."""

    crop_scale: tuple = option((0.67, 1.0), 'area of the random crop, from,to', 'data', parse=numbers)
    epochs: int = option(None, 'passes over the data; a finished run that is given more of them goes on. By --recipe if '
                         'not given', 'optimisation', ('ep',), int)
    warmup_epochs: float = option(None, 'epochs of rising learning rate', 'optimisation', ('wp_ep',), float)

    def __post_init__(self):
        super().__post_init__()
        require(self.epochs is None or self.epochs >= 1, f'epochs must be 1 or more, not {self.epochs}')
        require(self.warmup_epochs is None or 0 <= self.warmup_epochs,
                f'warmup_epochs must be 0 or more, not {self.warmup_epochs}')
        require(None in (self.warmup_epochs, self.epochs) or self.warmup_epochs < self.epochs,
                f'warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}, which --recipe '
                'chooses where they are not given: nothing would be left to train at the full rate')
        require(len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
                f'crop_scale is from,to with 0 < from <= to <= 1, not {self.crop_scale}')
