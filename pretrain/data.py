"""Images without labels: finding them, reading them, one augmentation, and the order in which steps take them.

Nothing here has a random state. The order of an epoch is a function of (seed, epoch), the augmentation of an image one of
(seed, epoch, index): neither workers, nor ranks, nor a resume change what a step sees.
"""
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from common.schedule import seed_for

BICUBIC = InterpolationMode.BICUBIC
PATIENCE = 100  # unreadable images in a row before giving up: then it is not the images


class ImageFiles(Dataset):
    """The images of a folder (flat or nested, whatever Pillow reads) or of a text file with one path a line.

    Yields PIL images, or float tensors (1, H, W) in [0, 1] for 16-bit ones. Raises ValueError if there are none.
    """

    def __init__(self, source, in_chans=3):
        source = Path(source)
        if in_chans not in (1, 3):
            raise ValueError(f'image files are read with 1 or 3 channels, not {in_chans}: give a Dataset of your own in '
                             'code (README, "Your own data")')
        if source.is_dir():
            endings = tuple(Image.registered_extensions())
            paths = sorted(str(p.relative_to(source)) for p in source.rglob('*') if p.suffix.lower() in endings
                           and not p.name.startswith('.') and p.is_file())
            self.root = source
        elif source.is_file():
            try:
                paths = [line.strip() for line in source.read_text(encoding='utf-8').splitlines() if line.strip()]
            except UnicodeDecodeError:
                raise ValueError(f'{source} is neither a folder nor a text file with one image path a line') from None
            self.root = source.parent
        else:
            raise ValueError(f'there is no folder or list of images {source}')
        if not paths:
            raise ValueError(f'{source} holds no images that Pillow reads by their file names')
        # One array, not a list of strings: workers share it, reference counts would copy it into each of them.
        self.paths = np.array([path.encode() for path in paths])
        self.mode = 'RGB' if in_chans == 3 else 'L'

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return str(self.root / self.paths[index].decode())

    def __getitem__(self, index):
        with Image.open(self.name(index)) as image:
            if image.mode.startswith('I'):  # 16-bit grey, which Pillow would clip to 8 bits
                values = torch.from_numpy(np.array(image, dtype=np.float32))[None] / 65535
                return values.expand(3, -1, -1) if self.mode == 'RGB' else values
            return image.convert(self.mode)


def find_images(data_path=None, dataset=None, in_chans=3):
    """The training images of --data_path and --dataset. Raises ValueError if there are none."""
    if dataset is not None:
        from timm.data import create_dataset
        mode = {1: 'L', 3: 'RGB'}.get(in_chans)
        images = create_dataset(dataset, root=data_path, split='train', **({'input_img_mode': mode} if mode else {}))
        return check_dataset(images)
    if data_path is None:
        raise ValueError('say where the images are: --data_path=DIR')
    folder = Path(data_path, 'train')
    return ImageFiles(folder if folder.is_dir() else data_path, in_chans)


def find_held_out(data_path=None, val_path=None, in_chans=3):
    """The held-out images of --val_path, or of val/ beside train/; None if there are none."""
    if val_path is None and data_path is not None and Path(data_path, 'val').is_dir():
        val_path = Path(data_path, 'val')
    return None if val_path is None else ImageFiles(val_path, in_chans)


def check_dataset(images):
    """Refuse what is no map-style data set."""
    if not hasattr(images, '__len__') or not hasattr(images, '__getitem__') or len(images) == 0:
        raise ValueError(f'{type(images).__name__} is no map-style data set with at least one image: it needs __len__ and '
                         '__getitem__, since the order of the images is drawn from the seed')
    return images


class Augmented(Dataset):
    """Images as the network takes them: (C, H, W) float32, normalised.

    images: a map-style data set of PIL images or tensors (C, h, w), uint8 or float, or of tuples that start with one.
    random: RandomResizedCrop and flip, by an item's (epoch, index); else a plain resize and centre crop.
    An image that cannot be read is replaced by the next one that can: items are (image, indices that could not be read).
    """

    def __init__(self, images, size, normalisation, seed=0, crop_scale=(0.67, 1.0), flip=True, random=True):
        self.images, self.size, self.seed, self.random = images, size, seed, random
        self.normalisation, self.crop_scale, self.flip = normalisation, crop_scale, flip

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        epoch, index = item
        failed = []
        with seeded(seed_for('augmentation', self.seed, epoch, index)):
            for offset in range(min(PATIENCE, len(self.images))):
                at = (index + offset) % len(self.images)
                try:
                    image = self.images[at]
                    return self.transform(image[0] if isinstance(image, (tuple, list)) else image), failed
                except Exception as error:  # whatever a file can do to a reader
                    failed.append((at, f'{type(error).__name__}: {error}'))
        raise ValueError(f'{len(failed)} images in a row could not be read, from number {index} on; the last said '
                         f'"{failed[-1][1]}"')

    def transform(self, image):
        if self.random:
            box = RandomResizedCrop.get_params(image, self.crop_scale, (3 / 4, 4 / 3))
            image = F.resized_crop(image, *box, list(self.size), BICUBIC, antialias=True)
            if self.flip and torch.rand(()) < 0.5:
                image = F.hflip(image)
        else:
            height, width = F.get_dimensions(image)[1:]
            scale = max(self.size[0] / height, self.size[1] / width)
            image = F.resize(image, [max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1])],
                             BICUBIC, antialias=True)
            image = F.center_crop(image, list(self.size))
        if not torch.is_tensor(image):
            image = F.pil_to_tensor(image)
        image = F.convert_image_dtype(image, torch.float32)
        return F.normalize(image, *self.normalisation)

    def name(self, index):
        return self.images.name(index) if hasattr(self.images, 'name') else f'number {index}'


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
    """The (epoch, index) pairs that a rank takes at each step from `start` on: its part of each global batch.

    An epoch has ceil(images / batch) steps; the last batch is filled up from the beginning of the order.
    """

    def __init__(self, images, batch, epochs, seed, start=0, rank=0, ranks=1):
        self.images, self.batch, self.seed, self.start = images, batch, seed, start
        self.rank, self.share = rank, batch // ranks
        self.steps_per_epoch = -(-images // batch)
        self.stop = epochs * self.steps_per_epoch

    def __len__(self):
        return self.stop - self.start

    def __iter__(self):
        epoch = order = None
        for step in range(self.start, self.stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                generator = torch.Generator().manual_seed(seed_for('order', self.seed, epoch))
                order = torch.randperm(self.images, generator=generator)
            first = step % self.steps_per_epoch * self.batch + self.rank * self.share
            yield [(epoch, int(order[i % self.images])) for i in range(first, first + self.share)]


def collate(items):
    """[(image, failures)] -> (B, C, H, W), all failures."""
    return torch.stack([image for image, _ in items]), [failure for _, failures in items for failure in failures]


def loader(augmented, batches, workers, device):
    """Batches of images, in the order of `batches`, ahead of time in `workers` processes."""
    return DataLoader(augmented, batch_sampler=batches, num_workers=workers, collate_fn=collate,
                      pin_memory=device.type == 'cuda')


def without_failures(batches, augmented, log):
    """The images of each batch; what could not be read is named once and counted."""
    seen = set()
    for images, failures in batches:
        for index, error in failures:
            if index not in seen:
                seen.add(index)
                log.warn(f'unreadable image {augmented.name(index)} ({error}): the next one stands in for it; '
                         f'{len(seen)} so far')
        yield images
