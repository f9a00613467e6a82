"""Images as a network takes them: how they are augmented, and in which order the steps take them.

Nothing here has a random state. The order of an epoch is a function of (seed, epoch), and the augmentation of
an image is one of (seed, epoch, index). So neither workers, nor ranks, nor a resume change what a step sees.
"""
import math
import os
import random
import time
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
from common.words import counted, printable

BICUBIC = InterpolationMode.BICUBIC
ASPECTS = 3 / 4, 4 / 3  # of a random crop, width by height: the least and the most
PATIENCE = 100  # If so many images in a row cannot be read, it is not the images, and reading is given up.
ROWS = 1024  # of Augmented.at_work


@dataclass(frozen=True)
class Crop:
    """Cuts a box (top, left, height, width) out of an image, resizes it to (height, width) with an antialiased
    filter, 'bicubic' or 'bilinear', and perhaps mirrors it.
    """
    box: tuple
    size: tuple
    mirrored: bool
    interpolation: str = 'bicubic'

    def __call__(self, image):
        image = F.resized_crop(image, *self.box, list(self.size), InterpolationMode(self.interpolation), antialias=True)
        return F.hflip(image) if self.mirrored else image


@dataclass(frozen=True)
class RandomCrop:
    """RandomResizedCrop to (height, width), and a flip of half of the images.

    scale: (from, to), the area of the crop as a share of the image. interpolation: as of Crop. retries: whether
    a box that does not lie in the image is drawn again, up to ten times (torchvision's); else it is cut to the image's
    sides, as in the linear probe of MAE.
    """
    size: tuple
    scale: tuple = (0.67, 1.0)
    flip: bool = True
    interpolation: str = 'bicubic'
    retries: bool = True

    def draw(self, height, width):
        """Draw the Crop of an image of that size."""
        if self.retries:
            box = RandomResizedCrop.get_params(torch.empty(1, height, width, device='meta'), self.scale, ASPECTS)
        else:
            box = box_in_one_draw(height, width, self.scale, ASPECTS)
        return Crop(box, self.size, self.flip and bool(torch.rand(()) < 0.5), self.interpolation)

    def __call__(self, image):
        return self.draw(*F.get_dimensions(image)[1:])(image)


def box_in_one_draw(height, width, scale, ratio):
    """A random box (top, left, height, width) in an image.

    Its area as a share of the image, and its width over its height, are drawn once, uniformly from `scale` and
    log-uniformly from `ratio`. A side that is longer than the image's is cut.
    """
    area = height * width * torch.empty(()).uniform_(*scale).item()
    shape = math.exp(torch.empty(()).uniform_(math.log(ratio[0]), math.log(ratio[1])).item())
    box_height = min(max(round(math.sqrt(area / shape)), 1), height)
    box_width = min(max(round(math.sqrt(area * shape)), 1), width)
    top = torch.randint(height - box_height + 1, ()).item()
    left = torch.randint(width - box_width + 1, ()).item()
    return top, left, box_height, box_width


@dataclass(frozen=True)
class CentreCrop:
    """Cuts (height, width) out of the middle of an image.

    Before that the image is resized so that (height, width) is at most the share `crop` of each of its sides.
    If it would become more than 16 times as long as the result, only its middle is resized. interpolation: as of Crop.
    """
    size: tuple
    crop: float = 1.0
    interpolation: str = 'bicubic'

    def __call__(self, image):
        height, width = F.get_dimensions(image)[1:]
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop
        # A strip of 1 x 60,000 would be resized to gigapixels.
        if max(height, width) * scale > 16 * max(self.size):
            height = min(height, math.ceil(4 * self.size[0] / scale))
            width = min(width, math.ceil(4 * self.size[1] / scale))
            image = F.center_crop(image, [height, width])
        resized_height = max(round(height * scale), self.size[0])
        resized_width = max(round(width * scale), self.size[1])
        image = F.resize(image, [resized_height, resized_width], InterpolationMode(self.interpolation), antialias=True)
        return F.center_crop(image, list(self.size))


