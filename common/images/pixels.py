"""From the pixels of an image file to channels: 8 bits as Pillow reads them, more than 8 bits as floats in [0, 1].

Of colours of 16 bits Pillow keeps the upper 8, and does not say so. Such PNGs are read by torchvision, such
TIFFs by tifffile, and such PPMs in this file. Of the formats in CANNOT, only the 8 bits that Pillow gives are
read; common/images/survey.py says so at the start of a run.
"""
import re
import warnings

import numpy as np
import torch
from PIL import ImageOps

from common.images.headers import bits_of, content_of, jpeg_2000
from common.images.reading import AS_IT_IS
from common.images.samples import Samples, scaled
from common.images.tiff import PHOTOMETRIC, SAMPLE_FORMAT, SIGNED, UNSIGNED, WHITE_IS_ZERO, Tiff

CANNOT = ('JPEG2000', 'AVIF', 'SGI', 'DDS')  # formats of which Pillow drops bits, and nothing here reads them
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as in Pillow (ITU-R 601-2)


def as_channels(image, in_chans, reading=AS_IT_IS, upright=False):
    """The channels of an opened file: a PIL image if it is 8-bit, else a float tensor (C, h, w) in [0, 1].

    image: a PIL image that was not loaded yet (loading drops the bits beyond 8), or a Tiff.
    in_chans: 1 or 3. upright: whether to turn the image as its EXIF orientation says.

    Raises ValueError for values that `reading` does not cover, and whatever a damaged file makes a decoder raise.
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
        raise ValueError(f'8 of its {bits_of(image)} bits can be read of {image.format}, to which '
                         '--pixel_range means nothing: convert it to PNG or TIFF')
    if upright:
        image = ImageOps.exif_transpose(image)
    mode = 'RGB' if in_chans == 3 else 'L'
    if image.mode != mode:
        return image.convert(mode)
    image.load()  # Now, while its file is open. convert() would copy an image whose mode is right already.
    return image


def samples_of(image, in_chans, upright=False):
    """The Samples of an opened file, with 1 or 3 channels; None if it is 8-bit, or if only Pillow's 8 bits
    can be read.

    The arguments are those of as_channels.
    """
    if isinstance(image, Tiff):
        return image.samples(in_chans)
    if image.mode.startswith('I') or image.mode == 'F':
        return grey(image, upright)
    if image.format == 'PNG' and bits_of(image) > 8:
        return png(image, upright)
    if image.format == 'PPM' and image.mode == 'RGB' and bits_of(image) > 8:
        return ppm(image)
    if image.format == 'TIFF' and image.mode == 'L' and sample_format(image) == SIGNED:
        return Samples(np.array(image).view(np.int8)[..., None], None)
    if image.format == 'TIFF' and image.mode in ('L', 'RGB', 'RGBA') and bits_of(image) > 8:
        content_of(image, 0)  # This checks that the file is open, and goes to its beginning.
        with Tiff(image.fp) as file:
            return file.samples(in_chans)
    return None


def sample_format(image):
    """The kind of numbers in a TIFF that Pillow has opened: UNSIGNED, SIGNED, or another value of that tag."""
    return image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))[0]


def grey(image, upright):
    """The Samples, with one channel, of an image that Pillow itself reads with 16 bits, 32 bits or floats."""
    if image.format == 'FITS':
        raise ValueError('Pillow reads FITS of more than 8 bits in the wrong order of bytes: read it in a '
                         'Dataset of your own')
    top = 1.0 if image.mode == 'F' else 65535.0
    unit = 1.0
    zero = 0.0
    # The header comes first: once the pixels are loaded, Pillow has closed the file and forgotten its header.
    if image.format == 'TIFF':
        return grey_tiff(image, top, upright)
    if image.format == 'PPM' and image.mode == 'I' and image.tile and image.tile[0][0] != 'raw':
        largest_value = image.tile[0][3][1]
        unit = 65535 / largest_value  # Pillow stretches the values to 16 bits.
    elif image.format == 'JPEG2000':
        bits, is_signed = jpeg_2000(image)
        unit = 2.0 ** (16 - bits)  # Pillow stretches the values to 16 bits, from 0 on.
        zero = 2.0 ** (bits - 1) if is_signed else 0.0
    return Samples(grey_values(image, upright), top, unit, zero)


def grey_tiff(image, top, upright):
    """The Samples of a TIFF of one channel that Pillow reads with more than 8 bits."""
    if sample_format(image) != UNSIGNED:
        return Samples(grey_values(image, upright), top)
    bits = bits_of(image)
    inverted = image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    values = grey_values(image, upright)
    if bits == 32:
        values = values.view(np.uint32)  # Pillow takes them for signed.
    if 8 < bits < 16:
        top = 2.0 ** bits - 1
    return Samples(values, top, inverted=inverted)


def grey_values(image, upright):
    """The pixels of an image of one channel as an array (h, w, 1)."""
    return np.array(ImageOps.exif_transpose(image) if upright else image)[..., None]


def png(image, upright):
    """The Samples of a PNG of 16 bits; its transparency is left out."""
    # Imported here, for it is deprecated, and only these files need it.
    from torchvision.io import decode_png
    content = torch.frombuffer(bytearray(content_of(image)), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        pixels = decode_png(content, apply_exif_orientation=upright)
    colours = 1 if len(pixels) < 3 else 3
    return Samples(pixels[:colours].permute(1, 2, 0).numpy(), 65535)


def ppm(image):
    """The Samples of a PPM of more than 8 bits. Raises OSError if the file is cut off."""
    decoder, _, offset, (_, largest_value) = image.tile[0]
    number = image.width * image.height * 3
    if decoder == 'ppm_plain':  # decimal numbers as text, with comments between
        words = re.sub(rb'#[^\r\n]*', b' ', content_of(image)[offset:]).split()
        values = np.array(words[:number], dtype=np.uint32)
    else:
        values = np.frombuffer(content_of(image)[offset:offset + 2 * number], '>u2').astype(np.uint16)
    if len(values) < number:
        raise OSError(f'it is cut off: {len(values):,} of its {number:,} values are there')
    return Samples(values.reshape(image.height, image.width, 3), largest_value)
