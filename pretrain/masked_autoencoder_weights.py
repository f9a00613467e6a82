"""Weight files of ConvMAE and MAE: ours and those of the authors' programs, whole or the network alone.

A whole file of ours (*_still_pretraining.pth) has the keys of the state_dict: those of the network begin with
'encoder.cnn.'. In a whole file of the authors' programs (checkpoint-N.pth) the same keys have no prefix. A file of
the network alone (*_1kpretrained.pth; the released convmae_base and mae_pretrain_vit_*) has the network's keys, and
theirs may have the norm in front of the decoder besides.

ConvMAE's files differ from MAE's by the convolutions that bring its first stages to the decoder.
"""
from dataclasses import replace

import torch

from common.networks.autoencoders import MASK_TOKEN, is_norm_over_mean, norm_over_mean
from common.networks.find import find_cnn, find_network
from common.networks.keys import is_within, unwrap
from common.networks.load import load_found, read_source
from common.networks.positions import POSITIONS
from common.words import counted
from pretrain.convmae_options import NAME as CONVMAE
from pretrain.mae_options import NAME as MAE
from pretrain.masked_network import ENCODER

FUSION = 'stage1_output_decode.weight'
DECODER_INPUT = 'decoder_embed.weight'  # (width of the decoder, channels of the latent)
DECODER_POSITIONS = 'decoder_pos_embed'
BESIDE = {MASK_TOKEN, 'decoder_embed', 'decoder_pred'}  # what a whole file has besides the network
ENCODER_ALONE = 'encoder'  # the KEY of FILE:KEY that means the network alone in any whole file


def load_init(network, source, model=None, adapt=False):
    """Start a ConvMAE or MAE from weights.

    A whole one of the same method, ours or the authors', fills everything; any other file fills the encoder's
    network. So does a whole one for images of other channels where they are adapted, since its decoder has other outputs.

    Args:
        network: a ConvMAE or MAE.
        source: FILE, FILE:KEY, the content of a file, or 'timm' for timm's own pretrained weights of `model`. The KEY
            'encoder' means the network alone in a whole file.
        adapt: whether weights for images of other channels are adapted.

    Returns Loaded. Raises ValueError; then nothing has been changed.
    """
    state, path, which = read_source(source, model, network.encoder.in_chans)
    state, notes = with_own_positions(state, network.encoder.cnn)
    module, found, may_miss = find_init(network, state, path, which, adapt)
    loaded = load_found(module, found, may_miss)
    notes += () if module is network else (anew(network),)
    return replace(loaded, notes=(*loaded.notes, *notes))


def with_own_positions(state, cnn):
    """Put a network's own positions, where they are not trained, in the place of those in a flat dictionary.

    Returns (the dictionary, sentences on what was left out).
    """
    own = getattr(cnn, POSITIONS, None)
    if own is None or own.requires_grad:
        return state, ()
    tables = {key: value for key, value in state.items()
              if key.replace('/', '.').rpartition('.')[2] == POSITIONS and value.ndim == 3 and value.shape[2] == own.shape[2]}
    is_same = all(value.shape == own.shape and torch.equal(value.to(own), own) for value in tables.values())
    note = () if is_same else ('the positions in the file are left out, since this pretraining has fixed ones',)
    return {**state, **dict.fromkeys(tables, own.detach())}, note


def anew(network):
    """Say what starts anew where a file has the encoder's network alone."""
    others = [key for key in network.state_dict() if not key.startswith(ENCODER)]
    what = 'fusion and decoder start' if FUSION in others else 'the decoder start'
    entries = counted(len(others), 'entry', 'entries')
    return f'the weights are those of an encoder: {entries} of {what} anew'


def find_init(network, state, path='the given object', which=None, adapt=False):
    """Find what `load_init` takes from a flat dictionary of tensors.

    Returns the arguments of `load_found`: (module, Network, names of the parameters that may be missing). The
    module is the ConvMAE or MAE itself for a whole file, else its encoder's network. Raises ValueError.
    """
    encoder = network.encoder
    of_network = None if which == ENCODER_ALONE else which
    found = find_cnn(encoder.cnn, state, encoder.unused, path=path, which=of_network, channels=encoder.in_chans,
                     adapt=adapt)
    is_asked = which is None or not names_encoder(which)
    if is_asked and is_part_of_whole(found) and method_of(state) == own_method(network) and not found.adapted:
        return network, find_whole(network, state, path=path, which=which), whole_may_miss(network)
    return encoder.cnn, found, encoder.unused


