"""Images with classes: which classes they are, and how images are augmented and mixed."""
from collections import defaultdict
from functools import partial

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import Compose, Resize, TrivialAugmentWide
from torchvision.transforms.v2 import CutMix, MixUp

from common.images.augmented import BICUBIC, CentreCrop, RandomCrop, seeded
from common.images.datasets import Share, check_dataset
from common.images.loading import each_once
from common.images.timeout import at_most
from common.seeds import seed_for
from common.start import said_if_long
from common.training.device import to_device
from downstream_imagenet.published import is_large

NO_TENSORS = ('automatic augmentation is for 8-bit images that Pillow reads, not for tensors (16-bit or '
              'float files, data sets of your own): give --augment=none')


def class_to_index(images):
    """{name of a class: its number} of a data set of timm; None if it does not say."""
    return getattr(getattr(images, 'reader', None), 'class_to_idx', None)


def class_names(images, num_classes=None):
    """The names of the classes of a data set, in the order of their numbers; the numbers as text where it has no names.

    num_classes: how many there are, if the user says so. Raises ValueError if that is less than the data set
    has, if the classes cannot be counted, or if there is only one.
    """
    names = getattr(images, 'classes', None)
    index = class_to_index(images)
    if names is None and index:
        names = sorted(index, key=index.get)
    if names is None and num_classes is None:
        raise ValueError('the data set does not say how many classes it has: give --num_classes, or a '
                         'Dataset with `classes`')
    if names is None or num_classes is not None and num_classes != len(names):
        if names is not None and num_classes < len(names):
            raise ValueError(f'the images have {len(names)} classes, more than --num_classes={num_classes}')
        known = list(names or ())
        names = [*known, *range(len(known), num_classes)]
    if not names:
        raise ValueError('the data set has no classes: its `classes` are empty')
    if len(names) < 2:
        place = getattr(images, 'place_of_classes', None)
        where = f'. Of {images.root} classes are the folders {place}' if place else ''
        raise ValueError(f'there is only one class, {names[0]}: nothing to tell apart{where}')
    return [str(name) for name in names]


def labels_of(images):
    """The class of each image if a data set lists them, as torchvision's and timm's folders do; else None.

    Raises ValueError for classes that are no numbers, such as one-hot ones.
    """
    for name in ('labels', 'targets'):
        if getattr(images, name, None) is not None:
            try:
                return [int(label) for label in getattr(images, name)]
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f'the `{name}` of the data set are not numbers 0, 1, 2, ..., one for each image '
                                 f'({error})') from error
    samples = getattr(getattr(images, 'reader', None), 'samples', None)
    return [int(label) for _, label in samples] if isinstance(samples, list) else None


def check_classes(labels, number):
    """Raises ValueError for a class that is none of 0 ... number - 1."""
    wrong = [label for label in labels if not 0 <= label < number]
    if wrong:
        raise ValueError(f'an image has class {wrong[0]}, but there are {number} classes, counted from 0: '
                         'number them so, or give --num_classes')


def check_same_classes(val, classes):
    """Raises ValueError if the validation images are a data set that names other classes than the training images do."""
    named = getattr(val, 'classes', None)
    if named is not None and [str(name) for name in named] != list(classes[:len(named)]):
        raise ValueError(f'the validation images have other classes ({", ".join(map(str, named[:3]))}, ...) than the training '
                         f'images ({", ".join(classes[:3])}, ...), so that their numbers mean other classes')


def check_labelled(images, options, number, timeout=120.0, augmented=True):
    """Raises ValueError for a data set whose first item is not (image, class), or cannot be augmented as the options say.

    number: of classes. augmented: whether it is to be augmented. timeout: seconds for the first item; one that
    cannot be read in that time is not looked at.
    """
    check_dataset(images, options.in_chans, timeout)
    check_classes(labels_of(images) or [], number)
    try:
        with at_most(timeout):
            item = images[0]
    except Exception:  # An image that cannot be read is replaced later, and named.
        return
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise ValueError(f'the data set yields {type(item).__name__}: each item must be (image, class)')
    try:
        is_whole = int(item[1]) == item[1]
    except (TypeError, ValueError):  # It is one-hot, or text.
        is_whole = False
    if not is_whole:
        raise ValueError(f'the data set yields the class {item[1]}: it must be a number, 0, 1, 2, ...')
    check_classes([int(item[1])], number)
    if augmented and torch.is_tensor(item[0]) and options.augmentation != 'none':
        raise ValueError(NO_TENSORS)


def all_labels(images):
    """The class of each image; the images are read where the data set does not list their classes.

    Raises ValueError for an image that has to be read and cannot.
    """
    labels = labels_of(images)
    if labels:
        return labels
    with said_if_long(f'Reading {len(images):,} images for their classes, which the data set does not list'):
        return [class_of(images, index) for index in range(len(images))]


def class_of(images, index):
    """The class of an image, which is read. Raises ValueError if it cannot be read."""
    try:
        return int(images[index][1])
    except Exception as error:  # whatever a data set raises
        raise ValueError(f'item {index} of the data set cannot be read ({type(error).__name__}: {error}), so that its class '
                         'is not known: remove it, or let the data set list its classes as `targets`') from error


