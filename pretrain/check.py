"""Is this network right for pretraining on strips? Proves it, in seconds, on a CPU.

    python -m pretrain.check MODEL [--input_size=128 --cell_size=32 --in_chans=3 --levels=layer1,layer2]
    python -m pretrain.check MODEL --method=a2mim [--token_at=layer3]    # for A2MIM, on whole images
    python -m pretrain.check MODEL --method=mae       # for MAE: vision transformers; convmae: hybrids
    python -m pretrain.check --all [--jobs=2]     # every network of timm with feature maps, into docs/coverage.md

or, for a network of your own: `from pretrain.check import check; print(check(module))`. Everything is
computed in float64 with BatchNorm in training mode, all scales random (zero-initialised ones hide errors) and
dropout off; "equal" is a relative error of 1e-8 at most. A network that was checked equals its own dense self
wherever the two can be compared.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import argparse
import sys
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F

import pretrain.models  # noqa: F401  (registers your own networks with timm)
from common.cli import errors_in_one_sentence, reader_may_leave
from common.config import size
from common.feature_maps import feature_maps
from common.networks.convolutions import safe_convolutions
from common.networks.create import create_cnn
from common.networks.users import USERS_NETWORKS, register
from pretrain.a2mim_check import check_a2mim
from pretrain.check_report import (
    Part,
    Report,
    check_no_random_numbers,
    exported,
    gradients_of,
    inputs,
    multiply_adds,
    prepared,
    restore,
    tried,
)
from pretrain.encoder import SparseEncoder
from pretrain.mae_check import check_mae
from pretrain.sparse.compare import VisibleRectangles, first_wrong_module, relative_error
from pretrain.sparse.coverage import cover
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.notes import NoteKind
from pretrain.sparse.positions import CutPositions
from pretrain.sparse.probe import copy_of
from pretrain.sparse.proof import InDouble
from pretrain.sparse.refused import ForwardFailed, Refused

TOLERANCE = 1e-8
ROUGH = 1e-5  # for networks that compute in float32 by themselves
MASK_RATIO = 0.6


def check(network, input_size=None, cell_size=None, in_chans=3, levels=None):
    """Check a network: a timm name or an nn.Module, of which a copy is used. Returns a Report.

    Nothing is raised for what it finds. input_size: pixels, an int or (height, width); four cells each way if
    not given. The rest as in `build_spark`.
    """
    name = network if isinstance(network, str) else type(network).__name__

    def fresh():
        if isinstance(network, str):
            return create_cnn(network, in_chans, input_size=input_size)
        return copy_of(network)

    try:
        cnn = prepared(fresh())
        keys = list(cnn.state_dict())
        encoder = build(cnn, input_size, cell_size, in_chans, levels)
        check_no_random_numbers(encoder)
        report = Report(name, facts=describe(encoder), notes=encoder.notes)
    except ValueError as error:
        other = ''
        if isinstance(error, Refused):
            other = other_precision(fresh, input_size, cell_size, in_chans, levels)
        return Report(name, refused=f'{error}{other}')
    report.parts = [tried(ask, asked, encoder) for ask, asked in QUESTIONS.items()]
    other = fresh()
    same = list(encoder.cnn.state_dict()) == keys == list(other.state_dict())
    other = prepared(other, seed=1)
    report.parts.append(exported(encoder, other, partial(same_features, encoder, other)))
    report.parts.append(Part(same, "(f) the keys are the network's own", f'{len(keys)} entries'))
    return report


def other_precision(fresh, *arguments):
    """What to say besides of a network that was refused, if it is only in the precision of the check. fresh() makes it."""
    try:
        build(fresh().cpu(), *arguments)
    except ValueError:
        return ''
    return ('\n  It can be built in its own precision, but the check computes in float64: make the constants '
            'of its forward buffers (register_buffer), or in the precision of what they meet (dtype=x.dtype)')


def build(cnn, input_size, cell_size, in_chans, levels):
    """The encoder, at four cells each way unless told otherwise. Raises ValueError."""
    if isinstance(input_size, (tuple, list)) and len(input_size) != 2:
        raise ValueError(f'input_size is a side or (height, width), not {input_size}')
    if input_size is not None:
        size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        return SparseEncoder(cnn, size, in_chans, cell_size, levels)
    side = 4 * cell_size if cell_size and cell_size > 0 else 128
    fixed = getattr(cnn, 'default_cfg', {}).get('input_size', (0, 0, 0))[-1]
    try:
        encoder = SparseEncoder(cnn, (side, side), in_chans, cell_size, levels)
    except ForwardFailed:
        if fixed:  # it may accept one size only
            return SparseEncoder(cnn, (fixed, fixed), in_chans, cell_size, levels)
        raise
    if encoder.grid[0] < 4:
        side = 4 * encoder.cell_size
        return SparseEncoder(cnn, (side, side), in_chans, cell_size, levels)
    return encoder


def describe(encoder):
    """[(what, value)] of the facts that the page begins with."""
    (height, width), (h, w) = encoder.input_size, encoder.grid
    left_out = encoder.left_out()
    outside = sum(left_out.values())
    inside = sum(p.numel() for p in encoder.cnn.parameters()) - outside
    parameters = f'{inside / 1e6:.2f} M in the feature path'
    if left_out:
        parameters += f', {outside / 1e6:.2f} M outside of it, not pretrained ({", ".join(left_out)})'
    dense = multiply_adds(encoder)
    strips = multiply_adds(encoder, random_cells(encoder, 2))
    return [
        ('pyramid', f'strides {", ".join(map(str, encoder.reductions))}; channels '
                    f'{", ".join(map(str, encoder.channels))}'),
        ('cells', f'{encoder.cell_size} px: {h} x {w} in an image of {height} x {width}'),
        ('norm', {'bn': 'BatchNorm', 'ln': 'LayerNorm'}[encoder.norm] + ' for densify'),
        ('parameters', parameters),
        ('multiply-adds', f'{dense / 1e9:.3f} G dense, {strips / 1e9:.3f} G on strips with {MASK_RATIO:.0%} '
                          f'hidden ({strips / dense:.2f})'),
    ]


def random_cells(encoder, batch):
    cells = encoder.grid[0] * encoder.grid[1]
    visible = min(max(round(cells * (1 - MASK_RATIO)), 1), cells - 1)
    return Geometry(torch.rand(batch, cells).argsort(1)[:, :visible].sort(1).values, encoder.grid)


# -- the questions ----------------------------------------------------------------------------------------

def all_visible(encoder, images):
    """(a): strips of all cells against the dense network."""
    rectangles = VisibleRectangles(encoder.grid, [(0, 0)] * images, encoder.grid)
    return compare('(a) with all cells visible it is the dense network', encoder, rectangles)


def rectangle(encoder, images):
    """(b): a visible rectangle in each image, the dense network on what is cut out there."""
    h, w = encoder.grid
    reflects = has_note(encoder, NoteKind.PADDING_MODE)
    if reflects and min(h, w) < 3:
        asked = '(b) on a visible rectangle it is the dense network on that'
        return Part(False, asked, 'not seen: give an image of three cells each way or more')
    if reflects:  # away from the border, where the dense network pads in another way
        size = (h - 2, w - 2)
        corners = [(1, 1), (1, 1)]
    else:
        size = (max(1, h // 2), max(1, w - 1))
        corners = [(h - size[0], w - size[1]), (0, 0)]
    rectangles = VisibleRectangles(encoder.grid, corners * (images // 2), size)
    asked = f'(b) on {size[0]} x {size[1]} visible cells it is the dense network on these'
    return compare(asked, encoder, rectangles, ZeroPadding(rectangles) if reflects else CutPositions(rectangles))


class ZeroPadding(CutPositions):
    """In addition, paddings by reflection and the like are zeros: what hidden neighbours are to them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = {**dict(zip(('input', 'pad', 'mode', 'value'), args)), **(kwargs or {})}
        if function is F.pad and given.get('mode', 'constant') != 'constant':
            return F.pad(given['input'], given['pad'])
        return super().__torch_function__(function, types, args, kwargs)


