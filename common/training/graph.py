"""The whole training step as one CUDA graph: captured once, and replayed for the rest of a run.

A step launches thousands of kernels, and the host takes longer to launch them than a GPU to run them. A graph
is launched as a whole. It repeats the kernels that were captured, with the same addresses in memory and the
same Python numbers. So the inputs are copied into tensors that stay where they are, and whatever changes from
step to step is a tensor on the device: rates (common/training/optim.py), counters, running statistics,
averages. Random numbers come out as in eager steps: a replay takes the generator's seed and offset anew.

See "CUDA semantics", "CUDA graphs" in PyTorch's documentation, with its rules for DistributedDataParallel.
"""
import random
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import distributed as dist

EAGER_STEPS = 3  # before the capture: kernels are chosen, and the optimiser's state is made
EAGER_STEPS_DDP = 11  # as torch's notes on CUDA graphs ask for; DDP rebuilds its buckets meanwhile
# Before this version, a capture that breaks leaves torch's generator and allocator as if it still went on.
RECOVERS = (2, 14)


class CannotCapture(Exception):
    """A step does on the host what a graph would not repeat. The capture itself came to its end."""


class BrokenCapture(ValueError):
    """A capture broke, and this version of torch cannot go on after that."""
    on_all_ranks = True  # so that one of them says it


class StaticInputs:
    """The batches of a step and the requests of a rank, in tensors that stay at the same place in memory.

    They are made by the first `copy_from`, shaped as what it is given.
    """

    def __init__(self, accum):
        self.accum = accum
        self.batches = []  # a tuple of tensors for each part of the step
        self.requests = None

    def copy_from(self, batches, requests):
        """Take the next `accum` of the batches. requests() is a tensor on the device."""
        for index in range(self.accum):
            batch = next(batches)
            if len(self.batches) == index:
                self.batches.append(tuple(torch.empty_like(tensor) for tensor in batch))
            for place, tensor in zip(self.batches[index], batch, strict=True):
                assert place.shape == tensor.shape, f'{tuple(tensor.shape)} where {tuple(place.shape)} was'
                place.copy_(tensor)
        if self.requests is None:
            self.requests = torch.empty_like(requests())
        self.requests.copy_(requests())


class CUDARecorder:
    """Captures what a function launches on a GPU, on a stream of its own."""

    def __init__(self, device):
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    @contextmanager
    def on_stream(self):
        """Context of this stream: what is queued inside runs after all that was queued before, and before all that
        is queued later.
        """
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def run(self, function):
        """function(), a tensor, on the stream, as PyTorch asks for before a capture."""
        with self.on_stream():
            result = function()
        result.record_stream(torch.cuda.current_stream())
        return result

    def capture(self, function):
        """Capture function(), which does not run meanwhile. Returns its result, which each replay fills.

        Raises RuntimeError, as all of CUDA's errors are, lack of memory too.
        """
        # A capture that fails may leave its stream the current one. "thread_local": the threads that pin memory,
        # write files or watch NCCL may go on as they do.
        with torch.cuda.stream(torch.cuda.current_stream()), \
                torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode='thread_local'):
            return function()

    def replay(self):
        self.graph.replay()


class GraphedStep:
    """A training step that runs as one CUDA graph, after some eager steps.

    step(batches, requests) is a step that reads nothing on the host, and returns a tensor on the device; see
    `train_step` (common/training/trainer.py). accum: the batches that it takes. optimizer: whose gradients are
    dropped before the capture, since a graph has its own. warn(sentence) is called once if the step cannot be
    captured; it is run eagerly from then on. before_eager() is called before that, on all ranks: DDP cannot go
    on from a step that broke off in the middle. recorder: a CUDARecorder, or None. Without one nothing is
    captured, and the step runs on the same static inputs.

    `captured` is None before the capture, then True, or False where it failed.
    """

    def __init__(self, step, accum, optimizer, ranks, warn, before_eager, recorder=None):
        self.step = step
        self.optimizer = optimizer
        self.ranks = ranks
        self.warn = warn
        self.before_eager = before_eager
        self.recorder = recorder
        self.inputs = StaticInputs(accum)
        self.eager_steps = EAGER_STEPS if ranks.size == 1 else EAGER_STEPS_DDP  # that are left
        self.first_steps = self.eager_steps + 1 if recorder else 0  # until there is a graph
        self.result = None
        self.captured = None

    def on_stream(self):
        """The context of the stream on which the step is captured. DDP must be made on this stream too, since it
        registers hooks on the parameters.
        """
        return self.recorder.on_stream() if self.recorder else nullcontext()

    def __call__(self, batches, requests):
        if self.captured is False:
            return self.step(batches, requests)
        self.inputs.copy_from(batches, requests)
        if self.recorder is None:
            return self.run_on_inputs()
        if self.captured is None and self.eager_steps > 0:
            self.eager_steps -= 1
            return self.recorder.run(self.run_on_inputs)
        if self.captured is None:
            self.capture()
        if not self.captured:
            return self.run_on_inputs()
        self.recorder.replay()
        return self.result

    def run_on_inputs(self):
        return self.step(iter(self.inputs.batches), lambda: self.inputs.requests)

    def capture(self):
        """Capture the step. All ranks do, or none does.

        Raises BrokenCapture, on all ranks, where torch cannot go on after a capture that broke.
        """
        failure, is_broken = None, False
        self.optimizer.zero_grad(set_to_none=True)
        before = host_rng_states(self.ranks.device)
        try:
            self.result = self.recorder.capture(self.run_on_inputs)
            if before != host_rng_states(self.ranks.device):
                raise CannotCapture('it draws random numbers on the host, which a graph would repeat')
        except Exception as error:  # of whatever kind: the other ranks wait to hear of it
            failure = first_cause(error)
            is_broken = not isinstance(error, CannotCapture)
        found = torch.tensor([failure is not None, is_broken], dtype=torch.float32, device=self.ranks.device)
        failed, is_broken = self.ranks.all_reduce(found, dist.ReduceOp.MAX).tolist()
        self.captured = not failed
        if failed:
            rank = f'rank {self.ranks.rank}: ' if self.ranks.size > 1 else ''
            failures = self.ranks.gather([f'{rank}{failure}'] if failure else [])
            self.give_up(failures[0], is_broken)

    def release(self):
        """Let go of the graph and of its memory, also where the traceback of an error holds this step."""
        self.recorder = self.result = None

    def give_up(self, failure, is_broken):
        """Go on eagerly, with nothing left of the capture. Raises BrokenCapture if that cannot be."""
        if is_broken and torch_version() < RECOVERS:
            raise BrokenCapture(f'the training step could not be captured as a CUDA graph ({failure}), and torch '
                                f'{torch.__version__} cannot go on after that: give --graph=False')
        self.release()
        self.optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()
        self.before_eager()
        if self.ranks.device.type == 'cuda':
            torch.cuda.empty_cache()
        if self.ranks.is_main:
            self.warn(f'the training step could not be captured as a CUDA graph ({failure}): it runs eagerly, which is '
                      'slower. --graph=False leaves the attempt out')


def torch_version():
    """(major, minor) of torch."""
    major, minor = torch.__version__.split('.')[:2]
    return int(major), int(minor)


def host_rng_states(device):
    """The states of all generators of random numbers on the host that are not the device's own."""
    name, keys, *rest = np.random.get_state()
    torchs = torch.get_rng_state().tolist() if device.type != 'cpu' else None
    return torchs, random.getstate(), (name, keys.tolist(), *rest)


def first_cause(error):
    """The first line of the first error in a chain: the end of a capture that failed raises one more."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
