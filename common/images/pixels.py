"""How the pixels of an image file become channels: 8 bits as Pillow reads them, more than 8 as floats in [0, 1].

Pillow has no colour of more than 8 bits: of 16 it keeps the upper 8, and says nothing. Such PNGs are read by torchvision, such
TIFFs by tifffile, such PPMs here. Other formats (CANNOT) are read with the 8 bits that Pillow gives; common/images/look.py says so.
"""
import re
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image, ImageOps

CANNOT = ('JPEG2000', 'AVIF', 'SGI', 'DDS')  # formats of which Pillow drops bits that nothing here reads
TIFF_BEGINS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339  # tags of a TIFF
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # values of PHOTOMETRIC
SIGNED = 2  # a value of SAMPLE_FORMAT
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as in Pillow (ITU-R 601-2)


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    pixel_range: (from, to), the values that become 0 and 1 in files whose values are not 8-bit; others are clipped. Where it
    is None, unsigned integers of up to 16 bits become 0 ... 1 from 0 to the largest that their bits can hold, other integers
    must lie in 0 ... 65535 and floats in 0 ... 1. max_pixels: of the largest image that is read; Pillow's limit where None.
    """
    pixel_range: tuple | None = None
    max_pixels: int | None = None


AS_IT_IS = Reading()  # what holds where nothing is said


@dataclass(frozen=True)
class Samples:
    """The values of an image that is not 8-bit.

    values: (h, w, C). A value v of the file is (v + zero) * unit in them. top: which of them is 1 where no range is given,
    None if the file does not tell. inverted: whether the least value is white.
    """
    values: np.ndarray = field(repr=False)
    top: float | None
    unit: float = 1.0
    zero: float = 0.0
    inverted: bool = False

    @property
    def is_8_bit(self):
        """Whether they have 8 bits or fewer: TIFFs of bands that Pillow does not open."""
        return self.values.dtype.kind in 'ub' and self.values.dtype.itemsize == 1


class NotInstalled(ValueError):
    """A package is missing without which a file cannot be read."""


def as_channels(image, in_chans, reading=AS_IT_IS, upright=False):
    """The channels, 1 or 3, of an opened file (a PIL image or a Tiff): a PIL image, or float (C, h, w) in [0, 1] if not 8-bit.

    upright: turn it as the file says (EXIF). Of a PIL image that was loaded before, Pillow has dropped the bits beyond 8 of
    colours. Raises ValueError for values that reading does not say what to do with, and what a file does to a decoder.
    """
    samples = samples_of(image, in_chans, upright)
    if samples is not None:
        channels = scaled(samples, None if samples.is_8_bit else reading.pixel_range)
        if in_chans == 3 and len(channels) == 1:
            return channels.expand(3, -1, -1)
        if in_chans == 1 and len(channels) == 3:
            return torch.einsum('chw,c->hw', channels, torch.tensor(LUMINANCE))[None]
        return channels
    if reading.pixel_range is not None and bits_of(image) > 8:
        raise ValueError(f'8 of its {bits_of(image)} bits can be read of {image.format}, to which --pixel_range means nothing: '
                         'convert it to PNG or TIFF')
    if upright:
        image = ImageOps.exif_transpose(image)
    mode = 'RGB' if in_chans == 3 else 'L'
    if image.mode != mode:
        return image.convert(mode)
    image.load()  # while its file is open; convert() would copy what is right already
    return image


def scaled(samples, pixel_range=None):
    """The values of an image as (C, h, w) float32 in [0, 1]. Raises ValueError for those that cannot be."""
    values = samples.values
    if values.dtype.kind == 'f' and not np.isfinite(values).all():
        raise ValueError('it holds NaN or infinite values')
    if pixel_range is None:
        low, high = values.min(initial=0), values.max(initial=0)
        if samples.top is None or low < 0 or high > samples.top:
            least, most = (f'{value / samples.unit - samples.zero:,.6g}' for value in (values.min(), values.max()))
            raise ValueError(f'its values, {least} to {most}, are neither 8 or 16 bits nor floats in [0, 1]: say which become '
                             '0 and 1, with --pixel_range=FROM,TO')
        values = values.astype(np.float32) / np.float32(samples.top)
    else:
        low, high = (bound + samples.zero for bound in pixel_range)
        if samples.unit != 1:
            values = np.rint(values / samples.unit)
        exact = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
        values = ((values.astype(exact) - exact(low)) / exact(high - low)).clip(0, 1).astype(np.float32)
    if samples.inverted:
        values = 1 - values
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, 2, 0)))


def samples_of(image, in_chans, upright=False):
    """The Samples of an opened file, C being 1 or 3; None for one that is 8-bit, or of which Pillow gives 8 bits only."""
    if isinstance(image, Tiff):
        return image.samples(in_chans)
    if image.mode.startswith('I') or image.mode == 'F':
        return grey(image, upright)
    if image.format == 'PNG' and bits_of(image) > 8:
        from torchvision.io import decode_png  # here, for it is deprecated and only these files need it
        content = torch.frombuffer(bytearray(content_of(image)), dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            pixels = decode_png(content, apply_exif_orientation=upright)
        return Samples(pixels[:1 if len(pixels) < 3 else 3].permute(1, 2, 0).numpy(), 65535)
    if image.format == 'PPM' and image.mode == 'RGB' and bits_of(image) > 8:
        return ppm(image)
    if image.format == 'TIFF' and image.mode == 'L' and image.tag_v2.get(SAMPLE_FORMAT, (1,))[0] == SIGNED:
        return Samples(np.array(image).view(np.int8)[..., None], None)
    if image.format == 'TIFF' and image.mode in ('L', 'RGB', 'RGBA') and bits_of(image) > 8:
        content_of(image, 0)  # its file is open, and at its beginning now
        with Tiff(image.fp) as file:
            return file.samples(in_chans)
    return None


def grey(image, upright):
    """The Samples of an image that Pillow reads with 16 bits, 32 bits or floats: one channel."""
    top, unit, zero, inverted, unsigned = 1.0 if image.mode == 'F' else 65535.0, 1.0, 0.0, False, False
    if image.format == 'FITS':
        raise ValueError('Pillow reads FITS of more than 8 bits in the wrong order of bytes: read it in a Dataset of your own')
    if image.format == 'TIFF':
        bits, kind = bits_of(image), image.tag_v2.get(SAMPLE_FORMAT, (1,))[0]
        top = 2.0 ** bits - 1 if 8 < bits < 16 and kind == 1 else top
        inverted = kind == 1 and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
        unsigned = kind == 1 and bits == 32
    elif image.format == 'PPM' and image.mode == 'I' and image.tile and image.tile[0][0] != 'raw':
        unit = 65535 / image.tile[0][3][1]  # Pillow stretches what the file calls its largest value
    elif image.format == 'JPEG2000':
        bits, signed = jpeg_2000(image)
        unit, zero = 2.0 ** (16 - bits), 2.0 ** (bits - 1) * signed  # Pillow stretches to 16 bits, from 0 on
    values = np.array(ImageOps.exif_transpose(image) if upright else image)
    return Samples((values.view(np.uint32) if unsigned else values)[..., None], top, unit, zero, inverted)


def ppm(image):
    """The Samples of a PPM of more than 8 bits."""
    decoder, _, offset, (_, most) = image.tile[0]
    number = image.width * image.height * 3
    if decoder == 'ppm_plain':
        words = re.sub(rb'#[^\r\n]*', b' ', content_of(image)[offset:]).split()
        values = np.array(words[:number], dtype=np.uint32)
    else:
        values = np.frombuffer(content_of(image)[offset:offset + 2 * number], '>u2').astype(np.uint16)
    if len(values) < number:
        raise OSError(f'it is cut off: {len(values):,} of its {number:,} values are there')
    return Samples(values.reshape(image.height, image.width, 3), most)


class Tiff:
    """A TIFF as tifffile reads it: one that Pillow does not open, or of which it would drop bits. Only its first page.

    file: a path, or a file at its beginning. size: (width, height), turned as the file says, as Pillow does. Raises ValueError.
    """
    format, mode = 'TIFF', None

    def __init__(self, file):
        if find_spec('tifffile') is None:
            raise NotInstalled('a TIFF of this kind (colours of more than 8 bits, bands, floats) is read by tifffile: '
                               'pip install tifffile')
        from tifffile import TiffFile
        try:
            with ExitStack() as stack:
                self.file = stack.enter_context(TiffFile(file))
                self.page = self.file.pages[0]
                stack.pop_all()  # there is a page: it stays open
        except Exception as error:  # whatever a file does to it
            raise ValueError(f'it begins as a TIFF, but cannot be read as one ({type(error).__name__}: {error})') from error
        tag = self.page.tags.get(ORIENTATION)
        self.orientation = tag.value if tag else 1
        width, height = self.page.imagewidth, self.page.imagelength
        self.size = (height, width) if self.orientation in (5, 6, 7, 8) else (width, height)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    @property
    def bands(self):
        return self.page.samplesperpixel

    @property
    def bits(self):
        return self.page.bitspersample

    def samples(self, in_chans):
        page, bands = self.page, self.bands
        check_size(self.size[0] * self.size[1] * max(1, bands / 4))
        if page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) or len(page.shape) > 3 or page.dtype is None:
            raise ValueError(f'it is a TIFF of a kind that is not read ({page.photometric.name}, {bands} bands of '
                             f'{self.bits} bits): convert it to RGB or grey')
        colours = 3 if page.photometric == RGB else 1
        if colours == 1 and bands > 2:
            if bands != in_chans:
                raise ValueError(f'it has {bands} bands that it does not call colours, and {in_chans} are wanted: read it in a '
                                 'Dataset of your own (README, "Your own data")')
            colours = bands
        try:
            values = page.asarray()
        except ValueError as error:
            if 'imagecodecs' not in str(error):
                raise
            raise NotInstalled(f'it is compressed ({page.compression.name}): pip install imagecodecs') from error
        if values.ndim == 2:
            values = values[..., None]
        elif page.planarconfig == 2:
            values = np.moveaxis(values, 0, 2)
        values = turned(values[..., :colours], self.orientation)
        if values.dtype.kind == 'f':
            return Samples(values, 1.0)
        if values.dtype.kind == 'i':
            return Samples(values, 65535.0 if self.bits > 8 else None)
        return Samples(values, 65535.0 if self.bits > 16 else 2.0 ** self.bits - 1,
                       inverted=page.photometric == WHITE_IS_ZERO)


def turned(values, orientation):
    """An array (h, w, ...) as EXIF's orientation, 1 to 8, says that it is to be seen."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def bits_of(image):
    """Bits of a sample in an opened file, as far as its format may have more than Pillow gives; 8 of all others."""
    if isinstance(image, Tiff):
        return image.bits
    if image.format == 'TIFF':
        return max(image.tag_v2.get(BITS, (1,)))
    if not getattr(image, 'tile', None):  # loaded, or never in a file
        return 8
    decoder, _, _, args = image.tile[0]
    if image.format == 'PNG':
        return 16 if str(args).endswith(';16B') else 8
    if image.format == 'PPM':
        return 16 if args == 'I;16B' else args[1].bit_length() if decoder in ('ppm', 'ppm_plain') and image.mode != '1' else 8
    if image.format == 'JPEG2000':
        return jpeg_2000(image)[0]
    if image.format == 'SGI':
        return 16 if decoder == 'SGI16' or decoder == 'sgi_rle' and args[2] == 2 else 8
    if image.format == 'DDS':
        return 16 if decoder == 'bcn' and args[0] == 6 else 8  # BC6H: half floats
    if image.format == 'AVIF':
        head = content_of(image, 2 ** 16)
        at = head.find(b'av1C') + 6
        return (12 if head[at] & 32 else 10) if 6 <= at < len(head) and head[at] & 64 else 8
    return 8