def compare(asked, encoder, rectangles, context=None):
    """Compare what the sparse network computes of visible rectangles with what the dense network does.

    Compared are the features, the gradients of a random projection of them, and the running statistics. What the
    network computes in float32 by itself is in float64 here. context: in which the dense network runs. Returns a Part.
    """
    with InDouble() if has_note(encoder, NoteKind.PRECISION) else nullcontext():
        return compared(asked, encoder, rectangles, context)


def compared(asked, encoder, rectangles, context):
    """`compare` in the precision that the network has."""
    cnn = encoder.cnn
    images = inputs(encoder, len(rectangles.corners))
    before = {key: value.clone() for key, value in cnn.named_buffers()}
    parameters = [p for key, p in cnn.named_parameters() if key not in encoder.unused]

    x = images.clone().requires_grad_()
    maps = [rectangles.as_dense(strip) for strip in encoder(x, rectangles.geometry)]
    weights = [torch.randn_like(out) for out in maps]
    of_images, *of_parameters = projected_gradients(maps, weights, [x, *parameters])
    ours = [maps, [rectangles.cut(of_images), *of_parameters], statistics_of(cnn)]

    restore(cnn, before)
    x = rectangles.cut(images).clone().requires_grad_()
    with context or nullcontext():
        maps = encoder.pyramid(x)
    theirs = [maps, projected_gradients(maps, weights, [x, *parameters]), statistics_of(cnn)]
    restore(cnn, before)

    errors = [relative_error(a, b) for a, b in zip(ours, theirs)]
    found = f'features {errors[0]:.0e}, gradients {errors[1]:.0e}'
    if statistics_of(cnn):
        found += f', statistics {errors[2]:.0e}'
    holds = max(errors) <= tolerance(encoder)
    if not holds:
        found += f'; {first_wrong_module(cnn, encoder.pyramid, images, rectangles, ROUGH, context)}'
    return Part(holds, asked, found, max(errors))


