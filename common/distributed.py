"""The processes of a run, their devices, and BatchNorm whose statistics they share, on GPUs and on CPUs
alike.
"""
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from common.reliability.watchdog import Watchdog


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
        """The lists `items` of all ranks, one after the other, as one list. The items must be plain
        objects.
        """
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

    def barrier(self):
        if self.size > 1:
            dist.barrier()


@contextmanager
def distributed(patience=0, folder='.'):
    """Join the processes that torchrun started, or be alone; yields Ranks. NCCL is used on GPUs, gloo on
    CPUs.

    patience: minutes without progress after which a rank is ended, and a message says which one is missing
        (common/reliability/heartbeat.py; or watchdog.py, if no Python code runs any more). Ranks wait for
        each other a little longer, so that this comes first. 0 means that nothing is ended, and torch's own
        limit holds.
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


def joined(rank, size, patience):
    """The Ranks of this process, which joins a process group if there are other processes.

    Raises ValueError if there are GPUs, but none for this process.
    """
    local = int(os.environ.get('LOCAL_RANK', 0))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise ValueError(f'process {local} of this node has no GPU of its own: there are '
                         f'{torch.cuda.device_count()}. Start as many processes as there are GPUs '
                         '(--ngpu_per_node)')
    device = torch.device('cuda', local) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        options = {}
        if cuda:
            options['device_id'] = device
        if patience:
            options['timeout'] = timedelta(minutes=patience + 5)
        dist.init_process_group('nccl' if cuda else 'gloo', **options)
    return Ranks(rank, size, device)


class _AllReduce(torch.autograd.Function):
    """The sum of a tensor over all ranks, which can be differentiated: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm for processes on CPUs, for which torch has none.

    The statistics are averaged over the ranks by a differentiable all-reduce, weighted by the number of
    positions (B x H x W) that each rank holds.
    """

    def forward(self, x):
        if not self.training or not dist.is_initialized():
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                                            self.training, self.momentum, self.eps)
        shape = (1, -1, 1, 1)
        count = torch.tensor(x.numel() // x.shape[1], dtype=torch.float64)
        dist.all_reduce(total := count.clone())
        share = (count / total).item()
        exact = x if x.dtype == torch.float64 else x.float()  # statistics in fp32 under autocast too
        mean = _AllReduce.apply(exact.mean((0, 2, 3)) * share)
        centred = exact - mean.view(shape)
        var = _AllReduce.apply(centred.square().mean((0, 2, 3)) * share)
        if self.track_running_stats:
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
                momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean += momentum * (mean - self.running_mean)
                self.running_var += momentum * (var * (total / (total - 1)).item() - self.running_var)
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


@torch.no_grad()
def shared_statistics(x, norm):
    """BatchNorm's mean and 1 / deviation over all ranks, (C,) each, in fp32 at least. Updates its running
    statistics.

    x (B, C, H, W) is the norm's input on this rank; all ranks have as many positions.
    """
    var, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), (0, 2, 3), correction=0)
    everyone = [mean.new_empty(2, len(mean)) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, torch.stack([mean, var]))
    means, variances = torch.stack(everyone, 1)
    mean = means.mean(0)
    var = variances.mean(0) + (means - mean).square().mean(0)
    count = len(everyone) * x.numel() / x.shape[1]
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_((var * count / (count - 1)).to(norm.running_var.dtype), norm.momentum)
    return mean, (var + norm.eps).rsqrt()


def shared_gradients(grad, x, weight, mean, invstd):
    """(grad_input, grad_weight, grad_bias) of a BatchNorm whose statistics `shared_statistics` gave.

    grad: of the output. weight: of the norm. grad_weight and grad_bias are from the positions of this rank
    alone.
    """
    shape, count = (1, -1, 1, 1), x.numel() / x.shape[1]
    exact = grad if grad.dtype == torch.float64 else grad.float()
    scaled = (x - mean.view(shape)) * invstd.view(shape)
    grad_bias, grad_weight = exact.sum((0, 2, 3)), (exact * scaled).sum((0, 2, 3))
    means = torch.stack([grad_bias, grad_weight]) / (count * dist.get_world_size())
    dist.all_reduce(means)
    centred = exact - means[0].view(shape) - scaled * means[1].view(shape)
    grad_input = centred * (weight * invstd).view(shape)
    return grad_input.to(x.dtype), grad_weight, grad_bias


class CPUSyncBatchNormAct(BatchNormAct2d):
    """CPUSyncBatchNorm for timm's BatchNorm with an activation."""

    def forward(self, x):
        return self.act(self.drop(CPUSyncBatchNorm.forward(self, x)))


def can_share(layer):
    """Whether synchronise_batchnorm replaces a layer: any BatchNorm on GPUs, BatchNorm2d on CPUs."""
    return isinstance(layer, nn.modules.batchnorm._BatchNorm if torch.cuda.is_available() else nn.BatchNorm2d)


def synchronise_batchnorm(module):
    """Replace every BatchNorm by one that shares its statistics between the ranks. Returns the module.

    The keys of its state_dict stay the same.
    """
    if torch.cuda.is_available():
        # timm's function; torch's would drop the activation of BatchNormAct2d.
        return convert_sync_batchnorm(module)
    for layer in module.modules():
        if can_share(layer):
            layer.__class__ = CPUSyncBatchNormAct if isinstance(layer, BatchNormAct2d) else CPUSyncBatchNorm
    return module


def data_parallel(module, ranks, same_buffers, in_bf16=False):
    """The module in DistributedDataParallel, which averages gradients over the ranks; the module itself for
    one rank.

    same_buffers: whether its buffers are the same on all ranks by themselves, so that they need no broadcast.
    in_bf16: whether gradients are sent and summed in bfloat16.
    """
    if ranks.size == 1:
        return module
    broadcast = 'forward_sync_buffers'
    if broadcast not in signature(DistributedDataParallel).parameters:
        broadcast = 'broadcast_buffers'  # the argument's name before torch 2.15
    device_ids = [ranks.device] if ranks.device.type == 'cuda' else None
    parallel = DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True,
                                       **{broadcast: not same_buffers})
    if in_bf16:
        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel
