"""Recomputation (Chen et al. 2016, arXiv 1604.06174): less is kept for the backward pass, which computes it again."""
from contextlib import contextmanager, nullcontext

import torch
from torch.utils.checkpoint import checkpoint


def run(module, *arguments, again):
    """module(*arguments); `again`: only the arguments are kept, and the rest is computed once more in the backward pass.

    The result is the same to the last bit, with drop path and running statistics.
    """
    if not (again and torch.is_grad_enabled()):
        return module(*arguments)
    return checkpoint(module, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics(module)))


@contextmanager
def frozen_statistics(module):
    """Norms take no notice: they have seen this batch in the forward pass."""
    norms = [norm for norm in module.modules() if getattr(norm, 'running_mean', None) is not None]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