def projected_gradients(maps, weights, inputs):
    """The gradients of a weighted sum of all values of some maps, 0 for inputs that they do not depend on."""
    projection = sum((out * weight).sum() for out, weight in zip(maps, weights))
    gradients = torch.autograd.grad(projection, inputs, allow_unused=True)
    return [torch.zeros(1, dtype=maps[0].dtype) if one is None else one for one in gradients]


def statistics_of(cnn):
    """Copies of the running statistics."""
    return [buffer.clone() for buffer in cnn.buffers() if buffer.is_floating_point()]


def tolerance(encoder):
    return ROUGH if has_note(encoder, NoteKind.PRECISION) else TOLERANCE


def has_note(encoder, kind):
    return any(note.kind is kind for note in encoder.notes)


def hidden_pixels(encoder, batch):
    """(c): other hidden pixels, and the visible cells in another order."""
    images, geometry = inputs(encoder, batch), random_cells(encoder, batch)
    seen = geometry.to_canvas(torch.ones_like(geometry.to_strip(images)))
    other = torch.where(seen > 0, images, 1e3 * torch.randn_like(images))
    shuffled = Geometry(geometry.visible[:, torch.randperm(geometry.visible.shape[1])], geometry.grid)
    buffers = {key: value.clone() for key, value in encoder.cnn.named_buffers()}
    runs = []
    with torch.no_grad():
        for x, cells in ((images, geometry), (other, geometry), (images, shuffled)):
            restore(encoder.cnn, buffers)
            runs.append([cells.to_canvas(strip) for strip in encoder(x, cells)])
    same = relative_error(runs[1], runs[0])
    order = relative_error(runs[2], runs[0])
    bits = all(torch.equal(a, b) for a, b in zip(runs[0], runs[1]))
    found = f'pixels {"not a bit" if bits else f"{same:.0e}"}, order {order:.0e}'
    holds = bits and order <= tolerance(encoder)
    return Part(holds, '(c) hidden pixels, and the order of cells, change nothing', found, max(same, order))