def names_encoder(which):
    """Whether the KEY of FILE:KEY means the network in a whole file, as encoder and encoder.cnn do."""
    return which == ENCODER_ALONE or is_within('cnn', which + '.')


def load_official(state, network):
    """Load a whole ConvMAE or MAE of the authors' programs into ours, strictly.

    state: what such a file holds, or its 'model'. Returns Loaded. Raises ValueError; then nothing has been changed.
    """
    state = unwrap(state)
    if not is_whole(state):
        raise ValueError(f'this is no whole ConvMAE or MAE: no key ends with {DECODER_INPUT}')
    return load_found(network, find_whole(network, state), whole_may_miss(network))


def find_whole(network, state, **given):
    """Find a whole ConvMAE or MAE, ours or the authors', in a flat dictionary. given: arguments of `find_network`.

    The decoder's position embedding is fixed. One that is for images of another size is left out, and the
    network keeps its own. Returns a Network. Raises ValueError, which names the remedy where the decoder is another one.
    """
    own = network.state_dict()
    table = own[DECODER_POSITIONS]
    names = {*own, *(key.removeprefix(ENCODER) for key in own)}

    def is_other_table(key, value):
        return key == DECODER_POSITIONS and value.shape != table.shape and value.shape[-1:] == table.shape[-1:]

    def convert(entries):
        if is_norm_over_mean(entries, network.encoder.cnn):
            entries = norm_over_mean(entries)
        return {f'{ENCODER}{key}' if f'{ENCODER}{key}' in own else key: table if is_other_table(key, value) else value
                for key, value in entries.items()}

    try:
        found = find_network(network, state, whole_may_miss(network), convert=convert, names=names, **given)
    except ValueError as error:
        if not any(word in str(error) for word in ('decoder_', MASK_TOKEN)):
            raise
        raise ValueError(f'{error}\n  Give the --decoder_width, --decoder_depth and --decoder_heads that the file was made '
                         f'with, or FILE:{ENCODER_ALONE} for the encoder alone') from error
    theirs = state.get(f'{found.prefix}{DECODER_POSITIONS}')
    if theirs is None or theirs.shape == table.shape:
        return found
    note = (f'the positions of the decoder in the file are a fixed table of {theirs.shape[-2]} positions: the network keeps '
            f'its own of {table.shape[-2]}')
    return replace(found, notes=(*found.notes, note))


def whole_may_miss(network):
    """Return the names of the parameters that a whole file may lack: the latent does not depend on them."""
    return [ENCODER + name for name in network.encoder.unused]


def is_whole(state):
    """Whether a flat dictionary has the decoder of a ConvMAE or MAE, and so holds all of it."""
    return method_of(state) is not None


def method_of(state):
    """Return the name of the method, of these two, of which a flat dictionary holds a whole network, or None."""
    keys = {key.rpartition('/')[2] for key in state}
    if not all(has_end(keys, name) for name in (DECODER_INPUT, 'decoder_pred.weight', MASK_TOKEN)):
        return None
    return CONVMAE if has_end(keys, FUSION) else MAE


def own_method(network):
    return CONVMAE if FUSION in network.state_dict() else MAE


def has_end(keys, name):
    """Whether there is a key that is a name, or ends with a dot and this name."""
    return any(key == name or key.endswith(f'.{name}') for key in keys)


def options_in_weights(state):
    """Return {name of an option: value} of the options of the decoder that a flat dictionary tells.

    Heads cannot be seen. The values are None where there is no decoder.
    """
    if not is_whole(state):
        return {'decoder_width': None, 'decoder_depth': None}
    width = next(len(value) for key, value in state.items() if key.endswith(DECODER_INPUT))
    numbers = {key.partition('decoder_blocks.')[2].split('.')[0] for key in state if 'decoder_blocks.' in key}
    return {'decoder_width': width, 'decoder_depth': len(numbers)}


def is_part_of_whole(found):
    """Whether a Network of a CNN was found inside of a whole ConvMAE or MAE, ours or the authors'."""
    return method_around(found) is not None


def method_around(found):
    """Return the name of the method, of these two, inside of whose whole network a CNN was found, or None."""
    prefix = next((prefix for prefix in (ENCODER, '') if found.is_beside(prefix, BESIDE)), None)
    if prefix is None:
        return None
    return CONVMAE if found.is_beside(prefix, {FUSION.removesuffix('.weight')}) else MAE
