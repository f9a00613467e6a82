"""Convolutions that torch computes wrongly on the CPU, computed in another way that gives the same numbers.

torch's CPU backward of a strided 1x1 convolution with fewer than 16 input channels, channels last, writes outside of its
memory, in the gradient of the weight (seen with torch 2.14.1 on a processor with AVX-512; `python -m benchmarks.scan_torch`
looks for such faults). The process ends by a signal, at once or later, or goes on with damaged numbers. RepVGG and MobileOne
begin with such a convolution.

A 1x1 convolution with a stride sees every n-th position alone. So it equals the same convolution without a stride of these
positions, which torch computes rightly.
"""
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class SubsampledConvolutions(TorchFunctionMode):
    """Context in which a strided 1x1 convolution first takes the positions that it sees, and then runs with stride 1.

    Outputs and gradients are those of the strided convolution, up to rounding. All other functions run as they are.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            return conv2d(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def safe_convolutions(device):
    """The context in which a network's forward runs on a device: SubsampledConvolutions on the CPU, none elsewhere."""
    return SubsampledConvolutions() if device.type == 'cpu' else nullcontext()


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """torch.conv2d, but for a kernel of 1x1 with a stride, which runs without one on every n-th position."""
    rows, columns = pair(stride)
    if tuple(weight.shape[2:]) != (1, 1) or rows == columns == 1 or padding == 'same':  # the last is an error of torch's
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    vertical, horizontal = (0, 0) if padding == 'valid' else pair(padding)
    if vertical or horizontal:
        input = F.pad(input, (horizontal, horizontal, vertical, vertical))
    return torch.conv2d(input[..., ::rows, ::columns], weight, bias, groups=groups)


def pair(value):
    """A number, or one for rows and one for columns, as two numbers."""
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)