def gradients(encoder, images):
    """(d): gradients on a random mask."""
    named = [(key, p) for key, p in encoder.cnn.named_parameters() if key not in encoder.unused]
    maps = encoder(inputs(encoder, images), random_cells(encoder, images))
    projection = sum((out * torch.randn_like(out)).sum() for out in maps)
    return gradients_of(projection, named, '(d) every parameter of the feature path gets a gradient')


# What is asked, and the question where a network fails to give an answer.
QUESTIONS = {
    all_visible: '(a): strips of all cells against the dense network',
    rectangle: '(b): a visible rectangle in each image, the dense network on what is cut out there',
    hidden_pixels: '(c): other hidden pixels, the same features to the last bit; the visible cells in '
                   'another order, the same features',
    gradients: '(d): on a random mask every parameter of the feature path gets a gradient',
}


def same_features(encoder, other, images):
    """Whether a plain network gives the same feature maps, to the last bit. Aligned padding makes others."""
    maps = encoder.pyramid(images)
    with safe_convolutions(images.device):
        plain = feature_maps(other, images, encoder.taps, encoder.stop)
    return encoder.aligned or all(torch.equal(a, plain[level]) for a, level in zip(maps, encoder.level_indices))


@reader_may_leave()
def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m pretrain.check', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', nargs='?', help="a timm name, or one registered in pretrain/models")
    parser.add_argument('--register', default=USERS_NETWORKS, help='module in which your own networks are registered with timm')
    parser.add_argument('--input_size', type=size, help='pixels, one number or height,width; four cells each '
                                                        'way if not given')
    parser.add_argument('--cell_size', type=int, help="side of a cell in pixels; chosen if not given")
    parser.add_argument('--in_chans', type=int, default=3)
    parser.add_argument('--method', default='spark', choices=('spark', 'a2mim', 'convmae', 'mae'),
                        help='spark if not given; a2mim asks other questions, of whole images, and convmae and mae of '
                             'what their decoder reads')
    parser.add_argument('--token_at', help='of a2mim: submodule whose output gets the mask token')
    parser.add_argument('--levels', type=lambda text: text.split(','), help='submodules whose outputs are '
                                                                            'the pyramid')
    parser.add_argument('--all', action='store_true', help='every network of timm with feature maps, into '
                                                           'docs/coverage.md')
    parser.add_argument('--jobs', type=int, default=1, help='processes of --all; 0 writes the page of what is there')
    args = parser.parse_args(arguments)
    if args.all == (args.model is not None):
        parser.error('give a model, or --all')
    if args.method != 'a2mim' and args.token_at is not None:
        parser.error('--token_at is of --method=a2mim')
    if args.method != 'spark' and (args.levels is not None or args.all):
        parser.error('--levels and --all are of --method=spark')
    if args.method in ('convmae', 'mae') and args.cell_size is not None:
        parser.error(f'--cell_size is of the other methods: a cell of --method={args.method} is one token')
    with errors_in_one_sentence():
        register(args.register)
        if args.all:
            cover(check, args.jobs)
            return
        if args.method == 'a2mim':
            report = check_a2mim(args.model, args.input_size, args.cell_size, args.in_chans, args.token_at)
        elif args.method in ('convmae', 'mae'):
            report = check_mae(args.model, args.method, args.input_size, args.in_chans)
        else:
            report = check(args.model, args.input_size, args.cell_size, args.in_chans, args.levels)
    print(report)
    sys.exit(not report.ok)


if __name__ == '__main__':
    main()
