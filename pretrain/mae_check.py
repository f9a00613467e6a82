"""Is this network right for MAE or ConvMAE? The questions of `python -m pretrain.check MODEL --method=mae`, or convmae.

Everything is computed in float64 with BatchNorm in training mode, all scales random (zero-initialised ones hide
errors) and dropout off. The decoder is small here: it is the same for all networks.
"""
import copy
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from common.convvit import ConvViT
from common.networks.create import create_cnn
from pretrain import masking
from pretrain.check_report import (
    Part,
    Report,
    check_no_random_numbers,
    exported,
    from_the_same_state,
    gradients_of,
    inputs,
    multiply_adds,
    parameters_of,
    prepared,
    tried,
)
from pretrain.convmae import build_convmae
from pretrain.mae import MAE, build_mae
from pretrain.sparse.compare import VisibleRectangles, relative_error
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.notes import NoteKind
from pretrain.sparse.proof import randomise_scales

BUILD = {'mae': build_mae, 'convmae': build_convmae}
DECODER = {'decoder_width': 64, 'decoder_depth': 2, 'decoder_heads': 4}
TOLERANCE = 1e-8
ROUGH = 1e-5  # for networks that compute in float32 by themselves
FAINT = 1e-8  # the least relative difference that counts as one


def check_mae(network, method='mae', input_size=None, in_chans=3):
    """Check a network for MAE or ConvMAE: a timm name or an nn.Module, of which a copy is used. Returns a Report.

    Nothing is raised for what it finds. method: 'mae' or 'convmae'. input_size: pixels, an int or (height, width); where
    it is not given, four cells each way, or the network's own size if it takes no other.
    """
    name = network if isinstance(network, str) else type(network).__name__
    size = (input_size, input_size) if isinstance(input_size, int) else input_size

    def fresh(size):
        if isinstance(network, str):
            return create_cnn(network, in_chans, input_size=size)
        return copy.deepcopy(network)

    try:
        if size is not None and len(size) != 2:
            raise ValueError(f'input_size is a side or (height, width), not {input_size}')
        cnn = prepared(fresh(size))
        keys = list(cnn.state_dict())
        mae = build(cnn, method, size, in_chans)
        check_no_random_numbers(mae.encoder)
    except ValueError as error:
        return Report(name, refused=str(error), praise='fits')
    report = Report(name, facts=describe(mae), notes=mae.notes, praise='fits')
    report.parts = [tried(ask, asked, mae) for ask, asked in QUESTIONS.items()]
    other = plain(fresh(mae.input_size), mae.input_size)
    same = list(mae.encoder.cnn.state_dict()) == keys == list(other.state_dict())
    report.parts.append(exported(mae.encoder, other, partial(same_maps, mae.encoder, other)))
    report.parts.append(Part(same, "(f) the keys are the network's own", f'{len(keys)} entries'))
    return report


def build(cnn, method, size, in_chans):
    """The method around the network, at four cells each way unless a size (height, width) is given. Raises ValueError."""
    if size is None and isinstance(cnn, VisionTransformer):
        size = tuple(4 * side for side in cnn.patch_embed.patch_size)
    if size is not None:
        return made(cnn, method, size, in_chans)
    own = getattr(cnn, 'default_cfg', {}).get('input_size', (0, 0, 128))[-1]
    try:
        mae = made(cnn, method, (128, 128), in_chans)
    except ValueError:
        if own == 128:
            raise
        return made(cnn, method, (own, own), in_chans)  # it may take this size only
    side = 4 * mae.encoder.cell_size
    return mae if side == 128 else made(cnn, method, (side, side), in_chans)


def made(cnn, method, size, in_chans):
    mae = BUILD[method](cnn, size, in_chans=in_chans, **DECODER)
    with torch.no_grad():
        for name, module in mae.named_children():
            if name != 'encoder':
                randomise_scales(module)
    return mae.double().train()


def plain(cnn, size):
    """Another copy of the network, with other weights, for images of a size (height, width)."""
    if isinstance(cnn, (VisionTransformer, ConvViT)):
        cnn.set_input_size(size)
    return prepared(cnn, seed=1)


def describe(mae):
    """[(what, value)] of the facts that the page begins with."""
    encoder = mae.encoder
    (height, width), (h, w) = encoder.input_size, encoder.grid
    dense = multiply_adds(encoder)
    masked = multiply_adds(encoder, Geometry(mae.draw_visible(2), encoder.grid))
    in_front = f', and {mae.num_prefix} in front of them' if mae.num_prefix else ''
    return [
        ('tokens', f'one a cell, {encoder.channels[-1]} channels{in_front}'),
        ('pyramid', f'strides {", ".join(map(str, encoder.reductions))}; channels '
                    f'{", ".join(map(str, encoder.channels))}'),
        ('cells', f'{encoder.cell_size} px: {h} x {w} in an image of {height} x {width}'),
        ('parameters', parameters_of(encoder)),
        ('multiply-adds', f'{dense / 1e9:.3f} G of the whole image, {masked / 1e9:.3f} G with {mae.mask_ratio:.0%} '
                          f'hidden ({masked / dense:.2f})'),
    ]


