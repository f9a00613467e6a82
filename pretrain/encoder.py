"""The sparse encoder: any CNN, run on the visible cells of an image (SparK, section 3.1).

Nothing hidden enters the network: it runs on strips of visible cells (sparse/plane.py), as it is. What it
must be for that, and which feature maps make the pyramid, is measured when it is built (sparse/probe.py).
"""
from dataclasses import replace

import torch
from torch import nn

from pretrain.masked_network import check_image_size
from pretrain.sparse.attention import prove_order
from pretrain.sparse.parameters import outermost_modules
from pretrain.sparse.probe import copy_of, probe, random_images
from pretrain.sparse.pyramid import pyramid
from pretrain.sparse.record import make_record, read_record


class SparseEncoder(nn.Module):
    """A CNN that can run on the visible cells of an image.

    `cnn` is the network itself, and nothing in it is changed: one with timm's `forward_intermediates`, one
    whose forward returns its feature maps, or any nn.Module with levels. input_size: (height, width) in
    pixels. cell_size: the side of a cell in pixels; None is the network's total stride, or twice that where a
    layer needs it. levels: names of the submodules whose outputs are the pyramid, large to small. record: the
    `record` of an earlier encoder of this network, which saves most of the time; one of another network, or
    by other versions of torch or timm, counts as none.

    Attributes, which are measured:
        stride: the total stride. cell_size: the side of a cell in pixels. grid: (h, w), in cells.
        reductions, channels: of the maps of the pyramid, from small stride to large.
        norm: 'bn' if most norms are BatchNorms, else 'ln'; densify and the default of beta2 follow it.
        unused: names of the parameters that no feature depends on, such as those of the classifier.
        level_indices: which of the network's feature maps make the pyramid. taps, stop: as of `feature_maps`
            (common/feature_maps.py). aligned: whether windows without padding are padded (AlignedPadding).
        notes: a tuple of Note, on what was chosen for the network, or differs from its dense forward.
        uncompiled: whether torch.compile leaves the network alone.
        has_attention: whether it has attention, which is then over all visible positions.
        orders: the numbers of visible cells for which it is proven that their order changes nothing; None for networks
            that need no such proof.
        record: what was measured as plain data, for a checkpoint; None if the network's code is in no file.

    Raises ValueError for a network that cannot run sparsely, naming the remedy.
    """

    def __init__(self, cnn, input_size, in_chans=3, cell_size=None, levels=None, record=None):
        super().__init__()
        if levels is not None:
            levels = levels.split(',') if isinstance(levels, str) else list(levels)
        asked = {'input_size': input_size, 'in_chans': in_chans, 'cell_size': cell_size, 'levels': levels}
        found = read_record(record, cnn, asked)
        if found is None:
            found = probe(cnn, **asked)
        self.record = make_record(found, cnn, asked)
        self.cnn = cnn
        self.input_size = tuple(input_size)
        self.in_chans = in_chans
        self.stride = found.stride
        self.cell_size = found.cell_size
        self.grid = found.grid
        self.level_indices = found.levels
        self.reductions = found.reductions
        self.channels = found.channels
        self.norm = found.norm
        self.unused = found.unused
        self.notes = found.notes
        self.taps = found.taps
        self.stop = found.stop
        self.aligned = found.aligned
        self.uncompiled = found.uncompiled
        self.has_attention = found.has_attention
        self.orders = found.orders
        self._found, self._asked = found, asked
        self._recomputing = [module for module in cnn.modules() if hasattr(module, 'grad_checkpointing')]

    def forward(self, images, geometry=None):
        """images (B, C, H, W) -> a list of the maps of the pyramid, small stride to large.

        With a geometry they are strips (B, C_i, k*p_i, p_i), without one dense maps (B, C_i, H/r_i, W/r_i). The visible
        cells of the geometry should ascend. Another order gives the same features, with one exception: with one image of
        which all cells are visible, a position embedding has the shape of the tokens, so that it cannot be told from
        them, and is added in the order of the image.
        """
        check_image_size(images, self)
        if geometry is not None and any(module.grad_checkpointing for module in self._recomputing):
            raise ValueError("timm's activation checkpointing would run the backward pass without the mask: "
                             'switch it off with cnn.set_grad_checkpointing(False)')
        return self.pyramid(images, geometry)

    def pyramid(self, images, geometry=None, cnn=None):
        """`forward` without its checks: without a geometry, images of any size. cnn: another network with the same maps."""
        run = self._pyramid_uncompiled if self.uncompiled else self._pyramid
        return run(self.cnn if cnn is None else cnn, images, geometry)

    def _pyramid(self, cnn, images, geometry):
        return pyramid(cnn, images, geometry, self.level_indices, self.taps, self.stop, self.aligned)

    @torch.compiler.disable
    def _pyramid_uncompiled(self, cnn, images, geometry):
        """torch.compile hides F.pad and functions under @on_plane from a Plane, and cannot register the hooks of taps."""
        return self._pyramid(cnn, images, geometry)

    def prove_order(self, visible_cells):
        """Prove that the order of so many visible cells of an image changes nothing, where the network has attention.

        The probe has tried a quarter of the cells, and 40 %, which the methods show by default; other numbers take a
        few seconds. `record` then says so. Raises ValueError for a network that treats this number in another way.
        """
        if self.orders is None or visible_cells in self.orders:
            return
        images = random_images(self.cnn, self.in_chans, self.input_size)
        prove_order(copy_of(self.cnn), self._pyramid, images, self.grid, visible_cells)
        self.orders = (*self.orders, visible_cells)
        self._found = replace(self._found, orders=self.orders)
        self.record = make_record(self._found, self.cnn, self._asked)

    def left_out(self):
        """{module: number of parameters} of what no feature depends on, and pretraining leaves as it is."""
        return outermost_modules(self.cnn, self.unused)
