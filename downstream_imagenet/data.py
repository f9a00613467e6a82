"""Images with labels: finding them, augmenting them, mixing them."""
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.data.auto_augment import auto_augment_transform
from timm.data.random_erasing import RandomErasing
from torch.utils.data import Subset
from torchvision.transforms import Compose, Resize, TrivialAugmentWide
from torchvision.transforms.v2 import CutMix, MixUp

from common.images.augmented import BICUBIC, CentreCrop, RandomCrop, seeded
from common.images.datasets import check_dataset, timm_dataset
from common.images.files import ImageFiles
from common.images.finding import VALIDATION, folders_of, validation_folder, what_is_in, why_without_images
from common.images.loading import each_once
from common.images.pixels import AS_IT_IS
from common.images.timeout import at_most
from common.seeds import seed_for
from common.training.device import to_device
from common.words import first_of, printable

LOOSE = 10  # images beside the folders of the classes, such as an overview of them, that are left out
NO_LAYOUT = "is not in ImageNet's layout, one folder for each class with its images"
NO_TENSORS = ('automatic augmentation is for 8-bit images that Pillow reads, not for tensors (16-bit or float files, data sets '
              'of your own): give --augment=none')


def first_part(path):
    """The first folder of a path in bytes, or the file if it is in none."""
    return os.fsdecode(path).split(os.sep, 1)[0]


class LabelledFolder(ImageFiles):
    """ImageNet's layout: a folder of images for each class. Yields (image, class).

    classes: their names, in order; those of the folder if not given. LOOSE images that are in none of these folders, at most,
    are left out and counted. Raises ValueError for more of them, and for a class without an image that is read.
    """

    def __init__(self, source, in_chans=3, classes=None, reading=AS_IT_IS):
        super().__init__(source, in_chans, reading=reading)
        if not Path(source).is_dir():
            raise ValueError(f'{source} {NO_LAYOUT}')
        folders = folders_of(source)
        self.leave_loose_ones(source, set(folders))
        names = [first_part(path) for path in self.paths]
        empty = sorted(set(folders) - set(names))
        if empty:
            which = f'the class {printable(empty[0])} of {source} has' if len(empty) == 1 else \
                f'the classes {first_of(empty)} of {source} have'
            raise ValueError(f'{which} no image that is read: {printable(empty[0])} '
                             f'{why_without_images(Path(source, empty[0]))}')
        self.classes = sorted(set(names)) if classes is None else list(classes)
        strange = sorted(set(names) - set(self.classes))
        if strange:
            raise ValueError(f'{source} has classes that the training images do not have: {", ".join(strange[:5])}')
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = np.array([number[name] for name in names])

    def leave_loose_ones(self, source, folders):
        """Leave out images that are in none of the folders of classes. Raises ValueError for more than LOOSE, or no folders."""
        in_class = np.array([first_part(path) in folders for path in self.paths])
        loose = [first_part(path) for path in self.paths[~in_class]]
        if len(loose) > LOOSE or not folders:
            some, number = first_of(sorted(folders), 3), f'{len(loose):,} image{"s" * (len(loose) > 1)}'
            raise ValueError(f'{source} {NO_LAYOUT}: it holds {number} ({first_of(loose, 3)}) '
                             + (f'beside the folders {some}: move each into the folder of its class, or away' if folders else
                                'and no folders: sort them into such'))
        if loose:
            what = f'image{"s" * (len(loose) > 1)} beside the folders of the classes ({first_of(loose, 3)})'
            self.left_out[what] = len(loose)
            self.paths = self.paths[in_class]

    def __getitem__(self, index):
        return super().__getitem__(index), int(self.labels[index])