class Augmented(Dataset):
    """Images as the network takes them, (C, H, W) float32, normalised.

    Its indices are (epoch, index), and seed the random numbers of the transform. Its items are (image, class
    or None, failures), where failures is [(index, what is wrong)] of images that cannot be read.

    images: a map-style data set of PIL images or tensors (C, h, w), uint8 or float, or of tuples that start with
        one; of (image, class) if labelled.
    transform: takes an image, returns one of the network's size, and may draw random numbers.
    normalisation: (mean, std). If it is None, images are uint8, or float32 in [0, 1], and
        common.training.device.Normalise does the rest: 8-bit images are a quarter of the bytes on their way
        from a loading process to the device.
    erase: called with the normalised tensor, if given; returns it, changed.
    stand_ins: whether the next image that can be read stands in for one that cannot. If not, the item of the
        latter has None for its image.
    timeout: seconds after which an image counts as one that cannot be read (see at_most); None for no limit.

    Raises ValueError if an image can be read but not transformed, or if PATIENCE images in a row cannot be read.
    """

    def __init__(self, images, transform, normalisation, seed=0, labelled=False, erase=None, stand_ins=True,
                 timeout=120.0):
        self.images = images
        self.transform = transform
        self.normalisation = normalisation
        self.seed = seed
        self.labelled = labelled
        self.erase = erase
        self.stand_ins = stand_ins
        self.timeout = timeout
        # Rows of (process id, index of the image that the process is at, or -1), in memory that loading
        # processes share. They say what a process that died was at. A process has the row of its id modulo
        # ROWS, so that several loaders of the same images need not agree on anything.
        self.at_work = torch.full((ROWS, 2), -1).share_memory_()
        # Rows of (seconds spent on items, number of items), shared and found in the same way.
        self.time_spent = torch.zeros(ROWS, 2, dtype=torch.float64).share_memory_()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        epoch, index = item
        failures = []
        num_tries = min(PATIENCE, len(self.images)) if self.stand_ins else 1
        with seeded(seed_for('augmentation', self.seed, epoch, index)), self.own_row() as row:
            for offset in range(num_tries):
                at = (index + offset) % len(self.images)
                row[:] = torch.tensor([os.getpid(), at])
                try:
                    image, item = self.read_within_limit(at)
                except Exception as error:  # A damaged file can make a reader raise anything.
                    failures.append((at, f'{type(error).__name__}: {error}'))
                    continue
                tensor, label = self.prepared(image, item, at)
                if tensor.dtype == torch.uint8 or tensor.isfinite().all():
                    return tensor, label, failures
                failures.append((at, 'it holds NaN or infinite values'))
        if not self.stand_ins:
            return None, None, failures
        raise ValueError(f'{counted(len(failures), "image")} in a row could not be read, from number {index} '
                         f'on; the last said "{failures[-1][1]}"')

    def read_within_limit(self, index):
        """(image, item) of what read() returns, within the time limit. Raises whatever a file makes a reader raise."""
        with at_most(self.timeout):
            item = self.read(index)
            image = item[0] if isinstance(item, (tuple, list)) else item
            if isinstance(image, Image.Image):
                image.load()  # Pillow reads a file only when asked for its pixels.
        shape = image.size if isinstance(image, Image.Image) else getattr(image, 'shape', ())
        if 0 in shape:
            raise ValueError('it has no pixels')
        return image, item

    def prepared(self, image, item, index):
        """prepare(), with the image's name in the ValueError."""
        try:
            # Pillow asks of each crop what it asks of a file: what was read may be cut.
            is_huge = (isinstance(image, Image.Image)
                       and math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf))
            with pixel_limit(2 * math.prod(image.size) if is_huge else None):
                return self.prepare(image, item, index)
        except Exception as error:
            raise ValueError(f'image {printable(self.name(index))} can be read, but not be prepared: {error}') from error

    @contextmanager
    def own_row(self):
        """This process's row of `at_work`, around an item.

        Afterwards it says that the process is at no image, and the time that the item took is added up.
        """
        place = os.getpid() % ROWS
        row = self.at_work[place]
        began = time.perf_counter()
        try:
            yield row
        finally:
            row[1] = -1
            self.time_spent[place] += torch.tensor([time.perf_counter() - began, 1.0], dtype=torch.float64)

    def seconds_an_item(self):
        """Mean seconds that a process took for an item so far. There must have been one."""
        seconds, items = self.time_spent.sum(0).tolist()
        return seconds / items

    def read(self, index):
        """What the data set holds at an index, before anything is done to it."""
        return self.images[index]

    def prepare(self, image, item, index):
        """(image as the network takes it, class or None), given what was read at an index."""
        tensor = as_tensor(self.transform(image))
        if self.normalisation is not None:
            tensor = as_input(tensor, self.normalisation)
        if self.erase is not None:
            tensor = self.erase(tensor)
        return tensor, item[1] if self.labelled else None

    def name(self, index):
        return self.images.name(index) if hasattr(self.images, 'name') else f'number {index}'


