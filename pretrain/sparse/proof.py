"""The proof that a network gives its own features when it runs on strips of all cells."""
import torch
from timm.layers import DropBlock2d, DropPath
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import StochasticDepth

from pretrain.sparse.compare import VisibleRectangles, first_wrong_module, relative_error
from pretrain.sparse.positions import CutPositions
from pretrain.sparse.refused import REMEDY, Refused

TOLERANCE = 0.01  # a fault is of the size of the features, and rounding is far below this
NO_DOUBT = 0.001  # with so small an error in float32, float64 is not asked, which takes several times longer
DROPOUT = nn.modules.dropout._DropoutNd, DropPath, DropBlock2d, StochasticDepth


@torch.no_grad()
def prove(twin, pyramid, images, grid):
    """Raise Refused unless strips give what the dense network gives, with every cell visible.

    This catches what the operators of a forward do not betray: a dependence on the shape of the image plane
    or on the order of positions. It is tried in float32 first. What that does not clear of all doubt is
    decided in float64, unless constants of the network's own forbid that.

    Args:
        twin: a copy of the network, which is changed. It gets random scales, since zero-initialised branches
            and small layer scales would hide their errors. BatchNorm takes the statistics of these very
            images, since a deep network of random scales would explode without; both then use them as running
            statistics, since statistics of their own would hide a factor between the two.
        pyramid: pyramid(cnn, images, geometry) runs it, densely where geometry is None.
        images: (B, C, H, W), in the precision of the network.
        grid: (h, w) cells of the images.
    """
    prepare(twin)
    rectangles = VisibleRectangles(grid, [(0, 0)] * len(images), grid, images.device)
    with torch.random.fork_rng(devices=[]):
        if not is_clear_in_float32(twin, pyramid, images.float(), rectangles):
            decide(twin, pyramid, images, rectangles)


@torch.no_grad()
def prove_own_rules(twin, pyramid, images, grid):
    """Raise Refused unless strips of a part of the cells give what the dense network gives of that part alone.

    Only a rule of a network's own (`on_plane`) can be right where all cells are visible, and wrong where some are hidden.
    The arguments are those of `prove`, after which this is called: it takes the twin as that has left it.
    """
    h, w = grid
    size = (max(1, h // 2), max(1, w - 1))
    corners = [(h - size[0], w - size[1]), (0, 0)] * len(images)
    rectangles = VisibleRectangles(grid, corners[:len(images)], size, images.device)
    images = images.to(next(twin.parameters()).dtype)
    with CutPositions(rectangles):
        dense = pyramid(twin, rectangles.cut(images), None)
    strips = [rectangles.as_dense(strip) for strip in pyramid(twin, images, rectangles.geometry)]
    if not relative_error(strips, dense) <= TOLERANCE:
        fault = first_wrong_module(twin, lambda x, geometry: pyramid(twin, x, geometry), images, rectangles, TOLERANCE,
                                   CutPositions(rectangles))
        raise Refused(f'{type(twin).__name__} has a rule of its own (@on_plane) that is wrong where cells are hidden '
                      f'({fault}). Such a function may look through one window only: without a norm, without a mean over '
                      'the image, and without a second window over what the first one gave')


def prepare(twin):
    """Give a network random scales, and BatchNorms that take the statistics of the next forward."""
    randomise_scales(twin)
    for module in twin.modules():
        if is_batch_norm(module):
            module.momentum = 1.0


def is_clear_in_float32(twin, pyramid, images, rectangles):
    """Whether the two agree in float32 so well that there is no doubt."""
    try:
        twin.float()
        if any(is_batch_norm(module) for module in twin.modules()):
            pyramid(twin.train(), images, None)
        return error_of_strips(twin.eval(), pyramid, images, rectangles) <= NO_DOUBT
    except Exception:  # whatever a network can raise: float64 decides what it means
        return False


def decide(twin, pyramid, images, rectangles):
    """Raise Refused unless the two agree in float64, or in the network's own precision where that fails."""
    try:
        pyramid(twin.double().train(), images.double(), None)
        images = images.double()
    except RuntimeError:
        pyramid(twin.to(images.dtype).train(), images, None)
    try:
        error = error_of_strips(twin.eval(), pyramid, images, rectangles)
    except StripFailed as failure:
        raise refused(twin) from failure.__cause__
    if not error <= TOLERANCE:
        raise refused(twin, first_wrong_module(
            twin, lambda x, geometry: pyramid(twin, x, geometry), images, rectangles, TOLERANCE))


class StripFailed(Exception):
    """A network that runs densely raised an error on strips, which have other shapes."""


def error_of_strips(twin, pyramid, images, rectangles):
    """The relative error of the pyramid on strips of all cells. Raises StripFailed."""
    dense = pyramid(twin, images, None)
    try:
        strips = pyramid(twin, images, rectangles.geometry)
        return relative_error([rectangles.as_dense(strip) for strip in strips], dense)
    except Exception as failure:
        raise StripFailed from failure


def is_batch_norm(module):
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


@torch.no_grad()
def randomise_scales(cnn, seed=0):
    """Draw all scales and biases of a network from 0.5 to 1.5, also those of the shape (C, 1, 1), and weights that are one
    number throughout, such as zero. What follows a scale near zero would not be seen.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in cnn.parameters():
        is_scale = parameter.ndim <= 3 and parameter.squeeze().ndim <= 1
        if parameter.is_floating_point() and (is_scale or (parameter == parameter.flatten()[:1]).all()):
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))


def switch_off_dropout(cnn):
    """Set the rates of all dropout, of torch and of timm, to 0."""
    for module in cnn.modules():
        for rate in ('p', 'drop_prob'):
            if isinstance(module, DROPOUT) and isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0


class InDouble(TorchFunctionMode):
    """Context in which what a network computes in float32 by itself is in float64, so that faults stand out."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if one is torch.float32 else one for one in args]
        kwargs = {name: torch.float64 if one is torch.float32 else one for name, one in (kwargs or {}).items()}
        return function(*args, **kwargs)


def refused(cnn, fault=''):
    fault = f' ({fault})' if fault else ''
    return Refused(f'{type(cnn).__name__} does not give its own features when it runs on strips of all '
                   f'cells{fault}: something in it depends on the shape of the image plane or on the order '
                   f'of positions (windows, tokens, coordinates). {REMEDY}')
