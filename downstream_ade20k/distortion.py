"""Random changes of an image's colours: MMSegmentation's PhotoMetricDistortion, and its numbers.

Colours are computed with floats, and are not rounded to 8 bits after each change.
"""
from dataclasses import dataclass

import torch

BRIGHTNESS = 32  # the most that is added, in levels of 8 bits
CONTRAST = 0.5  # the most that the factor differs from 1
SATURATION = 0.5  # as of the contrast
HUE = 36  # degrees; MMSegmentation's 18 counts the 180 steps that OpenCV divides the circle into


@dataclass(frozen=True)
class Distortion:
    """Changes the colours of an image (C, h, w), float32 in [0, 1], and returns it as such.

    brightness: added to all values, in levels of 8 bits. contrast: a factor of all values.
    saturation: a factor of the saturation, as in HSV. hue: added to it, in degrees.
    contrast_first: whether the contrast changes before saturation and hue, or after them.

    Saturation and hue stay where there are not three channels. Values are clipped to [0, 1] after each step.
    """
    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = False

    @classmethod
    def draw(cls):
        """A random Distortion. Each of the four changes comes with probability 1/2."""
        strengths = (2 * torch.rand(4) - 1) * (torch.rand(4) < 0.5)
        brightness, contrast, saturation, hue = strengths.tolist()
        return cls(BRIGHTNESS * brightness, 1 + CONTRAST * contrast, 1 + SATURATION * saturation, HUE * hue,
                   bool(torch.rand(()) < 0.5))

    def __call__(self, image):
        if self.brightness != 0:
            image = (image + self.brightness / 255).clamp_(0, 1)
        if self.contrast != 1 and self.contrast_first:
            image = (image * self.contrast).clamp_(0, 1)
        if (self.saturation, self.hue) != (1, 0) and len(image) == 3:
            image = with_colours(image, self.saturation, self.hue)
        if self.contrast != 1 and not self.contrast_first:
            image = (image * self.contrast).clamp_(0, 1)
        return image


def with_colours(image, saturation, hue):
    """An image (3, h, w), float32 in [0, 1], with its saturation times a factor, at most 1, and degrees added to its hue.

    The value, which is the largest of red, green and blue, stays. This is the conversion to HSV and back:
    https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    """
    red, green, blue = image
    value = image.amax(0)
    chroma = value - image.amin(0)
    divisor = chroma.clamp(min=1e-12)  # for greys, whose differences are 0
    sixth = torch.where(value == red, (green - blue) / divisor,
                        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4))
    chroma = torch.minimum(chroma * saturation, value)
    place = (sixth + hue / 60 + torch.tensor([5.0, 3.0, 1.0])[:, None, None]) % 6
    return value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1)
