"""All that a DenseEncoder has to know of a network, found out on a copy of it."""
from dataclasses import dataclass

import torch
from timm.models.convnext import ConvNeXt

from pretrain.dense.maps import Seen, look
from pretrain.dense.mask_token import Layout
from pretrain.dense.placement import find_place
from pretrain.dense.proof import Proof
from pretrain.dense.sizes import choose_cell
from pretrain.sparse.probe import check_parameters, copy_of, random_images


@dataclass(frozen=True)
class Found:
    """The facts that `probe` returns; see DenseEncoder."""
    seen: Seen
    cell_size: int
    grid: tuple
    token_at: str
    layout: Layout
    unused: tuple
    notes: tuple


def probe(cnn, input_size, in_chans, cell_size, token_at):
    """Measure a network and prove the place of its token. Returns Found; raises ValueError.

    Everything is tried on a copy, so that the network stays as it is. It takes about five forwards of two images.
    """
    check_parameters(cnn)
    images = random_images(cnn, in_chans, input_size)
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        twin = copy_of(cnn).eval()
        seen = look(twin, images[:1])
        cell = choose_cell(type(cnn).__name__, input_size, seen.stride, cell_size)
        grid = (input_size[0] // cell, input_size[1] // cell)
        proof = Proof(twin, seen.last_map, images, grid)
        place, layout = find_place(cnn, seen, proof, token_at)
    return Found(seen, cell, grid, place, layout, proof.unused, notes_on(cnn))


def notes_on(cnn):
    """Sentences on what was chosen for a network."""
    if starts_at_zero(cnn):
        return ('the mask token starts at zero, as the original does it for ConvNeXt',)
    return ()


def starts_at_zero(cnn):
    """Whether the token starts at zero: the original's initialiser does nothing for ConvNeXt."""
    return isinstance(cnn, ConvNeXt)
