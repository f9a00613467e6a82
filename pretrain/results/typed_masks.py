"""Masks that a person types, besides those that are drawn at random (draw_visible of a network).

A mask is a text: either the lines of the grid of cells, in which # is a visible cell and . a hidden one, or
the indices of the visible cells, row by row:

    #..#
    .##.        or, in a grid of 2 x 4,       0 3 5 6
"""
import math
import re

import torch
import torch.nn.functional as F

from common.words import counted


def read_mask(text, grid):
    """Read a mask for a grid (h, w). Returns visible, LongTensor (1, k).

    Raises ValueError that says what the grid is.
    """
    if set(text) & set('#.'):
        return read_signs(text, grid)
    return read_indices(text, grid)


def read_signs(text, grid):
    """Read the lines of a grid, as in `read_mask`."""
    h, w = grid
    lines = [re.sub(r'\s', '', line) for line in text.splitlines() if line.strip()]
    unknown = sorted(set(''.join(lines)) - set('#.'))
    if unknown:
        raise ValueError(f'the mask has the sign "{unknown[0]}": it is # for a visible cell and . for a '
                         'hidden one')
    lengths = [len(line) for line in lines]
    if lengths != [w] * h:
        raise ValueError(f'the mask has {counted(len(lines), "line")} of '
                         f'{", ".join(map(str, sorted(set(lengths))))} signs; this network wants {h} lines '
                         f'of {w}, # for a visible cell and . for a hidden one')
    return to_visible([sign == '#' for sign in ''.join(lines)], grid)


def read_indices(text, grid):
    """Read indices of cells, as in `read_mask`."""
    h, w = grid
    try:
        cells = sorted({int(word) for word in re.split(r'[\s,]+', text.strip())})
    except ValueError:
        raise ValueError(f'the mask is neither {h} lines of {w} signs # and ., nor the indices of the '
                         f'visible cells, numbers from 0 to {h * w - 1}') from None
    outside = [cell for cell in cells if not 0 <= cell < h * w]
    if outside:
        cell = outside[0] if outside[0] < 0 else outside[-1]
        raise ValueError(f'cell {cell} is not in the grid of {h} x {w}: cells are numbered from 0 to '
                         f'{h * w - 1}')
    return to_visible([cell in cells for cell in range(h * w)], grid)


def to_visible(is_visible, grid):
    """Make visible, LongTensor (1, k), of a boolean for each cell, row by row.

    Raises ValueError if the number of cells is wrong, or if all are alike.
    """
    is_visible = torch.as_tensor(is_visible, dtype=torch.bool).flatten()
    if len(is_visible) != grid[0] * grid[1]:
        raise ValueError(f'a mask of {counted(len(is_visible), "cell")} for a grid of {grid[0]} x {grid[1]}')
    if is_visible.all() or not is_visible.any():
        raise ValueError('one cell at least must be visible and one hidden')
    return is_visible.nonzero().T


def on_other_grid(visible, grid, other):
    """Transfer a mask (1, k) from one grid to another.

    A cell is visible if half of its area or more is. One cell at least is visible, and one is hidden.
    """
    if tuple(grid) == tuple(other):
        return visible
    is_visible = torch.zeros(1, 1, *grid)
    is_visible.view(-1)[visible[0]] = 1
    fine_grid = [math.lcm(n, m) for n, m in zip(grid, other)]  # whose lines are those of both grids, and more
    fine = F.interpolate(is_visible, size=fine_grid, mode='nearest')
    visible_share = F.adaptive_avg_pool2d(fine, other).flatten()
    order = visible_share.argsort()
    is_visible = visible_share >= 0.5
    is_visible[order[-1]] = True
    is_visible[order[0]] = False
    return to_visible(is_visible, other)


def mask_text(visible, grid):
    """Write a mask (1, k) as the text that `read_mask` reads."""
    cells = set(visible.flatten().tolist())
    h, w = grid
    return '\n'.join(''.join('#' if y * w + x in cells else '.' for x in range(w)) for y in range(h))
