"""Masking by cells: what every masked method needs, with the method's own numbers handed in.

An image (B, C, H, W) is a grid (h, w) of square cells, `cell_size` pixels a side, counted in rows: L = h*w
cells. `visible` is a LongTensor (B, k): the indices of the cells that the encoder sees, ascending, as many in
every image. How many these are follows from a method's mask ratio by a rounding of its own, so methods hand
in the number. A cell is what SparK and MAE call a patch.
"""
import math

import torch


def check_num_visible(num_visible, num_cells, mask_ratio):
    """Raise ValueError unless at least one of an image's cells is visible and one is hidden."""
    if not 0 < num_visible < num_cells:
        scale = 10 ** (len(str(num_cells)) + 1)  # The bounds are rounded inwards, so that both are allowed.
        smallest = math.ceil(scale / num_cells)
        raise ValueError(f'mask_ratio {mask_ratio} leaves {num_visible} of {num_cells} cells visible; one at '
                         f'least must be visible and one hidden: give {smallest / scale} to {(scale - smallest) / scale}')


def draw_visible(batch, num_cells, num_visible, generator=None, rows=slice(None)):
    """Visible cells drawn uniformly at random, as many in every image: LongTensor (batch, num_visible) on the CPU.

    rows: the images of the batch that are returned. What an image gets does not depend on which others are.
    """
    order = torch.rand(batch, num_cells, generator=generator)[rows].argsort(dim=1)
    return order[:, :num_visible].sort(dim=1).values


def draw_complementary(batch, num_cells, num_masks, generator=None, rows=slice(None)):
    """Masks of which each cell is visible in exactly one: LongTensor (batch, num_masks, num_cells / num_masks) on the CPU.

    num_masks: divides num_cells. rows: as of `draw_visible`.
    """
    order = torch.rand(batch, num_cells, generator=generator)[rows].argsort(dim=1)
    return order.unflatten(1, (num_masks, -1)).sort(dim=2).values


def check_visible(visible, batch):
    """Raise ValueError if a given `visible` is no LongTensor (batch, k). The values are not looked at."""
    if visible.dtype != torch.long or visible.ndim != 2 or len(visible) != batch:
        raise ValueError(f'visible must be a LongTensor (B, k) with B = {batch}, the indices of the visible '
                         f'cells; got {visible.dtype} {tuple(visible.shape)}')


def check_indices(visible, num_cells, batch):
    """Raise ValueError unless a given `visible` is a LongTensor (batch, k) that holds ascending indices of cells.

    It reads the values, so that the host waits for the device.
    """
    check_visible(visible, batch)
    if not (visible.numel() and 0 <= visible.min() and visible.max() < num_cells and (visible.diff(dim=1) > 0).all()):
        raise ValueError(f'visible must hold ascending cell indices from 0 to {num_cells - 1}, '
                         'each once an image')


def is_visible(visible, num_cells):
    """(B, k) indices -> (B, L) bool."""
    seen = torch.zeros(len(visible), num_cells, dtype=torch.bool, device=visible.device)
    return seen.scatter(1, visible, True)


def patchify(images, cell_size):
    """(B, C, H, W) -> (B, L, C * cell_size * cell_size): the values of each cell."""
    B, C, H, W = images.shape
    h, w = H // cell_size, W // cell_size
    cells = images.reshape(B, C, h, cell_size, w, cell_size).permute(0, 2, 4, 1, 3, 5)
    return cells.flatten(3).flatten(1, 2)


def unpatchify(cells, grid, cell_size):
    """The inverse of `patchify`: (B, L, C * cell_size * cell_size) -> (B, C, H, W)."""
    h, w = grid
    images = cells.view(len(cells), h, w, -1, cell_size, cell_size).permute(0, 3, 1, 4, 2, 5)
    return images.flatten(4).flatten(2, 3)


def normalise(cells):
    """Normalise each cell by its own mean and standard deviation, over all its pixels and channels together.

    cells (B, L, N) -> (normalised cells (B, L, N), means (B, L, 1), standard deviations (B, L, 1)). The standard
    deviation is (unbiased variance + 1e-6) ** 0.5, as in MAE (He et al. 2022) and SparK (section 3.3).
    """
    mean = cells.mean(dim=2, keepdim=True)
    deviation = (cells.var(dim=2, keepdim=True) + 1e-6).sqrt()
    return (cells - mean) / deviation, mean, deviation
