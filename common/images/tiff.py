"""TIFFs that Pillow does not open, or of which it would drop bits: tifffile reads them."""
from contextlib import ExitStack
from importlib.util import find_spec

import numpy as np

from common.images.limits import check_size
from common.images.samples import Samples

TIFF_BEGINS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339  # tags
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # values of PHOTOMETRIC
UNSIGNED, SIGNED = 1, 2  # values of SAMPLE_FORMAT
SEPARATE_PLANES = 2  # a value of the tag PlanarConfiguration: bands first, (C, h, w)
TRANSPOSED = (5, 6, 7, 8)  # the orientations of EXIF that exchange width and height


class NotInstalled(ValueError):
    """A package is missing without which a file cannot be read."""


class Tiff:
    """The first page of a TIFF, as tifffile reads it. It stands in for a PIL image, and closes its file in `with`.

    file: a path, or an open file at its beginning. size: (width, height) after the page is turned upright.

    Raises ValueError if the file cannot be read, and NotInstalled, a ValueError, without tifffile.
    """
    format = 'TIFF'
    mode = None

    def __init__(self, file):
        if find_spec('tifffile') is None:
            raise NotInstalled('a TIFF of this kind (colours of more than 8 bits, bands, floats) is read by '
                               'tifffile: pip install tifffile')
        from tifffile import TiffFile
        try:
            with ExitStack() as stack:
                self.file = stack.enter_context(TiffFile(file))
                self.page = self.file.pages[0]
                stack.pop_all()  # There is a page, so the file stays open.
        except Exception as error:  # A damaged file can make tifffile raise anything.
            raise ValueError(f'it begins as a TIFF, but cannot be read as one ({type(error).__name__}: '
                             f'{error})') from error
        tag = self.page.tags.get(ORIENTATION)
        self.orientation = tag.value if tag else 1
        width, height = self.page.imagewidth, self.page.imagelength
        self.size = (height, width) if self.orientation in TRANSPOSED else (width, height)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    @property
    def bands(self):
        """The number of values of a pixel."""
        return self.page.samplesperpixel

    @property
    def bits(self):
        """The bits of a value."""
        return self.page.bitspersample

    def samples(self, in_chans):
        """The Samples of the page, upright, with 1 channel (grey), 3 channels (RGB), or as many as it has bands.

        in_chans: the channels that are wanted. They matter only for a page of three or more bands without
        colours, which must have as many. Raises ValueError for a kind of TIFF that is not read, NotInstalled
        without imagecodecs where the page is compressed, and Pillow's error for a page of too many pixels.
        """
        width, height = self.size
        check_size(width * height * max(1, self.bands / 4))
        channels = self.channels(in_chans)
        try:
            values = self.page.asarray()
        except ValueError as error:
            if 'imagecodecs' not in str(error):  # tifffile has no exception of its own for this.
                raise
            raise NotInstalled(f'it is compressed ({self.page.compression.name}): pip install '
                               'imagecodecs') from error
        if values.ndim == 2:
            values = values[..., None]
        elif self.page.planarconfig == SEPARATE_PLANES:
            values = np.moveaxis(values, 0, 2)
        values = turned(values[..., :channels], self.orientation)
        if values.dtype.kind == 'f':
            return Samples(values, 1.0)
        if values.dtype.kind == 'i':
            return Samples(values, 65535.0 if self.bits > 8 else None)
        top = 65535.0 if self.bits > 16 else 2.0 ** self.bits - 1
        return Samples(values, top, inverted=self.page.photometric == WHITE_IS_ZERO)

    def channels(self, in_chans):
        """How many of the bands are read, from the first on. Raises ValueError for a kind of TIFF that is not read."""
        page = self.page
        is_read = page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
        if not is_read or len(page.shape) > 3 or page.dtype is None:
            raise ValueError(f'it is a TIFF of a kind that is not read ({page.photometric.name}, '
                             f'{self.bands} bands of {self.bits} bits): convert it to RGB or grey')
        if page.photometric == RGB:
            return 3
        if self.bands <= 2:  # grey, perhaps with transparency
            return 1
        if self.bands != in_chans:
            raise ValueError(f'it has {self.bands} bands that it does not call colours, and {in_chans} are '
                             'wanted: read it in a Dataset of your own (docs/python.md)')
        return self.bands


def turned(values, orientation):
    """An array (h, w, ...) turned and mirrored so that it is upright. orientation: that of EXIF, 1 to 8."""
    if orientation in TRANSPOSED:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def begins_as_tiff(file):
    """Whether a file begins as a TIFF does. file: a path, or an open file, which is at its beginning afterwards."""
    if hasattr(file, 'read'):
        file.seek(0)
        begin = file.read(4)
        file.seek(0)
        return begin in TIFF_BEGINS
    with open(file, 'rb') as opened:
        return opened.read(4) in TIFF_BEGINS
