"""Is this network right for pretraining on strips? Proves it, in seconds, on a CPU.

    python -m pretrain.check MODEL [--input_size=128 --cell_size=32 --in_chans=3 --levels=layer1,layer2]
    python -m pretrain.check --all [--jobs=2]          # every convolutional network of timm, into
    docs/coverage.md

or, for a network of your own: `from pretrain.check import check; print(check(module))`. Everything is
computed in float64 with BatchNorm in training mode, all scales random (zero-initialised ones hide errors) and
dropout off; "equal" is a relative error of 1e-8 at most. A network that was checked equals its own dense self
wherever the two can be compared.
"""
import argparse
import copy
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d, DropPath
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

import pretrain.models  # noqa: F401  (registers your own networks with timm)
from common.cli import reader_may_leave
from common.config import size
from common.feature_maps import feature_maps
from common.networks.convolutions import safe_convolutions
from common.networks.create import create_cnn
from pretrain.encoder import SparseEncoder
from pretrain.sparse.compare import VisibleRectangles, first_wrong_module, relative_error
from pretrain.sparse.coverage import cover
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.notes import NoteKind
from pretrain.sparse.proof import randomise_scales
from pretrain.sparse.refused import ForwardFailed, Refused

TOLERANCE = 1e-8
ROUGH = 1e-5  # for networks that compute in float32 by themselves
MASK_RATIO = 0.6


@dataclass
class Report:
    """What a check found; `str(report)` is the page that is printed, `ok` whether all parts hold."""
    name: str
    refused: str = ''
    facts: list = field(default_factory=list)
    notes: tuple = ()
    parts: list = field(default_factory=list)  # (whether it holds, what was asked, what came out)
    worst: float = 0.0  # the largest relative error

    @property
    def ok(self):
        return not self.refused and bool(self.parts) and all(holds for holds, _, _ in self.parts)

    def __str__(self):
        if self.refused:
            return f'{self.name}: refused\n\n  {self.refused}\n'
        verdict = ('exact' + (', with a note' if self.notes else '')) if self.ok else 'WRONG'
        lines = [f'{self.name}: {verdict}', '', *(f'  {what:<15}{value}' for what, value in self.facts)]
        lines += [f'  {"note":<15}{note}' for note in self.notes]
        lines += ['', *(f'  {"ok   " if holds else "WRONG"}  {asked:<62}{found}' for holds, asked, found in self.parts)]
        return '\n'.join(lines) + '\n'


def check(network, input_size=None, cell_size=None, in_chans=3, levels=None):
    """Check a network: a timm name or an nn.Module (a copy of it is used). Returns a Report; raises nothing
    for what it finds.

    input_size: pixels, an int or (height, width); four cells each way if not given. The rest as in
    `build_spark`.
    """
    name = network if isinstance(network, str) else type(network).__name__

    def fresh():
        return create_cnn(network, in_chans=in_chans) if isinstance(network, str) else copy.deepcopy(network)

    try:
        cnn = prepared(fresh())
        keys = list(cnn.state_dict())
        encoder = build(cnn, input_size, cell_size, in_chans, levels)
        draw_nothing(encoder)
        report = Report(name, facts=describe(encoder), notes=encoder.notes)
    except ValueError as error:
        other = other_precision(fresh(), input_size, cell_size, in_chans, levels) if isinstance(error, Refused) else ''
        return Report(name, refused=f'{error}{other}')
    for part in (all_visible, rectangle, hidden_pixels, gradients):
        for images in (2, 8):
            # BatchNorm over few values magnifies rounding, which more images settle; an error stays
            torch.manual_seed(0)
            try:
                holds, asked, found, worst = part(encoder, images)
            except Exception as failure:  # whatever a network of the user's can raise
                holds, asked, found, worst = False, part.__doc__.split('.')[0], f'{type(failure).__name__}: {failure}', 0.0
            if holds:
                break
        report.parts.append((holds, asked, found))
        report.worst = max(report.worst, worst)
    other = fresh()
    same = list(encoder.cnn.state_dict()) == keys == list(other.state_dict())
    report.parts.append(exported(encoder, prepared(other, seed=1)))
    report.parts.append((same, '(f) the keys are the network\'s own', f'{len(keys)} entries'))
    return report


