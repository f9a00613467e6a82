"""Memory: what a training step keeps for its backward pass, and what a computer has left.

    kept_for_backward(lambda: network(images), [*network.parameters(), *network.buffers(), images])
"""
import os
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch

# Of a container: the limit, what is used, and the statistics. Version 2 as a container sees it, and version 1.
CGROUPS = (('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current', '/sys/fs/cgroup/memory.stat'),
           ('/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/memory/memory.usage_in_bytes',
            '/sys/fs/cgroup/memory/memory.stat'))
CACHED = {'active_file', 'inactive_file'}  # bytes of files that were read: counted as used, and given up when asked for


def kept_for_backward(run, besides=()):
    """Bytes that autograd keeps for the backward pass of what run() returns; views of one storage count once.

    besides: tensors that are there anyway, such as parameters, buffers and images. Counted is all
    that goes through autograd's saved tensors, save_for_backward included. A tensor that a Function stores in an attribute
    of its context is not seen.
    """
    held = weakref.WeakSet()  # not what was kept for a part of the graph that is gone again

    def pack(tensor):
        held.add(one := _Held(tensor.detach()))  # with its history, an output would keep itself for good
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        result = run()
    # All are alive here, so that an address stands for one storage.
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in held}
    del result
    for tensor in besides:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@dataclass(eq=False)
class _Held:
    tensor: torch.Tensor


def free_memory():
    """Bytes of this computer's memory that a process of this machine may still take; None if nobody says.

    Linux's estimate of what is available, and the limit of the container, if there is one.
    """
    found = []
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')]
    except OSError:  # not Linux: all of the memory
        names = getattr(os, 'sysconf_names', {})
        if 'SC_PHYS_PAGES' in names and 'SC_PAGE_SIZE' in names:
            found.append(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    for paths in CGROUPS:
        try:
            limit, usage, statistics = (Path(path).read_text() for path in paths)
            words = [line.split() for line in statistics.splitlines()]
            cached = sum(int(number) for name, number in words if name.removeprefix('total_') in CACHED)
            found.append(max(int(limit) - int(usage) + cached, 0))
        except (OSError, ValueError):  # no such limit, or the word "max"
            continue
    return min(found, default=None)
