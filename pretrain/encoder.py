"""The sparse encoder: any CNN, run on the visible cells of an image (SparK, section 3.1).

Nothing hidden enters the network: it runs on strips of visible cells (sparse/plane.py), as it is. What it must be for that,
and which of its feature maps make the pyramid, is measured when the encoder is built (probe.py).
"""
from contextlib import nullcontext

import torch
from torch import nn

from common.networks.convolutions import safe_convolutions
from pretrain.sparse.aligned import AlignedPadding
from pretrain.sparse.compare import View, error, locate
from pretrain.sparse.plane import Plane
from pretrain.sparse.probe import REMEDY, Refused, feature_maps, parts, probe


class SparseEncoder(nn.Module):
    """A CNN that can run on the visible cells of an image. `cnn` is the network itself, nothing in it is changed.

    cnn: a network with timm's `forward_intermediates`, or whose forward returns its feature maps, or any nn.Module with
    levels. input_size: (height, width) in pixels. cell_size: the side of a cell in pixels, chosen unless given: the
    network's total stride, or twice that where a layer needs it. levels: names of the submodules whose outputs are the
    pyramid, large to small.

    Facts, measured: `stride` (total), `cell_size`, `grid` (h, w), `reductions` and `channels` of the pyramid from
    small stride to large, `norm` ('bn' or 'ln', what most norms of the feature path are), `unused` (names of the
    parameters that the features do not depend on: the classifier and the like), `notes` (sentences on what was chosen
    or differs), `uncompiled` (whether torch.compile leaves it alone). Raises ValueError for a network, layer or size that
    cannot be run sparsely, naming the remedy.
    """

    def __init__(self, cnn, input_size, in_chans=3, cell_size=None, levels=None):
        super().__init__()
        found = probe(cnn, input_size, in_chans, cell_size, levels)
        self.cnn, self.input_size, self.in_chans = cnn, tuple(input_size), in_chans
        self.stride, self.cell_size, self.grid = found.stride, found.cell_size, found.grid
        self.levels, self.reductions, self.channels = found.levels, found.reductions, found.channels
        self.norm, self.unused, self.notes = found.norm, found.unused, found.notes
        self.taps, self.stop, self.aligned, self.uncompiled = found.taps, found.stop, found.aligned, found.uncompiled
        self._recomputing = [module for module in cnn.modules() if hasattr(module, 'grad_checkpointing')]
        self._prove(found.image, found.twin)

    @torch.no_grad()
    def _prove(self, image, twin):
        """With every cell visible, strips must give what the dense network gives: catches what the probe cannot see.

        Tried on a twin of the network with random scales: zero-initialised branches and small layer scales would hide their
        errors, which then are of the size of the features. BatchNorm takes the statistics of this very batch, since a deep
        network of random scales would explode without. In float64, unless constants of its own forbid that.
        """
        generator = torch.Generator().manual_seed(0)
        for parameter in twin.parameters():
            if parameter.is_floating_point() and (parameter.ndim <= 1 or not parameter.any()):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        view, cause, fault = View(self.grid, [(0, 0)] * len(image), self.grid, image.device), None, ''
        with torch.random.fork_rng(devices=[]):
            try:
                self.pyramid(image.double(), cnn=twin.double().train())
                image = image.double()
            except RuntimeError:
                self.pyramid(image, cnn=twin.to(image.dtype).train())
        dense = self.pyramid(image, cnn=twin.eval())
        try:
            strips = self.pyramid(image, view.geometry, twin)
            same = error([view.bring(strip) for strip in strips], dense) <= 0.01
            fault = '' if same else f' ({locate(self, image, view, 0.01, cnn=twin)})'
        except Exception as failure:  # a shape that a strip does not have
            same, cause = False, failure
        if not same:
            raise Refused(f'{type(self.cnn).__name__} does not give its own features when it runs on strips of all cells'
                          f'{fault}: something in it depends on the shape of the image plane or on the order of positions '
                          f'(windows, tokens, coordinates). {REMEDY}') from cause

    def forward(self, images, geometry=None):
        """images (B, C, H, W) -> the pyramid, small stride to large: strips, or dense maps without a geometry."""
        if images.shape[1:] != (self.in_chans, *self.input_size):
            raise ValueError(f'images are {tuple(images.shape[1:])}, but this encoder was built for '
                             f'{(self.in_chans, *self.input_size)}: resize them, or build it for their size')
        if geometry is not None and any(module.grad_checkpointing for module in self._recomputing):
            raise ValueError("timm's activation checkpointing would run the backward pass without the mask: "
                             'switch it off with cnn.set_grad_checkpointing(False)')
        return self.pyramid(images, geometry)

    def pyramid(self, images, geometry=None, cnn=None):
        """`forward` without its questions, of a twin of the network if given: densely, images of any size fit."""
        return (self._pyramid_uncompiled if self.uncompiled else self._pyramid)(images, geometry, cnn or self.cnn)

    def _pyramid(self, images, geometry, cnn):
        x = images if geometry is None else geometry.to_strip(images)
        with safe_convolutions(images.device), Plane(geometry) if geometry else nullcontext(), \
                AlignedPadding() if self.aligned else nullcontext():
            maps = feature_maps(cnn, x, self.taps, self.stop)
        return [maps[level] for level in self.levels]

    @torch.compiler.disable
    def _pyramid_uncompiled(self, *arguments):
        """torch.compile hides F.pad from a Plane, and cannot register the hooks of taps."""
        return self._pyramid(*arguments)

    def left_out(self):
        """{module: number of parameters} of what the features do not depend on: it stays as it is in pretraining."""
        return parts(self.cnn, self.unused)