def prepared(cnn, seed=0):
    """In training mode and float64, with random scales and no dropout: what these hide shows. Raises
    ValueError.
    """
    if any(parameter.is_meta for parameter in cnn.parameters()):
        raise ValueError(f'{type(cnn).__name__} is on the meta device, without values: make it on a real one')
    with torch.no_grad():
        randomise_scales(cnn.cpu(), seed)
    for module in cnn.modules():
        for rate in ('p', 'drop_prob'):
            if isinstance(getattr(module, rate, None), float) and isinstance(module, (
                    nn.modules.dropout._DropoutNd, DropPath, DropBlock2d, StochasticDepth)):
                setattr(module, rate, 0.0)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(parameter.is_floating_point())
    return cnn.double().train()


def other_precision(cnn, *arguments):
    """What to say besides of a network that was refused, if it is only in the precision of the check."""
    try:
        build(cnn.cpu(), *arguments)
    except ValueError:
        return ''
    return ('\n  It can be built in its own precision, but the check computes in float64: make the constants '
            'of its forward buffers (register_buffer), or in the precision of what they meet (dtype=x.dtype)')


def draw_nothing(encoder):
    """Raise a ValueError that names the module if the network draws random numbers in training."""
    drawn, images = [], inputs(encoder, 2)
    before = torch.get_rng_state()

    def look(name, module, inputs, output):
        if not drawn and not torch.equal(torch.get_rng_state(), before):
            drawn.append(f'"{name or "(top)"}" ({type(module).__name__})')

    handles = [module.register_forward_hook(partial(look, name)) for name, module in encoder.cnn.named_modules()]
    buffers = {key: value.clone() for key, value in encoder.cnn.named_buffers()}
    with torch.no_grad():
        encoder.pyramid(images)
    restore(encoder.cnn, buffers)
    for handle in handles:
        handle.remove()
    if drawn:
        raise ValueError(f'{type(encoder.cnn).__name__} draws random numbers in training, in its module '
                         f'{drawn[0]}, so that nothing can be compared: set its rate to 0 for the check')


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
    (height, width), (h, w) = encoder.input_size, encoder.grid
    left_out = encoder.left_out()
    outside = sum(left_out.values())
    inside = sum(p.numel() for p in encoder.cnn.parameters()) - outside
    dense, strips = (multiply_adds(encoder, geometry) for geometry in (None, random_cells(encoder, 2)))
    return [
        ('pyramid', f'strides {", ".join(map(str, encoder.reductions))}; channels '
                    f'{", ".join(map(str, encoder.channels))}'),
        ('cells', f'{encoder.cell_size} px: {h} x {w} in an image of {height} x {width}'),
        ('norm', {'bn': 'BatchNorm', 'ln': 'LayerNorm'}[encoder.norm] + ' for densify'),
        ('parameters', f'{inside / 1e6:.2f} M in the feature path'
         + f', {outside / 1e6:.2f} M outside of it, not pretrained ({", ".join(left_out)})' * bool(left_out)),
        ('multiply-adds', f'{dense / 1e9:.3f} G dense, {strips / 1e9:.3f} G on strips with {MASK_RATIO:.0%} '
                          f'hidden ({strips / dense:.2f})'),
    ]


