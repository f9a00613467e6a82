"""How image files are read, as options say it. Nothing is read here, so that options need no torch."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    pixel_range: (from, to), the values that become 0 and 1 in files whose values are not 8-bit; the others are clipped.
        If it is None, unsigned integers of up to 16 bits are divided by the largest value of their bits;
        other integers must lie in 0 ... 65535, floats in 0 ... 1.
    max_pixels: the pixels of the largest image that is read; if None, Pillow's limit holds.
    """
    pixel_range: tuple | None = None
    max_pixels: int | None = None


def is_range(pixel_range):
    """Whether (from, to) are two finite numbers, the second one larger."""
    return len(pixel_range) == 2 and -float('inf') < pixel_range[0] < pixel_range[1] < float('inf')


AS_IT_IS = Reading()
