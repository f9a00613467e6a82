"""Index tables of the accelerated forms: which positions of the strips stand where.

They depend on the visible cells and on sizes alone. So they are made once a step for each size, and shared by
all layers of a stage.

Legend: as in pretrain/sparse/geometry.py. n = B*k is the number of visible cells in a batch, numbered in the order of the
strips. A batch of strips is read as a table (n*p*p, C) with a row for each position (`as_table` in gradients.py). The
entries of the index tables are numbers of its rows. The number n*p*p is that of a row of zeros after them
(`with_zero_row`), which stands for positions that are hidden or outside the image.
"""
import torch


class Tables:
    """The tables of one batch. visible, grid: as in Geometry. A table is computed once for given sizes."""

    def __init__(self, visible, grid):
        self.visible = visible
        self.grid = grid
        self._surroundings = {}
        self._windows = {}
        self._uses = {}
        self._overlaps = {}

    def surroundings(self, p, before, after):
        """(n, P_y, P_x): the positions of cells of side p that stand in each cell and around it.

        before, after: (rows, columns) that count above and left of the cell, and below and right of it.
        """
        key = p, before, after
        if key not in self._surroundings:
            self._surroundings[key] = make_surroundings(self.visible, self.grid, p, before, after)
        return self._surroundings[key]

    def windows(self, q, kernel, stride, padding):
        """(n*q*q, m): the positions in each window of a convolution, m = kernel[0] * kernel[1].

        q: the side of a cell after the convolution. kernel, padding: (rows, columns). stride: a number.
        """
        key = q, kernel, stride, padding
        if key not in self._windows:
            reached = self.surroundings(q * stride, padding, padding_after(kernel, stride, padding))
            windows = reached.unfold(1, kernel[0], stride).unfold(2, kernel[1], stride)
            self._windows[key] = windows.reshape(-1, kernel[0] * kernel[1])
        return self._windows[key]

    def uses(self, q, kernel, stride, padding):
        """(n*p*p, m'): the places in `windows`, flattened, at which each position of the strips stands.

        Arguments as for `windows`. m' is m for stride 1; n*q*q*m stands where a position is in fewer windows.
        """
        key = q, kernel, stride, padding
        if key not in self._uses:
            before, after = outputs_that_reach_in(kernel, stride, padding)
            outputs = self.surroundings(q, before, after)
            self._uses[key] = make_uses(outputs, q, kernel, stride, padding, before)
        return self._uses[key]

    def overlaps(self, p, side):
        """(sources, targets) for `Overlaid`: how squares lie on a canvas of p positions a cell.

        The squares are those of `side` x `side` positions that the visible cells are made of, each with the
        positions that touch it, P = side + 2 positions wide.
        """
        key = p, side
        if key not in self._overlaps:
            self._overlaps[key] = (make_sources(self.visible, self.grid, p, side),
                                   make_targets(self.visible, self.grid, p, side))
        return self._overlaps[key]


def padding_after(kernel, stride, padding):
    """(rows, columns) that windows reach below and right of a cell, where it is `padding` above and left."""
    return tuple(max(k - stride - pad, 0) for k, pad in zip(kernel, padding))