def multiply_adds(encoder, geometry):
    """Of one image; run on two, since a BatchNorm behind a global pool takes no single one."""
    buffers = {key: value.clone() for key, value in encoder.cnn.named_buffers()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(inputs(encoder, 2), geometry)
    restore(encoder.cnn, buffers)
    return counter.get_total_flops() / 4  # operations are two, images too


def inputs(encoder, batch):
    return torch.randn(batch, encoder.in_chans, *encoder.input_size, dtype=torch.float64)


def random_cells(encoder, batch):
    cells = encoder.grid[0] * encoder.grid[1]
    visible = min(max(round(cells * (1 - MASK_RATIO)), 1), cells - 1)
    return Geometry(torch.rand(batch, cells).argsort(1)[:, :visible].sort(1).values, encoder.grid)


# -- the parts
# --------------------------------------------------------------------------------------------------------

def all_visible(encoder, images):
    """(a): strips of all cells against the dense network."""
    rectangles = VisibleRectangles(encoder.grid, [(0, 0)] * images, encoder.grid)
    return compare('(a) with all cells visible it is the dense network', encoder, rectangles)


def rectangle(encoder, images):
    """(b): a visible rectangle in each image, the dense network on what is cut out there."""
    (h, w), reflects = encoder.grid, has_note(encoder, NoteKind.PADDING_MODE)
    if reflects and min(h, w) < 3:
        asked = '(b) on a visible rectangle it is the dense network on that'
        return False, asked, 'not seen: give an image of three cells each way or more', 0.0
    size = (max(1, h - 2), max(1, w - 2)) if reflects else (max(1, h // 2), max(1, w - 1))
    corners = [(1, 1), (1, 1)] if reflects else [(h - size[0], w - size[1]), (0, 0)]
    rectangles = VisibleRectangles(encoder.grid, corners * (images // 2), size)
    asked = f'(b) on {size[0]} x {size[1]} visible cells it is the dense network on these'
    return compare(asked, encoder, rectangles, ZeroPadding() if reflects else None)


class ZeroPadding(TorchFunctionMode):
    """Context in which paddings by reflection and the like are zeros: what hidden neighbours are to them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = {**dict(zip(('input', 'pad', 'mode', 'value'), args)), **(kwargs or {})}
        if function is F.pad and given.get('mode', 'constant') != 'constant':
            return F.pad(given['input'], given['pad'])
        return function(*args, **(kwargs or {}))


def compare(asked, encoder, rectangles, context=None):
    """Features, gradients of a random projection of them, and running statistics, of the sparse and of the
    dense network.
    """
    cnn, images = encoder.cnn, inputs(encoder, len(rectangles.corners))
    before = {key: value.clone() for key, value in cnn.named_buffers()}
    parameters = [p for key, p in cnn.named_parameters() if key not in encoder.unused]
    weights, results = [], []
    for sparse in (True, False):
        restore(cnn, before)
        x = (images if sparse else rectangles.cut(images)).clone().requires_grad_()
        with nullcontext() if sparse or context is None else context:
            maps = [rectangles.as_dense(strip) for strip in encoder(x, rectangles.geometry)] if sparse else encoder.pyramid(x)
        weights = weights or [torch.randn_like(out) for out in maps]
        found = torch.autograd.grad(sum((out * weight).sum() for out, weight in zip(maps, weights)), [x, *parameters],
                                    allow_unused=True)
        found = [torch.zeros(1, dtype=x.dtype) if g is None else g for g in found]
        found[0] = rectangles.cut(found[0]) if sparse else found[0]
        results.append(([out.detach() for out in maps], found, [b.clone() for b in cnn.buffers() if b.is_floating_point()]))
    restore(cnn, before)
    ours, theirs = results
    errors = [relative_error(a, b) for a, b in zip(ours, theirs)]
    holds = max(errors) <= tolerance(encoder)
    found = f'features {errors[0]:.0e}, gradients {errors[1]:.0e}' + (', statistics '
                                                                      f'{errors[2]:.0e}' if ours[2] else '')
    if not holds:
        found += f'; {first_wrong_module(cnn, encoder.pyramid, images, rectangles, ROUGH, context)}'
    return holds, asked, found, max(errors)


def tolerance(encoder):
    return ROUGH if has_note(encoder, NoteKind.PRECISION) else TOLERANCE


def has_note(encoder, kind):
    return any(note.kind is kind for note in encoder.notes)


def restore(cnn, buffers):
    with torch.no_grad():
        for key, value in cnn.named_buffers():
            value.copy_(buffers[key])


def hidden_pixels(encoder, batch):
    """(c): other hidden pixels, the same features to the last bit; the visible cells in another order, the
    same features.
    """
    images, geometry = inputs(encoder, batch), random_cells(encoder, batch)
    seen = geometry.to_canvas(torch.ones_like(geometry.to_strip(images)))
    other = torch.where(seen > 0, images, 1e3 * torch.randn_like(images))
    shuffled = Geometry(geometry.visible[:, torch.randperm(geometry.visible.shape[1])], geometry.grid)
    buffers, runs = {key: value.clone() for key, value in encoder.cnn.named_buffers()}, []
    with torch.no_grad():
        for x, cells in ((images, geometry), (other, geometry), (images, shuffled)):
            restore(encoder.cnn, buffers)
            runs.append([cells.to_canvas(strip) for strip in encoder(x, cells)])
    asked = '(c) hidden pixels, and the order of cells, change nothing'
    same = relative_error(runs[1], runs[0])
    order = relative_error(runs[2], runs[0])
    bits = all(torch.equal(a, b) for a, b in zip(runs[0], runs[1]))
    found = f'pixels {"not a bit" if bits else f"{same:.0e}"}, order {order:.0e}'
    return bits and order <= tolerance(encoder), asked, found, max(same, order)


def gradients(encoder, images):
    """(d): on a random mask every parameter of the feature path gets a gradient."""
    named = [(key, p) for key, p in encoder.cnn.named_parameters() if key not in encoder.unused]
    maps = encoder(inputs(encoder, images), random_cells(encoder, images))
    projection = sum((out * torch.randn_like(out)).sum() for out in maps)
    found = torch.autograd.grad(projection, [p for _, p in named], allow_unused=True)
    without = [key for (key, _), g in zip(named, found) if g is None or not g.isfinite().all()]
    return not without, '(d) every parameter of the feature path gets a gradient', \
        f'{len(named)} of {len(named)}' if not without else f'not {", ".join(without[:4])}{", ..." * (len(without) > 4)}', 0.0


@torch.no_grad()
def exported(encoder, other):
    """(e): the state_dict loads strictly into another copy of the network, which then gives the same
    features.
    """
    asked = '(e) its weights load strictly into a plain network'
    try:
        other.load_state_dict(encoder.cnn.state_dict(), strict=True)
    except RuntimeError as failure:
        return False, asked, str(failure).splitlines()[0]
    images = inputs(encoder, 2)
    encoder.cnn.eval(), other.eval()
    maps = encoder.pyramid(images)
    with safe_convolutions(images.device):
        plain = feature_maps(other, images, encoder.taps, encoder.stop)
    encoder.cnn.train()
    same = encoder.aligned or all(torch.equal(a, plain[level]) for a, level in zip(maps, encoder.levels))
    return same, asked, 'which gives the same features' if same else 'whose features differ'


@reader_may_leave()
def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m pretrain.check', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', nargs='?', help="a timm name, or one registered in pretrain/models")
    parser.add_argument('--input_size', type=size, help='pixels, one number or height,width; four cells each '
                                                        'way if not given')
    parser.add_argument('--cell_size', type=int, help="side of a cell in pixels; chosen if not given")
    parser.add_argument('--in_chans', type=int, default=3)
    parser.add_argument('--levels', type=lambda text: text.split(','), help='submodules whose outputs are '
                                                                            'the pyramid')
    parser.add_argument('--all', action='store_true', help='every convolutional network of timm, into '
                                                           'docs/coverage.md')
    parser.add_argument('--jobs', type=int, default=1, help='processes of --all')
    args = parser.parse_args(arguments)
    if args.all == (args.model is not None):
        parser.error('give a model, or --all')
    if args.all:
        cover(check, args.jobs)
        return
    report = check(args.model, args.input_size, args.cell_size, args.in_chans, args.levels)
    print(report)
    sys.exit(not report.ok)


if __name__ == '__main__':
    main()
