"""The sparse encoder: any CNN, run on the visible cells of an image (SparK, section 3.1).

Nothing hidden enters the network. The visible cells of an image are stacked into a **strip**; every layer
that looks at one position, or at all positions of one image at once (1x1 convolutions, norms, activations,
squeeze-and-excite, ...), is right on a strip as it is. Only layers whose window overlaps neighbouring cells
need the image plane: the strip is scattered onto a **canvas**, the layer's own forward runs there, and the
visible cells are gathered again. That is submanifold sparse convolution, written with dense kernels.

Legend: B batch, C channels, (H, W) image, (h, w) grid of cells, L = h*w, k visible cells an image,
p the side of a cell at this stage (cell size / stride). A strip is (B, C, k*p, p), a canvas (B, C, h*p, w*p).
"""
import copy
from functools import partial

import torch
from timm.layers import AvgPool2dSame
from torch import nn

from pretrain.probe import overlaps, probe


class Geometry:
    """Where the visible cells of one batch lie: the way from images to strips and back.

    visible: LongTensor (B, k), row-major indices of the visible cells, ascending. grid: (h, w).
    """

    def __init__(self, visible, grid):
        self.visible, self.grid = visible, grid
        self._rows = {}  # by p: computed once, used by every layer of a stage

    def rows(self, p):
        """(B*k*p,): where the rows of the visible cells, p pixels each, stand on a canvas cut into such rows."""
        if p not in self._rows:
            h, w = self.grid
            image = torch.arange(len(self.visible), device=self.visible.device)[:, None]
            top = (image * h + self.visible // w) * p
            lines = top[..., None] + torch.arange(p, device=top.device)
            self._rows[p] = (lines * w + (self.visible % w)[..., None]).flatten()
        return self._rows[p]

    def is_visible(self):
        """(B, L) boolean map of the grid, True where a cell is visible."""
        cells = self.grid[0] * self.grid[1]
        hidden = torch.zeros(len(self.visible), cells, dtype=torch.bool, device=self.visible.device)
        return hidden.scatter(1, self.visible, True)

    def to_strip(self, canvas):
        """(B, C, h*p, w*p) -> (B, C, k*p, p): the visible cells of each image, one below the other."""
        B, C, _, W = canvas.shape
        p = W // self.grid[1]
        # Channels last, a row of a cell is one run of memory: both directions copy whole runs.
        table = canvas.permute(0, 2, 3, 1).reshape(-1, p * C)
        return table.index_select(0, self.rows(p)).view(B, -1, p, C).permute(0, 3, 1, 2)

    def to_canvas(self, strip, fill=0.0):
        """(B, C, k*p, p) -> (B, C, h*p, w*p); hidden positions hold fill, a number or a tensor (1, C, 1, 1)."""
        B, C, _, p = strip.shape
        h, w = self.grid
        table = strip.permute(0, 2, 3, 1).reshape(-1, p * C)
        if torch.is_tensor(fill):
            canvas = fill.to(strip.dtype).view(1, C).repeat(B * h * p * w, p)
        else:
            canvas = table.new_full((B * h * p * w, p * C), fill)
        canvas = canvas.index_copy_(0, self.rows(p), table)
        return canvas.view(B, h * p, w * p, C).permute(0, 3, 1, 2)


# Rules: how a layer whose window overlaps neighbouring cells runs on a strip. A rule takes (layer, geometry,
# strip) and returns a strip; hidden positions count as the layer's own padding. RULES is the place where a
# layer's rule stands; the first class that matches counts. Every other layer needs none, or is refused (probe.py).

def convolve(layer, geometry, strip):
    """Hidden positions are 0, as in zero padding."""
    return geometry.to_strip(dense(layer, geometry.to_canvas(strip)))


def max_pool(layer, geometry, strip):
    """Hidden positions are the lowest finite number: with -inf the compiled backward indexes out of range."""
    return geometry.to_strip(dense(layer, geometry.to_canvas(strip, torch.finfo(strip.dtype).min)))


def average_pool(layer, geometry, strip):
    """Hidden positions are 0, and they are not counted where the layer does not count its padding."""
    average = geometry.to_strip(dense(layer, geometry.to_canvas(strip)))
    if layer.count_include_pad or isinstance(layer, AvgPool2dSame):  # which pads before it counts
        return average
    share = dense(layer, geometry.to_canvas(torch.ones_like(strip[:, :1])))
    return average / geometry.to_strip(share)


RULES = (
    (nn.Conv2d, convolve),
    (nn.MaxPool2d, max_pool),
    (nn.AvgPool2d, average_pool),
)


def dense(layer, canvas):
    """The layer's own forward."""
    return type(layer).forward(layer, canvas)


def forward_by_rule(encoder, layer, rule, x):
    """Stands in for `layer.forward`: by the rule inside a masked forward, the layer's own outside of one."""
    return dense(layer, x) if encoder.geometry is None else rule(layer, encoder.geometry, x)


def is_ruled(layer):
    """Whether a layer's forward is stood in for."""
    return getattr(vars(layer).get('forward'), 'func', None) is forward_by_rule


class SparseEncoder(nn.Module):
    """A CNN that can run on the visible cells of an image. `cnn` keeps its modules and `state_dict` keys.

    cnn: a network with timm's `forward_intermediates`. input_size: (height, width) in pixels. cell_size: the
    side of a cell in pixels, the network's total stride unless given.

    Facts, measured: `stride` (total), `cell_size`, `grid` (h, w), `reductions` and `channels` of the pyramid from
    small stride to large, `norm` ('bn' or 'ln', what most norms of the feature path are), `unused` (names of the
    parameters that the features do not depend on: the classifier and the like). Raises ValueError for a network,
    layer or size that cannot be run sparsely, naming the remedy.
    """

    def __init__(self, cnn, input_size, in_chans=3, cell_size=None):
        super().__init__()
        if any(is_ruled(layer) for layer in cnn.modules()):
            raise ValueError('this network is already inside a SparseEncoder, which a second one would break: take that one '
                             'apart first (encoder.release()), or give a copy of the network')
        found = probe(cnn, input_size, in_chans, cell_size, tuple(cls for cls, _ in RULES))
        self.cnn, self.input_size, self.in_chans = cnn, tuple(input_size), in_chans
        self.stride, self.cell_size, self.grid = found.stride, found.cell_size, found.grid
        self.levels, self.reductions, self.channels = found.levels, found.reductions, found.channels
        self.norm, self.unused = found.norm, found.unused
        self.geometry = None  # of the forward that is running, and None between two
        self._recomputing = [module for module in cnn.modules() if hasattr(module, 'grad_checkpointing')]
        for layer in cnn.modules():
            rule = next((rule for cls, rule in RULES if isinstance(layer, cls)), None)
            if rule is not None and overlaps(layer):
                layer.forward = partial(forward_by_rule, self, layer, rule)
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
        everything = Geometry(torch.arange(self.grid[0] * self.grid[1], device=image.device).expand(len(image), -1), self.grid)
        try:
            maps = [everything.to_canvas(strip) for strip in twin(image, everything)]
            same = all(a.shape == b.shape and (a - b).abs().max() <= 0.01 * b.abs().max() for a, b in zip(maps, twin(image)))
            cause = None
        except Exception as error:  # a shape that a strip does not have
            same, cause = False, error
        if not same:
            self.release()
            raise ValueError(f'{type(self.cnn).__name__} does not give its own features when it runs on strips of all cells: '
                             'something in it depends on the shape of the image plane (windows, tokens, positions). Use a '
                             'network without it, or put it into a layer of its own with a rule in RULES of '
                             'pretrain/encoder.py') from cause

    def forward(self, images, geometry=None):
        """images (B, C, H, W) -> the pyramid, small stride to large: strips, or dense maps without a geometry."""
        if images.shape[1:] != (self.in_chans, *self.input_size):
            raise ValueError(f'images are {tuple(images.shape[1:])}, but this encoder was built for '
                             f'{(self.in_chans, *self.input_size)}: resize them, or build it for their size')
        if geometry is not None and any(module.grad_checkpointing for module in self._recomputing):
            raise ValueError("timm's activation checkpointing would run the backward pass without the mask: "
                             'switch it off with cnn.set_grad_checkpointing(False)')
        try:
            self.geometry = geometry
            x = images if geometry is None else geometry.to_strip(images)
            maps = self.cnn.forward_intermediates(x, intermediates_only=True)
        finally:
            self.geometry = None
        return [maps[level] for level in self.levels]

    def release(self):
        """Take the encoder apart: returns the plain network, as it was before (with the weights of now)."""
        for layer in self.cnn.modules():
            if is_ruled(layer):
                del layer.forward
        return self.cnn
