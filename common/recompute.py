"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): computed again rather than kept."""
from collections import deque
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


def checkpointed(module, *arguments, enabled, forward=None):
    """module(*arguments), of which only the arguments are kept for the backward pass if it is enabled.

    Everything in between is then computed once more in the backward pass. The result is the same to the last
    bit, with drop path and running statistics. forward: called as forward(module, *arguments) instead of the
    module itself.

    In eager steps the state of the generator is kept, and random numbers are drawn again. That state cannot be
    read while a CUDA graph is captured. There the random numbers themselves are kept, which are the same.
    """
    run = module if forward is None else partial(forward, module)
    if not (enabled and torch.is_grad_enabled()):
        return run(*arguments)
    keeps_random = is_capturing()
    first, again = nullcontext(), frozen_statistics(module)
    if keeps_random:
        kept = deque()
        first, again = KeepRandom(kept), both(again, RepeatRandom(kept))
    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=not keeps_random,
                      context_fn=lambda: (first, again))


def is_capturing():
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class RandomMode(TorchDispatchMode):
    """A context that knows what random operations gave, in a deque.

    kept: pairs of a result, None where it is an argument that the operation wrote to, and a list of the values of all
    arguments that it wrote to.
    """

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    @classmethod
    def is_infra_mode(cls):
        return True  # else torch would not run compiled functions inside it


class KeepRandom(RandomMode):
    """Context in which the results of all random operations are put into a deque, as copies."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if is_random(function, args, kwargs or {}):
            values = [each.clone() for each in written(function, args, kwargs or {})]
            self.kept.append((None if returns_argument(function) else copy_of(out), values))
        return out


class RepeatRandom(RandomMode):
    """Context in which random operations give what the deque of a KeepRandom holds, in its order."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not is_random(function, args, kwargs or {}):
            return function(*args, **(kwargs or {}))
        out, values = self.kept.popleft()
        targets = written(function, args, kwargs or {})
        for target, value in zip(targets, values):
            target.copy_(value)
        return targets[0] if returns_argument(function) else out


def is_random(function, args, kwargs):
    """Whether an operation draws random numbers. Kernels of attention are marked so without dropout as well."""
    if torch.Tag.nondeterministic_seeded not in function.tags:
        return False
    for place, argument in enumerate(function._schema.arguments):
        if argument.name == 'dropout_p':
            given = args[place] if place < len(args) else kwargs.get('dropout_p', argument.default_value)
            return given > 0
    return True


def written(function, args, kwargs):
    """The arguments that an operation writes to: that of bernoulli_, `out` of others, the noise of rrelu_with_noise."""
    places = [(place, argument.name) for place, argument in enumerate(function._schema.arguments)
              if argument.alias_info is not None and argument.alias_info.is_write]
    return [args[place] if place < len(args) else kwargs[name] for place, name in places]


def returns_argument(function):
    """Whether an operation returns an argument that it has written to."""
    returns = function._schema.returns
    return bool(returns) and returns[0].alias_info is not None


def copy_of(out):
    """A copy of what an operation returned: a tensor, or a tuple in which there may be numbers and None as well."""
    if isinstance(out, torch.Tensor):
        return out.clone()
    return tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in out)


@contextmanager
def both(*contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


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
