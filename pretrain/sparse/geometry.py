"""Where the visible cells of a batch lie: the way from images to strips and back (SparK, section 3.1).

Legend: B batch, C channels, (h, w) grid of cells, L = h*w, k visible cells an image, p the side of a cell at
this stage (cell size / stride). A **strip** is (B, C, k*p, p): the visible cells of each image, p x p
positions each, one below the other. A **canvas** is the image plane, (B, C, h*p, w*p). Both are channels last
in memory, so that a row of p positions of a cell is one run of p*C numbers, and is copied as one.
"""
import torch

from pretrain.accelerated.tables import Tables
from pretrain.canvas import TableToStrip, ToCanvas, ToStrip


def cell_sides(cell_size):
    """The sides that a cell can have on the maps of a network: its side in pixels, halved as long as that is even."""
    sides = [cell_size]
    while sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return sides


class Geometry:
    """Where the visible cells of one batch lie.

    visible: LongTensor (B, k), row-major indices of the visible cells; their order is that of the strip.
    grid: (h, w).

    accelerated: whether layers may take the forms of pretrain/accelerated, which compute the same numbers up
    to rounding with less arithmetic, but in more and smaller kernels. They are built for CPUs. None: see
    `is_accelerated`.

    cell_size: if it is given, `cell_rows` for all sides that a cell can have are computed at once, unless
    accelerated. Blocks that are compiled, and share their graphs, find them there.
    """

    def __init__(self, visible, grid, accelerated=None, cell_size=None):
        self.visible = visible
        self.grid = grid
        self.accelerated = is_accelerated(accelerated, visible.device)
        self.tables = Tables(visible, grid) if self.accelerated else None
        self._cell_rows = {}
        if cell_size is not None and not self.accelerated:
            for p in cell_sides(cell_size):
                self.cell_rows(p)

    def cell_rows(self, p):
        """LongTensor (B*k*p,): where the rows of the visible cells stand on a canvas.

        A canvas that is cut into runs of p positions is a table of B*h*p*w rows. A visible cell has p of them; these are
        their numbers, in the order of the strip. Computed once for each p, since all layers of a stage need the same.
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

    def gather(self, table):
        """(1, C, h*p, w*p) -> (B, C, k*p, p): the visible cells of a map that is the same for all images, such as a
        position embedding.
        """
        rows = self.cell_rows(table.shape[3] // self.grid[1])
        return TableToStrip.apply(table, len(self.visible), rows, self.grid)

    def to_canvas(self, strip, fill=0.0):
        """(B, C, k*p, p) -> (B, C, h*p, w*p); hidden positions hold fill, a number or (1, C, 1, 1)."""
        return ToCanvas.apply(strip, fill, self.cell_rows(strip.shape[3]), self.grid)


def is_accelerated(given, device):
    """What `accelerated` comes to: what is given; if that is None, yes on the CPU, and nowhere else.

    This is the only place where the device decides.
    """
    return device.type == 'cpu' if given is None else given
