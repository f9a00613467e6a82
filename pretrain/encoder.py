"""The sparse encoder: any CNN, run on the visible cells of an image (SparK, section 3.1).

Nothing hidden enters the network: it runs on strips of visible cells (strips.py), as it is. What it must be for that,
and which of its feature maps make the pyramid, is measured when the encoder is built (probe.py).
"""
import copy
from contextlib import nullcontext

import torch
from torch import nn

from pretrain.compare import View, error, locate
from pretrain.probe import REMEDY, Refused, feature_maps, parts, probe
from pretrain.strips import AlignedPadding, Geometry, Plane


class SparseEncoder(nn.Module):
    """A CNN that can run on the visible cells of an image. `cnn` is the network itself, nothing in it is changed.

    cnn: a network with timm's `forward_intermediates`, or whose forward returns its feature maps, or any nn.Module with
    levels. input_size: (height, width) in pixels. cell_size: the side of a cell in pixels, chosen unless given: the
    network's total stride, or twice that where a layer needs it. levels: names of the submodules whose outputs are the
    pyramid, large to small.

    Facts, measured: `stride` (total), `cell_size`, `grid` (h, w), `reductions` and `channels` of the pyramid from
    small stride to large, `norm` ('bn' or 'ln', what most norms of the feature path are), `unused` (names of the
    parameters that the features do not depend on: the classifier and the like), `notes` (sentences on what was chosen
    or differs). Raises ValueError for a network, layer or size that cannot be run sparsely, naming the remedy.
    """

    def __init__(self, cnn, input_size, in_chans=3, cell_size=None, levels=None):
        super().__init__()
        found = probe(cnn, input_size, in_chans, cell_size, levels)
        self.cnn, self.input_size, self.in_chans = cnn, tuple(input_size), in_chans
        self.stride, self.cell_size, self.grid = found.stride, found.cell_size, found.grid
        self.levels, self.reductions, self.channels = found.levels, found.reductions, found.channels
        self.norm, self.unused, self.notes = found.norm, found.unused, found.notes
        self.taps, self.stop, self.aligned = found.taps, found.stop, found.aligned
        self._recomputing = [module for module in cnn.modules() if hasattr(module, 'grad_checkpointing')]
        self._prove(found.image)

    @torch.no_grad()
    def _prove(self, image):
        """With every cell visible, strips must give what the dense network gives: catches what the probe cannot see.

        Tried on a copy with random scales: zero-initialised branches and small layer scales would hide their errors, which
        then are of the size of the features; 1 % leaves room for TF32 and half precision.
        """
        twin, generator = copy.deepcopy(self).eval(), torch.Generator().manual_seed(0)
        for parameter in twin.parameters():
            if parameter.ndim <= 1 or not parameter.any():
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
        everything = View(Geometry.everything(len(image), self.grid, image.device), (0, 0), self.grid)
        try:
            same = error([everything.bring(strip) for strip in twin(image, everything.geometry)], twin(image)) <= 0.01
            cause = None
        except Exception as failure:  # a shape that a strip does not have
            same, cause = False, failure
        if not same:
            fault = f' ({locate(twin, image, everything, 0.01)})' if cause is None else ''
            raise Refused(f'{type(self.cnn).__name__} does not give its own features when it runs on strips of all cells'
                          f'{fault}: something in it depends on the shape of the image plane (windows, tokens, positions). '
                          + REMEDY) from cause

    def forward(self, images, geometry=None):
        """images (B, C, H, W) -> the pyramid, small stride to large: strips, or dense maps without a geometry."""
        if images.shape[1:] != (self.in_chans, *self.input_size):
            raise ValueError(f'images are {tuple(images.shape[1:])}, but this encoder was built for '
                             f'{(self.in_chans, *self.input_size)}: resize them, or build it for their size')
        if geometry is not None and any(module.grad_checkpointing for module in self._recomputing):
            raise ValueError("timm's activation checkpointing would run the backward pass without the mask: "
                             'switch it off with cnn.set_grad_checkpointing(False)')
        return self.pyramid(images, geometry)

    def pyramid(self, images, geometry=None):
        """`forward` without its questions: densely, images of any size fit."""
        x = images if geometry is None else geometry.to_strip(images)
        with nullcontext() if geometry is None else Plane(geometry), AlignedPadding() if self.aligned else nullcontext():
            maps = feature_maps(self.cnn, x, self.taps, self.stop)
        return [maps[level] for level in self.levels]

    def left_out(self):
        """{module: number of parameters} of what the features do not depend on: it stays as it is in pretraining."""
        return parts(self.cnn, self.unused)
