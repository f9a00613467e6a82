"""The proof that a network gives its own features when it runs on strips of all cells."""
import torch
from torch import nn

from pretrain.sparse.compare import VisibleRectangles, first_wrong_module, relative_error
from pretrain.sparse.refused import REMEDY, Refused

TOLERANCE = 0.01  # a fault is of the size of the features, and rounding is far below this


@torch.no_grad()
def prove(twin, pyramid, images, grid):
    """Raise Refused unless strips give what the dense network gives, with every cell visible.

    This catches what the operators of a forward do not betray: a dependence on the shape of the image plane or on the
    order of positions.

    Args:
        twin: a copy of the network, which is changed: it gets random scales, since zero-initialised branches and small
            layer scales would hide their errors. BatchNorm takes the statistics of these very images, since a deep
            network of random scales would explode without.
        pyramid: pyramid(cnn, images, geometry) runs it, densely where geometry is None.
        images: (B, C, H, W). It is tried in float64, unless constants of the network's own forbid that.
        grid: (h, w) cells of the images.
    """
    randomise_scales(twin)
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.random.fork_rng(devices=[]):
        try:
            pyramid(twin.double().train(), images.double(), None)
            images = images.double()
        except RuntimeError:
            pyramid(twin.to(images.dtype).train(), images, None)
    twin.eval()
    rectangles = VisibleRectangles(grid, [(0, 0)] * len(images), grid, images.device)
    dense = pyramid(twin, images, None)
    try:
        strips = pyramid(twin, images, rectangles.geometry)
        is_same = relative_error([rectangles.as_dense(strip) for strip in strips], dense) <= TOLERANCE
    except Exception as failure:  # a shape that a strip does not have
        raise refused(twin) from failure
    if not is_same:
        raise refused(twin, first_wrong_module(
            twin, lambda x, geometry: pyramid(twin, x, geometry), images, rectangles, TOLERANCE))


def randomise_scales(cnn, seed=0):
    """Draw all scales and biases of a network from 0.5 to 1.5, and weights that are zero; call it without gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in cnn.parameters():
        if parameter.is_floating_point() and (parameter.ndim <= 1 or not parameter.any()):
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))


def refused(cnn, fault=''):
    fault = f' ({fault})' if fault else ''
    return Refused(f'{type(cnn).__name__} does not give its own features when it runs on strips of all cells{fault}: '
                   'something in it depends on the shape of the image plane or on the order of positions (windows, tokens, '
                   f'coordinates). {REMEDY}')
