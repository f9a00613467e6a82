"""Images as a network takes them: what is drawn for them, and the order in which steps take them.

Nothing here has a random state. The order of an epoch is a function of (seed, epoch), the augmentation of an image one of
(seed, epoch, index): neither workers, nor ranks, nor a resume change what a step sees.
"""
import math
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from common.images.limits import pixel_limit
from common.images.timeout import at_most
from common.seeds import seed_for
from common.words import counted

BICUBIC = InterpolationMode.BICUBIC
PATIENCE = 100  # unreadable images in a row before giving up: then it is not the images


@dataclass(frozen=True)
class Crop:
    """A box (top, left, height, width) of an image, resized to (height, width), and mirrored or not."""
    box: tuple
    size: tuple
    mirrored: bool

    def __call__(self, image):
        image = F.resized_crop(image, *self.box, list(self.size), BICUBIC, antialias=True)
        return F.hflip(image) if self.mirrored else image


@dataclass(frozen=True)
class RandomCrop:
    """RandomResizedCrop to (height, width) and a flip of half of the images."""
    size: tuple
    scale: tuple = (0.67, 1.0)
    flip: bool = True

    def draw(self, height, width):
        """The crop of an image of that size."""
        box = RandomResizedCrop.get_params(torch.empty(1, height, width, device='meta'), self.scale, (3 / 4, 4 / 3))
        return Crop(box, self.size, self.flip and bool(torch.rand(()) < 0.5))

    def __call__(self, image):
        return self.draw(*F.get_dimensions(image)[1:])(image)


@dataclass(frozen=True)
class CentreCrop:
    """Resize until (height, width) fits inside, as the share `crop` of each side, and cut that out of the middle.

    Of an image that would become more than 16 times as long as (height, width), only the middle is resized.
    """
    size: tuple
    crop: float = 1.0

    def __call__(self, image):
        height, width = F.get_dimensions(image)[1:]
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop
        if max(height, width) * scale > 16 * max(self.size):  # a strip of 1 x 60,000 would be resized to gigapixels
            height, width = (min(side, math.ceil(4 * seen / scale)) for side, seen in zip((height, width), self.size))
            image = F.center_crop(image, [height, width])
        image = F.resize(image, [max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1])],
                         BICUBIC, antialias=True)
        return F.center_crop(image, list(self.size))


class Augmented(Dataset):
    """Images as the network takes them: (C, H, W) float32, normalised with (mean, std).

    Without a normalisation they are left as they are, uint8 or float32 in [0, 1], for common.training.device.Normalise: 8-bit images are
    a quarter of the bytes on their way from a loading process to the device.

    images: a map-style data set of PIL images or tensors (C, h, w), uint8 or float, or of tuples that start with one; with
    labelled, of (image, class). transform: image -> image of the network's size, which may draw random numbers: they are seeded
    by an item's (epoch, index). erase: what is done to the normalised tensor. An image that cannot be read is replaced by the
    next one that can: items are (image, class or None, indices that could not be read); without stand_ins, by None. An image
    that can be read and not transformed is an error. timeout: seconds after which the reading of an image is given up (see
    at_most), which makes it one that cannot be read; None: never.
    """

    def __init__(self, images, transform, normalisation, seed=0, labelled=False, erase=None, stand_ins=True, timeout=120.0):
        self.images, self.transform, self.normalisation = images, transform, normalisation
        self.seed, self.labelled, self.erase, self.stand_ins = seed, labelled, erase, stand_ins
        self.timeout = timeout
        # (process id, number of the image it is at or -1), in memory that loading processes share: what a dead one was at. A
        # process has the row of its id modulo 1024, so that several loaders of the same images need not agree on anything.
        self.at_work = torch.full((1024, 2), -1).share_memory_()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        epoch, index = item
        failed = []
        with seeded(seed_for('augmentation', self.seed, epoch, index)), self.own_row() as row:
            for offset in range(min(PATIENCE, len(self.images)) if self.stand_ins else 1):
                at = (index + offset) % len(self.images)
                row[:] = torch.tensor([os.getpid(), at])
                try:
                    with at_most(self.timeout):
                        item = self.read(at)
                        image = item[0] if isinstance(item, (tuple, list)) else item
                        if isinstance(image, Image.Image):
                            image.load()  # Pillow reads a file only when asked for its pixels
                    if 0 in (image.size if isinstance(image, Image.Image) else getattr(image, 'shape', ())):
                        raise ValueError('it has no pixels')
                except Exception as error:  # whatever a file can do to a reader
                    failed.append((at, f'{type(error).__name__}: {error}'))
                    continue
                huge = isinstance(image, Image.Image) and math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf)
                try:
                    # Pillow asks of each crop what it asks of a file: what was read may be cut.
                    with pixel_limit(2 * math.prod(image.size) if huge else None):
                        tensor, label = self.prepare(image, item, at)
                except Exception as error:
                    raise ValueError(f'image {self.name(at)} can be read, but not be prepared: {error}') from error
                if tensor.dtype == torch.uint8 or tensor.isfinite().all():
                    return tensor, label, failed
                failed.append((at, 'it holds NaN or infinite values'))
        if not self.stand_ins:
            return None, None, failed
        raise ValueError(f'{counted(len(failed), "image")} in a row could not be read, from number {index} on; the last said '
                         f'"{failed[-1][1]}"')

    @contextmanager
    def own_row(self):
        """This process's row of `at_work`, which afterwards says that it is at no image."""
        row = self.at_work[os.getpid() % len(self.at_work)]
        try:
            yield row
        finally:
            row[1] = -1

    def read(self, index):
        return self.images[index]

    def prepare(self, image, item, index):
        """What was read of number `index` -> (the image as the network takes it, its class or None)."""
        tensor = as_tensor(self.transform(image))
        tensor = tensor if self.normalisation is None else as_input(tensor, self.normalisation)
        return tensor if self.erase is None else self.erase(tensor), item[1] if self.labelled else None

    def name(self, index):
        return self.images.name(index) if hasattr(self.images, 'name') else f'number {index}'