def find_labelled(data_path, val_path=None, dataset=None, in_chans=3, reading=AS_IT_IS):
    """(training images, validation images), each yielding (image, class). Raises ValueError."""
    if dataset is not None:
        images, val = (timm_dataset(dataset, data_path, split, in_chans) for split in ('train', 'validation'))
        indices = [getattr(getattr(part, 'reader', None), 'class_to_idx', None) for part in (images, val)]
        if indices[0] != indices[1]:
            raise ValueError(f'{dataset} numbers the classes of its validation images in another way than those of its '
                             'training images, since not all have both: for folders leave --dataset out')
        return images, val
    if data_path is None:
        raise ValueError('say where the images are: --data_path=DIR, with train/ and val/ in it')
    train = Path(data_path, 'train')
    if not train.is_dir():
        raise ValueError(f'there is no folder {train} with the training images: ImageNet\'s layout is train/ and val/, each '
                         f'with a folder for each class; {what_is_in(data_path)}')
    val = find_validation(data_path, val_path)
    images = LabelledFolder(train, in_chans, reading=reading)
    return images, LabelledFolder(val, in_chans, images.classes, reading)


def find_validation(data_path, val_path=None):
    """The folder of the validation images: val_path, else val/, valid/ or validation/ in data_path. Raises ValueError."""
    found = validation_folder(data_path) if val_path is None else Path(val_path)
    if found is None:
        names = ' or '.join(f'{name}/' for name in VALIDATION[1:])
        raise ValueError(f'there is no folder {Path(data_path, "val")} with the validation images, nor {names}: '
                         f'{what_is_in(data_path)}. Say which has them: --val_path=DIR')
    if not found.is_dir():
        raise ValueError(f'there is no folder {found} with the validation images: give another --val_path')
    return found


def class_names(images, num_classes=None):
    """The names of the classes of a data set, numbers where it has none. Raises ValueError if they cannot be counted."""
    names = getattr(images, 'classes', None)
    if names is None and hasattr(images, 'reader'):  # timm's
        index = getattr(images.reader, 'class_to_idx', None)
        names = sorted(index, key=index.get) if index else None
    if names is None and num_classes is None:
        raise ValueError('the data set does not say how many classes it has: give --num_classes, or a Dataset with `classes`')
    if names is None or num_classes is not None and num_classes != len(names):
        if names is not None and num_classes < len(names):
            raise ValueError(f'the images have {len(names)} classes, more than --num_classes={num_classes}')
        names = [*map(str, names or ()), *map(str, range(len(names or ()), num_classes))]
    if len(names) < 2:
        raise ValueError(f'there is only one class, {names[0]}: nothing to tell apart')
    return [str(name) for name in names]


def labels_of(images):
    """The class of each image where a data set lists them (as torchvision's and timm's folders do), else None."""
    for name in ('labels', 'targets'):
        if getattr(images, name, None) is not None:
            return [int(label) for label in getattr(images, name)]
    samples = getattr(getattr(images, 'reader', None), 'samples', None)
    return [int(label) for _, label in samples] if isinstance(samples, list) else None


def check_classes(labels, number):
    """Raise a ValueError for a class that is none of 0 ... number - 1."""
    wrong = [label for label in labels if not 0 <= label < number]
    if wrong:
        raise ValueError(f'an image has class {wrong[0]}, but there are {number} classes, counted from 0: number them so, or '
                         'give --num_classes')


def check_labelled(images, options, number, timeout=120.0):
    """Refuse what does not yield (image, class), or images that the augmentation cannot take; its first item tells."""
    check_dataset(images, options.in_chans, timeout)
    check_classes(labels_of(images) or [], number)
    try:
        with at_most(timeout):
            item = images[0]
    except Exception:  # an unreadable image is replaced later, and named
        return
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise ValueError(f'the data set yields {type(item).__name__}: each item must be (image, class)')
    try:
        whole = int(item[1]) == item[1]
    except (TypeError, ValueError):  # one-hot, text
        whole = False
    if not whole:
        raise ValueError(f'the data set yields the class {item[1]}: it must be a number, 0, 1, 2, ...')
    check_classes([int(item[1])], number)
    if torch.is_tensor(item[0]) and options.augmentation != 'none':
        raise ValueError(NO_TENSORS)


class Share(Subset):
    """Some images of a data set, known by their names there."""

    def name(self, index):
        at = self.indices[index]
        return self.dataset.name(at) if hasattr(self.dataset, 'name') else f'number {at}'


