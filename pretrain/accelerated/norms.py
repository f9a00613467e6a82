"""BatchNorm, ReLU6 and convolution in one, of which only what enters is kept for the backward pass.

Measured: docs/speed.md, "Memory"; `python -m benchmarks.profile`.
"""
import torch
import torch.distributed as dist
import torch.nn.functional as F

from common.sync_batchnorm import normalise, shared_gradients, shared_statistics
from pretrain.accelerated.gradients import convolution_gradients, in_autocast_precision


def norm_conv(x, norm, conv, clipped=True):
    """conv(relu6(norm(x))), or conv(norm(x)) if not clipped; norm is a BatchNorm2d, or one that shares its statistics.

    While the norm is trained, this is one autograd function (NormConvolution), which keeps x alone. In evaluation mode,
    without gradients, and under torch.compile, which itself decides what to fuse and to keep, the layers run one after
    the other.
    """
    if not (norm.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        out = norm(x)
        return conv(F.relu6(out, inplace=True) if clipped else out)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
    x, weight, bias = in_autocast_precision(x, conv.weight, conv.bias)
    return NormConvolution.apply(x, norm.weight, norm.bias, weight, bias, norm, conv.padding, clipped)


class NormConvolution(torch.autograd.Function):
    """BatchNorm in training mode, ReLU6 if clipped, convolution. Keeps what enters, and normalises it again.

    gamma, beta: the norm's own weight and bias. Where `norm` is no plain BatchNorm2d, ranks share their
    statistics; all of them have as many positions.
    """

    @staticmethod
    def forward(ctx, x, gamma, beta, weight, bias, norm, padding, clipped):
        is_shared = type(norm) is not torch.nn.BatchNorm2d and dist.is_initialized()
        if is_shared:
            mean, invstd = shared_statistics(x, norm)
            out = normalise(x, gamma, beta, mean, invstd)
        else:
            out, mean, invstd = torch.native_batch_norm(
                x, gamma, beta, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps)
        ctx.save_for_backward(x, gamma, beta, weight, bias, mean, invstd)
        ctx.is_shared, ctx.eps, ctx.padding, ctx.clipped = is_shared, norm.eps, padding, clipped
        return F.conv2d(F.relu6(out, inplace=True) if clipped else out, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx, grad):
        x, gamma, beta, weight, bias, mean, invstd = ctx.saved_tensors
        out = normalise(x, gamma, beta, mean, invstd)
        if ctx.clipped:
            out = F.relu6(out, inplace=True)
        needed = (True, *ctx.needs_input_grad[3:5])
        grad, grad_weight, grad_bias = convolution_gradients(
            grad, out, weight, bias, (1, 1), ctx.padding, 1, needed)
        if ctx.clipped:
            # ReLU6's gradient is 0 at both ends, so that its clipped output says as much as its input.
            grad = torch.ops.aten.hardtanh_backward(grad, out, 0, 6)
        del out
        if ctx.is_shared:
            grad_x, grad_gamma, grad_beta = shared_gradients(grad, x, gamma, mean, invstd)
        else:
            grad_x, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
                grad, x, gamma, None, None, mean, invstd, True, ctx.eps, (True, True, True))
        return grad_x, grad_gamma, grad_beta, grad_weight, grad_bias, None, None, None
