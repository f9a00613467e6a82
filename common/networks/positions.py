"""Learned positions of transformers, for images of another size than the weights were made with."""
import math

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

from common.convvit import ConvViT
from common.convvit import resized as resized_map

POSITIONS = 'pos_embed'
TABLE = 'relative_position_bias_table'


def resized_positions(module, entries):
    """Resize the positions and the tables of relative positions that are for another grid of patches.

    It is done as timm does where it loads its own weights (`checkpoint_filter_fn` of its ViTs and Swins), and for a
    ConvViT as that does for images of another size. A file does not say of which grid they are: they are taken to be
    of one in the proportions of the network's, or, where their number fits none, of a square one.

    Args:
        module: has the network in it.
        entries: {key: tensor} under the module's names.

    Returns (entries, sentences on what was resized). What cannot be resized comes back as it was.
    """
    own = module.state_dict()
    resized = {}
    grids = {}
    for key, value in entries.items():
        name = key.rpartition('.')[2]
        if name not in (POSITIONS, TABLE) or key not in own or own[key].shape == value.shape:
            continue
        parent = module.get_submodule(key.rpartition('.')[0])
        resize = resized_embedding if name == POSITIONS else resized_table
        found = resize(parent, value, own[key].shape)
        if found is not None:
            resized[key], old, new = found
            grids.setdefault((old, new), []).append(name)
    return {**entries, **resized}, tuple(sentence(*sizes, names) for sizes, names in grids.items())


def resized_embedding(network, value, shape):
    """Resize the positions (1, prefix + h*w, C) of a network. Returns (tensor, old grid, new grid), or None."""
    grid = grid_of(network)
    if grid is None or value.ndim != 3 or len(shape) != 3:
        return None
    if value.shape[0] != 1 or value.shape[2] != shape[2]:
        return None
    num_prefix = shape[1] - grid[0] * grid[1]
    old = old_grid(value.shape[1] - num_prefix, grid)
    if num_prefix < 0 or old is None:
        return None
    if isinstance(network, ConvViT):
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        return resized_map(wide, old, grid).to(value.dtype), old, grid
    return resample_abs_pos_embed(value, grid, old, num_prefix), old, grid


def grid_of(network):
    """Return the grid (h, w) of the patches of a transformer, None for another network."""
    grid = network.grid if isinstance(network, ConvViT) else getattr(getattr(network, 'patch_embed', None), 'grid_size', None)
    return None if grid is None else tuple(grid)


def old_grid(number, new):
    """Return the likely grid (h, w) of so many patches: in the proportions of another grid, else a square; or None."""
    unit = math.gcd(*new)
    for height, width in ((new[0] // unit, new[1] // unit), (1, 1)):
        times = square_root(number / (height * width))
        if times is not None:
            return height * times, width * times
    return None


def resized_table(attention, value, shape):
    """Resize a table of relative positions ((2h - 1) * (2w - 1) + extra, heads). Returns as above."""
    window = getattr(attention, 'window_size', None)
    if window is None or value.ndim != 2 or value.shape[1:] != shape[1:]:
        return None
    num_extra = shape[0] - (2 * window[0] - 1) * (2 * window[1] - 1)
    side = square_root(value.shape[0] - num_extra)
    if num_extra < 0 or side is None or side % 2 == 0:
        return None
    old = ((side + 1) // 2,) * 2
    return resize_rel_pos_bias_table(value, window, shape), old, tuple(window)


def square_root(number):
    """Return the root of a square number of 1 or more, None for any other number."""
    root = round(max(number, 0) ** 0.5)
    return root if root and root * root == number else None


def sentence(old, new, names):
    """Say what was resized from one grid (height, width) to another."""
    num_tables = names.count(TABLE)
    parts = ['the positions'] * (POSITIONS in names)
    parts += [f'{num_tables} tables of relative positions'] * bool(num_tables)
    verb = 'are' if len(parts) > 1 or num_tables != 1 or POSITIONS in names else 'is'
    return f'{" and ".join(parts)} {verb} resized from {old[0]}x{old[1]} patches to {new[0]}x{new[1]}'
