"""Convolutions whose windows overlap neighbouring cells, on strips: visible outputs only, made of visible inputs.

They give the same numbers as the layer's own convolution on the canvas, which pretrain/sparse/rules.py runs
elsewhere, up to rounding. `convolve` chooses one of three ways by the sizes:

* `CellConvolution`: each cell is gathered with as much around it as windows reach, and convolved by itself;
* `WindowProduct`, for the smallest cells: the windows themselves are gathered, and multiplied with the weight
  as a matrix;
* `CanvasConvolution`: the canvas after all, of which only strips are kept for the backward pass.

All of them keep the strip and the weight for the backward pass, and gather again. The gradient of a strip is
gathered too, never added up by index: so it is the same in every run.

Legend: as in tables.py, and q the side of a cell after the convolution (q = p / stride), P the side of a
cell with its surroundings, m positions of a window.
"""
import torch
import torch.nn.functional as F

from common.networks.convolutions import pair
from pretrain.accelerated.gradients import (
    as_table,
    convolution_gradients,
    depthwise_input_gradient,
    in_autocast_precision,
    is_wide_depthwise,
    with_zero_row,
)
from pretrain.accelerated.tables import outputs_that_reach_in, padding_after
from pretrain.canvas import gather, lay_out

# Which way is the fastest was measured layer by layer: docs/speed.md, "The encoder"; `python -m
# benchmarks.layers`.
# Below so many outputs along the side of a cell, gathering each cell with its surroundings does not pay.
SMALL_CELL = 4
SMALL_WINDOW = 9  # positions of a window, up to which windows as a matrix are faster than the canvas
# Gathering a cell with its surroundings pays while the two together are at most so many times as wide as the cell.
WIDEST_SURROUNDINGS = 2


def fits(weight, stride, padding, dilation):
    """Whether `convolve` can compute a convolution whose windows overlap: its padding is given in numbers, its stride is
    the same along both axes, its dilation is 1, and its output has size / stride positions.

    Others, whose windows stay inside the cells, do not come here (pretrain/sparse/rules.py). stride, padding and dilation
    as conv2d takes them.
    """
    if isinstance(padding, str):
        return False
    sides = zip(weight.shape[2:], pair(stride), pair(padding))
    keeps_size = all(k - step <= 2 * pad < k for k, step, pad in sides)
    return keeps_size and len(set(pair(stride))) == 1 and pair(dilation) == (1, 1)


def convolve(geometry, strip, weight, bias, stride, padding, groups):
    """conv2d on the canvas of a strip: (B, C, k*p, p) -> (B, C', k*q, q). `fits` says for which arguments.

    geometry: an accelerated one. stride and padding as conv2d takes them.
    """
    strip, weight, bias = in_autocast_precision(strip, weight, bias)
    stride, padding = pair(stride)[0], pair(padding)
    kernel, p = tuple(weight.shape[2:]), strip.shape[3]
    q, after = p // stride, padding_after(kernel, stride, padding)
    if q < SMALL_CELL and groups == 1 and kernel[0] * kernel[1] <= SMALL_WINDOW:
        return convolve_windows(geometry, strip, weight, bias, stride, padding)
    if q >= SMALL_CELL and all(b + p + a <= WIDEST_SURROUNDINGS * p for b, a in zip(padding, after)):
        return convolve_cells(geometry, strip, weight, bias, stride, padding, groups)
    return convolve_canvas(geometry, strip, weight, bias, stride, padding, groups)


def convolve_cells(geometry, strip, weight, bias, stride, padding, groups):
    """`convolve`, by CellConvolution. stride: a number; padding: (rows, columns)."""
    kernel, p = tuple(weight.shape[2:]), strip.shape[3]
    q, after = p // stride, padding_after(kernel, stride, padding)
    before, behind = outputs_that_reach_in(kernel, stride, padding)
    outside = None
    needs_gradient = strip.requires_grad and torch.is_grad_enabled()
    if needs_gradient and (p, padding, after) != (q, before, behind):
        outside = geometry.tables.surroundings(q, before, behind)
    inside = geometry.tables.surroundings(p, padding, after)
    return CellConvolution.apply(
        strip, weight, bias, inside, outside, before, (stride, stride), padding, groups)


def convolve_windows(geometry, strip, weight, bias, stride, padding):
    """`convolve` without groups, by WindowProduct. stride: a number; padding: (rows, columns)."""
    kernel, q = tuple(weight.shape[2:]), strip.shape[3] // stride
    windows = geometry.tables.windows(q, kernel, stride, padding)
    needs_gradient = strip.requires_grad and torch.is_grad_enabled()
    uses = geometry.tables.uses(q, kernel, stride, padding) if needs_gradient else None
    return WindowProduct.apply(strip, weight, bias, windows, uses, q)


