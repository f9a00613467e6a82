"""BatchNorm whose statistics the processes of a run share, on GPUs and on CPUs.

Three layers do it:

* EqualSyncBatchNorm, on GPUs, where all ranks have equally many positions (B x H x W): one all-gather forward and
  one all-reduce backward. The host waits for nothing.
* torch's SyncBatchNorm, on GPUs, where ranks may have different numbers of positions, and for BatchNorm1d
  and 3d. The host waits for the device once in each layer.
* CPUSyncBatchNorm, on CPUs, for which torch has none.
"""
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

# torch 2.14 has given it another name, and warns of the old one.
all_gather_into_one = getattr(dist, 'all_gather_single', None) or dist.all_gather_into_tensor


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
            return nn.BatchNorm2d.forward(self, x)
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


class CPUSyncBatchNormAct(BatchNormAct2d):
    """CPUSyncBatchNorm for timm's BatchNorm with an activation."""

    def forward(self, x):
        return self.act(self.drop(CPUSyncBatchNorm.forward(self, x)))


class EqualSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm where all ranks have equally many positions (B x H x W): nothing waits for the device.

    It has the options and the state_dict of BatchNorm2d, and is one in evaluation mode and without a process
    group. Statistics and running statistics are in fp32 at least, the output in the input's precision. Ranks
    with different numbers of positions would get statistics in which each rank counts alike.
    """

    def forward(self, x):
        if self.training and dist.is_initialized():
            return normalise_over_ranks(self, x)
        return super().forward(x)


class EqualSyncBatchNormAct(BatchNormAct2d):
    """EqualSyncBatchNorm for timm's BatchNorm with an activation."""

    def forward(self, x):
        if self.training and dist.is_initialized():
            return self.act(self.drop(normalise_over_ranks(self, x)))
        return super().forward(x)


@torch.compiler.disable
def normalise_over_ranks(norm, x):
    """x (B, C, H, W) normalised by the statistics of all ranks, as EqualSyncBatchNorm does it in training.

    torch.compile leaves it alone: the GPU's kernels for it have no form that can be traced.
    """
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return _Normalised.apply(x, norm.weight, norm.bias, norm)


