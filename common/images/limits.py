"""Pillow's limit on the pixels of an image, which guards against files that unpack to gigabytes."""
import re
from contextlib import contextmanager

from PIL import Image


@contextmanager
def pixel_limit(number):
    """Within it, an image of more than `number` pixels is an error. If the number is None, Pillow's limit stays.

    Pillow warns above MAX_IMAGE_PIXELS, a setting of the whole process, and refuses above twice that many.
    The error, DecompressionBombError, is raised again with the option that admits the image.
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
        raise Image.DecompressionBombError(f'{error} If it is none, read it with '
                                           f'--max_pixels={pixels[1]}') from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def check_size(pixels):
    """Raise the error that Pillow raises for an image of more pixels than its limit."""
    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f'Image size ({round(pixels)} pixels) exceeds limit of '
                                           f'{2 * Image.MAX_IMAGE_PIXELS} pixels, could be decompression '
                                           'bomb DOS attack.')
