"""Compares what a network gives on strips with what it gives densely, module by module."""
import math
from contextlib import nullcontext
from functools import partial

import torch
from torch.nn.modules import padding

from pretrain.sparse.geometry import Geometry


class VisibleRectangles:
    """A rectangle of visible cells in each image, which the dense network sees as an image of its own.

    grid: (h, w) cells of the images. corners: (row, column) of each image's rectangle. size: (rows, columns)
    of the rectangles. The cells stand in the strips in another random order in each image: what depends on
    their order is wrong.
    """

    def __init__(self, grid, corners, size, device=None):
        self.corners = corners
        self.size = size
        cells = torch.arange(grid[0] * grid[1]).view(grid)
        generator = torch.Generator().manual_seed(0)
        inside = [cells[top:top + size[0], left:left + size[1]].flatten() for top, left in corners]
        visible = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in inside])
        self.geometry = Geometry(visible.to(device), grid)

    def cut(self, maps):
        """(B, C, h*p, w*p) -> (B, C, rows*p, columns*p): the rectangle of each image."""
        p = maps.shape[2] // self.geometry.grid[0]
        height, width = p * self.size[0], p * self.size[1]
        return torch.stack([x[:, p * top:p * top + height, p * left:p * left + width]
                            for x, (top, left) in zip(maps, self.corners)])

    def as_dense(self, x):
        """What a module gave on strips, as the dense network gives it; what is no strip is left as it is."""
        images, visible = self.geometry.visible.shape
        if x.ndim == 4 and len(x) == images and x.shape[2] == visible * x.shape[3]:
            return self.cut(self.geometry.to_canvas(x))
        if x.ndim == 4 and len(x) == images and x.shape[1] == visible * x.shape[2]:  # channels last
            return self.cut(self.geometry.to_canvas(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x


def relative_error(ours, theirs):
    """The largest relative error of some tensors.

    The error of each is relative to its own largest value, but at least to a thousandth of the largest of
    all. It is infinite where shapes differ or `theirs` is not finite.
    """
    if any(a.shape != b.shape or not b.isfinite().all() for a, b in zip(ours, theirs)):
        return math.inf
    sizes = [b.abs().max().item() for b in theirs]
    floor = max(1e-3 * max(sizes, default=0.0), 1e-300)
    errors = [(a - b).abs().max().item() / max(size, floor) for a, b, size in zip(ours, theirs, sizes)]
    return math.inf if any(math.isnan(one) for one in errors) else max(errors, default=0.0)


@torch.no_grad()
def first_wrong_module(cnn, pyramid, images, rectangles, tolerance, context=None):
    """Which module's output is the first that is wrong on strips.

    Inner modules finish before those that hold them. pyramid(images, geometry) runs the network, densely
    where geometry is None. context: in which the dense one runs. Returns a part of a sentence.
    """
    sparse = outputs_of(cnn, lambda: pyramid(images, rectangles.geometry))
    with context or nullcontext():
        dense = outputs_of(cnn, lambda: pyramid(rectangles.cut(images), None))
    for (name, module, ours), (_, _, theirs) in zip(sparse, dense):
        if type(module).__module__ == padding.__name__:  # on strips a padding waits for the next window
            continue
        if torch.is_tensor(ours) and torch.is_tensor(theirs) and ours.is_floating_point():
            ours = rectangles.as_dense(ours)
            if ours.shape == theirs.shape and relative_error([ours], [theirs]) > tolerance:
                return f'the first wrong output is that of "{name or "(top)"}" ({type(module).__name__})'
    return 'every module gives the right output, so the gradient is at fault, or what is done between modules'


def outputs_of(cnn, run):
    """[(name, module, output)] of all modules that run() runs, in the order in which they end."""
    found = []

    def keep(name, module, inputs, output):
        found.append((name, module, output))

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in cnn.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found
