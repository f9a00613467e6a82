"""Padding for networks that have none ("valid"), so that their maps fit a grid of cells."""
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from common.networks.convolutions import pair

POOL = ('input', 'kernel_size', 'stride', 'padding')
ARGUMENTS = {  # of the functions that AlignedPadding changes, in their order
    torch.conv2d: ('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups'),
    torch.max_pool2d: (*POOL, 'dilation', 'ceil_mode'),
    F.max_pool2d: (*POOL, 'dilation', 'ceil_mode', 'return_indices'),
    F.avg_pool2d: (*POOL, 'ceil_mode', 'count_include_pad', 'divisor_override'),
}


class AlignedPadding(TorchFunctionMode):
    """Context in which odd windows without padding are padded by half their size.

    Networks with "valid" padding then have maps of (H/s, W/s), with the same weights. Their borders differ
    from the network's own. It belongs to one forward. What the network pads itself with F.pad is left alone.
    """

    def __init__(self):
        super().__init__()
        self.padded = []  # what F.pad gave

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.pad:
            self.padded.append(function(*args, **kwargs))
            return self.padded[-1]
        if function not in ARGUMENTS:
            return function(*args, **kwargs)
        given = {**dict(zip(ARGUMENTS[function], args)), **kwargs}
        if pair(given.get('padding', 0)) != (0, 0) or self.was_padded(given['input']):
            return function(*args, **kwargs)
        kernel = given['weight'].shape[2:] if 'weight' in given else pair(given['kernel_size'])
        padding = tuple(k // 2 for k in kernel) if all(k % 2 for k in kernel) else 0
        return function(**{**given, 'padding': padding})

    def was_padded(self, x):
        return any(padded is x for padded in self.padded)
