"""The proof that attention and position embeddings give on strips what the dense network gives.

No operator shows whether attention runs over all positions: it is a product of matrices in any case, and tokens have no
image plane that an operator could be seen to cut. So a network with attention runs in float64 on strips and densely, and
the feature maps are compared. Its weights get noise, its scales are drawn at random, and the cells of each image are in a
random order. In evaluation mode these are tried, in this order:

* visible rectangles of several shapes. The dense network sees each of them as an image of its own, with the part of the
  position embedding that belongs there (positions.py);
* all cells visible, at the size of the images of the run. A smaller image would not do: one window may cover it, and
  attention in that window is attention over all positions;
* random masks with two numbers of visible cells. Ascending and random order must give the same.

The first rectangle and the smaller number are tried again in training mode, without dropout. `prove_order` tries one
further number of visible cells, for a method that shows another. Attention averages over many positions, so that a fault
changes little; therefore the tolerance is small.
"""
from contextlib import nullcontext

import torch

from common.words import first_line
from pretrain.sparse.compare import VisibleRectangles, first_wrong_module, relative_error
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.positions import CutPositions
from pretrain.sparse.proof import InDouble, is_batch_norm, prepare, switch_off_dropout
from pretrain.sparse.refused import WITHOUT_ATTENTION, AttentionRefused

TOLERANCE = 1e-8  # relative to the largest value of a map, in float64
SHARES = 0.25, 0.4  # of the cells that random masks show
ROUGH = 1e-5  # tolerance in training mode, where BatchNorm over the values of few cells magnifies rounding
MORE_IMAGES = 8  # of the second try in training mode
NOISE = 0.1  # standard deviation of the noise on a weight, as a share of that of the weight
LEAST_NOISE = 0.02  # its smallest standard deviation
CAUSE = 'its attention is not over all positions, or knows the shape of the map'


class StripMismatch(Exception):
    """Strips give something else than the dense network; the message follows the name of the network."""


def prove_attention(twin, pyramid, images, grid):
    """Raise AttentionRefused unless strips give what the dense network gives.

    Args:
        twin: a copy of the network, which is changed.
        pyramid: pyramid(cnn, images, geometry) runs it, densely where geometry is None.
        images: two of the real size, (2, C, H, W).
        grid: (h, w) cells of the images.
    """
    run_proof(twin, pyramid, images, grid, Proof.run)


def prove_order(twin, pyramid, images, grid, visible):
    """Raise AttentionRefused unless a random mask of so many visible cells gives the same in any order of these.

    The arguments are those of `prove_attention`.
    """
    run_proof(twin, pyramid, images, grid, lambda proof: proof.run_orders(visible))


def proven_orders(grid):
    """The numbers of visible cells of which `prove_attention` tries another order."""
    return tuple(max(1, round(share * grid[0] * grid[1])) for share in SHARES)


@torch.no_grad()
def run_proof(twin, pyramid, images, grid, check):
    """Call check(proof) with the Proof of a network. Raises AttentionRefused where that raises StripMismatch."""
    prepare(twin)
    disturb(twin)
    try:
        with torch.random.fork_rng(devices=[]), InDouble():
            torch.manual_seed(0)
            check(Proof(twin.double(), pyramid, images.double(), grid))
    except StripMismatch as difference:
        raise AttentionRefused(
            f'{type(twin).__name__} cannot be pretrained sparsely as it is: {difference}. {WITHOUT_ATTENTION}'
        ) from difference.__cause__


