"""The images of an analysis: which ones, how they are prepared, and where the results go."""
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.config import normalisation_of
from common.images.augmented import Augmented, CentreCrop
from common.images.files import ImageFiles
from common.images.reading import Reading, is_range
from common.images.splits import validation_folder
from common.seeds import seed_for


@dataclass(frozen=True)
class Settings:
    """How images are chosen and prepared. Raises ValueError.

    images: how many. size: (height, width) in pixels. crop: share of an image that the centre crop shows.
    mean, std: of each channel, ImageNet's if None. batch_size: images that the network sees at a time.
    workers: loading processes. seed: of what is drawn. pixel_range, max_pixels: as of Reading.
    """
    data_path: str
    images: int
    size: tuple
    crop: float = 0.875
    in_chans: int = 3
    mean: tuple | None = None
    std: tuple | None = None
    batch_size: int = 32
    workers: int | None = None
    seed: int = 0
    pixel_range: tuple | None = None
    max_pixels: int | None = None

    def __post_init__(self):
        for name in ('images', 'in_chans', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'--{name} is 1 or more, not {getattr(self, name)}')
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError('--input_size is a side or height,width in pixels, not '
                             f'{",".join(map(str, self.size))}')
        if not 0 < self.crop <= 1:
            raise ValueError(f'--crop is more than 0 and at most 1, not {self.crop}')
        if self.seed < 0:
            raise ValueError(f'--seed is 0 or more, not {self.seed}')
        if self.workers is not None and self.workers < 0:
            raise ValueError(f'--workers is 0 or more, not {self.workers}')
        if self.pixel_range is not None and not is_range(self.pixel_range):
            raise ValueError(f'--pixel_range is from,to with from < to, not {",".join(map(str, self.pixel_range))}')
        for name in ('mean', 'std'):
            value = getattr(self, name)
            if value is not None and len(value) != self.in_chans:
                raise ValueError(f'--{name} has one number for each channel, {self.in_chans} in all, not '
                                 f'{len(value)}')
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f'--std is more than 0, not {",".join(map(str, self.std))}')

    @property
    def normalisation(self):
        """(mean, std) of each channel."""
        return normalisation_of(self.mean, self.std, self.in_chans)

    @property
    def preparation(self):
        """What a result depends on, besides the network and the images, as plain values."""
        kept = {'size': list(self.size), 'crop': self.crop, 'in_chans': self.in_chans,
                'normalisation': [list(values) for values in self.normalisation]}
        if self.pixel_range is not None:  # Results without one stay valid.
            kept['pixel_range'] = list(self.pixel_range)
        return kept

    def augmented(self, images, timeout=120.0):
        """Images as the network takes them: resized, cut and normalised, each by itself."""
        crop = CentreCrop(self.size, self.crop)
        return Augmented(images, crop, self.normalisation, stand_ins=False, timeout=timeout)

    @torch.no_grad()
    def outputs_of(self, module):
        """Return how many outputs a network has for an image."""
        return module.eval()(torch.zeros(1, self.in_chans, *self.size)).shape[1]


def find_images(settings):
    """Return the images of the folder; of its val/ (valid/, validation/) where it has one. Raises ValueError."""
    path = Path(settings.data_path)
    folder = validation_folder(path) if path.is_dir() else None
    return ImageFiles(folder or path, settings.in_chans, reading=Reading(settings.pixel_range, settings.max_pixels))


def drawn(images, number, seed):
    """Draw `number` of the images, or all if there are fewer. The first ones are the same for any number."""
    places = np.random.default_rng(seed_for('images of an analysis', seed)).permutation(len(images))
    return images.subset(places[:number])


def class_folder(images, place):
    """Return the first folder in the path of an image, below the folder of all, its class. Raises ValueError."""
    path = Path(images.name(place)).relative_to(images.root)
    if len(path.parts) < 2:
        raise ValueError(f'{images.name(place)} is in no folder of a class: this analysis needs images with '
                         'classes, one folder for each class with its images')
    return path.parts[0]


def drawn_evenly(images, number, seed):
    """Draw `number` of the images, evenly from the folders of the classes.

    Returns (images, the folder of each of them, the names of all folders). The first images are the same for
    any number. Raises ValueError for images outside of such folders.
    """
    of_folder = defaultdict(list)
    for place in range(len(images)):
        of_folder[class_folder(images, place)].append(place)
    rng = np.random.default_rng(seed_for('images of an analysis', seed))
    folders = rng.permutation(sorted(of_folder)).tolist()
    order = {folder: rng.permutation(of_folder[folder]).tolist() for folder in folders}
    chosen = []
    while len(chosen) < min(number, len(images)):
        for folder in folders:
            if order[folder] and len(chosen) < number:
                chosen.append((order[folder].pop(0), folder))
    places, names = zip(*chosen)
    return images.subset(np.array(places)), list(names), sorted(of_folder)
