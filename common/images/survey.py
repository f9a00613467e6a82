"""A survey of some image files before a run: which pages, bits, bands and transparency in them are not read."""
import os
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Subset

from common.images.files import ImageFiles, open_image
from common.images.headers import bits_of
from common.images.pixels import CANNOT, samples_of
from common.images.tiff import RGB, NotInstalled, Tiff
from common.images.timeout import at_most

FILES = 100  # the most files that are opened
PIXELS = 2 ** 26  # the most pixels that are decoded, in all of them; that takes a second or two
PAGES = 1000  # the most pages of a TIFF whose kinds are looked up
PATIENCE = 10.0  # seconds for a file
# If no value of the files is above this share of the largest possible one, they are called dark.
DARK = 1 / 4
SUBFILE, SAMPLES = 254, 277  # tags of a TIFF
COPY_OR_MASK = 1 | 4  # bits of SUBFILE: a smaller copy of another page, a mask for one
OF_ONE_PICTURE = ('PSD', 'ICO', 'ICNS', 'CUR')  # formats whose parts are layers or sizes of one picture
SENTENCES = {'pages': 'the first of {:,} pages is read', 'bits': '8 of {} bits are read',
             'bands': 'bands beside the colours ({}) are left out',
             'transparency': 'transparency is left out'}


def survey(images, mean=None):
    """Sentences on what is left out of some image files, spread evenly over the data set; [] if nothing is.

    images: ImageFiles, a data set of timm, or a Subset of one of these; for any other data set, [] is returned.
    mean: --mean, of each channel, if it was given: dark images are intended if they are about as bright as that.

    Files that cannot be read are passed over. Raises ValueError if none can be, and NotInstalled, a ValueError,
    where a package is missing.
    """
    left_out = defaultdict(list)  # {kind: [(number, name of the file)]}
    deep_values = DeepValues()
    num_read = 0
    first_failure = None
    budget = PIXELS
    places = np.linspace(0, len(images) - 1, min(len(images), FILES)).round().astype(int)
    for place in places.tolist():
        dataset, index = innermost(images, place)
        if not isinstance(dataset, ImageFiles) and not hasattr(dataset, 'reader'):
            return []
        name = os.path.basename(dataset.name(index)) if isinstance(dataset, ImageFiles) else f'number {index}'
        try:
            with at_most(PATIENCE):
                with opened(dataset, index) as image:
                    facts = facts_of(image, dataset)
                if facts.pixels <= budget and (facts.is_deep or facts.may_be_transparent):
                    budget -= facts.pixels
                    examine_pixels(dataset, index, facts, deep_values)
        except NotInstalled as error:
            raise NotInstalled(f'{name} cannot be read: {error}') from error
        except Exception as error:  # A file can make a reader raise anything. It is named when it is read.
            first_failure = first_failure or f'{name}: {error}'
            continue
        num_read += 1
        for kind, number in facts.left_out:
            left_out[kind].append((number, name))
    if not num_read:
        raise ValueError(f'none of the images can be read ({len(places):,} were looked at); the first of them is '
                         f'{first_failure}')
    said = []
    for kind, files in left_out.items():
        number, name = max(files)
        said.append(f'in {len(files):,} of {num_read:,} files looked at {SENTENCES[kind].format(number)} '
                    f'({name})')
    return said + deep_values.sentences(mean)


def warn_of(images, options):
    """Yield what the survey finds as one warning of a run with these options; nothing if it finds nothing."""
    said = survey(images, options.mean)
    if said:
        yield '; '.join(said)


def innermost(images, index):
    """(data set, index) of an image in the data set of which `images` is a subset, or a subset of one."""
    while isinstance(images, Subset):
        index = int(images.indices[index])
        images = images.dataset
    return images, index


@contextmanager
def opened(images, index):
    """The context of an opened file of ImageFiles or of a data set of timm."""
    if isinstance(images, ImageFiles):
        with images.opened(index) as image:
            yield image
    else:
        with images.reader[index][0] as file, open_image(file) as image:
            yield image


@dataclass
class Facts:
    """What the header of a file tells.

    left_out: [(kind, number)] of what is not read, with the kinds of SENTENCES.
    is_deep: whether more than 8 bits are read.
    """
    left_out: list
    is_deep: bool
    may_be_transparent: bool
    pixels: int


