"""Is this network right for A2MIM? The questions of `python -m pretrain.check MODEL --method=a2mim`.

Everything is computed in float64 with BatchNorm in training mode, all scales random (zero-initialised ones
hide errors) and dropout off.
"""
from functools import partial

import torch
from torch import nn

from common.networks.create import create_cnn
from pretrain.a2mim import A2MIM
from pretrain.check_report import (
    Part,
    Report,
    check_no_random_numbers,
    count,
    exported,
    from_the_same_state,
    gradients_of,
    inputs,
    multiply_adds,
    parameters_of,
    prepared,
    tried,
)
from pretrain.dense.encoder import DenseEncoder
from pretrain.sparse.compare import relative_error
from pretrain.sparse.probe import copy_of

ROUGH = 1e-5  # far above the share of rounding, also in networks that compute in float32 by themselves
FAINT = 1e-8  # the least relative difference that counts as one


def check_a2mim(network, input_size=None, cell_size=None, in_chans=3, token_at=None):
    """Check a network for A2MIM: a timm name or an nn.Module, of which a copy is used. Returns a Report.

    Nothing is raised for what it finds. input_size: pixels, an int or (height, width); where it is not given,
    128 or four cells each way, or the network's own size if it takes no other. The rest as in `build_a2mim`.
    """
    name = network if isinstance(network, str) else type(network).__name__

    size = (input_size, input_size) if isinstance(input_size, int) else input_size

    def fresh():
        if isinstance(network, str):
            return create_cnn(network, in_chans, input_size=size)
        return copy_of(network)

    try:
        if size is not None and len(size) != 2:
            raise ValueError(f'input_size is a side or (height, width), not {input_size}')
        cnn = prepared(fresh())
        keys = list(cnn.state_dict())
        encoder = build(cnn, size, cell_size, in_chans, token_at)
        check_no_random_numbers(encoder)
        a2mim = A2MIM(encoder).double().train()
    except ValueError as error:
        return Report(name, refused=str(error), praise='fits')
    report = Report(name, facts=describe(a2mim), notes=encoder.notes, praise='fits')
    with torch.no_grad():
        for parameter in (encoder.mask_token, encoder.mask_gain):  # their start values would hide errors
            nn.init.normal_(parameter)
    report.parts = [tried(ask, asked, a2mim) for ask, asked in QUESTIONS.items()]
    other = prepared(fresh(), seed=1)
    same = list(encoder.cnn.state_dict()) == keys == list(other.state_dict())
    report.parts.append(exported(encoder, other, partial(same_last_map, encoder, other),
                                 ('which gives the same last map', 'whose last map differs')))
    report.parts.append(Part(same, "(f) the keys are the network's own", f'{len(keys)} entries'))
    return report


def build(cnn, size, cell_size, in_chans, token_at):
    """The encoder, at four cells each way unless a size (height, width) is given. Raises ValueError."""
    def of_side(side):
        return DenseEncoder(cnn, (side, side), in_chans, cell_size, token_at=token_at)

    if size is not None:
        return DenseEncoder(cnn, size, in_chans, cell_size, token_at=token_at)
    side = 4 * cell_size if cell_size and cell_size > 0 else 128
    own = getattr(cnn, 'default_cfg', {}).get('input_size', (0, 0, side))[-1]
    try:
        encoder = of_side(side)
    except ValueError:
        if own == side:
            raise
        return of_side(own)  # it may take this size only
    return encoder if min(encoder.grid) >= 4 else of_side(4 * encoder.cell_size)


def describe(a2mim):
    """[(what, value)] of the facts that the page begins with."""
    encoder = a2mim.encoder
    (height, width), (h, w) = encoder.input_size, encoder.grid
    token = encoder.mask_token.numel()
    return [
        ('token_at', f'{encoder.token_at}, {token} channels'),
        ('last map', f'stride {encoder.stride}, {encoder.width} channels'),
        ('pyramid', f'strides {", ".join(map(str, encoder.reductions))}; channels '
                    f'{", ".join(map(str, encoder.channels))}'),
        ('cells', f'{encoder.cell_size} px: {h} x {w} in an image of {height} x {width}'),
        ('parameters', parameters_of(encoder)),
        ('thrown away', f'{count(a2mim.decoder) / 1e6:.2f} M of the decoder, {2 * token} of token and gain'),
        ('multiply-adds', f'{multiply_adds(encoder) / 1e9:.3f} G'),
    ]


