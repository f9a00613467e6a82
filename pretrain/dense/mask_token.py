"""The mask token of A2MIM: how it comes into the output of a submodule (section 4.2 of the paper).

Legend: B batch, C channels, (h, w) grid of cells, r positions of the output along one side of a cell.
"""
from dataclasses import dataclass
from enum import Enum
from math import isqrt

import torch

MODES = ('gain', 'residual', 'replace')


class Axes(Enum):
    """Where the channels of an output are."""
    CHANNELS_FIRST = '(B, C, h*r, w*r)'
    CHANNELS_LAST = '(B, h*r, w*r, C)'
    TOKENS = '(B, h*r*w*r, C)'


@dataclass(frozen=True)
class Layout:
    """How the output of a submodule lies over the grid of cells. repeats: r of the legend."""
    axes: Axes
    repeats: int
    channels: int

    def spread(self, hidden):
        """A map of cells (B, 1, h, w) -> the map of all positions, of one channel, laid out as the output."""
        hidden = hidden.repeat_interleave(self.repeats, 2).repeat_interleave(self.repeats, 3)
        if self.axes is Axes.CHANNELS_LAST:
            return hidden.permute(0, 2, 3, 1)
        if self.axes is Axes.TOKENS:
            return hidden.flatten(2).transpose(1, 2)
        return hidden

    def of_channels(self, parameter):
        """A parameter (1, C, 1, 1), in the shape that is broadcast over the output."""
        return parameter if self.axes is Axes.CHANNELS_FIRST else parameter.flatten()


def find_layout(output, grid, batch):
    """The Layout of a submodule's output over a grid (h, w) of cells; None where it is no map of these cells.

    batch: number of images. Attention in windows has outputs with more rows than that.
    """
    shape = tuple(output.shape) if torch.is_tensor(output) and output.is_floating_point() else ()
    if shape[:1] != (batch,):
        return None
    if len(shape) == 4:
        for axes, size, channels in ((Axes.CHANNELS_FIRST, shape[2:], shape[1]),
                                     (Axes.CHANNELS_LAST, shape[1:3], shape[3])):
            repeats = size[0] // grid[0]
            if repeats and size == (repeats * grid[0], repeats * grid[1]):
                return Layout(axes, repeats, channels)
    if len(shape) == 3:
        repeats = isqrt(shape[1] // (grid[0] * grid[1]))
        if repeats and shape[1] == repeats * repeats * grid[0] * grid[1]:
            return Layout(Axes.TOKENS, repeats, shape[2])
    return None


def with_token(features, hidden, token, gain, mode, layout):
    """The output of a submodule with the token at hidden positions, in its own precision and layout.

    Args:
        features: f, the output of the submodule.
        hidden: m, a map of cells (B, 1, h, w), 1 where hidden and 0 where visible.
        token: t, (1, C, 1, 1). gain: g, (1, C, 1, 1); it is read in the mode 'gain' alone.
        mode: 'gain': f (1 - m) + f m g + t m, for CNNs. 'residual': f + t m, for ViTs. 'replace':
            f (1 - m) + t m, as in SimMIM (Xie et al. 2022).
        layout: the Layout of f.
    """
    m = layout.spread(hidden)
    t = layout.of_channels(token)
    if mode == 'residual':
        out = features + t * m
    elif mode == 'replace':
        out = features * (1 - m) + t * m
    else:
        out = features * (1 - m) + features * m * layout.of_channels(gain) + t * m
    return out.to(features.dtype)  # under autocast the parameters are in float32, and features need not be
