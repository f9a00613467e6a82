"""A survey of the masks of a data set before a training: all are read, in several threads."""
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import ExifTags

from common.images.files import open_image
from common.images.limits import pixel_limit
from common.images.tiff import TRANSPOSED
from common.training.run import usable_cores
from common.words import counted
from downstream_ade20k.classes import VALUES, UnknownColour
from downstream_ade20k.masks import HoldsColours, read_mask

MOST_THREADS = 16  # each holds a mask in memory
COUNTED = 2 ** 18  # pixels that are counted at a time: numpy.bincount makes a copy of them with 8 bytes each
# Kinds of what is wrong with a mask: what is said of the masks, and what to do.
UNREADABLE = 'cannot be read', 'Replace them, or take them and their images away'
COLOURED = 'hold no ids of classes', 'Or give a file with the colour of each class, --classes=FILE'
UNLISTED = 'hold colours of no class', 'The file of --classes says which colours masks may have'
MISFITTING = 'have another size than their images', 'A mask has a pixel for each pixel of its image'
FAULTS = (UNREADABLE, COLOURED, UNLISTED, MISFITTING)


@dataclass(frozen=True)
class MaskStatistics:
    """What is found in one mask.

    shape: its height and width. values: that it holds, ascending, and pixels: of each of them, both (n,).
    fault: (one of FAULTS, the details) or None. Then the rest is not known.
    is_ambiguous: whether the mask fits its image as it is stored, and as well turned as EXIF says.
    """
    shape: tuple = (0, 0)
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    fault: tuple | None = None
    is_ambiguous: bool = False


def statistics_of(images, index, classes):
    """The MaskStatistics of an image of SegmentationImages.

    classes: the Classes, or None if they are not known yet.
    """
    try:
        mask = read_mask(images.mask_name(index), classes, images.reading.max_pixels)
    except HoldsColours as error:
        return MaskStatistics(fault=(COLOURED, str(error)))
    except UnknownColour as error:
        return MaskStatistics(fault=(UNLISTED, str(error)))
    except Exception as error:  # A damaged file can make a reader raise anything.
        return MaskStatistics(fault=(UNREADABLE, f'{type(error).__name__}: {error}'))
    fault, is_ambiguous = compared(images, index, mask.shape)
    pixels = counts_of(mask)
    values = np.flatnonzero(pixels)
    return MaskStatistics(mask.shape, values, pixels[values], fault, is_ambiguous)


def counts_of(mask):
    """How many pixels of a mask have each value, (VALUES,) int64."""
    counts = np.zeros(VALUES, np.int64)
    pixels = mask.ravel()
    for first in range(0, len(pixels), COUNTED):
        of_some = np.bincount(pixels[first:first + COUNTED])
        counts[:len(of_some)] += of_some
    return counts


def compared(images, index, shape):
    """(fault, is_ambiguous) of MaskStatistics, by the header of the image.

    shape: height and width of its mask. An image that cannot be read is not judged here.
    """
    try:
        with images.opened(index) as image:
            width, height = image.size
            orientation = orientation_of(image)
    except Exception:  # It is named when it is read, as in every program.
        return None, False
    if shape == (height, width):
        return None, orientation != 1 and (orientation not in TRANSPOSED or height == width)
    if shape == (width, height) and orientation in TRANSPOSED:
        return None, False
    return (MISFITTING, f'it is {shape[1]}x{shape[0]}, the image {width}x{height}'), False


def orientation_of(image):
    """The EXIF orientation of an opened JPEG, 1 to 8; 1 where there is none, and for other formats."""
    if getattr(image, 'format', None) not in ('JPEG', 'MPO'):
        return 1  # Of some of these, Pillow would decode all pixels to tell.
    return image.getexif().get(ExifTags.Base.Orientation, 1)


@contextmanager
def reading_in_threads(max_pixels):
    """Within it, several threads may open images.

    open_image changes settings of the whole process and restores them. Threads could restore what another
    one has set. So what open_image sets is set before the threads start, and restored after their end.
    """
    with warnings.catch_warnings(), pixel_limit(max_pixels):
        warnings.simplefilter('ignore')
        yield


def in_threads(work, number, what, line, max_pixels):
    """Yield work(index) for each index below `number`, in order.

    what: the task, as it is shown on `line`, a LiveLine. max_pixels: of the images that are read.
    """
    with reading_in_threads(max_pixels), ThreadPoolExecutor(min(usable_cores(), MOST_THREADS)) as pool, \
            line.counting(what, number, 'mask') as count:
        for result in pool.map(work, range(number)):
            count.add()
            yield result


@dataclass(frozen=True)
class Survey:
    """What is found in the masks of some images.

    shapes: (N, 2), height and width of each. values: those that each holds, [(n,)].
    pixels: of each value, in all masks, (VALUES,). ambiguous: the places of masks that are (see MaskStatistics).
    """
    images: object
    shapes: np.ndarray
    values: list
    pixels: np.ndarray
    ambiguous: list

    @property
    def found(self):
        """The values that some mask holds, ascending."""
        return np.flatnonzero(self.pixels)

    def masks_with(self, values):
        """The places of the masks that hold one of some values."""
        return [place for place, held in enumerate(self.values) if np.isin(held, values).any()]


def survey(images, classes, line, what):
    """The Survey of the masks of SegmentationImages.

    classes: the Classes, or None if they are not known yet. line: a LiveLine, which calls the task `what`.

    Raises ValueError for masks that cannot be read, that do not fit their images, or that hold colours
    without a meaning.
    """
    pixels = np.zeros(VALUES, np.int64)
    statistics = []
    for found in in_threads(lambda index: statistics_of(images, index, classes), len(images), what, line,
                            images.reading.max_pixels):
        pixels[found.values] += found.pixels
        statistics.append(found)
    refuse_faults(images, statistics)
    return Survey(images, np.array([found.shape for found in statistics]), [found.values for found in statistics],
                  pixels, [place for place, found in enumerate(statistics) if found.is_ambiguous])


def refuse_faults(images, statistics):
    """Raises ValueError if something is wrong with masks of SegmentationImages. statistics: of each of them."""
    for fault in FAULTS:
        places = [place for place, found in enumerate(statistics) if found.fault and found.fault[0] == fault]
        if not places:
            continue
        said, remedy = fault
        _, details = statistics[places[0]].fault
        sentence = (f'{len(places):,} of {counted(len(statistics), "mask")} in {images.mask_root} {said}; '
                    f'{images.mask_path(places[0])}: {details}')
        raise ValueError(f'{sentence}. {remedy}' if remedy else sentence)


def mask_shapes(images, line):
    """Height and width of the masks of SegmentationImages, (N, 2), by their headers. Raises ValueError."""
    def shape(index):
        try:
            with open_image(images.mask_name(index), images.reading.max_pixels) as mask:
                return mask.height, mask.width
        except Exception as error:  # A damaged file can make a reader raise anything.
            reason = f'{type(error).__name__}: {error}'
            raise ValueError(f'the mask {images.mask_name(index)} cannot be read ({reason})') from error

    return np.array(list(in_threads(shape, len(images), 'sizes of masks', line, images.reading.max_pixels)))
