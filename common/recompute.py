"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): computed again rather than kept."""
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint


def checkpointed(module, *arguments, enabled, forward=None):
    """module(*arguments), of which only the arguments are kept for the backward pass if it is enabled.

    Everything in between is then computed once more in the backward pass. The result is the same to the last
    bit, with drop path and running statistics. forward: called as forward(module, *arguments) instead of the
    module itself.
    """
    run = module if forward is None else partial(forward, module)
    if not (enabled and torch.is_grad_enabled()):
        return run(*arguments)
    return checkpoint(run, *arguments, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), frozen_statistics(module)))


@contextmanager
def frozen_statistics(module):
    """Context in which BatchNorms leave their running statistics alone: they have seen this batch."""
    norms = [norm for norm in module.modules() if getattr(norm, 'running_mean', None) is not None]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches_tracked
