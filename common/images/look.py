"""What of image files is left out when they are read: pages, bits, bands, transparency; as far as some of the files tell."""
import os
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
from torch.utils.data import Subset

from common.images.files import ImageFiles, at_most, open_image
from common.images.pixels import CANNOT, NotInstalled, Tiff, bits_of, samples_of

FILES = 100  # that are looked at, at most
PIXELS = 2 ** 26  # of them that are decoded, at most: what takes a second or two
PAGES = 1000  # of a TIFF that are told apart
PATIENCE = 10.0  # seconds for a file
DARK = 1 / 4  # of the largest value that is possible: less than that in all files is said
SUBFILE, SAMPLES = 254, 277  # tags of a TIFF
COPY_OR_MASK = 1 | 4  # bits of SUBFILE: a smaller copy of another page, a mask for one
OF_ONE_PICTURE = ('PSD', 'ICO', 'ICNS', 'CUR')  # formats whose parts are layers or sizes of one picture
SENTENCES = {'pages': 'the first of {:,} pages is read', 'bits': '8 of {} bits are read',
             'bands': 'bands beside the colours ({}) are left out', 'transparency': 'transparency is left out'}


def look_at(images, normalised=False):
    """Sentences on what is left out of some image files, spread evenly over the data set; [] if nothing is.

    images: ImageFiles, a data set of timm, or a Subset of one; of others nothing is said. normalised: whether their mean and
    deviation were given: then dark images are meant. Files that cannot be read are passed over. Raises NotInstalled, a
    ValueError, where a package is missing.
    """
    found, values, looked, budget = defaultdict(list), Values(), 0, PIXELS
    for index in np.linspace(0, len(images) - 1, min(len(images), FILES)).round().astype(int).tolist():
        part, at = innermost(images, index)
        if not isinstance(part, ImageFiles) and not hasattr(part, 'reader'):
            return []
        name = os.path.basename(part.name(at)) if isinstance(part, ImageFiles) else f'number {at}'
        try:
            with at_most(PATIENCE):
                with opened(part, at) as image:
                    lost, is_deep, is_clear, pixels = facts(image, part)
                if pixels <= budget and (is_deep or is_clear):
                    budget -= pixels
                    if is_deep:
                        with opened(part, at) as image:
                            values.add(samples_of(image, 1 if part.mode == 'L' else 3), part.reading.pixel_range)
                    if is_clear:
                        with opened(part, at) as image:
                            is_clear = image.convert('RGBA').getchannel('A').getextrema()[0] < 255
                            lost += [('transparency', 0)] * is_clear
        except NotInstalled as error:
            raise NotInstalled(f'{name} cannot be read: {error}') from error
        except Exception:  # whatever a file can do to a reader: it is named when it is read
            continue
        looked += 1
        for kind, number in lost:
            found[kind].append((number, name))
    return [f'in {len(of):,} of {looked:,} files looked at {SENTENCES[kind].format(max(of)[0])} ({max(of)[1]})'
            for kind, of in found.items()] + values.sentences(normalised)


def warn_of(images, options):
    """What look_at says, as one warning of a run with these options; none if it says nothing."""
    said = look_at(images, options.mean is not None)
    if said:
        yield '; '.join(said)


def innermost(images, index):
    """(data set, index) of an image in the data set that subsets are taken of."""
    while isinstance(images, Subset):
        images, index = images.dataset, int(images.indices[index])
    return images, index


@contextmanager
def opened(images, index):
    """An opened file of ImageFiles or of a data set of timm."""
    if isinstance(images, ImageFiles):
        with images.opened(index) as image:
            yield image
    else:
        with images.reader[index][0] as file, open_image(file) as image:
            yield image


def facts(image, images):
    """([(kind, number) of what is left out], whether more than 8 bits are read, whether it may be transparent, its pixels)."""
    lost, bits, number = [], bits_of(image), image.size[0] * image.size[1]
    if pages_of(image) > 1:
        lost.append(('pages', pages_of(image)))
    if isinstance(image, Tiff):
        channels = 3 if image.page.photometric == 2 else 1 if images.mode == 'L' or image.bands < 3 else 3
        return lost + [('bands', image.bands - channels)] * (image.bands > channels), True, False, number
    if image.format == 'TIFF' and image.tag_v2.get(SAMPLES, 1) > len(image.getbands()):
        lost.append(('bands', image.tag_v2[SAMPLES] - len(image.getbands())))
    is_deep = image.mode[0] in 'IF' or bits > 8 and image.format not in CANNOT and image.mode != 'CMYK'
    if not isinstance(images, ImageFiles):  # timm has Pillow convert whatever it is to 8 bits
        is_deep, bits = False, max(bits, 16 if image.mode[0] in 'IF' else 8)
    if bits > 8 and not is_deep:
        lost.append(('bits', bits))
    return lost, is_deep, image.has_transparency_data, number


def pages_of(image):
    """How many pictures an opened file holds, without smaller copies of the same."""
    if image.format in OF_ONE_PICTURE:
        return 1
    number = len(image.file.pages) if isinstance(image, Tiff) else getattr(image, 'n_frames', 1)
    if image.format != 'TIFF' or not 1 < number <= PAGES:
        return number
    return 1 + sum(not subfile(image, page) & COPY_OR_MASK for page in range(1, number))


def subfile(image, page):
    """What a page of a TIFF is, in bits."""
    if isinstance(image, Tiff):
        return image.file.pages[page].subfiletype
    try:
        image.seek(page)
        return image.tag_v2.get(SUBFILE, 0)
    finally:
        image.seek(0)


class Values:
    """The values of images that are not 8-bit, as far as they may be in another range than is thought."""

    def __init__(self):
        self.brightest, self.inside, self.outside = [], 0, 0

    def add(self, samples, pixel_range):
        values = samples.values
        if pixel_range is not None and not samples.is_8_bit:
            low, high = ((bound + samples.zero) * samples.unit for bound in pixel_range)
            outside = int(((values < low) | (values > high)).sum())
            self.outside, self.inside = self.outside + outside, self.inside + values.size - outside
        elif samples.top is not None and samples.zero == 0 and values.dtype.kind in 'ui' and not samples.is_8_bit:
            of_file = [round(value / samples.unit - samples.zero) for value in (values.max().item(), samples.top)]
            self.brightest.append((of_file[0] / of_file[1], *of_file))

    def sentences(self, normalised):
        said = []
        if self.brightest and max(self.brightest)[0] < DARK and not normalised:
            _, value, top = max(self.brightest)
            said.append(f'the largest value of these files is {value:,} of {top:,}: give --pixel_range=0,'
                        f'{2 ** value.bit_length() - 1} (or --mean and --std), or the images are nearly black')
        if self.outside > 0.1 * (self.outside + self.inside):
            share = self.outside / (self.outside + self.inside)
            said.append(f'{share:.0%} of the values in these files lie outside of --pixel_range, and are clipped')
        return said
