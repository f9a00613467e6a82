"""Weights for images of other channels: which convolutions see the image, and how they are adapted."""
from timm.models import adapt_input_conv
from torch import nn


def input_convs(module, state, channels):
    """Find the convolutions over the image that a state_dict has for another number of channels.

    Such a convolution of the module has `channels` inputs, in one group; its weight in the state_dict has
    another number of them and is alike otherwise. There are several where the image enters a network in several places.

    Returns {key: channels in the state_dict}; empty if these numbers are not all the same.
    """
    found = {}
    for key, own in module.state_dict().items():
        layer = module.get_submodule(key.rpartition('.')[0])
        sees_image = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels == channels
        given = state.get(key)
        if not sees_image or given is None or own.ndim != 4 or given.ndim != 4:
            continue
        has_other_channels = own.shape[1] != given.shape[1]
        is_alike_otherwise = (own.shape[0], *own.shape[2:]) == (given.shape[0], *given.shape[2:])
        if has_other_channels and is_alike_otherwise:
            found[key] = given.shape[1]
    return found if len(set(found.values())) == 1 else {}


def adapted_conv(weight, channels):
    """Adapt the weight of a convolution (O, I, h, w) to images of other channels: (O, channels, h, w).

    As in `timm.models.adapt_input_conv`: for one channel the weights are summed; for more they are repeated,
    cut off, and scaled such that the outputs keep their size.
    """
    given_channels = weight.shape[1]
    if given_channels == 3:  # the only number that older versions of timm adapt for several channels
        return adapt_input_conv(channels, weight)
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeats = -(-channels // given_channels)
    repeated = weight.float().repeat(1, repeats, 1, 1)[:, :channels]
    return (repeated * (given_channels / channels)).to(weight.dtype)
