"""What the layers of densify and decoder compute, the same up to rounding, in fewer operations, and with less to keep for the
backward pass.

`torch.compile` fuses, and decides what to keep, by itself: `NormConvolution` is for without.
"""
import torch
import torch.distributed as dist
import torch.nn.functional as F

from common.distributed import shared_gradients, shared_statistics
from pretrain.accelerated.windows import Overlaid, as_autocast, gradients, rows

# Positions of an image, a channel, from which on a merged kernel saves more than it costs to make in every step: with batches
# of 8 already (on a CPU, docs/speed.md), and not by the batch, so that a step does the same whatever that is.
WORTH = 2.5
ENDS = (0, -1)
CORNERS = tuple((i, j) for i in ENDS for j in ENDS)


class Filled:
    """A map of which all hidden positions hold the same token (SparK, section 3.2): a strip, and (1, C, 1, 1) elsewhere."""

    def __init__(self, geometry, strip, token):
        self.geometry, self.strip, self.token = geometry, strip, token

    def pointwise(self, layer):
        """layer(itself), of a convolution of 1x1 or an nn.Identity, which is another one."""
        return Filled(self.geometry, layer(self.strip), layer(self.token))

    def convolved(self, layer):
        """layer(itself), (B, C', H, W), of a convolution of 3x3 that keeps the size, or a transposed one k4 s2 p1.

        What is visible is convolved, less the token, which then is everywhere, so that what it gives is the same at each
        position but for the borders.
        """
        strip, weight, token = self.strip, Weight.apply(layer.weight), self.token.view(1, -1).to(self.strip.dtype)
        p, transposed = strip.shape[3], isinstance(layer, torch.nn.ConvTranspose2d)
        spread = weight if transposed else weight.flip(2, 3).transpose(0, 1)  # (C, C', k, k): what a position gives around it
        stride, table, matrix = layer.stride[0], rows(strip) - token, spread.permute(2, 3, 1, 0).flatten(0, 2)
        if p >= 4 and not transposed:
            side, cells = p, table.view(-1, p, p, table.shape[1]).permute(0, 3, 1, 2)
            squares, of_token = rows(F.conv_transpose2d(cells, spread)), F.linear(token, matrix)
        else:  # for small cells the faster way
            side, (squares, of_token) = stride, F.linear(torch.cat([table, token]), matrix).split([len(table), 1])
        squares = squares.reshape(-1, spread.shape[1])
        out = Overlaid.apply(squares, *self.geometry.once('overlaps', p * stride, side))
        height, width = (side * p * stride for side in self.geometry.grid)
        everywhere = constant(of_token.view(-1, spread.shape[1]), stride, height, width) + layer.bias.view(-1, 1, 1)
        return out.view(-1, height, width, spread.shape[1]).permute(0, 3, 1, 2) + everywhere.to(out.dtype)


def constant(square, stride, height, width):
    """(k*k, C) -> (1, C, height, width): squares of k x k with one beyond the border, one every `stride` each way, added up."""
    kernel, least = stride + 2, [min(side, 3 * stride) for side in (height, width)]
    number = least[0] * least[1] // stride ** 2
    out = F.fold(square.t().reshape(1, -1, 1).expand(-1, -1, number), least, kernel, padding=1, stride=stride)
    for dim, side in ((2, height), (3, width)):
        if side > 3 * stride:  # between the borders each is like the next
            first, inner, last = out.chunk(3, dim)
            repeats = [1] * 4
            repeats[dim] = side // stride - 2
            out = torch.cat([first, inner.repeat(repeats), last], dim)
    return out.to(memory_format=torch.channels_last)


def enlarge(x, up, conv):
    """(B, C, H, W) -> (B, C', 2H, 2W): conv(up(x)), of a transposed convolution k4 s2 p1 and a 3x3 one without bias.

    Nothing stands between the two, so that they are one linear map: here a 3x3 convolution on the small map to four times
    the channels, for the four places that a position becomes. That saves the transposed convolution and the map between
    them. It differs where `conv` pads that map with zeros, and the merged one sees it go on: what came from there is taken
    away again, line by line. What is Filled goes through the one and then the other.
    """
    if isinstance(x, Filled):
        return conv(x.convolved(up))
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

    def corner(place, i, j):
        """(B, C) -> (B, C'): what comes from one place beyond a corner."""
        return F.linear(F.linear(place, up_weight[:, :, i, j].t(), up.bias), conv_weight[:, :, i, j])

    *lines, left, right = Edges.apply(x)
    top, bottom = (beyond(line, up_weight[:, :, i], conv_weight[:, :, i]) for i, line in zip(ENDS, lines))
    left, right = (beyond(line, up_weight[:, :, :, i], conv_weight[:, :, :, i]) for i, line in zip(ENDS, (left, right)))
    corners = torch.stack([corner(lines[i][:, :, j], i, j) for i, j in CORNERS])
    return Placed.apply(F.conv2d(x, kernel, bias, padding=1), top, bottom, left, right, corners)


class Edges(torch.autograd.Function):
    """(B, C, H, W) -> its first and last line, (B, C, W), and column, (B, C, H). Their gradients make one map, not one each."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return tuple(x[:, :, i].clone() for i in ENDS) + tuple(x[:, :, :, i].clone() for i in ENDS)

    @staticmethod
    def backward(ctx, *grads):
        B, C, H, W = ctx.shape
        total = grads[0].new_zeros(B, H, W, C).permute(0, 3, 1, 2)
        for i, line, column in zip(ENDS, grads[:2], grads[2:]):
            total[:, :, i] += line
            total[:, :, :, i] += column
        return total


class Weight(torch.autograd.Function):
    """A weight, whose gradient is laid out as it is itself, so that DDP need not copy it."""

    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        weight, = ctx.saved_tensors
        return grad if grad.stride() == weight.stride() else torch.empty_like(weight, dtype=grad.dtype).copy_(grad)


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
        out = F.relu6(out, inplace=True) if ctx.clipped else out
        grad, of_weight, of_bias = gradients(grad, out, weight, bias, (1, 1), ctx.padding, 1,
                                             (True, *ctx.needs_input_grad[3:5]))
        if ctx.clipped:
            grad = torch.ops.aten.hardtanh_backward(grad, out, 0, 6)  # which is 0 at both ends, so clipped values tell as much
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
