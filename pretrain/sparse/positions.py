"""Position embeddings where the dense network sees a part of the image: the reference that strips are compared with."""
import math

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

SUMS = torch.add, torch.Tensor.add, torch.Tensor.add_
INTERPOLATE = 'input', 'size', 'scale_factor', 'mode', 'align_corners', 'recompute_scale_factor', 'antialias'


class CutPositions(TorchFunctionMode):
    """Context in which the dense network on rectangles, cut out of images, has the position embeddings of these.

    rectangles: VisibleRectangles. A position embedding, which is the same for all images, is resized to the shape of the
    whole images, not of the rectangles. Then the rectangle of each image is cut out of it. This is written without the
    rules of rules.py, which it is to prove.
    """

    def __init__(self, rectangles):
        super().__init__()
        self.rectangles = rectangles
        self.images = len(rectangles.corners)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.interpolate:
            return self.interpolate(**dict(zip(INTERPOLATE, args)), **kwargs)
        if any(function is one for one in SUMS):
            return self.add(function, *args, **kwargs)
        return function(*args, **kwargs)

    def add(self, function, input, other, **kwargs):
        """A sum, whose terms may be numbers too."""
        if torch.is_tensor(input) and torch.is_tensor(other):
            input, other = self.cut_beside(input, other)
        return function(input, other, **kwargs)

    def interpolate(self, input, size=None, **how):
        """torch.nn.functional.interpolate."""
        p = self.side_of(size) if isinstance(size, (tuple, list)) else None
        if p is None or len(input) > 1 or input.ndim != 4:
            return F.interpolate(input, size, **how)
        whole = tuple(p * side for side in self.rectangles.geometry.grid)
        return self.cut(input if input.shape[2:] == whole else F.interpolate(input, whole, **how))

    def side_of(self, size):
        """p where a size is p times that of a rectangle; else None."""
        height, width = self.rectangles.size
        p = size[0] // height
        return p if p and tuple(size) == (p * height, p * width) else None

    def cut(self, table):
        """(1, C, h*p, w*p) -> (B, C, rows*p, columns*p)."""
        return self.rectangles.cut(table.expand(self.images, -1, -1, -1))

    def cut_beside(self, *terms):
        """Two terms of a sum: one that is a table of the whole image, beside maps or tokens of a rectangle, is cut."""
        if terms[0].ndim != terms[1].ndim or terms[0].ndim not in (3, 4) or {len(one) for one in terms} != {1, self.images}:
            return terms
        table, maps = sorted(terms, key=len)
        cut = self.cut_map(table, maps) if table.ndim == 4 else self.cut_tokens(table, maps)
        return tuple(cut if one is table else one for one in terms)

    def cut_map(self, table, maps):
        p = self.side_of(maps.shape[2:])
        is_whole = p and table.shape[2:] == tuple(p * side for side in self.rectangles.geometry.grid)
        return self.cut(table) if is_whole else table

    def cut_tokens(self, table, tokens):
        (h, w), (rows, columns) = self.rectangles.geometry.grid, self.rectangles.size
        if table.shape[2] != tokens.shape[2]:
            return table
        p = math.isqrt(table.shape[1] // (h * w))
        if (table.shape[1], tokens.shape[1]) != (h * w * p * p, rows * columns * p * p) or not p:
            return table
        return self.cut(table.mT.unflatten(2, (h * p, w * p))).flatten(2).mT