class _Normalised(torch.autograd.Function):
    """BatchNorm by the statistics of all ranks. Keeps its input for the backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias, norm):
        mean, invstd = shared_statistics(x, norm)
        ctx.save_for_backward(x, weight, mean, invstd)
        return normalise(x, weight, bias, mean, invstd)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, invstd = ctx.saved_tensors
        grads = shared_gradients(grad, x, weight, mean, invstd)
        return *(each if needed else None for each, needed in zip(grads, ctx.needs_input_grad)), None


def normalise(x, weight, bias, mean, invstd):
    """BatchNorm with a given mean and 1 / deviation, (C,) each. weight and bias may be None."""
    return torch.native_batch_norm(x, weight, bias, mean, invstd.pow(-2), False, 0.0, 0.0)[0]


@torch.no_grad()
def shared_statistics(x, norm):
    """BatchNorm's mean and 1 / deviation over all ranks, (C,) each, in fp32 at least. Updates its running statistics.

    x (B, C, H, W) is the norm's input on this rank; all ranks have equally many positions.
    """
    mean, var = own_statistics(x)
    gathered = gathered_in_one if x.is_cuda else gathered_one_by_one
    means, variances = gathered(torch.stack([mean, var]))
    mean = means.mean(0)
    var = variances.mean(0) + (means - mean).square().mean(0)
    if norm.track_running_stats:
        count = len(means) * x.numel() / x.shape[1]
        momentum = norm.momentum
        if momentum is None:  # the average of all batches; computed where the number of batches is
            momentum = norm.num_batches_tracked.to(norm.running_mean.dtype).reciprocal()
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_((var * count / (count - 1)).to(norm.running_var.dtype), momentum)
    return mean, (var + norm.eps).rsqrt()


def gathered_one_by_one(own):
    """The statistics of all ranks, (2, world size, C), of those of each, (2, C)."""
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return torch.stack(everyone, 1)


def gathered_in_one(own):
    """The same. NCCL gathers into one tensor in any case; of a list torch fills each by a kernel of its own, and on
    hundreds of ranks these take as long as a step.
    """
    everyone = own.new_empty(dist.get_world_size() * 2, own.shape[1])
    all_gather_into_one(everyone, own)
    return everyone.unflatten(0, (-1, 2)).transpose(0, 1)


def own_statistics(x):
    """(mean, variance) of each channel of x (B, C, H, W), (C,) each, in fp32 at least."""
    if x.is_cuda:
        return torch.batch_norm_update_stats(x, None, None, 0.0)  # in one kernel, without a copy in fp32
    var, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), (0, 2, 3), correction=0)
    return mean, var


def shared_gradients(grad, x, weight, mean, invstd):
    """(grad_input, grad_weight, grad_bias) of a BatchNorm whose statistics `shared_statistics` gave.

    grad: of the output. weight: of the norm, or None. grad_weight and grad_bias are from the positions of
    this rank alone.
    """
    if x.is_cuda:
        return gradients_by_kernels(grad, x, weight, mean, invstd)
    shape, count = (1, -1, 1, 1), x.numel() / x.shape[1]
    exact = grad if grad.dtype == torch.float64 else grad.float()
    scaled = (x - mean.view(shape)) * invstd.view(shape)
    grad_bias, grad_weight = exact.sum((0, 2, 3)), (exact * scaled).sum((0, 2, 3))
    means = torch.stack([grad_bias, grad_weight]) / (count * dist.get_world_size())
    dist.all_reduce(means)
    centred = exact - means[0].view(shape) - scaled * means[1].view(shape)
    scale = invstd if weight is None else weight * invstd
    grad_input = centred * scale.view(shape)
    return grad_input.to(x.dtype), grad_weight, grad_bias


def gradients_by_kernels(grad, x, weight, mean, invstd):
    """`shared_gradients` by the kernels of torch's SyncBatchNorm, which are for GPUs alone.

    They take the sums over all ranks of grad and of grad * (x - mean), and the number of positions after these sums.
    """
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    grad, x = grad.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    is_affine = weight is not None
    sum_grad, sum_product, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
        grad, x, mean, invstd, weight, True, is_affine, is_affine)
    sums = torch.stack([sum_grad, sum_product])
    dist.all_reduce(sums)
    # One count for each rank, since the kernel adds them up in 64 bits: their sum may not fit into 32.
    counts = torch.full((dist.get_world_size(),), x.numel() // x.shape[1], dtype=torch.int32, device=x.device)
    grad_input = torch.batch_norm_backward_elemt(grad, x, mean, invstd, weight, sums[0], sums[1], counts)
    return grad_input, grad_weight, grad_bias


def can_share(layer):
    """Whether synchronise_batchnorm replaces a layer: any BatchNorm on GPUs, BatchNorm2d on CPUs."""
    return isinstance(layer, _BatchNorm if torch.cuda.is_available() else nn.BatchNorm2d)


def is_synchronised(layer):
    """Whether a layer is one of those that synchronise_batchnorm makes."""
    return isinstance(layer, (nn.SyncBatchNorm, CPUSyncBatchNorm, CPUSyncBatchNormAct,
                              EqualSyncBatchNorm, EqualSyncBatchNormAct))


def synchronise_batchnorm(module, equal_counts=False):
    """Replace every BatchNorm by one that shares its statistics between the ranks. Returns the module.

    equal_counts: whether all ranks have equally many positions (B x H x W) in each of them. GPUs then wait for nothing.

    The keys of its state_dict stay the same.
    """
    if torch.cuda.is_available():
        return synchronise_on_gpus(module, equal_counts)
    return synchronise_on_cpus(module)


def synchronise_on_cpus(module):
    """The same for a module that trains on CPUs."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = CPUSyncBatchNormAct if isinstance(layer, BatchNormAct2d) else CPUSyncBatchNorm
    return module


def synchronise_on_gpus(module, equal_counts):
    """The same for a module that trains on GPUs."""
    equal = {nn.BatchNorm2d: EqualSyncBatchNorm, BatchNormAct2d: EqualSyncBatchNormAct}
    if equal_counts and type(module) in equal:
        module.__class__ = equal[type(module)]
    elif isinstance(module, _BatchNorm) and not is_synchronised(module):
        # timm's function; torch's would drop the activation of BatchNormAct2d.
        converted = convert_sync_batchnorm(module)
        converted._forward_hooks = module._forward_hooks  # such as the one that puts a mask token in
        return converted
    for name, child in module.named_children():
        setattr(module, name, synchronise_on_gpus(child, equal_counts))
    return module