# -- the questions ----------------------------------------------------------------------------------------

@torch.no_grad()
def token_in_place_of_all(a2mim, batch):
    """(a): images of other contents, whose features at `token_at` are those of the first images."""
    encoder = a2mim.encoder
    module = encoder.cnn.get_submodule(encoder.token_at)
    images, others = inputs(encoder, batch), inputs(encoder, batch)
    kept = []
    handle = module.register_forward_hook(lambda _, inputs, output: kept.append(output.clone()))
    first = from_the_same_state(encoder, partial(encoder, images))
    handle.remove()
    second = from_the_same_state(encoder, partial(encoder, others))
    handle = module.register_forward_hook(lambda _, inputs, output: kept[0].clone())
    replaced = from_the_same_state(encoder, partial(encoder, others))
    handle.remove()
    leak, effect = relative_error([replaced], [first]), relative_error([second], [first])
    asked = f'(a) all of the last map comes through {encoder.token_at}'
    return Part(leak == 0 and effect > FAINT, asked, f'{said(leak)} around it, {effect:.0e} through it', leak)


@torch.no_grad()
def nothing_hidden(a2mim, batch):
    """(b): without hidden cells it is the network itself; with some it is not."""
    encoder = a2mim.encoder
    images, hidden = inputs(encoder, batch), a2mim.hidden(inputs(encoder, batch), a2mim.draw_visible(batch))
    plain = from_the_same_state(encoder, partial(encoder, images))
    same = relative_error([from_the_same_state(encoder, partial(encoder, images, torch.zeros_like(hidden)))], [plain])
    token = relative_error([from_the_same_state(encoder, partial(encoder, images, hidden))], [plain])
    return Part(same == 0 and token > FAINT, '(b) with nothing hidden it is the network itself',
                f'{said(same)}; the token {token:.0e}', same)


@torch.no_grad()
def hidden_pixels(a2mim, batch):
    """(c): hidden pixels enter through the mean colour of their image alone."""
    encoder = a2mim.encoder
    images, visible = inputs(encoder, batch), a2mim.draw_visible(batch)
    hidden = a2mim.hidden_pixels(a2mim.hidden(images, visible))
    noise = torch.randn_like(images) * hidden
    same_mean = noise - hidden * noise.mean((2, 3), keepdim=True) / hidden.mean((2, 3), keepdim=True)
    runs = [from_the_same_state(encoder, partial(a2mim.encode, x, visible))
            for x in (images, images + same_mean, images + hidden)]
    same, other = (relative_error([run], runs[:1]) for run in runs[1:])
    asked = '(c) hidden pixels enter through the mean colours alone'
    found = f'same means {same:.0e}, others {other:.0e}'
    return Part(same <= ROUGH * other and other > FAINT, asked, found, same)


def gradients(a2mim, batch):
    """(d): gradients of the loss."""
    encoder = a2mim.encoder
    named = [(key, p) for key, p in encoder.cnn.named_parameters() if key not in encoder.unused]
    named += [('mask_token', encoder.mask_token), ('mask_gain', encoder.mask_gain)]
    return gradients_of(a2mim(inputs(encoder, batch)), named, '(d) every parameter that is trained gets a gradient')


# What is asked, and the question where a network fails to give an answer.
QUESTIONS = {
    token_in_place_of_all: '(a): does all of the last map come through the output that gets the token',
    nothing_hidden: '(b): with nothing hidden, the network itself',
    hidden_pixels: '(c): other hidden pixels with the same means, the same last map; with other means, another',
    gradients: '(d): a gradient for every parameter that is trained',
}


def said(error):
    return 'not a bit' if error == 0 else f'{error:.0e}'


def same_last_map(encoder, other, images):
    """Whether another network gives the same last map, to the last bit."""
    return torch.equal(encoder(images), encoder.last_map_of(other, images))
