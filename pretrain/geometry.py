"""Where the visible cells of a batch lie: the way from images to strips and back (SparK, section 3.1).

Legend: B batch, C channels, (h, w) grid of cells, L = h*w, k visible cells an image, p the side of a cell at
this stage (cell size / stride). A **strip** is (B, C, k*p, p): the visible cells of each image, p x p
positions each, one below the other. A **canvas** is the image plane, (B, C, h*p, w*p). Both are channels last
in memory, so that a row of p positions of a cell is one run of p*C numbers, and is copied as one.
"""
import torch


class Geometry:
    """Where the visible cells of one batch lie.

    visible: LongTensor (B, k), row-major indices of the visible cells; their order is that of the strip.
    grid: (h, w).

    accelerated: whether layers may take the forms of pretrain/accelerated, which compute the same numbers up
    to rounding in fewer operations, but in many small ones. They are built for CPUs. None: on the CPU, and
    nowhere else. This is the only place where the device decides.
    """

    def __init__(self, visible, grid, accelerated=None):
        self.visible = visible
        self.grid = grid
        self.accelerated = visible.device.type == 'cpu' if accelerated is None else accelerated
        self.cache = {}  # what the accelerated forms keep of this batch
        self._cell_rows = {}

    def cell_rows(self, p):
        """(B*k*p,): where the rows of the visible cells stand on a canvas that is cut into rows of p
        positions.

        Computed once for each p, since all layers of a stage need the same.
        """
        if p not in self._cell_rows:
            h, w = self.grid
            image = torch.arange(len(self.visible), device=self.visible.device)[:, None]
            top = (image * h + self.visible // w) * p
            lines = top[..., None] + torch.arange(p, device=top.device)
            self._cell_rows[p] = (lines * w + (self.visible % w)[..., None]).flatten()
        return self._cell_rows[p]

    def to_strip(self, canvas):
        """(B, C, h*p, w*p) -> (B, C, k*p, p): the visible cells of each image, one below the other."""
        return ToStrip.apply(canvas, self.cell_rows(canvas.shape[3] // self.grid[1]), self.grid)

    def to_canvas(self, strip, fill=0.0):
        """(B, C, k*p, p) -> (B, C, h*p, w*p); hidden positions hold fill, a number or (1, C, 1, 1)."""
        return ToCanvas.apply(strip, fill, self.cell_rows(strip.shape[3]), self.grid)

    def is_visible(self):
        """(B, L) boolean map of the grid, True where a cell is visible."""
        num_cells = self.grid[0] * self.grid[1]
        hidden = torch.zeros(len(self.visible), num_cells, dtype=torch.bool, device=self.visible.device)
        return hidden.scatter(1, self.visible, True)


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


# The results below are `.data`, no views for autograd: it would forbid that an activation changes in place a
# view that a Function returns.

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


def gather(canvas, cell_rows, grid):
    """`Geometry.to_strip` without autograd. cell_rows: `Geometry.cell_rows(p)`."""
    B, C, _, W = canvas.shape
    p = W // grid[1]
    rows = canvas.permute(0, 2, 3, 1).reshape(-1, p * C)
    return rows.index_select(0, cell_rows).view(B, -1, p, C).permute(0, 3, 1, 2).data


def gradient_of_fill(grad_canvas, grad_strip, fill):
    """The gradient of what fills the hidden positions: that of all of them, less that of the visible ones."""
    dtype = torch.promote_types(fill.dtype, grad_canvas.dtype)
    total = grad_canvas.sum((0, 2, 3), dtype=dtype) - grad_strip.sum((0, 2, 3), dtype=dtype)
    return total.view(fill.shape).to(fill.dtype)
