"""What a network is, found out by running it: its pyramid, its norms, and whether strips suit it.

Nothing is taken from declared numbers (timm's `feature_info` is wrong for some networks) or from names. What
the probe does not understand it refuses, by the module's path: a leak between cells would be silent otherwise.
"""
import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from common.feature_maps import FeatureMapsError, feature_maps, find_taps
from pretrain.sparse.attention import prove_attention, proven_orders
from pretrain.sparse.levels import check_sizes, choose_levels, stride_of
from pretrain.sparse.notes import Note, NoteKind
from pretrain.sparse.parameters import modules_run_for_nothing, used_parameters
from pretrain.sparse.plane import CellTooSmall
from pretrain.sparse.proof import prove, prove_own_rules
from pretrain.sparse.pyramid import pyramid
from pretrain.sparse.refused import PLAIN_TRANSFORMER, AttentionRefused, Refused
from pretrain.sparse.watch import OperatorWatch

ALIGNED = Note(NoteKind.ALIGNED_PADDING,
               'aligned padding: the network pads nothing ("valid"), here its odd windows are padded by half '
               'their size; the weights stay the same, but the fine-tuned network will have other borders')


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
    has_attention: bool
    orders: tuple | None

    def as_plain(self):
        """A dict of numbers, strings, and tuples of these."""
        return vars(self) | {'notes': tuple((note.kind.value, note.text) for note in self.notes)}

    @classmethod
    def of_plain(cls, facts):
        """The inverse of `as_plain`; lists are as good as tuples."""
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
        notes = tuple(Note(NoteKind(kind), text) for kind, text in facts['notes'])
        return cls(**values | {'notes': notes})


@dataclass(frozen=True)
class Measured:
    """What one dense forward at the real size shows.

    sizes: (height, width) of each feature map. aligned: whether they are had with aligned padding. operators:
    what the forward called, in its order. attention: which module is the first to run attention, None if there is none.
    """
    taps: tuple | None
    sizes: list
    aligned: bool
    operators: list
    attention: str | None

    @property
    def is_plain_transformer(self):
        """Whether it has attention, and several maps of one size."""
        return self.attention is not None and len(self.sizes) > 1 and len(set(self.sizes)) == 1


@dataclass(frozen=True)
class Trial:
    """What running a network on strips shows, as in Found. breaks_compile, has_tokens: see OperatorWatch."""
    channels: tuple
    unused: tuple
    norm: str
    notes: tuple
    breaks_compile: bool
    has_attention: bool
    has_tokens: bool

    @property
    def runs_over_tokens(self):
        """Whether something runs over the tokens of all visible cells, or may."""
        return self.has_attention or self.has_tokens


