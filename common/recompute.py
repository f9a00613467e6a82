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
    """Context after which a module's buffers are as before: BatchNorms have seen this batch.

    Nothing of a norm changes inside, so that what torch.compile made of the module serves there as well.
    """
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)