def convolve_canvas(geometry, strip, weight, bias, stride, padding, groups):
    """`convolve`, by CanvasConvolution. stride: a number; padding: (rows, columns)."""
    p = strip.shape[3]
    rows_in = geometry.cell_rows(p)
    rows_out = None if stride == 1 else geometry.cell_rows(p // stride)
    return CanvasConvolution.apply(
        strip, weight, bias, rows_in, rows_out, geometry.grid, (stride, stride), padding, groups)


def gather_positions(strip, positions):
    """(B, C, k*p, p), (n, P, P) -> (n, C, P, P): what stands at a table of positions."""
    rows = with_zero_row(as_table(strip)).index_select(0, positions.flatten())
    return rows.view(*positions.shape, -1).permute(0, 3, 1, 2)


def as_strip(x, batch):
    """(n, q, q, C) -> (B, C, k*q, q), `.data` as in pretrain/canvas.py."""
    return x.reshape(batch, -1, x.shape[2], x.shape[3]).permute(0, 3, 1, 2).data


class CellConvolution(torch.autograd.Function):
    """Each cell with its surroundings as an image of a batch.

    inside (n, P, P): positions of the strip that the windows of a cell reach. outside (n, Q, Q): positions of
    the output whose windows reach into a cell, `before` (rows, columns) of them above and left of it; None where that
    table is the same as `inside`, since torch.compile takes no tensor twice, and where the strip needs no gradient.
    padding: of the convolution on the canvas.
    """

    @staticmethod
    def forward(ctx, strip, weight, bias, inside, outside, before, stride, padding, groups):
        ctx.save_for_backward(strip, weight, bias, inside, outside)
        ctx.before, ctx.stride, ctx.padding, ctx.groups = before, stride, padding, groups
        out = F.conv2d(gather_positions(strip, inside), weight, bias, stride, 0, 1, groups)
        return as_strip(out.permute(0, 2, 3, 1), len(strip))

    @staticmethod
    def backward(ctx, grad):
        strip, weight, bias, inside, outside = ctx.saved_tensors
        stride, groups, q = ctx.stride, ctx.groups, grad.shape[3]
        grad_strip = None
        if ctx.needs_input_grad[0]:
            around = gather_positions(grad, inside if outside is None else outside)
            grad_strip = CellConvolution.input_gradient(ctx, around, strip, weight)
        grad_cells = as_table(grad).view(-1, q, q, grad.shape[1]).permute(0, 3, 1, 2)
        cells = gather_positions(strip, inside)
        needed = (False, *ctx.needs_input_grad[1:3])
        _, grad_weight, grad_bias = convolution_gradients(
            grad_cells, cells, weight, bias, stride, (0, 0), groups, needed)
        return grad_strip, grad_weight, grad_bias, *[None] * 6

    @staticmethod
    def input_gradient(ctx, around, strip, weight):
        """The gradient of the strip, of the output's gradient (n, C', Q, Q) in each cell and around it."""
        p, stride, kernel = strip.shape[3], ctx.stride, weight.shape[2:]
        # Lines above and left of the cell.
        skip = [b * s + pad for b, s, pad in zip(ctx.before, stride, ctx.padding)]
        if is_wide_depthwise(strip, weight, stride, ctx.groups):
            whole = depthwise_input_gradient(around, weight, skip)
        else:
            sides = zip(around.shape[2:], stride, kernel, skip)
            # Lines that the transposed convolution lacks below and right, if any.
            missing = [max(p - (Q - 1) * s - k + 2 * n, 0) for Q, s, k, n in sides]
            whole = F.conv_transpose2d(around, weight, None, stride, skip, missing, ctx.groups)
        return as_strip(whole[:, :, :p, :p].permute(0, 2, 3, 1), len(strip))


class WindowProduct(torch.autograd.Function):
    """Windows as rows of a matrix; no groups. windows, uses: see Tables. q: the side of a cell after it."""

    @staticmethod
    def forward(ctx, strip, weight, bias, windows, uses, q):
        ctx.save_for_backward(strip, weight, bias, windows, uses)
        matrix = WindowProduct.matrix(strip, windows)
        out = F.linear(matrix, weight.permute(0, 2, 3, 1).flatten(1), bias)
        return as_strip(out.view(-1, q, q, len(weight)), len(strip))

    @staticmethod
    def matrix(strip, windows):
        """(n*q*q, m*C)."""
        return with_zero_row(as_table(strip)).index_select(0, windows.flatten()).view(len(windows), -1)

    @staticmethod
    def backward(ctx, grad):
        strip, weight, bias, windows, uses = ctx.saved_tensors
        channels, p = strip.shape[1], strip.shape[3]
        grad_table = as_table(grad)
        grad_strip = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # What each position of each window gets, with a row of zeros after, and then what each position
            # of the strip gets from the windows in which it stands.
            shares = with_zero_row(grad_table) @ weight.permute(0, 2, 3, 1).flatten(1)
            shares = shares.view(-1, channels).index_select(0, uses.flatten())
            total = shares.view(*uses.shape, channels).sum(1)
            grad_strip = as_strip(total.view(-1, p, p, channels), len(strip))
        if ctx.needs_input_grad[1]:
            product = grad_table.t() @ WindowProduct.matrix(strip, windows)
            grad_weight = product.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = grad_table.sum(0)
        return grad_strip, grad_weight, grad_bias, None, None, None


class CanvasConvolution(torch.autograd.Function):
    """The layer's own convolution on the canvas.

    rows_in, rows_out: `Geometry.cell_rows` of the cells before and behind it; rows_out is None where they are the same.
    """

    @staticmethod
    def forward(ctx, strip, weight, bias, rows_in, rows_out, grid, stride, padding, groups):
        ctx.save_for_backward(strip, weight, bias, rows_in, rows_out)
        ctx.grid, ctx.stride, ctx.padding, ctx.groups = grid, stride, padding, groups
        out = F.conv2d(lay_out(strip, 0.0, rows_in, grid), weight, bias, stride, padding, 1, groups)
        return gather(out, rows_in if rows_out is None else rows_out, grid)

    @staticmethod
    def backward(ctx, grad):
        strip, weight, bias, rows_in, rows_out = ctx.saved_tensors
        grad_canvas = lay_out(grad, 0.0, rows_in if rows_out is None else rows_out, ctx.grid)
        canvas = lay_out(strip, 0.0, rows_in, ctx.grid)
        grad_input, grad_weight, grad_bias = convolution_gradients(
            grad_canvas, canvas, weight, bias, ctx.stride, ctx.padding, ctx.groups, ctx.needs_input_grad[:3])
        grad_strip = None if grad_input is None else gather(grad_input, rows_in, ctx.grid)
        return grad_strip, grad_weight, grad_bias, *[None] * 6
