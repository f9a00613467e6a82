"""Norms that see a single value of each channel, which has no deviation: found beforehand, and refused by name.

BatchNorm behind a global pool (split attention, some classifiers) or on a last map of 1x1 sees one value of each channel in an
image, so that it cannot be trained on one image at a time. torch says so in the middle of a step, and not where.
"""
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from common.distributed import CPUSyncBatchNorm

NO_DEVIATION = 'sees a single value of each channel of an image, which has no deviation: give a larger --input_size, or a ' \
    'network without it'  # an InstanceNorm


class _Enough(BaseException):  # no Exception, which a network may catch
    """The norm at hand cannot be run on one image, whatever the mode."""


def values_of_channel(norm, x):
    """How many values of x (B, C, ...) a norm takes a mean and a deviation of."""
    if isinstance(norm, nn.GroupNorm):
        return x.numel() // norm.num_groups  # torch looks at all images, though each has its own mean
    if isinstance(norm, _InstanceNorm):
        return x[0, 0].numel()
    return x.numel() // x.shape[1]


@torch.no_grad()
def single_valued(module, run):
    """Names of the norms of a module that see a single value of each channel where run() takes one image through it.

    All is run in evaluation mode, which changes no statistics; the modes are put back. Raises ValueError for an InstanceNorm
    that does, since no batch gives it more.
    """
    names, modes = [], {part: part.training for part in module.modules()}

    def look(name, norm, args, kwargs):
        if values_of_channel(norm, (*args, *kwargs.values())[0]) > 1:
            return
        if isinstance(norm, _InstanceNorm):
            raise ValueError(f'{name} ({type(norm).__name__}) {NO_DEVIATION}')
        names.append(name)
        if isinstance(norm, nn.GroupNorm) or norm.running_mean is None:
            raise _Enough

    handles = [part.register_forward_pre_hook(lambda part, args, kwargs, name=name: look(name, part, args, kwargs),
                                              with_kwargs=True)
               for name, part in module.named_modules() if isinstance(part, (_BatchNorm, _InstanceNorm, nn.GroupNorm))]
    try:
        module.eval()
        with torch.random.fork_rng(devices=[]):
            run()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes.items():
            part.training = mode
    return tuple(dict.fromkeys(names))


def refused(module, names):
    """The first of these names whose norm could not be run on one image, in the mode that it has; None if all can."""
    for name in names:
        norm = module.get_submodule(name)
        at_work = norm.training or isinstance(norm, nn.GroupNorm) or norm.running_mean is None
        if at_work and not shares_statistics(norm):
            return name
    return None


def shares_statistics(norm):
    """Whether a norm takes its statistics over several ranks."""
    return isinstance(norm, (nn.SyncBatchNorm, CPUSyncBatchNorm)) and dist.is_initialized() and dist.get_world_size() > 1
