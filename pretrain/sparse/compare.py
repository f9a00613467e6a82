"""Compares what a network gives on strips with what it gives densely, module by module."""
import math
from contextlib import nullcontext

import torch

from pretrain.sparse.geometry import Geometry


class View:
    """What the dense network sees of the images, a rectangle of visible cells in each, and where that lies in sparse maps.

    grid: (h, w) of the images. corners: (row, column) of each rectangle. size: its (rows, columns). The cells stand in the
    strips in another random order in each image: what depends on their order is wrong.
    """

    def __init__(self, grid, corners, size, device=None):
        self.corners, self.size = corners, size
        cells, generator = torch.arange(grid[0] * grid[1]).view(grid), torch.Generator().manual_seed(0)
        visible = [cells[y:y + size[0], x:x + size[1]].flatten() for y, x in corners]
        visible = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in visible])
        self.geometry = Geometry(visible.to(device), grid)

    def cut(self, maps):
        """(B, C, H, W) -> the visible rectangle of each image."""
        p = maps.shape[2] // self.geometry.grid[0]
        return torch.stack([x[:, p * top:p * (top + self.size[0]), p * left:p * (left + self.size[1])]
                            for x, (top, left) in zip(maps, self.corners)])

    def bring(self, x):
        """What a module gave on strips, as it would be densely; tensors that are no strips as they are."""
        images, visible = self.geometry.visible.shape
        if x.ndim == 4 and len(x) == images and x.shape[2] == visible * x.shape[3]:
            return self.cut(self.geometry.to_canvas(x))
        if x.ndim == 4 and len(x) == images and x.shape[1] == visible * x.shape[2]:
            return self.cut(self.geometry.to_canvas(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x


def error(ours, theirs):
    """The largest relative error of some tensors, each by its own largest value, or a thousandth of the largest of all."""
    if any(a.shape != b.shape or not b.isfinite().all() for a, b in zip(ours, theirs)):
        return float('inf')
    sizes = [b.abs().max().item() for b in theirs]
    floor = max(1e-3 * max(sizes, default=0.0), 1e-300)
    errors = [(a - b).abs().max().item() / max(size, floor) for a, b, size in zip(ours, theirs, sizes)]
    return float('inf') if any(math.isnan(e) for e in errors) else max(errors, default=0.0)


@torch.no_grad()
def locate(encoder, images, view, tolerance, context=None, cnn=None):
    """Which module's output is the first that is wrong on strips: inner modules finish before those that hold them."""
    runs = []
    for sparse in (True, False):
        said = []
        handles = [module.register_forward_hook(
            lambda module, inputs, output, name=name, said=said: said.append((name, module, output)))
            for name, module in (cnn or encoder.cnn).named_modules()]
        try:
            with nullcontext() if sparse or context is None else context:
                encoder.pyramid(images if sparse else view.cut(images), view.geometry if sparse else None, cnn)
        finally:
            for handle in handles:
                handle.remove()
        runs.append(said)
    for (name, module, ours), (_, _, theirs) in zip(*runs):
        if type(module).__module__ == 'torch.nn.modules.padding':  # on strips it waits for the next window
            continue
        if torch.is_tensor(ours) and torch.is_tensor(theirs) and ours.is_floating_point():
            ours = view.bring(ours)
            if ours.shape == theirs.shape and error([ours], [theirs]) > tolerance:
                return f'the first wrong output is that of "{name or "(top)"}" ({type(module).__name__})'
    return 'every module gives the right output, so the gradient is at fault, or what is done between modules'
