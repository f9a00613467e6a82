"""What a segmenter finds in an image: in one piece or in windows, at one or several scales, mirrored or not.

Windows, and the mean over scales and mirror images, are as in MMSegmentation, with which the numbers of the
papers were made.

    K classes; H, W the size of the file, in which the result is; h, w the size at which the network sees it
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

VALUES = 2 ** 22  # logits that are resized at a time; those of a large file take gigabytes in one piece


@dataclass(frozen=True)
class Inference:
    """How the classes of an image are found.

    crop: (height, width) of a window that slides over the image; None for the whole image in one piece.
    stride: (down, right), pixels from a window to the next one, at most those of the crop; None without a
        crop.
    scales: the image is looked at in each of these sizes, as shares of the size that it comes in.
    flip: whether its mirror images are looked at too.
    """
    crop: tuple | None = None
    stride: tuple | None = None
    scales: tuple = (1.0,)
    flip: bool = False

    @classmethod
    def of(cls, options):
        """The Inference of a run's options, for images at the largest of the scales: see `largest`."""
        crop, stride = None, None
        if options.slide:
            crop = options.size
            stride = (options.slide_stride or min(crop) * 2 // 3,) * 2
        scales = tuple(scale / largest(options) for scale in options.test_scales)
        return cls(crop, stride, scales, options.test_flip)

    @torch.no_grad()
    def classes(self, model, image, size):
        """The class of each pixel: int64 (H, W), for an image (1, C, h, w) and size (H, W).

        model: has scores(images (B, C, h, w)) -> logits (B, K, h, w) float32, such as a Segmenter.
        """
        if self.flip or len(self.scales) > 1:
            return self.probabilities(model, image, size).argmax(0)
        # The largest logit has the largest probability, so the scores of all pixels are never there at once.
        logits = self.logits(model, at_scale(image, *self.scales))
        return torch.cat([strip.argmax(0) for _, strip in strips(logits, size)])

    @torch.no_grad()
    def probabilities(self, model, image, size):
        """The probability of each class in each pixel: float32 (K, H, W).

        It is the mean over scales and mirror images of the softmax of the logits, which are resized to (H, W)
        before. The arguments are those of `classes`.
        """
        total = None
        for scale in self.scales:
            for mirrored in (False, True) if self.flip else (False,):
                seen = at_scale(image, scale)
                logits = self.logits(model, seen.flip(3) if mirrored else seen)
                if total is None:
                    total = logits.new_zeros(len(logits), *size)
                for rows, strip in strips(logits, size):
                    found = strip.softmax(0)
                    total[:, rows] += found.flip(2) if mirrored else found
                del logits  # before the next ones are computed
        return total.div_(len(self.scales) * (1 + self.flip))

    def logits(self, model, image):
        """Logits (K, h, w) of an image (1, C, h, w); where windows overlap, the mean of theirs."""
        height, width = image.shape[2:]
        if self.crop is None or (height <= self.crop[0] and width <= self.crop[1]):
            return model.scores(image)[0]
        total, windows = None, image.new_zeros(height, width, dtype=torch.float32)
        for top in starts(height, self.crop[0], self.stride[0]):
            for left in starts(width, self.crop[1], self.stride[1]):
                rows, columns = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
                found = model.scores(image[:, :, rows, columns])[0]
                if total is None:
                    total = found.new_zeros(len(found), height, width)
                total[:, rows, columns] += found
                windows[rows, columns] += 1
        return total.div_(windows)


def largest(options):
    """The scale at which images are read: the largest of `test_scales`, or 1 if they keep their file's size.

    Smaller scales are made of these pixels. So a large scale shows what the file holds, and is no enlarged small one.
    """
    return 1.0 if options.keep_size else max(options.test_scales)


def starts(length, window, stride):
    """Where windows start along a side: at every stride, and the last one such that it ends at the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def at_scale(image, scale):
    """An image (1, C, h, w) at a share of its size, bilinear, antialiased; itself at 1."""
    sides = [max(1, round(side * scale)) for side in image.shape[2:]]
    if sides == list(image.shape[2:]):
        return image
    return F.interpolate(image, sides, mode='bilinear', antialias=True)


def strips(logits, size):
    """Yield (slice of rows, logits (K, rows, W)): logits (K, h, w) resized to (H, W), a few rows at a time.

    Together they are what F.interpolate gives, bilinear and without align_corners.
    """
    (classes, low, _), (height, width) = logits.shape, size
    places = ((torch.arange(height, device=logits.device) + 0.5) * (low / height) - 0.5).clamp(0, low - 1)
    above = places.floor().long()
    below = (above + 1).clamp(max=low - 1)
    share = (places - above)[:, None]
    step = max(1, VALUES // (classes * width))
    for first in range(0, height, step):
        rows = slice(first, min(first + step, height))
        strip = torch.lerp(logits[:, above[rows]], logits[:, below[rows]], share[rows])
        yield rows, F.interpolate(strip[None], (strip.shape[1], width), mode='bilinear')[0]
