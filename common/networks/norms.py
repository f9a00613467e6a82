"""Norms that see a single value of each channel, which has no deviation: they are found beforehand.

A BatchNorm after a global pool (split attention, some classifiers), or on a last map of 1x1, sees one value
of each channel in an image, so that it cannot be trained on one image at a time. torch raises its error in
the middle of a step, and does not say in which layer. Here the layer is named before the run starts.
"""
from functools import partial

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from common.sync_batchnorm import is_synchronised

# The end of the message for a norm that no batch of images gives a second value.
NO_DEVIATION = ('sees a single value of each channel of an image, which has no deviation: give a larger '
                '--input_size, or a network without it')


class _CannotRun(BaseException):
    """One image is too few for a norm in any mode. Not an Exception, which the network itself may catch."""


def values_of_channel(norm, x):
    """Return how many values of x (B, C, ...) a norm takes a mean and a deviation of."""
    if isinstance(norm, nn.GroupNorm):
        return x.numel() // norm.num_groups  # torch counts those of all images, though each has its own mean
    if isinstance(norm, _InstanceNorm):
        return x[0, 0].numel()
    return x.numel() // x.shape[1]


@torch.no_grad()
def single_valued(module, run):
    """Find the norms of a module that see a single value of each channel.

    Args:
        run: function without arguments that takes one image through the module. It runs in evaluation mode,
            which changes no statistics; afterwards the modes are as before.

    Returns their names. Raises ValueError for such an InstanceNorm, since no batch gives it more values.
    """
    names = []

    def look(name, norm, args, kwargs):
        x = (*args, *kwargs.values())[0]
        if values_of_channel(norm, x) > 1:
            return
        if isinstance(norm, _InstanceNorm):
            raise ValueError(f'{name} ({type(norm).__name__}) {NO_DEVIATION}')
        names.append(name)
        if needs_deviation_in_evaluation(norm):
            raise _CannotRun

    handles = []
    for name, part in module.named_modules():
        if isinstance(part, (_BatchNorm, _InstanceNorm, nn.GroupNorm)):
            handles.append(part.register_forward_pre_hook(partial(look, name), with_kwargs=True))
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.random.fork_rng(devices=[]):
            run()
    except _CannotRun:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes.items():
            part.training = mode
    return tuple(dict.fromkeys(names))


def needs_deviation_in_evaluation(norm):
    """Whether a norm computes statistics in evaluation mode too: GroupNorm, and BatchNorm that keeps none."""
    return isinstance(norm, nn.GroupNorm) or norm.running_mean is None


def refused(module, names):
    """Return the first of some names whose norm cannot run on one image in its present mode, or None."""
    for name in names:
        norm = module.get_submodule(name)
        computes_statistics = norm.training or needs_deviation_in_evaluation(norm)
        if computes_statistics and not shares_statistics(norm):
            return name
    return None


def check_batch(module, images, names):
    """Raise a ValueError if a batch is a single image, and a norm of the module needs more.

    names: of the norms that see a single value of each channel of an image, as `single_valued` gives them.
    """
    name = refused(module, names) if len(images) == 1 and names else None
    if name is not None:
        kind = type(module.get_submodule(name)).__name__
        raise ValueError(f'{name} ({kind}) sees a single value of each channel in a batch of one image, and that has '
                         'no deviation: give two images or more at a time, or call eval() where nothing is trained')


def shares_statistics(norm):
    """Whether a norm takes its statistics over several ranks."""
    return is_synchronised(norm) and dist.is_initialized() and dist.get_world_size() > 1
