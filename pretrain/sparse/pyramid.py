"""The pyramid of a network, densely or on strips."""
from contextlib import nullcontext

import torch

from common.feature_maps import feature_maps
from common.networks.convolutions import safe_convolutions
from common.networks.norms import single_valued
from pretrain.sparse.aligned import AlignedPadding
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.plane import Plane


def pyramid(cnn, images, geometry, levels, taps=None, stop=None, aligned=False):
    """The levels of a network's pyramid, large to small.

    Args:
        cnn: the network.
        images: (B, C, H, W).
        geometry: where the visible cells lie; None runs the whole images.
        levels: indices of the levels in the list of all feature maps.
        taps, stop: as in `feature_maps`.
        aligned: whether windows without padding are padded, see AlignedPadding.

    Returns:
        A list of strips (B, C_i, k*p_i, p_i), or of dense maps (B, C_i, H_i, W_i) without a geometry.
    """
    x = images if geometry is None else geometry.to_strip(images)
    plane = nullcontext() if geometry is None else Plane(geometry)
    padding = AlignedPadding() if aligned else nullcontext()
    with safe_convolutions(images.device), plane, padding:
        maps = feature_maps(cnn, x, taps, stop)
    return [maps[level] for level in levels]


@torch.no_grad()
def norms_of_one_value(encoder, visible_cells):
    """Names of the norms of a SparseEncoder that see one value of each channel of an image.

    visible_cells: their number in an image. At most two are tried: a norm that sees one value of each channel of two cells
    does so for any number of them. See `single_valued` in common/networks/norms.py.
    """
    like = next(encoder.cnn.parameters())
    image = torch.zeros(1, encoder.in_chans, *encoder.input_size).to(like)
    visible = torch.arange(min(visible_cells, 2), device=like.device)[None]
    return single_valued(encoder, lambda: encoder.pyramid(image, Geometry(visible, encoder.grid)))