def as_tensor(image):
    """A PIL image or a tensor (C, H, W), uint8 or float, as a tensor (C, H, W), uint8 if it is 8-bit, else float32."""
    image = image if torch.is_tensor(image) else F.pil_to_tensor(image)
    return image if image.dtype == torch.uint8 else F.convert_image_dtype(image, torch.float32)


def as_input(image, normalisation):
    """A PIL image or a tensor (C, H, W), uint8 or float, as (C, H, W) float32, normalised with (mean, std)."""
    return F.normalize(F.convert_image_dtype(as_tensor(image), torch.float32), *normalisation)


class seeded:
    """Within it, the random numbers of Python, NumPy and torch (on the CPU) come from a seed. Afterwards they go on."""

    def __init__(self, seed):
        self.seed = seed

    def __enter__(self):
        self.python_state = random.getstate()
        self.numpy_state = np.random.get_state()
        self.torch_state = torch.get_rng_state()
        random.seed(self.seed)
        np.random.seed(self.seed % 2 ** 32)
        torch.random.default_generator.manual_seed(self.seed)

    def __exit__(self, *error):
        random.setstate(self.python_state)
        np.random.set_state(self.numpy_state)
        torch.set_rng_state(self.torch_state)


class Steps(Sampler):
    """The lists of (epoch, index) that one rank takes, from step `start` on; `accum` lists for each step.

    An epoch has ceil(images / batch) steps, and its last batch is filled up from the beginning of the order.

    images: how many there are. batch: images in a step, on all ranks together. epochs: how many. seed: of the order.
    rank, ranks: the number of this rank, and how many there are.
    accum: the parts of a step, whose gradients are added up.
    repeats: how often an image comes in a batch, each time augmented in another way (repeated augmentation,
        Hoffer et al. 2020). An epoch then sees images / repeats of them. The copies stand apart, on other ranks if there
        are some, since mixup takes neighbours. In place of the epoch, items then have the number of the draw.
    left_out: ((first step, step after the last), ...), steps that do not come.
    """

    def __init__(self, images, batch, epochs, seed, start=0, rank=0, ranks=1, accum=1, repeats=1,
                 left_out=()):
        self.images = images
        self.batch = batch
        self.seed = seed
        self.repeats = repeats
        self.rank = rank
        self.images_per_rank = batch // ranks
        self.accum = accum
        self.steps_per_epoch = -(-images // batch)
        skipped = {step for first, stop in left_out for step in range(first, stop)}
        self.steps = range(start, epochs * self.steps_per_epoch)
        if skipped:
            self.steps = [step for step in self.steps if step not in skipped]

    def __len__(self):
        return len(self.steps) * self.accum

    def order(self, epoch):
        """All images in the order of an epoch, (images,)."""
        generator = torch.Generator().manual_seed(seed_for('order', self.seed, epoch))
        return torch.randperm(self.images, generator=generator)

    def batch_of(self, step, order=None, places=None):
        """The (epoch, index) pairs of a step, which also seed the augmentation.

        The last batch of an epoch is filled up from the beginning of its order. An image that is in a batch twice by
        that, where there are fewer images than places, is augmented in the same way.

        order: that of its epoch; drawn if not given. places: which places of the batch; all of them if not given.
        """
        epoch = step // self.steps_per_epoch
        num_different = -(-self.batch // self.repeats)
        if order is None:
            order = self.order(epoch)
        first = step % self.steps_per_epoch * num_different
        return [(epoch * self.repeats + place // num_different,
                 int(order[(first + place % num_different) % self.images]))
                for place in (range(self.batch) if places is None else places)]

    def __iter__(self):
        epoch = None
        order = None
        for step in self.steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            part = self.images_per_rank // self.accum
            # A batch is divided into parts first, and each part among the ranks. So BatchNorm, which sees a
            # part, sees the same images on any number of ranks.
            for begin in range(0, self.batch, self.batch // self.accum):
                own = begin + self.rank * part
                yield self.batch_of(step, order, range(own, own + part))


def collate(items):
    """Make a batch of items of Augmented, leaving out those without an image.

    Returns images (B, C, H, W); classes (B,), or None if the items have none; and the list of all failures.
    If some images are uint8 and others float, all become float32 in [0, 1].
    """
    failures = [failure for *_, of_item in items for failure in of_item]
    read = [(image, label) for image, label, _ in items if image is not None]
    if not read:
        return torch.empty(0), torch.empty(0, dtype=torch.int64), failures
    images, classes = zip(*read)
    labels = None
    if not any(label is None for label in classes):
        labels = torch.as_tensor([int(label) for label in classes])
    if len({image.dtype for image in images}) > 1:
        images = [F.convert_image_dtype(image, torch.float32) for image in images]
    return torch.stack(images), labels, failures
