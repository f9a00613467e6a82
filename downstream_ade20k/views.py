"""What a segmentation network sees of images: random views for training, whole images for evaluation, batches.

Images are (C, h, w). Masks are (h, w) int16: the number of the class of each pixel, or IGNORE.

The steps of a TrainingView and their numbers are those of MMSegmentation's configurations for ADE20K, which the
papers' figures come from. Two things differ. Images that shrink are resized with an antialiasing filter, as everywhere
in this project. And colours are not rounded to 8 bits after each change (distortion.py).
"""
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad
from torchvision.transforms import functional as F

from common.images.augmented import Augmented, as_input, as_tensor
from downstream_ade20k.classes import IGNORE
from downstream_ade20k.distortion import Distortion

TRIES = 10  # random crops, until one is not nearly all of one class


@dataclass(frozen=True)
class View:
    """A box of a resized image, and perhaps mirrored.

    size: (height, width) of the whole image after it is resized. box: (top, left, height, width) in it.
    """
    size: tuple
    box: tuple
    mirrored: bool = False

    def image(self, image):
        """The view of a PIL image or a tensor (C, h, w), as a tensor (C, height, width), uint8 or float32.

        Only the pixels of the box are computed. They are those of the whole image, resized with Pillow's bilinear filter.
        """
        if isinstance(image, Image.Image):
            seen = F.pil_to_tensor(self.box_of(image))
        else:
            # Pillow has no images of several channels of floats.
            channels = [Image.fromarray(channel.numpy()) for channel in as_tensor(image)]
            seen = torch.cat([F.pil_to_tensor(self.box_of(channel)) for channel in channels])
        return seen.flip(-1) if self.mirrored else seen

    def box_of(self, image):
        """The box of a PIL image, resized."""
        top, left, height, width = self.box
        across = image.width / self.size[1]
        down = image.height / self.size[0]
        # The products may exceed the image's sides by rounding, which Pillow refuses.
        source = (left * across, top * down, min((left + width) * across, image.width),
                  min((top + height) * down, image.height))
        return image.resize((width, height), Image.Resampling.BILINEAR, box=source)

    def mask(self, mask):
        """The view of a mask (h, w), (height, width): each pixel is the one of the mask that its centre lies in."""
        top, left, height, width = self.box
        rows = nearest(top, height, self.size[0], mask.shape[0])
        columns = nearest(left, width, self.size[1], mask.shape[1])
        # NumPy takes a quarter of torch's time for this, which is done for each crop that is tried.
        seen = mask.numpy().take(rows, 0).take(columns[::-1] if self.mirrored else columns, 1)
        return torch.from_numpy(seen)


def nearest(first, number, resized, side):
    """The pixels of a side that the centres of pixels of the resized side lie in, (number,) int.

    first, number: of the pixels of the resized side. resized, side: the pixels of both sides.
    """
    return (2 * np.arange(first, first + number) + 1) * side // (2 * resized)


@dataclass(frozen=True)
class TrainingView:
    """Random views for training, all of one size: an image is resized, cut, mirrored, and its colours are changed.

    crop: (height, width) of the views. Smaller images are padded with black, and with IGNORE.
        Not with the mean: convolutions without biases make zeros of it, and the gradient of a LayerNorm explodes there.
    short, long: the image is resized, with its proportions, so that its sides are at most these times a random scale.
    scales: (from, to) of that scale.
    most_of_one: the share of the pixels of a crop that one class may have, or else another is drawn, TRIES in all, of
        which the last is taken as it is; 1 for any. Ignored pixels do not count.
    flip: whether half of the views are mirrored. distort: whether colours are changed.
    keep_size: whether the random scale is one of the image's own size.
    """
    crop: tuple
    short: int
    long: int
    scales: tuple = (0.5, 2.0)
    most_of_one: float = 0.75
    flip: bool = True
    distort: bool = True
    keep_size: bool = False

    def __call__(self, image, mask, normalisation):
        """(view of an image, (C, H, W) float32, normalised; view of its mask, (H, W) int16).

        image: a PIL image, or a tensor (C, h, w), uint8 or float in [0, 1]. mask: (h, w) int16.
        normalisation: (mean, std).
        """
        view = self.draw(mask)
        image = F.convert_image_dtype(view.image(image), torch.float32)
        if self.distort:
            image = Distortion.draw()(image)
        image, mask = padded(image, view.mask(mask), self.crop)
        return F.normalize(image, *normalisation), mask

    def draw(self, mask):
        """Draw the View of an image with a mask."""
        scale = torch.empty(()).uniform_(*self.scales).item()
        size = resized(*mask.shape, self.short, self.long, self.keep_size, scale)
        view = self.draw_box(size)
        for _ in range(TRIES - 1):
            if self.most_of_one >= 1 or share_of_one(view.mask(mask)) <= self.most_of_one:
                break
            view = self.draw_box(size)
        return View(size, view.box, self.flip and bool(torch.rand(()) < 0.5))

    def draw_box(self, size):
        """Draw the View, not mirrored, of an image that is resized to `size`."""
        height, width = (min(side, wanted) for side, wanted in zip(size, self.crop))
        top = torch.randint(size[0] - height + 1, ()).item()
        left = torch.randint(size[1] - width + 1, ()).item()
        return View(size, (top, left, height, width))


