"""Convolutions that torch computes wrongly on the CPU, computed in another way that gives the same numbers.

The CPU backward of a strided 1x1 convolution with fewer than 16 input channels, channels last, writes outside
of its memory, in the gradient of the weight (seen with torch 2.14.1 on a processor with AVX-512;
`python -m benchmarks.scan_torch` looks for such faults). The process is killed by a signal, at once or later,
or goes on with damaged numbers. RepVGG and MobileOne begin with such a convolution.

A 1x1 convolution with stride n uses every n-th position alone. It equals a convolution without a stride of
these positions, which torch computes correctly.
"""
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class SubsampledConvolutions(TorchFunctionMode):
    """Context in which a strided 1x1 convolution takes the positions that it uses, and runs with stride 1.

    Outputs and gradients are those of the strided convolution, up to rounding. All other functions run as they are.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            return conv2d(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def safe_convolutions(device):
    """Return the context for a network's forward: SubsampledConvolutions on the CPU, none elsewhere."""
    return SubsampledConvolutions() if device.type == 'cpu' else nullcontext()


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Compute torch.conv2d; a kernel of 1x1 with a stride runs without one on every n-th position."""
    rows, columns = pair(stride)
    is_strided_1x1 = tuple(weight.shape[2:]) == (1, 1) and (rows, columns) != (1, 1)
    if not is_strided_1x1 or padding == 'same':  # torch refuses 'same' with a stride, by its own error
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    vertical, horizontal = (0, 0) if padding == 'valid' else pair(padding)
    if vertical or horizontal:
        input = F.pad(input, (horizontal, horizontal, vertical, vertical))
    return torch.conv2d(input[..., ::rows, ::columns], weight, bias, groups=groups)


def pair(value):
    """Return (rows, columns) of a number for both, or of a pair."""
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)