def outputs_that_reach_in(kernel, stride, padding):
    """Numbers of outputs (above, left) and (below, right) of a cell whose windows reach into it."""
    before = tuple((k - 1 - pad) // stride for k, pad in zip(kernel, padding))
    after = tuple(-(-pad // stride) for pad in padding)
    return before, after


def number_map(visible, grid, margin=(0, 0)):
    """(B, h + 2 * margin[0], w + 2 * margin[1]): the number of the visible cell at a place, -1 for none."""
    (B, k), (h, w) = visible.shape, grid
    width = w + 2 * margin[1]
    place = (visible // w + margin[0]) * width + visible % w + margin[1]
    numbers = torch.full((B, (h + 2 * margin[0]) * width), -1, device=visible.device)
    return numbers.scatter(1, place, torch.arange(B * k, device=visible.device).view(B, k)).view(B, -1, width)


def make_surroundings(visible, grid, p, before, after):
    """See Tables."""
    (B, k), w, device = visible.shape, grid[1], visible.device
    margin = [-(-max(sides) // p) for sides in zip(before, after)]  # in cells, rounded up
    numbers = number_map(visible, grid, margin)

    lines = torch.arange(-before[0], p + after[0], device=device)
    columns = torch.arange(-before[1], p + after[1], device=device)
    cell_y = (visible // w + margin[0])[..., None] + lines.div(p, rounding_mode='floor')  # (B, k, P_y)
    cell_x = (visible % w + margin[1])[..., None] + columns.div(p, rounding_mode='floor')  # (B, k, P_x)
    image = torch.arange(B, device=device)[:, None, None, None]
    cell = numbers[image, cell_y[..., None], cell_x[:, :, None]].flatten(0, 1)  # (n, P_y, P_x)

    positions = cell * p * p + (lines % p * p)[:, None] + columns % p
    return torch.where(cell < 0, B * k * p * p, positions)


def make_uses(outputs, q, kernel, stride, padding, before):
    """See Tables. outputs (n, Q_y, Q_x): positions of the output in a cell, and around it, that reach in."""
    p, area = q * stride, kernel[0] * kernel[1]
    taps_y, output_y = taps_of_lines(p, kernel[0], stride, padding[0], before[0], outputs.device)
    taps_x, output_x = taps_of_lines(p, kernel[1], stride, padding[1], before[1], outputs.device)
    taps_y = taps_y[:, :, None, None]
    window = outputs[:, output_y][..., output_x]  # (n, taps, p, taps, p)
    place = window * area + taps_y * kernel[1] + taps_x
    is_used = (taps_y < kernel[0]) & (taps_x < kernel[1])
    place = torch.where(is_used, place, len(outputs) * q * q * area)
    return place.permute(0, 2, 4, 1, 3).reshape(len(outputs) * p * p, -1)


def taps_of_lines(p, kernel, stride, padding, before, device):
    """Along one axis: which weights of a window stand on each line of a cell, and the outputs of these windows.

    Two tables (taps, p); taps that the kernel does not have are at least `kernel`.
    """
    line = torch.arange(p, device=device)
    tap = (line + padding) % stride + stride * torch.arange(-(-kernel // stride), device=device)[:, None]
    output = ((line + padding - tap) // stride + before).clamp(min=0)
    return tap, output


def make_sources(visible, grid, p, side):
    """(B*h*p*w*p, 9): the rows that lie on each position of the canvas, of squares as a table (squares*P*P, C).

    squares*P*P stands for none. See Tables.
    """
    (B, k), (h, w), device = visible.shape, grid, visible.device
    P, q = side + 2, p // side  # q squares along a cell
    num_squares = B * k * q * q
    y, x = torch.arange(h * q, device=device), torch.arange(w * q, device=device)
    cell = number_map(visible, grid)[:, y // q][..., x // q]
    square = torch.where(cell < 0, -1, cell * q * q + (y % q * q)[:, None] + x % q)  # (B, h*q, w*q)
    square = torch.nn.functional.pad(square, (1, 1, 1, 1), value=-1)

    step = torch.arange(-1, 2, device=device)[:, None]  # to the squares before and behind
    near_y = (y + 1)[:, None, None] + step  # (h*q, 3, 1)
    near_x = (x + 1)[:, None, None] + step
    square = square[:, near_y][..., near_x]  # (B, h*q, 3, 1, w*q, 3, 1)
    # (3, side): where a position lies in these squares.
    inside = torch.arange(side, device=device) - step * side + 1
    is_reached = (inside >= 0) & (inside < P)
    lies = (square >= 0) & is_reached[:, :, None, None, None] & is_reached
    row = square * P * P + inside[:, :, None, None, None] * P + inside  # (B, h*q, 3, side, w*q, 3, side)
    sources = torch.where(lies, row, num_squares * P * P)
    return sources.permute(0, 1, 3, 4, 6, 2, 5).reshape(B * h * p * w * p, -1)


def make_targets(visible, grid, p, side):
    """(squares*P*P,): the position of the canvas on which each row of the squares lies.

    B*h*p*w*p stands for what is beyond the image. See Tables.
    """
    (B, _), (h, w), device = visible.shape, grid, visible.device
    q = p // side
    corner = torch.arange(q, device=device) * side
    reach = torch.arange(-1, side + 1, device=device)
    y = ((visible // w)[..., None] * p + corner)[..., None] + reach  # (B, k, q, P)
    x = ((visible % w)[..., None] * p + corner)[..., None] + reach
    image = torch.arange(B, device=device)[:, None, None, None] * h * p
    line = torch.where((y >= 0) & (y < h * p), image + y, -1)[:, :, :, None, :, None]
    column = torch.where((x >= 0) & (x < w * p), x, -1)[:, :, None, :, None]
    is_inside = (line >= 0) & (column >= 0)  # (B, k, q, q, P, P)
    return torch.where(is_inside, line * w * p + column, B * h * p * w * p).flatten()