@dataclass(frozen=True)
class WholeView:
    """The whole image, resized with its proportions so that its sides are at most `short` and `long`.

    keep_size: whether it is left as large as it is.
    """
    short: int
    long: int
    keep_size: bool = False

    def __call__(self, image, mask, normalisation):
        """(image, (C, h, w) float32, resized and normalised; its mask as it is).

        The arguments are those of a TrainingView. The mask may be None.
        """
        size = resized(*F.get_dimensions(image)[1:], self.short, self.long, self.keep_size)
        return as_input(View(size, (0, 0, *size)).image(image), normalisation), mask


def resized(height, width, short, long, keep_size=False, scale=1.0):
    """(height, width) of an image whose short side becomes `short` * scale, or its long side `long` * scale if it is
    smaller then.

    keep_size: whether its sides are multiplied by the scale alone.
    """
    if not keep_size:
        scale *= min(short / min(height, width), long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def share_of_one(mask):
    """The share of the pixels of a mask (h, w) that the most frequent class has; 1 if all are ignored."""
    counts = torch.bincount(mask.flatten() - IGNORE)[1:]
    return (counts.max() / counts.sum()).item() if len(counts) else 1.0


def padded(image, mask, size):
    """An image (C, h, w) and its mask (h, w), padded at the right and the bottom with 0 and IGNORE to (height, width)."""
    border = (0, size[1] - image.shape[2], 0, size[0] - image.shape[1])
    return pad(image, border), pad(mask, border, value=IGNORE)


class Segmented(Augmented):
    """Images with masks as a network takes them: (C, H, W) float32, normalised, and {'mask', 'number'}.

    mask: (H, W) int16, as the view gives it. number: the index of the image in its data set.

    images: a SegmentationImages, or any data set of (image, mask (h, w) int16). view: a TrainingView or a WholeView.
    The other arguments are those of Augmented.
    """

    def __init__(self, images, view, normalisation, seed=0, stand_ins=True, timeout=120.0):
        super().__init__(images, None, normalisation, seed, stand_ins=stand_ins, timeout=timeout)
        self.view = view

    def prepare(self, image, item, index):
        tensor, mask = self.view(image, item[1], self.normalisation)
        return tensor, {'mask': mask, 'number': index}


def collate(items):
    """Make a training batch of items of Segmented, leaving out those without an image.

    Returns images (B, C, H, W), masks (B, H, W) int16, and the list of all failures.
    """
    images, targets, failures = divided(items)
    if not images:
        return torch.empty(0), torch.empty(0, dtype=torch.int16), failures
    return torch.stack(images), torch.stack([target['mask'] for target in targets]), failures


def collate_whole(items):
    """Make a batch of one item of Segmented, for evaluation: images (1, C, h, w), [target], failures.

    Images are empty, and there is no target, if the image could not be read.
    """
    images, targets, failures = divided(items)
    return torch.stack(images) if images else torch.empty(0), targets, failures


def divided(items):
    """(images, targets, failures) of items of Segmented, as lists, without the images that could not be read."""
    failures = [failure for *_, of_item in items for failure in of_item]
    read = [(image, target) for image, target, _ in items if image is not None]
    return [image for image, _ in read], [target for _, target in read], failures
