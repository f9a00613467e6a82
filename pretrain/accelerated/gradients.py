"""What the accelerated forms share: gradients of convolutions, maps as tables, the precision of autocast."""
import torch
import torch.nn.functional as F

# From windows of this size on, gradients of depthwise convolutions are computed here; torch's own are faster
# for smaller ones (docs/speed.md, "The encoder"; `python -m benchmarks.layers`).
WIDE_KERNEL = 5
# Parts in which `depthwise_weight_gradient` goes through a batch, so that each fits into a cache. Always as
# many, so that a step does the same operations whatever the batch: pretrain/planning/counts.py relies on that.
NUM_PARTS = 4


def in_autocast_precision(*tensors):
    """Tensors in the precision in which autocast runs convolutions.

    Autocast does not know that autograd functions of our own are convolutions. Tensors may be None.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def as_table(x):
    """(B, C, H, W) -> (B*H*W, C): a row for each position. No copy where the memory is channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def with_zero_row(table):
    """(n, C) -> (n + 1, C): a row of zeros after, which stands for what is hidden or beyond the image."""
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def convolution_gradients(grad, x, weight, bias, stride, padding, groups, needed):
    """(grad_input, grad_weight, grad_bias) of conv2d(x, weight, bias, stride, padding, groups=groups).

    needed: three booleans; None stands for a gradient that is not needed. stride and padding are pairs.
    """
    if not is_wide_depthwise(x, weight, stride, groups):
        bias_shape = None if bias is None else bias.shape
        return torch.ops.aten.convolution_backward(
            grad, x, weight, bias_shape, stride, padding, (1, 1), False, (0, 0), groups, needed)
    grad_input = depthwise_input_gradient(grad, weight, padding) if needed[0] else None
    grad_weight = depthwise_weight_gradient(grad, x, padding) if needed[1] else None
    grad_bias = grad.sum((0, 2, 3)) if needed[2] else None
    return grad_input, grad_weight, grad_bias


def is_wide_depthwise(x, weight, stride, groups):
    """Whether the next two functions apply, and are faster than torch's own."""
    is_depthwise = groups == x.shape[1] == len(weight)
    return is_depthwise and min(weight.shape[2:]) >= WIDE_KERNEL and set(stride) == {1}


def depthwise_input_gradient(grad, weight, padding):
    """The gradient of the input of a depthwise convolution: grad convolved with the weight turned round.

    Takes 0.5 to 0.9 of the time of torch's own function (docs/speed.md, "The encoder").
    """
    around = [k - 1 - pad for k, pad in zip(weight.shape[2:], padding)]
    return F.conv2d(grad, weight.flip(2, 3), padding=around, groups=len(weight))


def depthwise_weight_gradient(grad, x, padding):
    """The gradient (C, 1, k, k) of a depthwise weight: x convolved with grad, each image and channel a group
    of its own.

    Takes a fifth to a half of the time of torch's own function (docs/speed.md, "The encoder").
    """
    B, C = x.shape[:2]
    inputs = x.reshape(B * C, *x.shape[2:]).chunk(NUM_PARTS)
    kernels = grad.reshape(B * C, *grad.shape[2:]).chunk(NUM_PARTS)
    parts = []
    for part, kernel in zip(inputs, kernels):
        parts.append(F.conv2d(part[None], kernel[:, None], padding=padding, groups=len(part))[0])
    grad_weight = torch.cat(parts)
    return grad_weight.view(B, C, 1, *grad_weight.shape[1:]).sum(0)


class MatchLayout(torch.autograd.Function):
    """A weight as it is; its gradient gets the weight's own memory layout, so that DDP need not copy it."""

    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        weight, = ctx.saved_tensors
        if grad.stride() == weight.stride():
            return grad
        return torch.empty_like(weight, dtype=grad.dtype).copy_(grad)