# -- the questions ----------------------------------------------------------------------------------------

@torch.no_grad()
def all_visible(mae, batch):
    """(a): all cells visible, in another order in each image."""
    encoder, images = mae.encoder, inputs(mae.encoder, batch)
    rectangles = VisibleRectangles(encoder.grid, [(0, 0)] * batch, encoder.grid)
    strips = from_the_same_state(mae, partial(encoder.pyramid, images, rectangles.geometry))
    whole = from_the_same_state(mae, partial(encoder.pyramid, images))
    error = relative_error([rectangles.as_dense(strip) for strip in strips], whole)
    return Part(error <= tolerance(encoder), '(a) with all cells visible it is the plain network', f'{error:.0e}', error)


@torch.no_grad()
def what_the_decoder_reads(mae, batch):
    """(b): what the decoder reads, with all cells visible, against the maps of the plain network."""
    encoder, images = mae.encoder, inputs(mae.encoder, batch)
    visible = torch.arange(mae.cells).expand(batch, -1)
    latent = from_the_same_state(mae, partial(mae.latent, images, visible))
    if isinstance(mae, MAE):
        asked = '(b) the decoder reads the tokens of the network'
        expected = encoder(images)
    else:
        asked = '(b) the decoder reads the sum of all stages, normalised'
        *earlier, last = from_the_same_state(mae, partial(encoder.pyramid, images))
        for name, of_stage in zip(mae.fusions, earlier, strict=True):
            fusion = mae.get_submodule(name)  # On whole maps it is an ordinary convolution.
            last = last + F.conv2d(of_stage, fusion.weight, fusion.bias, fusion.stride)
        expected = mae.norm(last.flatten(2).transpose(1, 2))
    error = relative_error([latent], [expected])
    return Part(error <= tolerance(encoder), asked, f'{error:.0e}', error)


@torch.no_grad()
def hidden_pixels(mae, batch):
    """(c): other hidden pixels, other visible pixels, and the visible cells in another order."""
    images, visible = inputs(mae.encoder, batch), mae.draw_visible(batch)
    noise = 1e3 * torch.randn_like(images)
    is_visible = masking.is_visible(visible, mae.cells)[..., None]
    hidden = mae.unpatchify(mae.patchify(noise) * ~is_visible)
    order = torch.randperm(visible.shape[1])
    seen = [(images, visible), (images + hidden, visible), (images + noise, visible), (images, visible[:, order])]
    latent, same, other, shuffled = (from_the_same_state(mae, partial(mae.latent, *each)) for each in seen)
    leak, effect = relative_error([same], [latent]), relative_error([other], [latent])
    prefix = mae.num_prefix
    in_order = torch.cat([latent[:, :prefix], latent[:, prefix:][:, order]], 1)
    error = relative_error([shuffled], [in_order])
    found = f'pixels {"not a bit" if torch.equal(latent, same) else f"{leak:.0e}"}, order {error:.0e}'
    holds = torch.equal(latent, same) and effect > FAINT and error <= tolerance(mae.encoder)
    return Part(holds, '(c) hidden pixels, and the order of cells, change nothing', found, max(leak, error))


def gradients(mae, batch):
    """(d): gradients of the loss."""
    frozen = {f'encoder.cnn.{name}' for name in mae.encoder.unused}
    named = [(key, p) for key, p in mae.named_parameters() if p.requires_grad and key not in frozen]
    return gradients_of(mae(inputs(mae.encoder, batch)), named, '(d) every parameter that is trained gets a gradient')


# What is asked, and the question where a network fails to give an answer.
QUESTIONS = {
    all_visible: '(a): with all cells visible, the plain network',
    what_the_decoder_reads: '(b): what the decoder reads, of the maps of the plain network',
    hidden_pixels: '(c): other hidden pixels, the same tokens to the last bit; the visible cells in another order, the '
                   'same tokens in that order',
    gradients: '(d): a gradient for every parameter that is trained',
}


def tolerance(encoder):
    return ROUGH if any(kind_of(note) is NoteKind.PRECISION for note in encoder.notes) else TOLERANCE


def kind_of(note):
    """What the note of a SparseEncoder is about; those of a ViTEncoder are sentences alone."""
    return getattr(note, 'kind', None)


def same_maps(encoder, other, images):
    """Whether another network gives the same maps, to the last bit."""
    maps, others = encoder.pyramid(images), encoder.pyramid(images, cnn=other)
    return all(torch.equal(a, b) for a, b in zip(maps, others, strict=True))
