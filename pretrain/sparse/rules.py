"""Rules: how the functions of torch whose windows overlap neighbouring cells run on strips.

A rule is called as rule(plane, function, *args, **kwargs), with the arguments that the network gave the
function. **Hidden positions count as the function's own padding.** Where windows stay inside the cells, the
function is right on a strip as it is. Elsewhere it runs on the canvas (`Plane.run`). Position embeddings are gathered
at the visible cells.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F

from common.networks.convolutions import pair
from pretrain.accelerated import convolutions


def convolve(plane, function, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """torch.conv2d. Hidden positions are 0, as in zero padding."""
    apply = partial(function, weight=weight, bias=bias, stride=stride, padding=padding, dilation=dilation,
                    groups=groups)
    if plane.is_local(input, weight.shape[2:], stride, padding, dilation):
        return apply(input)
    is_accelerated = plane.geometry.accelerated and plane.is_bare_strip(input)
    if is_accelerated and convolutions.fits(weight, stride, padding, dilation):
        return convolutions.convolve(plane.geometry, input, weight, bias, stride, padding, groups)
    return plane.run(apply, input)


def convolve_transposed(plane, function, input, weight, bias=None, stride=1, padding=0, output_padding=0,
                        groups=1, dilation=1):
    """torch.conv_transpose2d. Hidden positions are 0."""
    apply = partial(function, weight=weight, bias=bias, stride=stride, padding=padding,
                    output_padding=output_padding, groups=groups, dilation=dilation)
    is_padded = any(pair(padding) + pair(output_padding))
    is_local = pair(stride) == tuple(weight.shape[2:]) and not is_padded and pair(dilation) == (1, 1)
    return apply(input) if is_local else plane.run(apply, input)


def max_pool(plane, function, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
             return_indices=False):
    """max_pool2d of torch and of torch.nn.functional. Hidden positions are the lowest finite number.

    They are not -inf: with that, torch.compile's backward pass indexes out of range. Raises ValueError if
    indices are asked for.
    """
    if return_indices:
        raise ValueError('asks a pool for indices, which mean nothing on a strip')
    apply = partial(function, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation,
                    ceil_mode=ceil_mode)
    stride = stride or kernel_size
    if is_global(input, kernel_size) or plane.is_local(input, kernel_size, stride, padding, dilation):
        return apply(input)
    return plane.run(apply, input, torch.finfo(input.dtype).min)


def average_pool(plane, function, input, kernel_size, stride=None, padding=0, ceil_mode=False,
                 count_include_pad=True, divisor_override=None):
    """torch.nn.functional.avg_pool2d. Hidden positions are 0, and are counted where the pool counts what it pads.

    What ceil_mode reaches beyond the padding is not counted by torch. Raises ValueError where a pool does not
    count its own padding, but the map was padded before, and that would count.
    """
    apply = partial(function, kernel_size=kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode,
                    count_include_pad=count_include_pad, divisor_override=divisor_override)
    if is_global(input, kernel_size) or plane.is_local(input, kernel_size, stride or kernel_size, padding):
        return apply(input)
    was_padded = plane.padding_of(input) is not None
    if was_padded and any(pair(padding)) and not count_include_pad:
        raise ValueError('averages what was padded before, with another padding that it does not count')
    average = plane.run(apply, input)
    if was_padded or divisor_override or count_include_pad and any(pair(padding)):
        return average
    share_visible = plane.run(apply, torch.ones_like(input[:, :1]))
    return average / share_visible


def is_global(input, kernel_size):
    """Whether a pool's window is the whole map, as in F.avg_pool2d(x, x.shape[2:]).

    On a strip that is all that is visible.
    """
    return pair(kernel_size) == tuple(input.shape[2:])


def pad(plane, function, input, pad, mode='constant', value=None):
    """torch.nn.functional.pad. A strip has no border: its padding waits for the window that follows (`Plane.run`).

    Hidden positions then hold what the padding holds. Other modes, such as a reflection, cannot be imitated at
    hidden neighbours: these hold what the window itself pads with (0, or the lowest number for max_pool). Raises
    ValueError for padding beyond the image plane, and of what was padded before.
    """
    if not plane.is_strip(input) or not any(pad[:4]):
        return function(input, pad, mode, value)
    if any(pad[4:]) or plane.padding_of(input) is not None:
        raise ValueError(f'pads by {tuple(pad)}, more than the image plane, or for the second time')
    if mode == 'constant':
        value = max(value or 0.0, torch.finfo(input.dtype).min)  # not -inf: see max_pool
    strip = input.view_as(input)
    plane.paddings.append((strip, {'pad': pad, 'mode': mode, 'value': value}))
    return strip


def interpolate(plane, function, input, size=None, scale_factor=None, mode='nearest', *args, **kwargs):
    """torch.nn.functional.interpolate. A strip is enlarged by whole factors, by its nearest values.

    A position embedding, (1, C, h', w'), that the network resizes to the shape of the strip is resized to the shape of
    the image plane instead, unless it has that, and gathered at the visible cells. Raises ValueError for other ways.
    """
    p = plane.side_of(size)
    is_strip = plane.is_strip(input)
    if p is not None and len(input) == 1 and not (is_strip and mode.startswith('nearest')):
        h, w = plane.geometry.grid
        if input.shape[2:] != (h * p, w * p):
            input = function(input, (h * p, w * p), None, mode, *args, **kwargs)
        return plane.gather(input)
    out = function(input, size, scale_factor, mode, *args, **kwargs)
    if is_strip and not mode.startswith('nearest'):
        raise ValueError(f'interpolates the image plane ("{mode}")')
    if is_strip and any(new % old for new, old in zip(out.shape[2:], input.shape[2:])):
        raise ValueError('interpolates by a factor that is no whole number')
    return out


def add(plane, function, input, other, **kwargs):
    """A sum. Where a strip, or its tokens, is added to the position embedding of the whole image plane, the embedding is
    gathered at the visible cells before.
    """
    if torch.is_tensor(input) and torch.is_tensor(other) and input.ndim == other.ndim and input.ndim in (3, 4):
        input, other = gathered(plane, input, other), gathered(plane, other, input)
    return function(input, other, **kwargs)


def gathered(plane, table, like):
    """If `table` is a position embedding of the whole image plane, its values at the positions of `like`, to which it is
    added; else `table` as it is.

    The embedding is (1, C, h*p, w*p) beside a strip (B, C, k*p, p), or (1, h*w*p*p, C) beside tokens (B, k*p*p, C). With
    all cells visible a single image (B = 1) and an embedding have one shape, and nothing is gathered: cells then have to
    be in their order.
    """
    h, w = plane.geometry.grid
    if len(table) > 1 or len(like) != plane.images or like.shape == table.shape and len(like) == 1:
        return table
    if like.ndim == 4 and plane.is_strip(like):
        p = like.shape[3]
        return plane.gather(table) if table.shape[2:] == (h * p, w * p) else table
    if like.ndim == 3 and table.shape[2] == like.shape[2]:
        p = math.isqrt(table.shape[1] // (h * w))
        if p and (table.shape[1], like.shape[1]) == (h * w * p * p, plane.visible * p * p):
            table = table.transpose(1, 2).unflatten(2, (h * p, w * p))
            return plane.gather(table).flatten(2).transpose(1, 2)
    return table


TORCH_RULES = (  # pairs, since torch.compile knows no mapping that cannot be changed
    (torch.conv2d, convolve),
    (torch.conv_transpose2d, convolve_transposed),
    (torch.max_pool2d, max_pool),
    (F.max_pool2d, max_pool),
    (F.avg_pool2d, average_pool),
    (F.pad, pad),
    (F.interpolate, interpolate),
    (torch.add, add),
    (torch.Tensor.add, add),
    (torch.Tensor.add_, add),
)


def rule_of(function):
    """The rule by which a function runs on strips, or None.

    Functions of torch have theirs in TORCH_RULES; `on_plane` gives one to a function of your own.
    """
    for known, rule in TORCH_RULES:
        if function is known:
            return rule
    return getattr(function, 'plane_rule', None)


def is_of_torch(function):
    """Whether a function has its rule in TORCH_RULES."""
    return any(function is known for known, _ in TORCH_RULES)