def facts_of(image, images):
    """The Facts of an opened file of the data set `images`."""
    left_out = []
    bits = bits_of(image)
    pages = pages_of(image)
    if pages > 1:
        left_out.append(('pages', pages))
    pixels = image.size[0] * image.size[1]
    if isinstance(image, Tiff):
        is_grey = image.page.photometric != RGB and (images.mode == 'L' or image.bands < 3)
        channels = 1 if is_grey else 3
        if image.bands > channels:
            left_out.append(('bands', image.bands - channels))
        return Facts(left_out, True, False, pixels)
    if image.format == 'TIFF' and image.tag_v2.get(SAMPLES, 1) > len(image.getbands()):
        left_out.append(('bands', image.tag_v2[SAMPLES] - len(image.getbands())))
    is_deep = image.mode[0] in 'IF' or bits > 8 and image.format not in CANNOT and image.mode != 'CMYK'
    if not isinstance(images, ImageFiles):  # timm has Pillow convert every image to 8 bits
        is_deep = False
        bits = max(bits, 16 if image.mode[0] in 'IF' else 8)
    if bits > 8 and not is_deep:
        left_out.append(('bits', bits))
    return Facts(left_out, is_deep, image.has_transparency_data, pixels)


def examine_pixels(images, index, facts, deep_values):
    """Decode a file: add its values to deep_values if it is deep, and to facts.left_out whether it is transparent."""
    if facts.is_deep:
        with opened(images, index) as image:
            deep_values.add(samples_of(image, 1 if images.mode == 'L' else 3), images.reading.pixel_range)
    if facts.may_be_transparent:
        with opened(images, index) as image:
            lowest_alpha, _ = image.convert('RGBA').getchannel('A').getextrema()
        if lowest_alpha < 255:
            facts.left_out.append(('transparency', 0))


def pages_of(image):
    """How many pictures an opened file holds, without smaller copies of them and masks."""
    if image.format in OF_ONE_PICTURE:
        return 1
    number = len(image.file.pages) if isinstance(image, Tiff) else getattr(image, 'n_frames', 1)
    if image.format != 'TIFF' or not 1 < number <= PAGES:
        return number
    return 1 + sum(not subfile(image, page) & COPY_OR_MASK for page in range(1, number))


def subfile(image, page):
    """The bits of the tag SUBFILE of a page of a TIFF."""
    if isinstance(image, Tiff):
        return image.file.pages[page].subfiletype
    try:
        image.seek(page)
        return image.tag_v2.get(SUBFILE, 0)
    finally:
        image.seek(0)


class DeepValues:
    """The values of images that are not 8-bit, in order to tell whether they fill the range that they are read with."""

    def __init__(self):
        self.brightest = []  # for each file: (share, its largest value, the largest possible value)
        self.num_inside = 0  # values within --pixel_range
        self.num_outside = 0

    def add(self, samples, pixel_range):
        """Take note of the values of one file, a Samples."""
        values = samples.values
        if pixel_range is not None and not samples.is_8_bit:
            low, high = ((bound + samples.zero) * samples.unit for bound in pixel_range)
            outside = int(((values < low) | (values > high)).sum())
            self.num_outside += outside
            self.num_inside += values.size - outside
        elif (samples.top is not None and samples.zero == 0 and values.dtype.kind in 'ui'
              and not samples.is_8_bit):
            largest = round(samples.in_file(values.max().item()))
            possible = round(samples.in_file(samples.top))
            self.brightest.append((largest / possible, largest, possible))

    def sentences(self, mean):
        """What is to be said of these values; mean as in survey()."""
        said = []
        share, value, top = max(self.brightest, default=(1.0, 0, 0))
        if share < min((DARK, *(mean or ()))):
            remedy = f'give --pixel_range=0,{2 ** value.bit_length() - 1}'
            if mean is None:
                remedy += ' (or --mean and --std), or the images are nearly black'
            else:
                remedy += ', and the --mean and --std of the values from 0 to 1 that it makes of them'
            said.append(f'the largest value of these files is {value:,} of {top:,}{", below the --mean" * (mean is not None)}: '
                        f'{remedy}')
        if self.num_outside > 0.1 * (self.num_outside + self.num_inside):
            share = self.num_outside / (self.num_outside + self.num_inside)
            said.append(f'{share:.0%} of the values in these files lie outside of --pixel_range, and are '
                        'clipped')
        return said
