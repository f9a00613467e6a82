"""Convolutions whose windows overlap neighbouring cells, on strips: visible outputs only, made of visible inputs.

The same numbers up to rounding are had in three ways, of which `strips.py` chooses by the sizes:

* `CellConvolution`: each cell is gathered with as much around it as windows reach, and convolved by itself;
* `WindowProduct`, for the smallest cells: the windows themselves are gathered, and multiplied with the weight as a matrix;
* `CanvasConvolution`: the strip is laid out on the canvas, of which most outputs are not used.

Where all outputs of a canvas are wanted, but most inputs are hidden, each cell gives its share to the pixels that it reaches,
and `Overlaid` adds them up.

For the backward pass all of them keep the strip and the weight, and gather again. The gradient of a strip is gathered too,
never added up by index: so it is the same in every run, also on a GPU.

Legend: as in strips.py, and n cells in a batch, n = B*k, q the side of a cell behind the convolution (q = p / stride), P
the side of a cell with its surroundings, m positions of a window. `pixel` tables say which row of a strip, seen as (n*p*p, C),
stands somewhere; n*p*p is a row of zeros, for what is hidden or beyond the image.
"""
import torch
import torch.nn.functional as F

PARTS = 4  # in of_depthwise_weight, whatever the batch, so that a step does the same (pretrain/planning/counts.py)


def as_autocast(*tensors):
    """Tensors in the precision in which autocast has a convolution run: of functions of our own it knows nothing."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return [t if t is None or t.dtype == torch.float64 else t.to(torch.get_autocast_dtype(device)) for t in tensors]


def rows(strip):
    """(B, C, H, W) -> (B*H*W, C), without a copy where the memory is channels last."""
    return strip.permute(0, 2, 3, 1).reshape(-1, strip.shape[1])


def with_zeros(table):
    """(n, C) -> (n + 1, C): a row of zeros behind."""
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def gathered(strip, pixels):
    """(B, C, k*p, p), (n, P, P) -> (n, C, P, P): the rows that a table of pixels names."""
    taken = with_zeros(rows(strip)).index_select(0, pixels.flatten())
    return taken.view(*pixels.shape, -1).permute(0, 3, 1, 2)


def as_strip(x, batch):
    """(n, q, q, C) -> (B, C, k*q, q).

    data: no view for autograd, which lets nobody (such as an activation) change a view in place that a Function returns.
    """
    return x.reshape(batch, -1, x.shape[2], x.shape[3]).permute(0, 3, 1, 2).data


def gradients(grad, x, weight, bias, stride, padding, groups, wanted):
    """(of the input x, of the weight, of the bias) of a convolution, None for those not wanted (three booleans)."""
    if is_wide_depthwise(x, weight, stride, groups):
        return (of_depthwise_input(grad, weight, padding) if wanted[0] else None,
                of_depthwise_weight(grad, x, padding) if wanted[1] else None, grad.sum((0, 2, 3)) if wanted[2] else None)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None if bias is None else bias.shape, stride, padding, (1, 1), False, (0, 0), groups, wanted)


def is_wide_depthwise(x, weight, stride, groups):
    """Whether the next two functions are faster than torch's own: on a CPU, from windows of 5x5 on."""
    return x.device.type == 'cpu' and groups == x.shape[1] == len(weight) and min(weight.shape[2:]) >= 5 and set(stride) == {1}


def of_depthwise_input(grad, weight, padding):
    """The gradient of the input: grad convolved with the weight turned round, which takes 0.5 to 0.9 of the time of torch's."""
    around = [k - 1 - side for k, side in zip(weight.shape[2:], padding)]
    return F.conv2d(grad, weight.flip(2, 3), padding=around, groups=len(weight))


def of_depthwise_weight(grad, x, padding):
    """The gradient (C, 1, k, k) of the weight: x convolved with grad, each image and channel a group of its own.

    In a fifth to a half of the time that torch's own function takes; in parts, which fit into a cache where all would not.
    """
    B, C = x.shape[:2]
    images, kernels = (maps.reshape(B * C, *maps.shape[2:]).chunk(PARTS) for maps in (x, grad))
    out = torch.cat([F.conv2d(image[None], kernel[:, None], padding=padding, groups=len(image))[0]
                     for image, kernel in zip(images, kernels)])
    return out.view(B, C, 1, *out.shape[1:]).sum(0)


