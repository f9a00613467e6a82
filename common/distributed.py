"""The processes of a run, their devices, and the exchange of their gradients."""
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from common.reliability.rendezvous import may_start_again, store_of_this_start
from common.reliability.watchdog import Watchdog
from common.words import first_line


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run: its rank, their number (the world size), and its device."""
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self):
        return self.rank == 0

    def all_reduce(self, tensor, op=dist.ReduceOp.SUM):
        """Reduce a tensor over all ranks, in place. Returns the tensor."""
        if self.size > 1:
            dist.all_reduce(tensor, op)
        return tensor

    def broadcast(self, tensors):
        """Overwrite tensors by those of the main rank."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, items):
        """The lists `items` of all ranks, one after the other, as one list. The items must be plain objects."""
        everyone = [items]
        if self.size > 1:
            everyone = [None] * self.size
            dist.all_gather_object(everyone, items)
        return [item for each in everyone for item in each]

    def union(self, items):
        """The union of the sets `items` of all ranks. The items must be plain objects."""
        return set(self.gather(list(items)))

    def broadcast_object(self, item):
        """The main rank's `item`, a plain object."""
        items = [item]
        if self.size > 1:
            dist.broadcast_object_list(items, 0)
        return items[0]

    def on_main(self, function):
        """What function(), which the main rank alone calls, returns: a plain object.

        If it raises a ValueError or OSError, all ranks raise one. Without that the others would wait for a rank that has
        ended.
        """
        result, failure = tried(function) if self.is_main else (None, None)
        result, told = self.broadcast_object((result, as_plain(failure)))
        if told is not None:
            raise of_all_ranks(failure or from_plain(told))
        return result

    def on_all(self, function):
        """What function() returns on this rank. If it raises a ValueError or OSError on any, all raise one."""
        result, failure = tried(function)
        told = self.gather([] if failure is None else [as_plain(failure)])
        if told:
            raise of_all_ranks(failure or from_plain(told[0]))
        return result

    def any(self, is_true):
        """Whether is_true, a bool, is True on some rank; so is the answer on all of them."""
        return self.all_reduce(torch.tensor(float(is_true), device=self.device), dist.ReduceOp.MAX).item() > 0

    def all_the_same(self, number):
        """Whether a number is the same on all ranks; so is the answer."""
        highest_and_lowest = torch.tensor([number, -number], device=self.device)  # the lowest with a minus sign
        return not self.all_reduce(highest_and_lowest, dist.ReduceOp.MAX).sum()

    def barrier(self):
        if self.size > 1:
            dist.barrier()


def tried(function):
    """(what function() returns, None), or (None, the ValueError or OSError that it raises)."""
    try:
        return function(), None
    except (ValueError, OSError) as error:
        return None, error


def as_plain(error):
    """(whether it is an OSError, its text) of an error, to be told to other ranks; None for None."""
    return None if error is None else (isinstance(error, OSError), str(error))


def from_plain(told):
    """The error of another rank, of what `as_plain` returned there."""
    is_of_system, text = told
    return OSError(text) if is_of_system else ValueError(text)


def of_all_ranks(error):
    """The error, marked as one that all ranks raise, so that one of them reports it."""
    error.on_all_ranks = True
    return error


def this_process():
    """The only process of a program, on the GPU where there is one."""
    return Ranks(0, 1, torch.device('cuda' if torch.cuda.is_available() else 'cpu'))


@contextmanager
def distributed(patience=0, folder='.'):
    """Join the processes that torchrun started, or be alone; yields Ranks. NCCL is used on GPUs, gloo on CPUs.

    patience: minutes without progress after which a rank is ended, and a message says which one is missing
        (common/reliability/heartbeat.py; or watchdog.py, if no Python code runs any more). Ranks wait for
        each other a little longer, so that this comes first. 0 means that nothing is ended.
    folder: the run folder.
    """
    rank = int(os.environ.get('RANK', 0))
    size = int(os.environ.get('WORLD_SIZE', 1))
    with Watchdog(rank, patience, folder):
        ranks = joined(rank, size, patience)
        try:
            yield ranks
        except BaseException as error:
            # After an error of this rank alone, this would wait for ranks that wait for this one.
            if size > 1 and getattr(error, 'on_all_ranks', False):
                dist.destroy_process_group()
            raise
        if size > 1:
            dist.destroy_process_group()


class NoGPU(ValueError):
    """There are GPUs, but none for this process."""
    is_of_this_rank = True  # The others are well, so it says so itself.


def joined(rank, size, patience):
    """The Ranks of this process, which joins a process group if there are other processes.

    Raises NoGPU if there are GPUs, but none for this process, and ConnectionError if the others do not come.
    """
    local = int(os.environ.get('LOCAL_RANK', 0))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise NoGPU(f'process {local} of this node has no GPU of its own: there are '
                         f'{torch.cuda.device_count()}. Start as many processes as there are GPUs '
                         '(--ngpu_per_node)')
    device = torch.device('cuda', local) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        timeout = time_limit(patience)
        options = {'device_id': device} if cuda else {}
        try:
            if may_start_again():
                options.update(store=store_of_this_start(rank, size, timeout), rank=rank, world_size=size)
            dist.init_process_group('nccl' if cuda else 'gloo', timeout=timeout, **options)
        except (dist.DistStoreError, dist.DistNetworkError) as error:
            raise ConnectionError(f'rank {rank} of {size} waited for the others in vain: {first_line(error)}'
                                  ) from error
    return Ranks(rank, size, device)


def time_limit(patience):
    """How long ranks wait for each other, a timedelta: 5 minutes longer than `patience`, in minutes, so that the watch
    ends them first and says why.

    0 means for ever. torch has no such value, and NCCL ends after 10 minutes where none is given. So it is 20 days,
    whose milliseconds fit into 32 bits, as some of torch's waiting counts them. It is never more.
    """
    longest = timedelta(days=20)
    if not patience or patience + 5 > longest.total_seconds() / 60:
        return longest
    return timedelta(minutes=patience + 5)


def data_parallel(module, ranks, same_buffers, in_bf16=False):
    """The module in DistributedDataParallel, which averages gradients over the ranks; the module itself for one rank.

    same_buffers: whether its buffers are the same on all ranks by themselves, so that they need no broadcast.
    in_bf16: whether gradients are sent and summed in bfloat16. Raises ValueError if this PyTorch cannot do that.
    """
    if ranks.size == 1:
        return module
    return in_ddp(module, ranks.device, same_buffers, in_bf16)


def in_ddp(module, device, same_buffers, in_bf16=False):
    """The module in DistributedDataParallel, however many ranks there are; see `data_parallel`."""
    broadcast = 'forward_sync_buffers'
    if broadcast not in signature(DistributedDataParallel).parameters:
        broadcast = 'broadcast_buffers'  # the argument's name before torch 2.15
    device_ids = [device] if device.type == 'cuda' else None
    # A 1x1 convolution's gradient can have other strides in dimensions of size 1, in the same memory layout.
    warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')
    parallel = DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True,
                                       **{broadcast: not same_buffers})
    if in_bf16:
        try:
            parallel.register_comm_hook(None, bf16_compress_hook)
        except TypeError as error:  # a build of torch for CPUs alone, or NCCL before 2.10
            raise ValueError(f'this PyTorch cannot exchange gradients in bfloat16: leave out --bf16_gradients ({error})'
                             ) from error
    return parallel