def disturb(twin, seed=0):
    """Change all parameters of a network by noise, and give buffers that are zero a value.

    Weights that start at zero in part, or as an identity, hide what they do later: what mixes positions must not have a
    weight of exactly zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            deviation = parameter.std(correction=0) * NOISE
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * deviation.clamp(min=LEAST_NOISE))
    for buffer in twin.buffers():
        if buffer.is_floating_point() and not buffer.any():
            buffer.data = (0.5 + torch.rand(buffer.shape, generator=generator)).to(buffer)


class Proof:
    """What `prove_attention` tries, in its order. The arguments are the same, in float64."""

    def __init__(self, twin, pyramid, images, grid):
        self.twin = twin
        self.pyramid = pyramid
        self.images = images
        self.grid = grid

    def run(self):
        """Raise StripMismatch unless all holds."""
        self.evaluate()
        sizes = rectangle_sizes(*self.grid)
        for size in (*sizes, self.grid):
            self.compare(size)
        fewer, more = proven_orders(self.grid)
        self.compare_orders(fewer)
        self.compare_orders(more)
        switch_off_dropout(self.twin.train())
        self.check_no_random_numbers(sizes[0])
        self.compare(sizes[0])
        self.compare_orders(fewer)

    def run_orders(self, visible):
        """Raise StripMismatch unless the order of so many visible cells changes nothing."""
        self.evaluate()
        self.compare_orders(visible)

    def evaluate(self):
        """Set evaluation mode, with the statistics of these images where there is BatchNorm."""
        if any(is_batch_norm(module) for module in self.twin.modules()):
            self.densely(self.images, self.twin.train())
        self.twin.eval()

    def check_no_random_numbers(self, size):
        """Raise StripMismatch if the network draws random numbers on rectangles of a size."""
        state = torch.get_rng_state()
        self.on_strips(self.images, self.rectangles(self.images, size).geometry)
        if not torch.equal(torch.get_rng_state(), state):
            raise StripMismatch('it draws random numbers in training besides those of dropout, so that nothing can be compared '
                            '(set its rate to 0)')

    def densely(self, images, cnn, context=None):
        """The pyramid of the dense network. Raises StripMismatch."""
        try:
            with context or nullcontext():
                return self.pyramid(cnn, images, None)
        except Exception as failure:  # whatever a network can raise
            raise StripMismatch(f'it cannot run in float64 on a part of its images, of {images.shape[2]}x{images.shape[3]} '
                            f'({in_words(failure)}), so that nothing can be compared') from failure

    def on_strips(self, images, geometry):
        """The pyramid on strips. Raises StripMismatch."""
        try:
            return self.pyramid(self.twin, images, geometry)
        except Exception as failure:
            cells = geometry.visible.shape[1]
            raise StripMismatch(f'it cannot run on strips of {cells} visible cells ({in_words(failure)})') from failure

    def rectangles(self, images, size):
        """VisibleRectangles of a size, in two corners by turns."""
        corners = [(self.grid[0] - size[0], self.grid[1] - size[1]), (0, 0)]
        return VisibleRectangles(self.grid, corners * (len(images) // 2), size, images.device)

    def compare(self, size):
        """Raise StripMismatch unless strips of rectangles of a size give what the dense network gives."""
        error, rectangles = self.error(self.images, size)
        if error > TOLERANCE and self.twin.training:
            error, _ = self.error(self.images.new_empty(MORE_IMAGES, *self.images.shape[1:]).normal_(), size)
        if error <= TOLERANCE:
            return
        fault = first_wrong_module(self.twin, lambda x, geometry: self.pyramid(self.twin, x, geometry), self.images,
                                   rectangles, TOLERANCE, CutPositions(rectangles))
        what = 'with all cells visible' if size == self.grid else f'on {size[0]} x {size[1]} visible cells'
        raise StripMismatch(f'{what} it does not give what it gives on an image of these, by {error:.0e} of the largest '
                        f'value ({fault}), so that {CAUSE}')

    def error(self, images, size):
        """(the relative error, the VisibleRectangles)."""
        rectangles = self.rectangles(images, size)
        dense = self.densely(rectangles.cut(images), self.twin, CutPositions(rectangles))
        strips = [rectangles.as_dense(strip) for strip in self.on_strips(images, rectangles.geometry)]
        return relative_error(strips, dense), rectangles

    def compare_orders(self, visible):
        """Raise StripMismatch unless strips of a random mask, of so many visible cells, give the same in another order."""
        cells = self.grid[0] * self.grid[1]
        mask = torch.rand(len(self.images), cells).argsort(1)[:, :visible].to(self.images.device)
        maps = []
        for ordered in (mask.sort(1).values, mask):
            geometry = Geometry(ordered, self.grid)
            maps.append([geometry.to_canvas(strip) for strip in self.on_strips(self.images, geometry)])
        error = relative_error(*maps)
        if error > (ROUGH if self.twin.training else TOLERANCE):
            raise StripMismatch(f'{visible} visible cells give something else in another order, by {error:.0e} of the largest '
                            f'value, so that {CAUSE}')


def in_words(failure):
    """The kind of an exception and the first line of its message."""
    return first_line(f'{type(failure).__name__}: {failure}')


def rectangle_sizes(h, w):
    """Sizes (rows, columns) of the visible rectangles of a grid, of different shapes and numbers of cells."""
    if min(h, w) >= 3:
        return [(h // 2, w // 2), (h - 1, w // 2)]
    return [size for size in ((1, w), (h, 1)) if size != (h, w)]