def as_tensor(image):
    """A PIL image or a tensor (C, H, W), uint8 or float -> (C, H, W), uint8 where it is, else float32."""
    image = image if torch.is_tensor(image) else F.pil_to_tensor(image)
    return image if image.dtype == torch.uint8 else F.convert_image_dtype(image, torch.float32)


def as_input(image, normalisation):
    """A PIL image or a tensor (C, H, W), uint8 or float -> (C, H, W) float32, normalised with (mean, std)."""
    return F.normalize(F.convert_image_dtype(as_tensor(image), torch.float32), *normalisation)


class seeded:
    """Python's, NumPy's and torch's (CPU) random numbers from a seed, and as they were afterwards."""

    def __init__(self, seed):
        self.seed = seed

    def __enter__(self):
        self.before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(self.seed)
        np.random.seed(self.seed % 2 ** 32)
        torch.random.default_generator.manual_seed(self.seed)

    def __exit__(self, *error):
        random.setstate(self.before[0])
        np.random.set_state(self.before[1])
        torch.set_rng_state(self.before[2])


class Steps(Sampler):
    """The (epoch, index) pairs that a rank takes at each step from `start` on, in `accum` parts: its share of each batch.

    An epoch has ceil(images / batch) steps; the last batch is filled up from the beginning of the order. repeats: how often an
    image comes in a batch, each time augmented in another way (repeated augmentation, Hoffer et al. 2020): an epoch then sees
    images / repeats of them. The copies stand apart, on other ranks where there are some: mixup takes neighbours. Items are
    (draw, index); without repeats the draw is the epoch. left_out: ((first step, step behind the last), ...) that do not come.
    """

    def __init__(self, images, batch, epochs, seed, start=0, rank=0, ranks=1, accum=1, repeats=1, left_out=()):
        self.images, self.batch, self.seed, self.repeats = images, batch, seed, repeats
        self.rank, self.share, self.accum = rank, batch // ranks, accum
        self.steps_per_epoch = -(-images // batch)
        out = {step for first, stop in left_out for step in range(first, stop)}
        self.steps = [step for step in range(start, epochs * self.steps_per_epoch) if step not in out] if out else \
            range(start, epochs * self.steps_per_epoch)

    def __len__(self):
        return len(self.steps) * self.accum

    def order(self, epoch):
        """All images in the order of an epoch, (images,)."""
        return torch.randperm(self.images, generator=torch.Generator().manual_seed(seed_for('order', self.seed, epoch)))

    def batch_of(self, step, order=None, places=None):
        """The (epoch, index) pairs of a step on all ranks, or those at some places; order: of its epoch, drawn if not given."""
        epoch, different = step // self.steps_per_epoch, -(-self.batch // self.repeats)
        order, first = self.order(epoch) if order is None else order, step % self.steps_per_epoch * different
        return [(epoch * self.repeats + i // different, int(order[(first + i % different) % self.images]))
                for i in (range(self.batch) if places is None else places)]

    def __iter__(self):
        epoch = order = None
        for step in self.steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            part = self.share // self.accum
            # Parts first, then ranks: BatchNorm, which sees a part, sees the same images on any number of ranks.
            for begin in range(0, self.batch, self.batch // self.accum):
                yield self.batch_of(step, order, range(begin + self.rank * part, begin + (self.rank + 1) * part))


def collate(items):
    """[(image, class or None, failures)] -> images (B, C, H, W), classes (B,) or None, all failures; None is left out.

    Where some images are uint8 and others float, all become float32 in [0, 1].
    """
    failures, read = [one for *_, each in items for one in each], [item[:2] for item in items if item[0] is not None]
    if not read:
        return torch.empty(0), torch.empty(0, dtype=torch.int64), failures
    images, classes = zip(*read)
    labels = None if any(label is None for label in classes) else torch.as_tensor([int(label) for label in classes])
    if len({image.dtype for image in images}) > 1:
        images = [F.convert_image_dtype(image, torch.float32) for image in images]
    return torch.stack(images), labels, failures
