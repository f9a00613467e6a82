"""The last map of a network, which the decoder of A2MIM reads (section 4 of the paper), whatever form the
network gives it in.

It is the output of timm's `forward_features` where that is a map, so that last convolutions and norms are
pretrained too (EfficientNet's `conv_head`, the norm of pre-activation ResNets); else the last map of the
pyramid. Where the classifier begins with a LayerNorm over the channels of the map, that norm follows on the
map: `head.norm` of ConvNeXt, PoolFormer and their relatives, `fc_norm` of ViTs that classify by the mean of
their patches.
"""
from dataclasses import dataclass
from enum import Enum

import timm.layers
from torch import nn

from common.feature_maps import feature_maps
from common.networks.convolutions import safe_convolutions

HEAD_NORM = 'head.norm'
MEAN_NORM = 'fc_norm'


class Form(Enum):
    """What a network gives its last map as."""
    CHANNELS_FIRST = 'forward_features gives (B, C, h, w)'
    CHANNELS_LAST = 'forward_features gives (B, h, w, C)'
    TOKENS = 'forward_features gives (B, prefix + h*w, C)'
    PYRAMID = 'the last map of the pyramid'


@dataclass(frozen=True)
class LastMap:
    """How a network gives its last map: last_map(cnn, images) runs it, (B, C, H, W) -> (B, width, H/R, W/R).

    stride: the total stride R. norm: the name of the classifier's norm that follows, None if there is none. taps:
    as in `feature_maps`.
    """
    form: Form
    stride: int
    norm: str | None
    taps: tuple | None

    def __call__(self, cnn, images):
        with safe_convolutions(images.device):
            return self._run(cnn, images)

    def _run(self, cnn, images):
        if self.form is Form.PYRAMID:
            out = feature_maps(cnn, images, self.taps)[-1]
        else:
            out = cnn.forward_features(images)
        if self.form is Form.CHANNELS_LAST:
            out = out.permute(0, 3, 1, 2)
        if self.form is Form.TOKENS:
            h, w = images.shape[2] // self.stride, images.shape[3] // self.stride
            out = out[:, -h * w:].transpose(1, 2).unflatten(2, (h, w))  # without class and register tokens
        return normalised(cnn.get_submodule(self.norm), out) if self.norm else out


def normalised(norm, out):
    """A map (B, C, h, w) through a LayerNorm over its channels, of either layout."""
    if isinstance(norm, timm.layers.LayerNorm2d):
        return norm(out)
    return norm(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def find_last_map(cnn, features, size, stride, maps, taps):
    """(LastMap of a network, channels of that map), from what the network gave for one image.

    Args:
        features: the output of `forward_features`; None for a network that has none.
        size: (h, w) of the last map.
        stride: the total stride.
        maps: the pyramid's maps; None for a network that gives no pyramid.
        taps: as in `feature_maps`.

    Raises ValueError for features that are no map, where there is no pyramid.
    """
    h, w = size
    shape = tuple(getattr(features, 'shape', ()))
    if len(shape) == 4 and shape[2:] == (h, w):
        form, width = Form.CHANNELS_FIRST, shape[1]
    elif len(shape) == 4 and shape[1:3] == (h, w):
        form, width = Form.CHANNELS_LAST, shape[3]
    elif len(shape) == 3 and shape[1] >= h * w:
        form, width = Form.TOKENS, shape[2]
    elif maps is not None:
        form, width = Form.PYRAMID, maps[-1].shape[1]
    else:
        raise ValueError(f'{type(cnn).__name__} gives no map to reconstruct images from: its forward_features '
                         f'gives {shape or type(features).__name__}; give it a forward_features or '
                         'forward_intermediates that gives a map (B, C, h, w)')
    return LastMap(form, stride, norm_of_classifier(cnn, width), taps), width


def norm_of_classifier(cnn, width):
    """Return the name of the LayerNorm over `width` channels that the classifier begins with, None if it does not."""
    if is_layer_norm(getattr(cnn, MEAN_NORM, None), width):
        return MEAN_NORM
    head = getattr(cnn, 'head', None)
    if not isinstance(head, nn.Module):
        return None
    with_parameters = [name for name, part in head.named_children() if any(True for _ in part.parameters())]
    return HEAD_NORM if with_parameters[:1] == ['norm'] and is_layer_norm(head.norm, width) else None


def is_layer_norm(norm, width):
    """Whether a module is a LayerNorm over `width` channels, of a kind that `normalised` knows the layout of."""
    known = isinstance(norm, timm.layers.LayerNorm2d) or type(norm) in (nn.LayerNorm, timm.layers.LayerNorm)
    return known and tuple(norm.normalized_shape) == (width,)
