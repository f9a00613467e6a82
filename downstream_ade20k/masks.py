"""Mask files: PNGs whose pixels are the ids of classes, or their colours."""
import numpy as np

from common.images.files import open_image

# A grey PNG of 2 or 4 bits: Pillow stretches its values to 8 bits.
STRETCHED = {'L;2': 85, 'L;4': 17}
GREY = ('1', 'L', 'P', 'I', 'I;16', 'I;16B')  # modes of Pillow with one value a pixel
COLOURS = ('RGB', 'RGBA')


class HoldsColours(ValueError):
    """A mask holds colours, and which classes they stand for is not known."""


def read_mask(path, classes=None, max_pixels=None):
    """The ids in a mask file, (h, w), of an unsigned integer type.

    classes: the Classes, which say what colours stand for; if not given, masks cannot hold colours.
    max_pixels: the pixels of the largest mask that is read; Pillow's limit if None.

    Palette images have the places in their palette. 1-bit images have 0 and 1.

    Raises HoldsColours, UnknownColour, and whatever a damaged file makes Pillow raise.
    """
    with open_image(path, max_pixels) as image:
        if image.format != 'PNG':
            changed = ', which changes values: save it as a PNG where it was drawn' * (image.format == 'JPEG')
            raise ValueError(f'it is no PNG but {image.format}{changed}')
        if image.mode in GREY:
            return ids_in(image)
        pixels = np.asarray(image)
        if image.mode == 'LA':
            return pixels[..., 0]
        if image.mode not in COLOURS:
            raise ValueError(f'it has pixels of the kind {image.mode}, not one value each')
    return ids_behind_colours(pixels[..., :3], classes)


def ids_in(image):
    """The ids in an opened PNG with one value a pixel, (h, w)."""
    kind = image.tile[0][3] if image.tile else None
    stretched_by = STRETCHED.get(kind, 1)
    values = np.asarray(image)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind != 'u':
        values = values.astype(np.uint16)  # older versions of Pillow read 16 bits into 32 with a sign
    return values // stretched_by if stretched_by > 1 else values


def ids_behind_colours(pixels, classes):
    """The ids that the colours (h, w, 3) of a mask stand for, (h, w). Raises HoldsColours."""
    if classes is not None and classes.mask_colours:
        return classes.ids_of(pixels)
    if (pixels == pixels[..., :1]).all():
        raise HoldsColours('it has three channels, all alike: save one of them, as a grey PNG')
    without = f', and {classes.source} has none' if classes is not None and classes.source else ''
    raise HoldsColours(f'it holds colours{without}: save the ids of the classes as a grey or palette PNG')
