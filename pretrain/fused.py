"""What the decoder's layers compute, in fewer operations and with less to keep for the backward pass; the same up to rounding.

`torch.compile` fuses, and decides what to keep, by itself: `NormConvolution` is for without.
"""
import torch
import torch.distributed as dist
import torch.nn.functional as F

from common.distributed import shared_gradients, shared_statistics
from pretrain.windows import as_autocast, gradients

# Positions of an image, a channel, from which on a merged kernel saves more than it costs to make in every step: with batches
# of 8 already (on a CPU, docs/speed.md), and not by the batch, so that a step does the same whatever that is.
WORTH = 2.5
CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))


def enlarge(x, up, conv):
    """(B, C, H, W) -> (B, C', 2H, 2W): conv(up(x)), of a transposed convolution k4 s2 p1 and a 3x3 one without bias.

    Nothing stands between the two, so that they are one linear map: here a 3x3 convolution on the small map to four times
    the channels, for the four places that a position becomes. That saves the transposed convolution and the map between
    them. It differs where `conv` pads that map with zeros, and the merged one sees it go on: what came from there is taken
    away again, line by line.
    """
    if x.shape[2] * x.shape[3] < WORTH * x.shape[1]:
        return conv(up(x))
    up_weight, conv_weight = Weight.apply(up.weight), Weight.apply(conv.weight)
    with torch.autocast(x.device.type, enabled=False):
        # Along one axis, out[2j + a] sums x[j + d] * up[a - 2d + t] * conv[t] over d in (-1, 0, 1) and t in (0, 1, 2).
        kernel = F.conv2d(up_weight, conv_weight, padding=2)  # (C, C', 6, 6), at a - 2d + 2
        kernel = kernel.unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4).permute(3, 5, 1, 0, 2, 4).flatten(0, 2)
        bias = (conv_weight.sum((2, 3)) @ up.bias).repeat(4)

    def beyond(line, up_line, conv_line):
        """(B, C, W), (C, M, 4), (C', M, 3) -> (B, C', 2W): what comes from one line beyond the border."""
        with torch.autocast(x.device.type, enabled=False):
            kernel, bias = F.conv1d(up_line, conv_line, padding=2), conv_line.sum(2) @ up.bias
        return F.conv_transpose1d(line, kernel, bias, stride=2, padding=2)

    def corner(i, j):
        """(B, C'): what comes from one place beyond a corner."""
        return F.linear(F.linear(x[:, :, i, j], up_weight[:, :, i, j].t(), up.bias), conv_weight[:, :, i, j])

    top, bottom = (beyond(x[:, :, i], up_weight[:, :, i], conv_weight[:, :, i]) for i in (0, -1))
    left, right = (beyond(x[:, :, :, i], up_weight[:, :, :, i], conv_weight[:, :, :, i]) for i in (0, -1))
    corners = torch.stack([corner(i, j) for i, j in CORNERS])
    return Placed.apply(F.conv2d(x, kernel, bias, padding=1), top, bottom, left, right, corners)


class Weight(torch.autograd.Function):
    """A weight, whose gradient is laid out as it is itself, so that DDP need not copy it."""

    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(ctx.saved_tensors[0], dtype=grad.dtype).copy_(grad)


class Placed(torch.autograd.Function):
    """(B, 4C, H, W), the channels of four places in rows -> (B, C, 2H, 2W), less what came from beyond the border.

    top, bottom (B, C, 2W), left, right (B, C, 2H); corners (4, B, C), in rows, were in two of them.
    """

    @staticmethod
    def forward(ctx, places, top, bottom, left, right, corners):
        B, C, H, W = places.shape
        out = places.permute(0, 2, 3, 1).reshape(B, H, W, 2, 2, C // 4).transpose(2, 3).reshape(B, 2 * H, 2 * W, C // 4)
        out = out.permute(0, 3, 1, 2)
        out[:, :, 0] -= top
        out[:, :, -1] -= bottom
        out[:, :, :, 0] -= left
        out[:, :, :, -1] -= right
        for part, (i, j) in zip(corners, CORNERS):
            out[:, :, i, j] += part
        return out.data

    @staticmethod
    def backward(ctx, grad):
        B, C, H, W = grad.shape
        places = grad.permute(0, 2, 3, 1).reshape(B, H // 2, 2, W // 2, 2, C).transpose(2, 3).reshape(B, H // 2, W // 2, 4 * C)
        return places.permute(0, 3, 1, 2), -grad[:, :, 0], -grad[:, :, -1], -grad[:, :, :, 0], -grad[:, :, :, -1], \
            torch.stack([grad[:, :, i, j] for i, j in CORNERS])


def norm_conv(x, norm, conv, clipped=True):
    """conv(relu6(norm(x))), or conv(norm(x)); norm is a BatchNorm2d, or one that shares its statistics."""
    if not (norm.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        out = norm(x)
        return conv(F.relu6(out, inplace=True) if clipped else out)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
    x, weight, bias = as_autocast(x, conv.weight, conv.bias)
    return NormConvolution.apply(x, norm.weight, norm.bias, weight, bias, norm, conv.padding, clipped)


class NormConvolution(torch.autograd.Function):
    """BatchNorm in training mode, ReLU6 if clipped, convolution. Keeps what enters, and normalises it again.

    Where `norm` is no plain BatchNorm2d, ranks share their statistics, which all have as many positions.
    """

    @staticmethod
    def forward(ctx, x, gamma, beta, weight, bias, norm, padding, clipped):
        shared = type(norm) is not torch.nn.BatchNorm2d and dist.is_initialized()
        if shared:
            mean, invstd = shared_statistics(x, norm)
            out = normalised(x, gamma, beta, mean, invstd)
        else:
            running = norm.running_mean, norm.running_var
            out, mean, invstd = torch.native_batch_norm(x, gamma, beta, *running, True, norm.momentum, norm.eps)
        ctx.save_for_backward(x, gamma, beta, weight, bias, mean, invstd)
        ctx.shared, ctx.eps, ctx.padding, ctx.clipped = shared, norm.eps, padding, clipped
        return F.conv2d(F.relu6(out, inplace=True) if clipped else out, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx, grad):
        x, gamma, beta, weight, bias, mean, invstd = ctx.saved_tensors
        out = normalised(x, gamma, beta, mean, invstd)
        grad, of_weight, of_bias = gradients(grad, F.relu6(out) if ctx.clipped else out, weight, bias, (1, 1), ctx.padding, 1,
                                             (True, *ctx.needs_input_grad[3:5]))
        if ctx.clipped:
            grad = torch.ops.aten.hardtanh_backward(grad, out, 0, 6)
        del out
        if ctx.shared:
            of_x, of_gamma, of_beta = shared_gradients(grad, x, gamma, mean, invstd)
        else:
            of_x, of_gamma, of_beta = torch.ops.aten.native_batch_norm_backward(
                grad, x, gamma, None, None, mean, invstd, True, ctx.eps, (True, True, True))
        return of_x, of_gamma, of_beta, of_weight, of_bias, None, None, None


def normalised(x, gamma, beta, mean, invstd):
    """Of given statistics (C,)."""
    return torch.native_batch_norm(x, gamma, beta, mean, invstd.pow(-2), False, 0.0, 0.0)[0]
