"""The maps of a network, found out by running it: its last map, its stride, and how its pyramid is had."""
import weakref
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from common.feature_maps import FeatureMapsError, feature_maps, find_taps
from common.networks.convolutions import safe_convolutions
from pretrain.dense.last_map import LastMap, find_last_map
from pretrain.dense.proof import watched
from pretrain.dense.sizes import near_stride, no_multiple, no_whole_share
from pretrain.sparse.levels import stride_of


@dataclass(frozen=True)
class Seen:
    """What a network shows on one image.

    last_map: how it gives its last map. stride: R. width: channels of the last map. levels: indices of the
    pyramid's maps in the list of all feature maps, small stride to large; None for a network that gives no
    pyramid. reductions, channels: of these. place: name of the outermost submodule whose output is the last
    map of stride R/2, or None.
    """
    last_map: LastMap
    stride: int
    width: int
    levels: tuple | None
    reductions: tuple
    channels: tuple
    place: str | None

    @property
    def is_single_stride(self):
        """Whether all maps are of one stride, as those of a ViT."""
        return self.reductions == (self.stride,)


@torch.no_grad()
def look(cnn, images):
    """Run a network and see its maps: Seen. Raises ValueError for a network or images that do not fit.

    cnn: in evaluation mode. images: (1, C, H, W).
    """
    image = tuple(images.shape[2:])
    taps = find_taps(cnn)
    maps, place_of = attempt(cnn, images, partial(maps_with_places, taps=taps))
    features = None
    if hasattr(cnn, 'forward_features'):
        features = attempt(cnn, images, lambda cnn, images: cnn.forward_features(images))
    size = tuple(maps[-1].shape[2:]) if maps is not None else size_of_features(cnn, image, features)
    stride = stride_of(image, size)
    if stride is None or not doubles(cnn, images, size, taps):
        raise misfit(cnn, images, size, taps)
    last_map, width = find_last_map(cnn, features, size, stride, maps, taps)
    if maps is None:
        return Seen(last_map, stride, width, None, (stride,), (width,), None)
    strides = [stride_of(image, tuple(out.shape[2:])) for out in maps]
    reductions = tuple(sorted({one for one in strides if one is not None}))
    levels = tuple(max(i for i, one in enumerate(strides) if one == reduction) for reduction in reductions)
    places = [place_of(maps[level]) for level, reduction in zip(levels, reductions) if 2 * reduction == stride]
    return Seen(last_map, stride, width, levels, reductions,
                tuple(maps[level].shape[1] for level in levels), places[0] if places else None)


def attempt(cnn, images, run):
    """run(cnn, images). Raises ValueError for whatever the network raises."""
    try:
        with safe_convolutions(images.device):
            return run(cnn, images)
    except Exception as error:  # whatever a network can raise
        height, width = images.shape[2:]
        raise ValueError(f'{type(cnn).__name__} cannot run on images of {height}x{width} ({error}): give another '
                         'input_size') from error


def maps_with_places(cnn, images, taps):
    """All feature maps of a network, large to small, None if it gives none; and a function from a map to the
    name of the outermost submodule whose output it is, or None.
    """
    outputs = []

    def note(name, output):
        if torch.is_tensor(output):
            outputs.append((name, weakref.ref(output)))  # holding them all would take their memory

    try:
        with watched(cnn, [name for name, _ in cnn.named_modules() if name], note):
            maps = feature_maps(cnn, images, taps)
    except FeatureMapsError:
        return None, lambda wanted: None

    def place_of(wanted):
        names = [name for name, output in outputs if output() is wanted]
        # Of two side by side, a convolution and an activation in place, the later one.
        return min(reversed(names), key=lambda name: name.count('.'), default=None)

    return maps, place_of


def size_of_features(cnn, image, features):
    """The (h, w) of what forward_features gives, for a network without a pyramid. Raises ValueError."""
    shape = tuple(getattr(features, 'shape', ()))
    candidates = [shape[2:], shape[1:3]] if len(shape) == 4 else []
    if len(shape) == 3 and hasattr(getattr(cnn, 'patch_embed', None), 'grid_size'):
        candidates = [tuple(cnn.patch_embed.grid_size)]
    for size in candidates:
        if stride_of(image, size) is not None:
            return size
    raise ValueError(f'{type(cnn).__name__} gives no map to reconstruct images from: give it a forward_features '
                     'or forward_intermediates that gives a map (B, C, h, w), as in pretrain/models/custom.py (a '
                     'newer timm may have it)')


def misfit(cnn, images, size, taps):
    """The ValueError of an image whose last map, of a size (h, w), is no whole share of it, or is by chance."""
    name, image = type(cnn).__name__, tuple(images.shape[2:])
    stride = near_stride(image, size)
    if stride is not None:
        rounded_up = F.pad(images, (0, -image[1] % stride, 0, -image[0] % stride))
        if lasting_stride(cnn, rounded_up, taps) == stride:
            return no_multiple(name, image, stride)
    twice = images.repeat(1, 1, 2, 2)
    other = tuple(twice.shape[2:]) if lasting_stride(cnn, twice, taps) else None
    return no_whole_share(name, image, size, other)


def lasting_stride(cnn, images, taps):
    """The total stride on these images, if it is the same on images of twice the height; else None."""
    try:
        size = size_of_last(cnn, images, taps)
    except Exception:  # whatever a network can raise on images of a size that it does not take
        return None
    stride = stride_of(tuple(images.shape[2:]), size)
    return stride if stride is not None and doubles(cnn, images, size, taps) else None


def doubles(cnn, images, size, taps):
    """Whether an image of twice the height has a last map of twice the height, (2h, w).

    The map of an unpadded network may be a whole share of one image by chance. A network that runs on one
    size of images alone cannot be asked, and counts as one that does.
    """
    try:
        doubled = size_of_last(cnn, images.repeat(1, 1, 2, 1), taps)
    except Exception:  # whatever a network of one size can raise
        return True
    return doubled == (2 * size[0], size[1])


def size_of_last(cnn, images, taps):
    """The (h, w) of the last map that a network gives for some images."""
    with safe_convolutions(images.device):
        try:
            return tuple(feature_maps(cnn, images, taps)[-1].shape[2:])
        except FeatureMapsError:
            return size_of_features(cnn, tuple(images.shape[2:]), cnn.forward_features(images))