def jpeg_2000(image):
    """(bits, whether signed) of the first component of a JPEG 2000."""
    head = content_of(image, 2 ** 22)
    at = head.find(b'\xff\x4f\xff\x51')  # the codestream begins with the sizes of its components
    if at < 0 or at + 42 >= len(head):
        return 8, False
    about = head[at + 42]
    return (about & 127) + 1, bool(about & 128)


def content_of(image, number=-1):
    """The first bytes of an opened image's file, all if no number is given. Raises ValueError if the file was closed."""
    if getattr(image, 'fp', None) is None or image.fp.closed:
        raise ValueError('Pillow has loaded 8 of its bits, and closed its file: hand the image over as Image.open gives it')
    at = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read(number)
    image.fp.seek(at if number > 0 else 0)
    return content


def begins_as_tiff(file):
    """Whether a path, or a file, holds something that begins as a TIFF."""
    if hasattr(file, 'read'):
        file.seek(0)
        begin = file.read(4)
        file.seek(0)
        return begin in TIFF_BEGINS
    with open(file, 'rb') as opened:
        return opened.read(4) in TIFF_BEGINS


@contextmanager
def pixel_limit(number):
    """Pillow's limit of pixels, above which an image is an error, is `number` inside; where that is None, it stays.

    Pillow warns above MAX_IMAGE_PIXELS, a setting of the whole process, and refuses above twice that many.
    """
    before = Image.MAX_IMAGE_PIXELS
    if number is not None:
        Image.MAX_IMAGE_PIXELS = (number + 1) // 2
    try:
        yield
    except Image.DecompressionBombError as error:
        pixels = re.search(r'\((\d+) pixels\)', str(error))
        if not pixels:
            raise
        raise Image.DecompressionBombError(f'{error} If it is none, read it with --max_pixels={pixels[1]}') from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def check_size(pixels):
    """Raise Pillow's error for an image of more pixels than its limit."""
    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f'Image size ({round(pixels)} pixels) exceeds limit of {2 * Image.MAX_IMAGE_PIXELS} '
                                           'pixels, could be decompression bomb DOS attack.')
