"""How a CNN runs on the visible cells of an image (SparK, section 3.1).

The visible cells of an image are stacked into a **strip**. Every function that looks at one position, or at
all positions of one image at once (1x1 convolutions, norms, activations, squeeze-and-excite, ...), is right
on a strip as it is. Functions whose window overlaps neighbouring cells need the image plane: the strip is
scattered onto a **canvas**, the function runs there, and the visible cells are gathered again. That is
submanifold sparse convolution, written with dense kernels.

A network is left as it is, its code and its modules. While a `Plane` is on, the few functions of torch
through which a network sees neighbouring positions run by the rules of rules.py, whoever calls them: a layer
of torch or timm, or a `forward` that pads and pools itself. All other functions are right on a strip, or the
probe refuses them (probe.py). `on_plane` gives a rule to a function or a layer of your own.

Legend: as in geometry.py. A strip is (B, C, k*p, p), a canvas (B, C, h*p, w*p).
"""
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from common.networks.convolutions import pair
from pretrain.sparse.rules import rule_of


class CellTooSmall(ValueError):
    """A layer strides past the side of a cell: a larger cell would do."""


class Plane(TorchFunctionMode):
    """Context in which a network's forward runs on strips: `with Plane(geometry): cnn(strip)`.

    It belongs to one forward. Functions called inside a rule are not seen by it.

    `images` and `visible` are the numbers of images and of visible cells an image. `paddings` are pairs of a
    strip and the arguments of F.pad, which wait for the next window over that strip.
    """

    def __init__(self, geometry):
        super().__init__()
        self.geometry = geometry
        self.images, self.visible = geometry.visible.shape
        self.paddings = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        rule = rule_of(function)
        if rule is None:
            return function(*args, **(kwargs or {}))
        return rule(self, function, *args, **(kwargs or {}))

    def is_strip(self, x):
        """Whether a tensor has the shape of a strip, (., C, k*p, p)."""
        return x.ndim == 4 and x.shape[2] == self.visible * x.shape[3]

    def is_bare_strip(self, x):
        """Whether a tensor is a strip of the whole batch, with no padding that waits."""
        return self.is_strip(x) and len(x) == self.images and self.padding_of(x) is None

    def side_of(self, size):
        """p where a size is that of a strip, (k*p, p); else None."""
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            return None
        return size[1] if size[0] == self.visible * size[1] else None

    def gather(self, table):
        """`Geometry.gather`: a position embedding, (1, C, h*p, w*p), at the visible cells."""
        return self.geometry.gather(table)

    def padding_of(self, strip):
        """The arguments of F.pad that wait for the next window over a strip, or None."""
        for padded, padding in self.paddings:
            if padded is strip:
                return padding
        return None

    def is_local(self, strip, kernel, stride, padding=0, dilation=1):
        """Whether windows stay inside the cells, so that a strip needs no plane.

        Arguments are those of the convolution or pool. Raises CellTooSmall if the stride does not divide the cell.
        """
        kernel, stride, dilation = pair(kernel), pair(stride), pair(dilation)
        if any(strip.shape[3] % step for step in stride):
            raise CellTooSmall(f'strides by {stride[1]} where a cell is {strip.shape[3]} positions wide')
        reach = [1 + (k - 1) * d for k, d in zip(kernel, dilation)]
        is_padded = padding not in (0, (0, 0), [0, 0], 'valid') and (padding != 'same' or reach != [1, 1])
        return not is_padded and all(r <= s for r, s in zip(reach, stride)) and self.padding_of(strip) is None

    def run(self, function, strip, hidden=0.0):
        """Scatter a strip onto the canvas, where hidden positions hold a number, apply a function, gather the strip.

        Padding that waits for the strip is applied to its canvas first. Raises ValueError for a tensor that
        is no strip, and for a function whose output is no whole number of positions for each cell.
        """
        if not self.is_strip(strip) or len(strip) not in (self.images, 1):
            raise ValueError(f'has a window over a tensor {tuple(strip.shape)}, which is no map of the '
                             f'visible cells of {self.images} images')
        padding = self.padding_of(strip)
        if padding is not None and padding['mode'] == 'constant':
            hidden = padding['value']
        # A batch folded into the channels, (1, B*C, ...), as CondConv does it, is unfolded for the canvas.
        canvas = self.geometry.to_canvas(strip.reshape(self.images, -1, *strip.shape[2:]), hidden)
        if padding is not None:
            canvas = F.pad(canvas, **padding)
        out = function(canvas.reshape(len(strip), -1, *canvas.shape[2:]))
        h, w = self.geometry.grid
        if out.shape[2] % h or out.shape[3] * h != out.shape[2] * w:
            raise ValueError(f'makes a map of {out.shape[2]}x{out.shape[3]} positions, which is no whole '
                             f'number for each of {h}x{w} cells (its padding does not keep the size / stride)')
        gathered = self.geometry.to_strip(out.reshape(self.images, -1, *out.shape[2:]))
        return gathered.reshape(len(out), -1, *gathered.shape[2:])
