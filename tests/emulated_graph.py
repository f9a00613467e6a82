"""What a CUDA graph does, on the CPU: it repeats what was captured, with the same addresses and the same numbers."""
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class EmulatedRecorder:
    """A CUDARecorder (common/training/graph.py) whose graph is a list of the operations that torch dispatched.

    A replay runs them again on the same tensors, and puts their results where they were. What Python computed meanwhile is not
    computed again. As with CUDA, a capture changes nothing, and a tensor that is made of Python numbers breaks it.
    """

    def __init__(self):
        self.operations = []
        self.runs = self.replays = 0
        self.is_capturing = False

    def on_stream(self):
        return nullcontext()

    def run(self, function):
        self.runs += 1
        return function()

    def capture(self, function):
        recording = Recording(self.operations)
        random_state = torch.get_rng_state()
        self.is_capturing = True
        try:
            with recording:
                return function()
        finally:
            self.is_capturing = False
            recording.undo()
            torch.set_rng_state(random_state)

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, args, kwargs, out in self.operations:
            again = function(*args, **kwargs)
            for place, value in zip(tree_leaves(out), tree_leaves(again)):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class Recording(TorchDispatchMode):
    """Notes all operations, and what the tensors that were there before held."""

    def __init__(self, operations):
        super().__init__()
        self.operations = operations
        self.made = set()  # addresses of storages; they stay alive in `operations`
        self.before = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten.lift_fresh.default:
            raise RuntimeError('CUDA error: operation not permitted when stream is capturing')
        for storage in storages((args, kwargs)):
            if storage.data_ptr() not in self.made:
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = function(*args, **kwargs)
        self.made |= {storage.data_ptr() for storage in storages(out)} - self.before.keys()
        self.operations.append((function, args, kwargs, out))
        return out

    def undo(self):
        for storage, content in self.before.values():
            storage.copy_(content)


def storages(values):
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
