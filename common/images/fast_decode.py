"""Training images in less time, and a little different: JPEGs are decoded no larger than their crops need.

libjpeg computes an image at 1/2, 1/4 or 1/8 of its sides from a part of its coefficients. And torch resizes
8-bit images in a fifth of Pillow's time (with AVX2), to the same values but for one in 200, which differs by
one of 256 levels.
"""
import dataclasses

import torch
from PIL.JpegImagePlugin import JpegImageFile
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import functional as F

from common.images.augmented import Augmented
from common.images.files import ImageFiles

LARGEST = 2 ** 26  # bytes; larger files are not read as a whole


class FastDecode(Augmented):
    """An Augmented of ImageFiles with a RandomCrop: the same crops of the same images. Only JPEGs are read differently."""

    def __init__(self, images, crop, *arguments, **options):
        super().__init__(images, crop, *arguments, **options)
        if not isinstance(images, ImageFiles):
            raise ValueError('--decode=fast is for folders, lists and tars of images, not for a data set of '
                             f'the kind {type(images).__name__}: leave it out')

    def read(self, index):
        """(image, its Crop) of a JPEG, or (image, None) of any other file."""
        with self.images.opened(index) as image:
            if isinstance(image, JpegImageFile) and image.mode == self.images.mode:
                # If this image cannot be read, the next one is drawn the same.
                with torch.random.fork_rng(devices=[]):
                    crop = self.transform.draw(image.height, image.width)
                factor = reduction(crop)
                return decoded(image, factor), reduced(crop, factor)
        return self.images[index], None

    def prepare(self, image, item, index):
        _, crop = item
        if crop is None:
            return super().prepare(image, item, index)
        return cut(image, crop), None


def reduction(crop):
    """The factor, 1, 2, 4 or 8, by which an image may be reduced so that the Crop is still no smaller than its result."""
    fits = min(side // wanted for side, wanted in zip(crop.box[2:], crop.size))
    return next((factor for factor in (8, 4, 2) if factor <= fits), 1)


def reduced(crop, factor):
    """The Crop of an image that is reduced by a factor: all pixels that hold something of it."""
    top, left, height, width = crop.box
    first_row = top // factor
    first_column = left // factor
    rows = -(-(top + height) // factor) - first_row
    columns = -(-(left + width) // factor) - first_column
    return dataclasses.replace(crop, box=(first_row, first_column, rows, columns))


def decoded(image, factor):
    """A JPEG that Pillow has opened, as (C, h / factor, w / factor) uint8. Raises whatever a file makes Pillow raise."""
    if factor == 1 and image.fp.seek(0, 2) <= LARGEST:
        image.fp.seek(0)
        content = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
        try:
            # It gives what Pillow gives, in less time.
            whole = decode_jpeg(content, ImageReadMode.RGB if image.mode == 'RGB' else ImageReadMode.GRAY)
            if tuple(whole.shape[1:]) == (image.height, image.width):
                return whole
        except RuntimeError:  # torchvision has no libjpeg, or the file is damaged, and Pillow says how.
            pass
    image.draft(image.mode, (image.width // factor, image.height // factor))
    return F.pil_to_tensor(image)


def cut(image, crop):
    """The Crop of an image (C, h, w) uint8, as (C, H, W) uint8. It differs from Pillow's by one level here and there."""
    top, left, height, width = crop.box
    part = image[None, :, top:top + height, left:left + width]
    resized = interpolate(part, crop.size, mode=crop.interpolation, antialias=True)[0]
    return F.hflip(resized) if crop.mirrored else resized