class CellConvolution(torch.autograd.Function):
    """Each cell with its surroundings as an image of a batch.

    inside (n, P, P): pixels of the strip that the windows of a cell reach. outside (n, Q, Q): pixels of the output that reach
    into a cell, `before` (rows, columns) of them above and left of it; None where the two tables are the same, since
    torch.compile takes no tensor twice. padding: of the convolution on the plane.
    """

    @staticmethod
    def forward(ctx, strip, weight, bias, inside, outside, before, stride, padding, groups):
        ctx.save_for_backward(strip, weight, bias, inside, outside)
        ctx.sizes = before, stride, padding, groups
        out = F.conv2d(gathered(strip, inside), weight, bias, stride, 0, 1, groups)
        return as_strip(out.permute(0, 2, 3, 1), len(strip))

    @staticmethod
    def backward(ctx, grad):
        strip, weight, bias, inside, outside = ctx.saved_tensors
        before, stride, padding, groups = ctx.sizes
        p, q, of_strip, outside = strip.shape[3], grad.shape[3], None, inside if outside is None else outside
        if ctx.needs_input_grad[0]:
            skip = [b * s + pad for b, s, pad in zip(before, stride, padding)]
            short = [p - (o - 1) * s - k + 2 * n for o, s, k, n in zip(outside.shape[1:], stride, weight.shape[2:], skip)]
            around = gathered(grad, outside)
            whole = of_depthwise_input(around, weight, skip) if is_wide_depthwise(strip, weight, stride, groups) else \
                F.conv_transpose2d(around, weight, None, stride, skip, [max(n, 0) for n in short], groups)
            of_strip = as_strip(whole[:, :, :p, :p].permute(0, 2, 3, 1), len(strip))
        cells = rows(grad).view(-1, q, q, grad.shape[1]).permute(0, 3, 1, 2)
        _, of_weight, of_bias = gradients(cells, gathered(strip, inside), weight, bias, stride, (0, 0), groups,
                                          (False, *ctx.needs_input_grad[1:3]))
        return of_strip, of_weight, of_bias, *[None] * 6


class WindowProduct(torch.autograd.Function):
    """Windows as rows of a matrix; no groups.

    windows (n*q*q, m): pixels of the strip in each window. uses (n*p*p, at most m): the places in `windows`, flattened, at
    which each pixel stands, n*q*q*m where there are fewer. q: side of a cell behind it.
    """

    @staticmethod
    def forward(ctx, strip, weight, bias, windows, uses, q):
        ctx.save_for_backward(strip, weight, bias, windows, uses)
        out = F.linear(WindowProduct.matrix(strip, windows), weight.permute(0, 2, 3, 1).flatten(1), bias)
        return as_strip(out.view(-1, q, q, len(weight)), len(strip))

    @staticmethod
    def matrix(strip, windows):
        """(n*q*q, m*C)."""
        return with_zeros(rows(strip)).index_select(0, windows.flatten()).view(len(windows), -1)

    @staticmethod
    def backward(ctx, grad):
        strip, weight, bias, windows, uses = ctx.saved_tensors
        kernel = weight.shape[2:]
        table, of_strip, of_weight, of_bias = rows(grad), None, None, None
        if ctx.needs_input_grad[0]:
            shares = with_zeros(table) @ weight.permute(0, 2, 3, 1).flatten(1)  # of each pixel of each window; zeros behind
            channels, p = strip.shape[1], strip.shape[3]
            total = shares.view(-1, channels).index_select(0, uses.flatten()).view(*uses.shape, channels).sum(1)
            of_strip = as_strip(total.view(-1, p, p, channels), len(strip))
        if ctx.needs_input_grad[1]:
            of_weight = (table.t() @ WindowProduct.matrix(strip, windows)).view(len(weight), *kernel, -1).permute(0, 3, 1, 2)
        if bias is not None and ctx.needs_input_grad[2]:
            of_bias = table.sum(0)
        return of_strip, of_weight, of_bias, None, None, None


