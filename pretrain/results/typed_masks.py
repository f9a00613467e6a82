"""Masks that a person gives, besides those that are drawn (SparK.draw_visible).

A mask is a text, of the grid's lines, in which # is a visible cell and . a hidden one, or the indices of the visible cells:

    #..#
    .##.        or, in a grid of 2 x 4,       0 3 5 6
"""
import math
import re

import torch
import torch.nn.functional as F

from common.words import counted


def read_mask(text, grid):
    """A text -> visible, LongTensor (1, k), for a grid (h, w). Raises ValueError that says what the grid is."""
    h, w = grid
    if set(text) & set('#.'):
        lines = [re.sub(r'\s', '', line) for line in text.splitlines() if line.strip()]
        strange = sorted(set(''.join(lines)) - set('#.'))
        if strange:
            raise ValueError(f'the mask has the sign "{strange[0]}": it is # for a visible cell and . for a hidden one')
        if [len(line) for line in lines] != [w] * h:
            raise ValueError(f'the mask has {counted(len(lines), "line")} of '
                             f'{", ".join(map(str, sorted({len(line) for line in lines})))} '
                             f'signs; this network wants {h} lines of {w}, # for a visible cell and . for a hidden one')
        return to_visible([sign == '#' for sign in ''.join(lines)], grid)
    try:
        cells = sorted({int(word) for word in re.split(r'[\s,]+', text.strip())})
    except ValueError:
        raise ValueError(f'the mask is neither {h} lines of {w} signs # and ., nor the indices of the visible cells, numbers '
                         f'from 0 to {h * w - 1}') from None
    if cells[0] < 0 or cells[-1] >= h * w:
        raise ValueError(f'cell {cells[0] if cells[0] < 0 else cells[-1]} is not in the grid of {h} x {w}: cells are numbered '
                         f'from 0 to {h * w - 1}')
    return to_visible([cell in cells for cell in range(h * w)], grid)


def to_visible(is_visible, grid):
    """A boolean for each cell, row by row -> visible, LongTensor (1, k). Raises ValueError if all are alike."""
    is_visible = torch.as_tensor(is_visible, dtype=torch.bool).flatten()
    if len(is_visible) != grid[0] * grid[1]:
        raise ValueError(f'a mask of {counted(len(is_visible), "cell")} for a grid of {grid[0]} x {grid[1]}')
    if is_visible.all() or not is_visible.any():
        raise ValueError('one cell at least must be visible and one hidden')
    return is_visible.nonzero().T


def of_grid(visible, grid, other):
    """A mask (1, k) of one grid on another: a cell is visible if half of its area is, one at least is and one is not."""
    if tuple(grid) == tuple(other):
        return visible
    is_visible = torch.zeros(1, 1, *grid)
    is_visible.view(-1)[visible[0]] = 1
    fine = [math.lcm(n, m) for n, m in zip(grid, other)]
    share = F.adaptive_avg_pool2d(F.interpolate(is_visible, size=fine, mode='nearest'), other).flatten()
    shown = share >= 0.5
    order = share.argsort()
    shown[order[-1]], shown[order[0]] = True, False
    return to_visible(shown, other)


def drawn(visible, grid):
    """A mask (1, k) -> the text that `read_mask` reads."""
    cells = set(visible.flatten().tolist())
    return '\n'.join(''.join('#' if y * grid[1] + x in cells else '.' for x in range(grid[1])) for y in range(grid[0]))