def share_of(images, fraction, seed):
    """A data set with the same share of the images of each class, but at least one of each, drawn from the seed.

    fraction: the share; for 1 the data set itself is returned.
    """
    if fraction == 1:
        return images
    labels = all_labels(images)
    places = defaultdict(list)
    for place, label in enumerate(labels):
        places[int(label)].append(place)
    generator = torch.Generator().manual_seed(seed_for('labels', seed))
    chosen = []
    for label in sorted(places):
        of_class = places[label]
        count = max(1, round(fraction * len(of_class)))
        order = torch.randperm(len(of_class), generator=generator)
        chosen += [of_class[i] for i in order[:count]]
    return Share(images, sorted(chosen))


def labelled_once(images, number, batch, workers, ranks, warn, go_on=None, count=None):
    """Yield (images, classes) on the device, as each_once does. Raises ValueError for a class not in 0 ...
    number - 1.
    """
    for x, classes in each_once(images, batch, workers, ranks, warn, go_on=go_on, count=count):
        check_classes(classes.tolist(), number)
        yield to_device(x, ranks.device), to_device(classes, ranks.device)


def training_transform(options):
    """The transform of a training image (paper, appendix): RandomResizedCrop, flip, and automatic augmentation."""
    steps = [RandomCrop(options.size, options.crop_scale, options.flip, retries=options.crop_retries)]
    if options.augmentation != 'none':
        steps.append(Automatic(options))
    return Compose(steps)


class Automatic:
    """TrivialAugmentWide (torchvision), or AutoAugment v0 or RandAugment (timm), for 8-bit images."""

    def __init__(self, options):
        if options.augmentation == 'trivial':
            self.augment = TrivialAugmentWide(interpolation=BICUBIC)
            return
        fill = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)[:options.in_chans]
        hparams = {'img_mean': fill, 'interpolation': Image.Resampling.BICUBIC}
        if options.augmentation == 'v0':
            longest_shift = int(min(options.size) * 0.45)
            self.augment = auto_augment_transform('v0', {**hparams, 'translate_const': longest_shift})
            operations = [operation for policy in self.augment.policy for operation in policy]
        else:
            self.augment = rand_augment_transform(options.augmentation, hparams)
            operations = self.augment.ops
        for operation in operations:
            if operation.name.startswith('Posterize'):
                operation.level_fn = partial(bits_to_keep, operation.level_fn)

    def __call__(self, image):
        if torch.is_tensor(image):
            raise ValueError(NO_TENSORS)
        return self.augment(image)


def bits_to_keep(timms, level, hparams):
    """timm's number of bits that Posterize keeps at a level, but one at least, since Pillow refuses to keep none.

    timms: timm's function of the same level and hparams, which returns a tuple of one number.
    """
    return (max(1, *timms(level, hparams)),)


def evaluation_transform(options):
    """The transform of a validation image: a centre crop of 0.95 of it; from 384 px on all of it, resized to the square."""
    size = options.evaluated_size
    if options.crop is None and is_large(size):
        return Resize(size, BICUBIC, antialias=True)
    return CentreCrop(size, 0.95 if options.crop is None else options.crop)


def erasing(options):
    """timm's random erasing with noise; None if the options have none."""
    return RandomErasing(options.erase, mode='pixel', device='cpu') if options.erase else None


class Mixing:
    """Mixes a batch by torchvision's mixup or CutMix, one of them for each batch, and smooths its labels.

    Takes images (B, C, H, W), classes (B,), and a seed. Returns images (B, C, H, W) and targets (B,
    num_classes), which are what the mix makes of the smoothed labels.
    """

    def __init__(self, options, num_classes):
        self.smoothing = options.smoothing
        self.num_classes = num_classes
        self.mixes = []
        if options.mixup:
            self.mixes.append(MixUp(alpha=options.mixup, num_classes=num_classes))
        if options.cutmix:
            self.mixes.append(CutMix(alpha=options.cutmix, num_classes=num_classes))

    def __call__(self, images, classes, seed):
        with seeded(seed):
            if self.mixes:
                mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
                images, targets = mix(images, classes)
            else:
                targets = torch.nn.functional.one_hot(classes, self.num_classes).float()
        return images, targets * (1 - self.smoothing) + self.smoothing / self.num_classes


def mixed(batches, mixing, seed, steps, accum, ranks):
    """Yield (images, targets) on the device, as Classifier(...) takes them, `accum` times for each of the steps.

    batches: an iterator of (images, classes). mixing: a Mixing, seeded by the run's seed, the step's part,
    and the rank.
    """
    for step in steps:
        for part in range(accum):
            images, classes = next(batches)
            check_classes(classes.tolist(), mixing.num_classes)
            mixing_seed = seed_for('mixing', seed, step * accum + part, ranks.rank)
            yield mixing(to_device(images, ranks.device), to_device(classes, ranks.device), mixing_seed)