class ToCanvas(torch.autograd.Function):
    """(B, C, k*p, p) -> (B, C, h*p, w*p), with a number, or a tensor (1, C, 1, 1), where it is hidden.

    runs (B*k*p,): where the rows of the cells stand on a canvas cut into rows of p pixels.
    """

    @staticmethod
    def forward(ctx, strip, fill, runs, grid):
        ctx.save_for_backward(runs, fill if torch.is_tensor(fill) else None)
        ctx.grid = grid
        return laid_out(strip, fill, runs, grid)

    @staticmethod
    def backward(ctx, grad):
        runs, token = ctx.saved_tensors
        of_strip = taken(grad, runs, ctx.grid)
        return of_strip, of_token(grad, of_strip, token) if ctx.needs_input_grad[1] else None, None, None


class ToStrip(torch.autograd.Function):
    """(B, C, h*p, w*p) -> (B, C, k*p, p); runs as for ToCanvas."""

    @staticmethod
    def forward(ctx, canvas, runs, grid):
        ctx.save_for_backward(runs)
        ctx.grid = grid
        return taken(canvas, runs, grid)

    @staticmethod
    def backward(ctx, grad):
        runs, = ctx.saved_tensors
        return laid_out(grad, 0.0, runs, ctx.grid), None, None


def laid_out(strip, fill, runs, grid):
    """What ToCanvas does."""
    (B, C, _, p), (h, w) = strip.shape, grid
    table = strip.permute(0, 2, 3, 1).reshape(-1, p * C)
    if torch.is_tensor(fill):
        canvas = fill.to(strip.dtype).view(1, C).repeat(B * h * p * w, p)
    else:
        canvas = table.new_full((B * h * p * w, p * C), fill)
    return canvas.index_copy_(0, runs, table).view(B, h * p, w * p, C).permute(0, 3, 1, 2).data  # as in as_strip


def taken(canvas, runs, grid):
    """What ToStrip does. Channels last, a row of a cell is one run of memory: whole runs are copied."""
    B, C, _, W = canvas.shape
    p = W // grid[1]
    return canvas.permute(0, 2, 3, 1).reshape(-1, p * C).index_select(0, runs).view(B, -1, p, C).permute(0, 3, 1, 2).data


class CanvasConvolution(torch.autograd.Function):
    """The layer's own convolution on the canvas. runs, runs_out: as for ToCanvas, before and behind it; None for the same."""

    @staticmethod
    def forward(ctx, strip, weight, bias, runs, runs_out, grid, stride, padding, groups):
        ctx.save_for_backward(strip, weight, bias, runs, runs_out)
        ctx.sizes = grid, stride, padding, groups
        out = F.conv2d(laid_out(strip, 0.0, runs, grid), weight, bias, stride, padding, 1, groups)
        return taken(out, runs if runs_out is None else runs_out, grid)

    @staticmethod
    def backward(ctx, grad):
        strip, weight, bias, runs, runs_out = ctx.saved_tensors
        grid, stride, padding, groups = ctx.sizes
        behind = laid_out(grad, 0.0, runs if runs_out is None else runs_out, grid)
        canvas, of_weight, of_bias = gradients(behind, laid_out(strip, 0.0, runs, grid), weight, bias, stride, padding, groups,
                                               ctx.needs_input_grad[:3])
        return None if canvas is None else taken(canvas, runs, grid), of_weight, of_bias, *[None] * 6


class Overlaid(torch.autograd.Function):
    """Squares that overlap, added up where they lie: (n*P*P, C), P now a square's side -> (B*h*p*w*p, C), a canvas.

    sources (B*h*p*w*p, m): the rows that lie on each pixel, n*P*P where there are fewer. targets (n*P*P,): the
    pixel on which each row lies, B*h*p*w*p beyond the image.
    """

    @staticmethod
    def forward(ctx, squares, sources, targets):
        ctx.save_for_backward(targets)
        return F.embedding_bag(sources, with_zeros(squares), mode='sum', padding_idx=len(squares))

    @staticmethod
    def backward(ctx, grad):
        targets, = ctx.saved_tensors
        return with_zeros(grad).index_select(0, targets), None, None


def of_token(canvas, strip, token):
    """The gradient of what fills the hidden positions: that of all, less that of the visible ones."""
    kind = torch.promote_types(token.dtype, canvas.dtype)
    return (canvas.sum((0, 2, 3), dtype=kind) - strip.sum((0, 2, 3), dtype=kind)).view(token.shape).to(token.dtype)
