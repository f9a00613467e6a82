"""What is asked of any data set of images, ours, timm's or a user's own: is it one, is it the same, what does
it leave out?
"""
import hashlib

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset, Subset

from common.images.files import ImageFiles
from common.images.timeout import at_most


def check_dataset(images, in_chans=3, timeout=120.0):
    """Return the data set. Raises ValueError if it is no map-style data set of images with so many channels.

    Its first item is looked at, unless it cannot be read within `timeout` seconds.
    """
    is_map_style = hasattr(images, '__len__') and hasattr(images, '__getitem__')
    if isinstance(images, (str, IterableDataset)) or not is_map_style or len(images) == 0:
        raise ValueError(f'{type(images).__name__} is no map-style data set with at least one image: it '
                         'needs __len__ and __getitem__, since the order of the images is drawn from the '
                         'seed')
    try:
        with at_most(timeout):
            item = images[0]
    except Exception:  # An image that cannot be read is replaced later, and named.
        return images
    image = item[0] if isinstance(item, (tuple, list)) else item
    if not is_image(image, in_chans):
        what = type(image).__name__
        if hasattr(image, 'shape'):
            what += f' {tuple(image.shape)} of {image.dtype}'
        raise ValueError(f'the data set yields {what}: each item must be (or start with) a PIL image of '
                         f'{in_chans} channels or a tensor ({in_chans}, height, width), uint8 or float')
    return images


def is_image(image, in_chans):
    """Whether it is a PIL image of so many channels, or a tensor (in_chans, h, w), uint8 or float."""
    if isinstance(image, Image.Image):
        return len(image.getbands()) == in_chans
    if not torch.is_tensor(image) or image.ndim != 3 or image.shape[0] != in_chans:
        return False
    return image.dtype == torch.uint8 or image.is_floating_point()


def timm_dataset(name, root, split, in_chans=3):
    """A map-style data set by timm's name, such as hfds/user/name. Raises ValueError if timm cannot make it."""
    mode = {1: 'L', 3: 'RGB'}.get(in_chans)
    options = {'input_img_mode': mode} if mode else {}
    try:
        images = create_dataset(name, root=root, split=split, **options)
    except Exception as error:
        # A package is missing, the name is unknown, or there is no network: timm says which.
        raise ValueError(f'timm cannot make the data set {name}: {type(error).__name__}: {error}') from error
    return check_dataset(images, in_chans)


class Share(Subset):
    """Some images of a data set, with the names that they and their classes have there.

    labels: their classes, if they are known.
    """

    def __init__(self, images, indices, labels=None):
        # Not a list: its numbers are objects, which each loading process would come to copy.
        super().__init__(images, np.asarray(indices, np.int64))
        self.labels = labels
        self.classes = getattr(images, 'classes', None)

    def __getitem__(self, index):
        return self.dataset[int(self.indices[index])]

    def __getitems__(self, indices):  # torch asks for it where __getitem__ is another than Subset's
        return [self[index] for index in indices]

    def name(self, index):
        at = int(self.indices[index])
        return self.dataset.name(at) if hasattr(self.dataset, 'name') else f'number {at}'


def whole_of(images):
    """The data set of which `images` is a subset; the data set itself if it is none."""
    while isinstance(images, Subset):
        images = images.dataset
    return images


def fingerprint(images):
    """A short text that is the same for the same images; None for a data set that does not have one.

    A data set of a user's own may have `fingerprint`, a text or a method that returns one.
    """
    if isinstance(images, Subset):
        whole = fingerprint(images.dataset)
        chosen = [int(index) for index in images.indices]
        return None if whole is None else hashlib.sha256(f'{whole} {chosen}'.encode()).hexdigest()[:32]
    known = getattr(images, 'fingerprint', None)
    return known() if callable(known) else known


def same_images(images, ranks):
    """The fingerprint of the training images. Raises ValueError if it is not the same on all ranks."""
    mark = fingerprint(images)
    if len({(len(images), mark), *ranks.gather([(len(images), mark)])}) > 1:
        raise ValueError('not all ranks see the same images: each node needs all of them, with the same '
                         'names, and the same annotation files')
    return mark


def not_looked_at(images, val, which):
    """The line of a run's start that says what the training images `images` and the images `val` leave out.

    It is empty if nothing is left out. which: what `val` is called. A data set of a user's own may have
    `notes`, a text.
    """
    parts = []
    if notes_of(images):
        parts.append(notes_of(images))
    if notes_of(val):
        parts.append(f'of {which} images, {notes_of(val)}')
    return f'not looked at  {"; ".join(parts)}\n' if parts else ''


def notes_of(images):
    """What a data set says that it leaves out; empty if it says nothing."""
    notes = getattr(whole_of(images), 'notes', None)
    return notes if isinstance(notes, str) else ''


def mostly_unread(images):
    """A warning if more files that may hold images are left out than are read, else None."""
    whole = whole_of(images)
    if not isinstance(whole, ImageFiles) or whole.unread <= len(whole):
        return None
    return (f'{whole.unread:,} files that may hold images are not read, and only {len(whole):,} are: what '
            'they are is said under "not looked at"')
