"""What a training step holds in memory, counted from its tensors: what a GPU will need can so be found on a CPU.

Counted are the bytes of tensors. What a kernel takes for itself while it runs (cuDNN's workspaces), what a
library keeps (CUDA's context, NCCL's buffers) and what an allocator cannot use are not seen.
"""
import weakref
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
# Operations that ShapesOnly leaves out, beside a convolution's backward pass.
UNCOMPUTED = {aten.convolution.default, aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


class Live(TorchDispatchMode):
    """Context in which it is noted, after each operation, how many bytes of tensors live that were made inside.

    `bytes`: int64 array (operations,), in the backward pass too. `made_at(tensor)`: the operation that made its storage.
    """

    def __init__(self):
        super().__init__()
        self.now, self.after, self.births = 0, [], weakref.WeakKeyDictionary()

    @property
    def bytes(self):
        return np.array(self.after, dtype=np.int64)

    def made_at(self, tensor):
        return self.births[tensor.untyped_storage()]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):  # not known: from outside, and its views are no new memory
                self.births.setdefault(tensor.untyped_storage(), None)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.births:
                self.births[storage] = len(self.after)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.after.append(self.now)
        return result

    def _gone(self, size):
        self.now -= size


@dataclass(frozen=True)
class Line:
    """What grows with a batch by the same amount an image, a number or an array: the value at a batch is `at(batch)`."""
    constant: object
    an_image: object

    @classmethod
    def through(cls, batches, values):
        """Through two points; integers stay integers where the line has some."""
        (few, many), (low, high) = batches, values
        slope = (high - low) // (many - few) if isinstance(low, (int, np.ndarray)) else (high - low) / (many - few)
        return cls(low - slope * few, slope)

    def at(self, batch):
        return self.constant + self.an_image * batch


class AsCUDA(TorchFunctionMode):
    """Context in which normalisations compute in fp32, as they do under CUDA's autocast and not under the CPU's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.layer_norm, F.group_norm):
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


class ShapesOnly(TorchDispatchMode):
    """Context in which convolutions and matrix products are not computed: they give zeros in the shape of their results.

    All other operations are computed. Only values differ, so that counts are the same, and a step of a
    large network takes seconds. In bf16 it would take minutes on a CPU without instructions for it. Enter
    this before the contexts that count, so that they see the operations.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == aten.convolution_backward.default:
            grad, x, weight = args[:3]
            of_x, of_weight, of_bias = args[-1]  # which gradients are needed
            return (zeros(x.shape, x, weight) if of_x else None, zeros(weight.shape, x, weight) if of_weight else None,
                    grad.sum([0, *range(2, grad.dim())]) if of_bias else None)
        if function not in UNCOMPUTED:
            return function(*args, **kwargs)
        shapes, named = tree_map_only(torch.Tensor, lambda tensor: tensor.to('meta'), (args, kwargs))
        return zeros(function(*shapes, **named).shape, *args[:2])


def zeros(shape, *given):
    """A tensor of a shape, in the layout that an operation gives it on these tensors: channels_last if one of them has it."""
    is_channels_last = len(shape) == 4 and torch.channels_last in map(suggest_memory_format, given)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=given[0].dtype, memory_format=layout).zero_()
