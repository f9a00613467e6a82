"""What a network is, found out by running it: its pyramid, its norms, and whether strips suit it.

Nothing is taken from declared numbers (timm's `feature_info` is wrong for some networks) or from names. What the probe
does not understand it refuses, by the module's path: a leak between cells would be silent otherwise.
"""
import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from common.feature_maps import feature_maps, find_taps
from pretrain.sparse.levels import check_sizes, choose_levels
from pretrain.sparse.notes import Note, NoteKind
from pretrain.sparse.parameters import modules_run_for_nothing, used_parameters
from pretrain.sparse.plane import CellTooSmall
from pretrain.sparse.proof import prove
from pretrain.sparse.pyramid import pyramid
from pretrain.sparse.refused import Refused
from pretrain.sparse.watch import OperatorWatch

ALIGNED = Note(NoteKind.ALIGNED_PADDING,
               'aligned padding: the network pads nothing ("valid"), here its odd windows are padded by half their size; the '
               'weights stay the same, but the fine-tuned network will have other borders')


@dataclass(frozen=True)
class Found:
    """The facts that a probe returns; see SparseEncoder."""
    stride: int
    cell_size: int
    grid: tuple
    levels: tuple
    reductions: tuple
    channels: tuple
    norm: str
    unused: tuple
    taps: tuple | None
    aligned: bool
    stop: int | None  # number of feature maps after which the forward ends, None if it runs them all
    notes: tuple
    uncompiled: bool  # whether torch.compile leaves the network alone


def probe(cnn, input_size, in_chans, cell_size, levels):
    """Measure a network and refuse what strips would get wrong.

    cnn: the network, which is left as it is. input_size: (height, width) in pixels. cell_size, levels: None, or as
    given to SparseEncoder. Returns Found; raises ValueError.
    """
    name = type(cnn).__name__
    check_layers(cnn)
    taps = find_taps(cnn, levels)
    check_parameters(cnn)
    twin = copy_of(cnn)  # whose scales, running statistics and gradients may change
    images = random_images(cnn, in_chans, input_size)
    maps, aligned = measure(cnn, images, taps)
    sizes = [tuple(out.shape[2:]) for out in maps]
    if taps and sizes != sorted(sizes, reverse=True):
        raise ValueError(f'levels: their maps must go from large to small, those of {", ".join(taps)} are {sizes}')
    chosen = choose_levels(name, input_size, sizes, cell_size)
    notes = [ALIGNED] * aligned + [*chosen.notes]
    maps_of = partial(feature_maps, taps=taps, stop=chosen.stop)

    for cell in (chosen.stride, 2 * chosen.stride, 4 * chosen.stride) if cell_size is None else (cell_size,):
        check_sizes(name, input_size, chosen.stride, cell, notes)
        grid = (input_size[0] // cell, input_size[1] // cell)
        try:
            watch, trained = OperatorWatch(cnn, grid), OperatorWatch(twin, grid)
            strips = watch.run(images, maps_of, aligned)
            trained.run(images, maps_of, aligned, training=True)
            break
        except CellTooSmall as error:
            if cell_size is not None or cell == 4 * chosen.stride:
                raise Refused(f'{name} cannot run with cells of {cell} px: {error}; give a larger cell_size') from error
            notes.append(Note(NoteKind.LARGER_CELLS, f'cells of {2 * cell} px, not {cell}, since {error}'))

    prove(twin, partial(pyramid, levels=chosen.indices, taps=taps, stop=chosen.stop, aligned=aligned), images, grid)
    strips = [strips[level] for level in chosen.indices]
    unused = unused_parameters(cnn, strips)
    notes += idle_notes(cnn, unused, watch.called)
    notes += sorted(watch.notes | trained.notes, key=str)
    return Found(stride=chosen.stride, cell_size=cell, grid=grid, levels=chosen.indices, reductions=chosen.reductions,
                 channels=tuple(strip.shape[1] for strip in strips), norm=most_frequent_norm(watch.called), unused=unused,
                 taps=taps, stop=chosen.stop, aligned=aligned, notes=tuple(notes),
                 uncompiled=taps is not None or watch.pads or trained.pads)


def check_layers(cnn):
    """Raise Refused for a network that is no two-dimensional convolutional network."""
    has_3d, has_2d = (any(isinstance(module, cls) for module in cnn.modules()) for cls in (nn.Conv3d, nn.Conv2d))
    if has_3d or not has_2d:
        raise Refused(f'{type(cnn).__name__} is no two-dimensional convolutional network: it has '
                      f'{"Conv3d layers" if has_3d else "no Conv2d layer"}. Only CNNs on images (B, C, H, W) fit')


def check_parameters(cnn):
    """Raise Refused for a network that cannot be run, or not be looked into."""
    name, like = type(cnn).__name__, next(cnn.parameters(), None)
    if like is None:
        raise Refused(f'{name} has no parameters')
    if like.is_meta:
        raise Refused(f'{name} is on the meta device, without values: make it on a real one')
    if any(isinstance(module, torch.jit.ScriptModule) for module in cnn.modules()):
        raise Refused(f'{name} holds a module that torch.jit compiled, which cannot be looked into: use its source')


def copy_of(cnn):
    try:
        return copy.deepcopy(cnn)
    except Exception as error:
        raise Refused(f'{type(cnn).__name__} cannot be copied ({error}): leave no results of a forward in its attributes, and '
                      'use torch.nn.utils.parametrizations instead of the old weight_norm and spectral_norm') from error


def random_images(cnn, in_chans, size):
    """Two images, in the precision and on the device of the network's first parameter."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, in_chans, *size, generator=generator).to(next(cnn.parameters()))


def measure(cnn, images, taps):
    """The maps of a dense forward, and whether they came with aligned padding, used where they are no pyramid without."""
    def divide_the_image(maps):
        return all(not (images.shape[2] % out.shape[2] or images.shape[3] % out.shape[3]) for out in maps)

    maps = OperatorWatch(cnn).run(images, partial(feature_maps, taps=taps))
    if not divide_the_image(maps):
        try:
            aligned = OperatorWatch(cnn).run(images, partial(feature_maps, taps=taps), aligned=True)
        except Refused:  # windows that grow with their padding need not fit what follows
            return maps, False
        if [out.shape for out in aligned] != [out.shape for out in maps] and divide_the_image(aligned):
            return aligned, True
    return maps, False


def unused_parameters(cnn, outputs):
    """Names of the trainable parameters that the outputs do not depend on."""
    used = used_parameters(outputs)
    return tuple(key for key, p in cnn.named_parameters() if p.requires_grad and id(p) not in used)


def idle_notes(cnn, unused, called):
    """A note on modules that are run though no feature map depends on them, if there are any."""
    idle = modules_run_for_nothing(cnn, unused, called)
    if not idle:
        return []
    return [Note(NoteKind.NOT_PRETRAINED,
                 f'not pretrained, since no feature map comes after it: {", ".join(idle)}; to include it, name the modules '
                 'whose outputs are the pyramid yourself (levels)')]


def most_frequent_norm(called):
    """'bn' if more than half of the norms among these modules are BatchNorms, else 'ln'."""
    norms = [one for one in called if isinstance(one, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))]
    batch_norms = sum(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in norms)
    return 'bn' if batch_norms > len(norms) / 2 else 'ln'
