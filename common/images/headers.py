"""What the header of an opened image file says of its bits, which Pillow may not pass on."""
from common.images.tiff import BITS, Tiff

AVIF_HEADER = 2 ** 16  # bytes at the beginning of an AVIF that are searched for its configuration
JPEG_2000_HEADER = 2 ** 22  # bytes at the beginning of a JPEG 2000 that are searched for its codestream
BC6H = 6  # the compression of DDS textures whose values are half floats


def bits_of(image):
    """The bits of a value in an opened file, where its format may have more than the 8 that Pillow gives; else 8.

    image: a PIL image, or a Tiff.
    """
    if isinstance(image, Tiff):
        return image.bits
    if image.format == 'TIFF':
        return max(image.tag_v2.get(BITS, (1,)))
    if not getattr(image, 'tile', None):  # It was loaded already, or never came from a file.
        return 8
    decoder, _, _, args = image.tile[0]
    if image.format == 'PPM':
        return bits_of_ppm(image.mode, decoder, args)
    if image.format == 'JPEG2000':
        bits, _ = jpeg_2000(image)
        return bits
    if image.format == 'AVIF':
        return bits_of_avif(image)
    has_16_bits = (image.format == 'PNG' and str(args).endswith(';16B')
                   or image.format == 'SGI' and (decoder == 'SGI16' or decoder == 'sgi_rle' and args[2] == 2)
                   or image.format == 'DDS' and decoder == 'bcn' and args[0] == BC6H)
    return 16 if has_16_bits else 8


def bits_of_ppm(mode, decoder, args):
    """The bits of a value in a PPM, from the mode of its PIL image, and its decoder with its arguments."""
    if args == 'I;16B':
        return 16
    if decoder in ('ppm', 'ppm_plain') and mode != '1':
        largest_value = args[1]
        return largest_value.bit_length()
    return 8


def bits_of_avif(image):
    """The bits of a value in an AVIF, 8, 10 or 12, by two flags of its AV1 codec configuration (box av1C)."""
    head = content_of(image, AVIF_HEADER)
    at = head.find(b'av1C') + 6
    if not 6 <= at < len(head):
        return 8
    is_high_bitdepth = head[at] & 64
    is_twelve_bit = head[at] & 32
    if not is_high_bitdepth:
        return 8
    return 12 if is_twelve_bit else 10


def jpeg_2000(image):
    """(bits, whether signed) of the first component of a JPEG 2000, by the SIZ marker of its codestream."""
    head = content_of(image, JPEG_2000_HEADER)
    at = head.find(b'\xff\x4f\xff\x51')  # start of the codestream, and the SIZ marker
    if at < 0 or at + 42 >= len(head):
        return 8, False
    component = head[at + 42]
    return (component & 127) + 1, bool(component & 128)


def content_of(image, number=-1):
    """The first `number` bytes of an opened image's file; all of them if no number is given.

    The file is then where it was, or at its beginning if the number is 0 or was not given. Raises ValueError
    if Pillow has closed the file.
    """
    if getattr(image, 'fp', None) is None or image.fp.closed:
        raise ValueError('Pillow has loaded 8 of its bits, and closed its file: hand the image over as '
                         'Image.open gives it')
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read(number)
    image.fp.seek(position if number > 0 else 0)
    return content
