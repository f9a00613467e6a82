"""From strips of visible cells to the canvas and back, with gradients (SparK, section 3.1).

Legend: B batch, C channels, (h, w) grid of cells, k visible cells an image, p the side of a cell at this stage. A strip is
(B, C, k*p, p), a canvas (B, C, h*p, w*p); see pretrain/sparse/geometry.py.
"""
import torch


class ToCanvas(torch.autograd.Function):
    """`Geometry.to_canvas`. Gradients are gathered, never added by index: they are the same in every run."""

    @staticmethod
    def forward(ctx, strip, fill, cell_rows, grid):
        ctx.save_for_backward(cell_rows, fill if torch.is_tensor(fill) else None)
        ctx.grid = grid
        return lay_out(strip, fill, cell_rows, grid)

    @staticmethod
    def backward(ctx, grad_canvas):
        cell_rows, fill = ctx.saved_tensors
        grad_strip = gather(grad_canvas, cell_rows, ctx.grid)
        grad_fill = gradient_of_fill(grad_canvas, grad_strip, fill) if ctx.needs_input_grad[1] else None
        return grad_strip, grad_fill, None, None


class ToStrip(torch.autograd.Function):
    """`Geometry.to_strip`."""

    @staticmethod
    def forward(ctx, canvas, cell_rows, grid):
        ctx.save_for_backward(cell_rows)
        ctx.grid = grid
        return gather(canvas, cell_rows, grid)

    @staticmethod
    def backward(ctx, grad_strip):
        cell_rows, = ctx.saved_tensors
        return lay_out(grad_strip, 0.0, cell_rows, ctx.grid), None, None


class TableToStrip(torch.autograd.Function):
    """`Geometry.gather`: one table for all images is read where it is, not copied for each."""

    @staticmethod
    def forward(ctx, table, images, cell_rows, grid):
        ctx.save_for_backward(cell_rows)
        ctx.grid = grid
        rows_of_image = table.shape[2] * grid[1]
        return gather(table, cell_rows % rows_of_image, grid, images)

    @staticmethod
    def backward(ctx, grad_strip):
        cell_rows, = ctx.saved_tensors
        return lay_out(grad_strip, 0.0, cell_rows, ctx.grid).sum(0, keepdim=True), None, None, None


# The functions below return `.data`. Otherwise their results would be views for autograd, which does not allow that a view
# is changed in place if a custom Function returned it. An activation after a convolution, such as ReLU(inplace=True),
# does just that.

def lay_out(strip, fill, cell_rows, grid):
    """`Geometry.to_canvas` without autograd. cell_rows: `Geometry.cell_rows(p)`."""
    B, C, _, p = strip.shape
    h, w = grid
    rows = strip.permute(0, 2, 3, 1).reshape(-1, p * C)
    if torch.is_tensor(fill):
        canvas = fill.to(strip.dtype).view(1, C).repeat(B * h * p * w, p)
    else:
        canvas = rows.new_full((B * h * p * w, p * C), fill)
    return canvas.index_copy_(0, cell_rows, rows).view(B, h * p, w * p, C).permute(0, 3, 1, 2).data


def gather(canvas, cell_rows, grid, images=None):
    """`Geometry.to_strip` without autograd. cell_rows: `Geometry.cell_rows(p)`. images: how many share a canvas of one."""
    B, C, _, W = canvas.shape
    p = W // grid[1]
    rows = canvas.permute(0, 2, 3, 1).reshape(-1, p * C)
    return rows.index_select(0, cell_rows).view(images or B, -1, p, C).permute(0, 3, 1, 2).data


def gradient_of_fill(grad_canvas, grad_strip, fill):
    """The gradient of what fills the hidden positions: that of all of them, less that of the visible ones."""
    dtype = torch.promote_types(fill.dtype, grad_canvas.dtype)
    total = grad_canvas.sum((0, 2, 3), dtype=dtype) - grad_strip.sum((0, 2, 3), dtype=dtype)
    return total.view(fill.shape).to(fill.dtype)