def share_of(images, fraction, seed):
    """The same share of each class of the images, one at least, drawn from the seed."""
    if fraction == 1:
        return images
    labels = labels_of(images) or [int(images[i][1]) for i in range(len(images))]
    places = defaultdict(list)
    for place, label in enumerate(labels):
        places[int(label)].append(place)
    generator, chosen = torch.Generator().manual_seed(seed_for('labels', seed)), []
    for label in sorted(places):
        of_class = places[label]
        order = torch.randperm(len(of_class), generator=generator)[:max(1, round(fraction * len(of_class)))]
        chosen += [of_class[i] for i in order]
    return Share(images, sorted(chosen))


def labelled_once(images, number, batch, workers, ranks, warn, go_on=None):
    """(images, classes) on the device, as each_once yields them; classes are of `number`. Raises ValueError for others."""
    for x, classes in each_once(images, batch, workers, ranks, warn, go_on=go_on):
        check_classes(classes.tolist(), number)
        yield to_device(x, ranks.device), to_device(classes, ranks.device)


def training_transform(options):
    """The crop and what is done to the cropped image (paper, appendix): RandomResizedCrop, flip, an automatic augmentation."""
    steps = [RandomCrop(options.size, options.crop_scale, options.flip)]
    if options.augmentation != 'none':
        steps.append(Automatic(options))
    return Compose(steps)


class Automatic:
    """TrivialAugmentWide (torchvision) or AutoAugment v0 (timm), for 8-bit images."""

    def __init__(self, options):
        if options.augmentation == 'trivial':
            self.way = TrivialAugmentWide(interpolation=BICUBIC)
            return
        fill = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)[:options.in_chans]
        self.way = auto_augment_transform('v0', {'translate_const': int(min(options.size) * 0.45), 'img_mean': fill})
        for operation in (operation for policy in self.way.policy for operation in policy):
            if operation.name == 'Posterize':
                operation.level_fn = bits_to_keep

    def __call__(self, image):
        if torch.is_tensor(image):
            raise ValueError(NO_TENSORS)
        return self.way(image)


def bits_to_keep(level, hparams):
    """timm's, but one bit at least: Pillow refuses to keep none."""
    return (max(1, int(level / 10 * 4)),)


def evaluation_transform(options):
    """A centre crop of 0.95 of the image; from 384 px on the whole image, resized to the square."""
    if options.crop is None and options.is_large:
        return Resize(options.size, BICUBIC, antialias=True)
    return CentreCrop(options.size, 0.95 if options.crop is None else options.crop)


def erasing(options):
    """timm's random erasing with noise, or None."""
    return RandomErasing(options.erase, mode='pixel', device='cpu') if options.erase else None


class Mixing:
    """images, classes -> images, targets (B, K): mixup or CutMix, one of them for each batch, and label smoothing.

    torchvision's, which take batches of any size; the targets are what they make of the smoothed labels.
    """

    def __init__(self, options, num_classes):
        self.smoothing, self.num_classes = options.smoothing, num_classes
        self.ways = [way(alpha=alpha, num_classes=num_classes) for way, alpha in
                     ((MixUp, options.mixup), (CutMix, options.cutmix)) if alpha]

    def __call__(self, images, classes, seed):
        with seeded(seed):
            if self.ways:
                images, targets = self.ways[int(torch.randint(len(self.ways), ()))](images, classes)
            else:
                targets = torch.nn.functional.one_hot(classes, self.num_classes).float()
        return images, targets * (1 - self.smoothing) + self.smoothing / self.num_classes


def mixed(batches, mixing, seed, steps, accum, ranks):
    """(images, targets) on the device, `accum` times for each of the steps: the arguments of Classifier(...)."""
    for number in (step * accum + part for step in steps for part in range(accum)):
        images, classes = next(batches)
        check_classes(classes.tolist(), mixing.num_classes)
        yield mixing(to_device(images, ranks.device), to_device(classes, ranks.device),
                     seed_for('mixing', seed, number, ranks.rank))