def probe(cnn, input_size, in_chans, cell_size, levels):
    """Measure a network and refuse what strips would get wrong.

    cnn: the network, which is left as it is. input_size: (height, width) in pixels. cell_size, levels: None,
    or as given to SparseEncoder. Returns Found; raises ValueError.
    """
    name = type(cnn).__name__
    check_layers(cnn)
    taps = find_taps(cnn, levels)
    check_parameters(cnn)
    twin = copy_of(cnn)
    images = random_images(cnn, in_chans, input_size)
    measured = measure(cnn, images, taps)
    if taps and measured.sizes != sorted(measured.sizes, reverse=True):
        raise ValueError('levels: their maps must go from large to small, those of '
                         f'{", ".join(taps)} are {measured.sizes}')
    if measured.is_plain_transformer:
        raise AttentionRefused(f'{name} {PLAIN_TRANSFORMER}')
    chosen = choose_levels(name, input_size, measured.sizes, cell_size)
    notes = [ALIGNED, *chosen.notes] if measured.aligned else [*chosen.notes]
    cells = (chosen.stride, 2 * chosen.stride, 4 * chosen.stride) if cell_size is None else (cell_size,)
    for cell in cells:
        check_sizes(name, input_size, chosen.stride, cell, notes)
        try:
            trial = try_cells(cnn, twin, images, cell, measured, chosen)
            break
        except CellTooSmall as error:
            if cell == cells[-1]:
                raise Refused(f'{name} cannot run with cells of {cell} px: {error}; give a larger '
                              'cell_size') from error
            twin = copy_of(cnn)
            notes.append(Note(NoteKind.LARGER_CELLS, f'cells of {2 * cell} px, not {cell}, since {error}'))
    return Found(
        stride=chosen.stride, cell_size=cell, grid=(input_size[0] // cell, input_size[1] // cell),
        levels=chosen.indices, reductions=chosen.reductions, channels=trial.channels, norm=trial.norm,
        unused=trial.unused, taps=taps, aligned=measured.aligned, stop=chosen.stop,
        notes=(*notes, *trial.notes), uncompiled=taps is not None or trial.breaks_compile,
        has_attention=trial.has_attention,
        orders=proven_orders((input_size[0] // cell, input_size[1] // cell)) if trial.runs_over_tokens else None)


def try_cells(cnn, twin, images, cell, measured, chosen):
    """Run a network on strips of cells of a size, and prove that it gives its own features there.

    It is tried on smaller images first (`stand_in`), if the network runs the same operators on them: what a layer does on
    a strip depends on the side of a cell, not on their number. If it is refused there, the images themselves decide,
    since some layers cannot take so few cells. A network with attention, or with operators over tokens that may be
    attention, is tried on the images themselves: one window may cover a smaller image, and would pass for attention over
    all positions.

    twin: a copy of the network, which is changed. Returns Trial; raises Refused, CellTooSmall.
    """
    smaller = None if measured.attention else stand_in(images, cell)
    if smaller is not None:
        try:
            if runs_alike(twin, smaller, measured, chosen):
                trial = try_on_strips(twin, smaller, cell, measured, chosen)
                if not trial.has_tokens:
                    return trial
        except (Refused, FeatureMapsError):
            pass
        twin = copy_of(cnn)
    return try_on_strips(twin, images, cell, measured, chosen)


def stand_in(images, cell):
    """Smaller images of at most 3 x 4 cells; None if there are no smaller ones.

    They are not square where that can be had: a layer that shortens both sides by the same number of pixels
    may keep a whole number of pixels in each cell of a square by chance.
    """
    h, w = images.shape[2] // cell, images.shape[3] // cell
    rows, columns = (3, 4) if w >= 4 else (4, 3)
    if h <= rows and w <= columns:
        return None
    return images[:, :, :cell * min(h, rows), :cell * min(w, columns)].contiguous()


def runs_alike(twin, smaller, measured, chosen):
    """Whether a network calls the same operators on smaller images, and has levels of the same strides."""
    watch = OperatorWatch(twin)
    maps = watch.run(smaller, partial(feature_maps, taps=measured.taps), measured.aligned)
    size = tuple(smaller.shape[2:])
    strides = tuple(stride_of(size, maps[level].shape[2:]) for level in chosen.indices)
    return watch.operators == measured.operators and strides == chosen.reductions


def try_on_strips(twin, images, cell, measured, chosen):
    """`try_cells` on these very images."""
    grid = (images.shape[2] // cell, images.shape[3] // cell)
    maps_of = partial(feature_maps, taps=measured.taps, stop=chosen.stop)
    watch = OperatorWatch(twin, grid, measured.attention is not None)
    maps = watch.run(images, maps_of, measured.aligned)
    trained = OperatorWatch(twin, grid, measured.attention is not None)
    trained.run(images, maps_of, measured.aligned, training=True)

    strips = [maps[level] for level in chosen.indices]
    unused = unused_parameters(twin, strips)
    notes = [*idle_notes(twin, unused, watch.called), *sorted(watch.notes | trained.notes, key=str)]
    run_pyramid = partial(pyramid, levels=chosen.indices, taps=measured.taps, stop=chosen.stop,
                          aligned=measured.aligned)
    if watch.needs_full_proof or trained.needs_full_proof:
        prove_attention(twin, run_pyramid, images, grid)
    else:
        prove(twin, run_pyramid, images, grid)
        if (watch.has_own_rule or trained.has_own_rule) and not has_other_padding(notes):
            prove_own_rules(twin, run_pyramid, images, grid)
    return Trial(channels=tuple(strip.shape[1] for strip in strips), unused=unused,
                 norm=most_frequent_norm(watch.called), notes=tuple(notes),
                 breaks_compile=watch.breaks_compile or trained.breaks_compile, has_attention=watch.attention is not None,
                 has_tokens=watch.has_tokens or trained.has_tokens)


def has_other_padding(notes):
    """Whether a network pads by reflection or the like, so that a part of an image is not what it is as an image."""
    return any(note.kind is NoteKind.PADDING_MODE for note in notes)


def check_layers(cnn):
    """Raise Refused for a network that is no two-dimensional convolutional network."""
    has_3d = any(isinstance(module, nn.Conv3d) for module in cnn.modules())
    has_2d = any(isinstance(module, nn.Conv2d) for module in cnn.modules())
    if has_3d or not has_2d:
        layers = 'Conv3d layers' if has_3d else 'no Conv2d layer'
        raise Refused(f'{type(cnn).__name__} is no two-dimensional convolutional network: it has {layers}. '
                      'Only CNNs on images (B, C, H, W) fit')


def check_parameters(cnn):
    """Raise Refused for a network that cannot be run, or not be looked into."""
    name, like = type(cnn).__name__, next(cnn.parameters(), None)
    if like is None:
        raise Refused(f'{name} has no parameters')
    if like.is_meta:
        raise Refused(f'{name} is on the meta device, without values: make it on a real one')
    if any(isinstance(module, torch.jit.ScriptModule) for module in cnn.modules()):
        raise Refused(f'{name} holds a module that torch.jit compiled, which cannot be looked into: use its '
                      'source')


def copy_of(cnn):
    try:
        return copy.deepcopy(cnn)
    except Exception as error:
        raise Refused(f'{type(cnn).__name__} cannot be copied ({error}): leave no results of a forward in '
                      'its attributes, and use torch.nn.utils.parametrizations instead of the old '
                      'weight_norm and spectral_norm') from error


def random_images(cnn, in_chans, size):
    """Two images, in the precision and on the device of the network's first parameter."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, in_chans, *size, generator=generator).to(next(cnn.parameters()))


def measure(cnn, images, taps):
    """Run the network densely, with aligned padding where its maps make no pyramid without. Returns Measured."""
    def divide_the_image(sizes):
        return all(not (images.shape[2] % height or images.shape[3] % width) for height, width in sizes)

    plain = run_densely(cnn, images, taps, aligned=False)
    if divide_the_image(plain.sizes):
        return plain
    try:
        aligned = run_densely(cnn, images, taps, aligned=True)
    except Refused:  # windows that grow with their padding need not fit what follows
        return plain
    return aligned if aligned.sizes != plain.sizes and divide_the_image(aligned.sizes) else plain


def run_densely(cnn, images, taps, aligned):
    watch = OperatorWatch(cnn)
    maps = watch.run(images, partial(feature_maps, taps=taps), aligned)
    return Measured(taps, [tuple(out.shape[2:]) for out in maps], aligned, watch.operators,
                    watch.attention)


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
                 f'not pretrained, since no feature map comes after it: {", ".join(idle)}; to include it, '
                 'name the modules whose outputs are the pyramid yourself (levels)')]


def most_frequent_norm(called):
    """'bn' if more than half of the norms among these modules are BatchNorms, else 'ln'."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    num_norms = sum(isinstance(module, kinds) for module in called)
    num_batch_norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in called)
    return 'bn' if num_batch_norms > num_norms / 2 else 'ln'
