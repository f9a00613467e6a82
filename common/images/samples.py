"""The values of an image of more than 8 bits, and their conversion to floats in [0, 1]."""
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Samples:
    """The values of an image that is not 8-bit.

    values: array (h, w, C). They may differ from those in the file: v in the file is (v + zero) * unit here.
    top: the value that becomes 1 where no range is given; None if the file does not tell.
    inverted: whether the smallest value is white.
    """
    values: np.ndarray = field(repr=False)
    top: float | None
    unit: float = 1.0
    zero: float = 0.0
    inverted: bool = False

    @property
    def is_8_bit(self):
        """Whether the values have 8 bits or fewer, as in TIFFs of several bands that Pillow does not open."""
        return self.values.dtype.kind in 'ub' and self.values.dtype.itemsize == 1

    def in_file(self, value):
        """The number that stands in the file for one of the values."""
        return value / self.unit - self.zero


def scaled(samples, pixel_range=None):
    """The values of an image as a tensor (C, h, w), float32 in [0, 1].

    pixel_range: (low, high), the numbers in the file that become 0 and 1; the others are clipped. If it is
    None, 0 and samples.top become 0 and 1.

    Raises ValueError for values that are not finite, and, without a range, for values outside of 0 ... samples.top.
    """
    values = samples.values
    if values.dtype.kind == 'f' and not np.isfinite(values).all():
        raise ValueError('it holds NaN or infinite values')
    if pixel_range is None:
        values = divided_by_top(samples)
    else:
        low, high = (bound + samples.zero for bound in pixel_range)
        if samples.unit != 1:
            values = np.rint(values / samples.unit)
        exact = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
        values = (values.astype(exact) - exact(low)) / exact(high - low)
        values = values.clip(0, 1).astype(np.float32)
    if samples.inverted:
        values = 1 - values
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, 2, 0)))


def divided_by_top(samples):
    """The values (h, w, C) divided by samples.top, float32. Raises ValueError if they are not in 0 ... samples.top."""
    values = samples.values
    low = values.min(initial=0)
    high = values.max(initial=0)
    if samples.top is None or low < 0 or high > samples.top:
        smallest = f'{samples.in_file(values.min()):,.6g}'
        largest = f'{samples.in_file(values.max()):,.6g}'
        raise ValueError(f'its values, {smallest} to {largest}, are neither 8 or 16 bits nor floats in [0, '
                         '1]: say which become 0 and 1, with --pixel_range=FROM,TO')
    return values.astype(np.float32) / np.float32(samples.top)
