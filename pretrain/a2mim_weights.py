"""A2MIM's weight files: ours and those of the official release, whole or the network alone.

A whole file of ours has the keys of A2MIM's state_dict: those of the network, timm's, begin with
'encoder.cnn.'. In a whole official file they begin with 'backbone.', the token and its gain are among them, and
the decoder is called 'neck.decoder_pred.0.', in those of SimMIM by the same authors 'neck.decoder.0.'. A ConvNeXt
or ViT has other names there (common/networks/openmmlab.py).
"""
from dataclasses import replace

from common.networks.find import find_cnn, find_network
from common.networks.keys import is_within, unwrap
from common.networks.load import load_found, read_source
from common.networks.openmmlab import TOKENS
from common.networks.renaming import spellings, to_timm
from pretrain.masked_network import ENCODER

OFFICIAL_ENCODER = 'backbone.'  # what the network's keys begin with in a whole official A2MIM
OFFICIAL_DECODERS = ('neck.decoder_pred.0.', 'neck.decoder.0.')
DECODER = 'decoder.'
# What is beside the network in the official file -> ours
OFFICIAL_TOKENS = {'backbone.mask_token': 'encoder.mask_token', 'backbone.mask_gamma': 'encoder.mask_gain'}
ALONE = 'the network alone is filled, the token and the decoder start anew'


def load_init(a2mim, source, model=None, adapt=False):
    """Start an A2MIM from weights.

    A whole A2MIM, ours or official, fills network, token and decoder; any other file fills the network. So does
    a whole one for images of other channels where they are adapted, since its decoder has other outputs.

    Args:
        source: FILE, FILE:KEY, the content of a file, or 'timm' for timm's own pretrained weights of `model`.
        adapt: whether weights for images of other channels are adapted.

    Returns Loaded. Raises ValueError; then nothing has been changed.
    """
    state, path, which = read_source(source, model, a2mim.encoder.in_chans)
    module, network, may_miss = find_init(a2mim, state, path, which, adapt)
    loaded = load_found(module, network, may_miss)
    return loaded if module is a2mim else replace(loaded, notes=(*loaded.notes, ALONE))


def find_init(a2mim, state, path='the given object', which=None, adapt=False):
    """Find what `load_init` takes from a flat dictionary of tensors.

    Returns the arguments of `load_found`: (module, Network, names of the parameters that may be missing). The
    module is the A2MIM itself for a whole file, else its network. Raises ValueError.
    """
    encoder = a2mim.encoder
    network = find_cnn(encoder.cnn, state, encoder.unused, path=path, which=which, channels=encoder.in_chans,
                       adapt=adapt)
    if is_part_of_whole(network) and not network.adapted and not (which is not None and names_encoder(which)):
        return a2mim, find_whole(a2mim, state, path=path, which=which), whole_may_miss(a2mim)
    return encoder.cnn, network, encoder.unused


def names_encoder(which):
    """Whether the KEY of FILE:KEY means the network in a whole A2MIM, as encoder.cnn and backbone do."""
    return is_within('cnn', which + '.') or is_within('backbone', which + '.')


def load_official(state, a2mim):
    """Load a whole official A2MIM into ours, strictly; see A2MIM.load_official.

    Returns Loaded. Raises ValueError; then nothing has been changed.
    """
    state = unwrap(state)
    if not any(decoder in key for key in state for decoder in OFFICIAL_DECODERS):
        raise ValueError(f'this is no whole official A2MIM: no key has {" or ".join(OFFICIAL_DECODERS)} in it')
    return load_found(a2mim, find_whole(a2mim, state), whole_may_miss(a2mim))


def find_whole(a2mim, state, **given):
    """Find a whole A2MIM, ours or official, in a flat dictionary. given: arguments of `find_network`.

    Returns a Network. Raises ValueError, which names the remedy where a file has another kind of token.
    """
    cnn = a2mim.encoder.cnn
    others = [key for key in a2mim.state_dict() if not key.startswith(ENCODER)]
    decoders = [prefix + name for prefix in OFFICIAL_DECODERS for name in ('weight', 'bias')]
    networks = [prefix + key for prefix in (ENCODER, OFFICIAL_ENCODER) for key in spellings(cnn)]
    names = {*others, *OFFICIAL_TOKENS, *decoders, *networks}

    def convert(entries):
        return from_official(entries, cnn)

    try:
        return find_network(a2mim, state, whole_may_miss(a2mim), convert=convert, names=names, **given)
    except ValueError as error:
        if not any(key in str(error) for key in OFFICIAL_TOKENS.values()):
            raise
        raise ValueError(f'{error}\n  The token is of another kind or place there: give the --token and --token_at that '
                         'the file was made with, or FILE:backbone (of our files FILE:encoder.cnn) for the network '
                         'alone') from error


def from_official(entries, cnn):
    """Rename the entries of a whole official A2MIM to ours. Entries of ours, and unknown ones, stay as they are."""
    renamed = {}
    network = {}
    for key, value in entries.items():
        decoder = next((prefix for prefix in OFFICIAL_DECODERS if key.startswith(prefix)), None)
        if key in OFFICIAL_TOKENS:
            renamed[OFFICIAL_TOKENS[key]] = value.reshape(1, -1, 1, 1)  # (1, 1, C) of a ViT
        elif decoder:
            renamed[DECODER + key.removeprefix(decoder)] = value
        elif key.startswith(OFFICIAL_ENCODER):
            network[key.removeprefix(OFFICIAL_ENCODER)] = value
        else:
            renamed[key] = value
    return {**{ENCODER + key: value for key, value in to_timm(network, cnn).items()}, **renamed}


def whole_may_miss(a2mim):
    """Return the names of the parameters that a whole file may lack: the last map does not depend on them."""
    return [ENCODER + name for name in a2mim.encoder.unused]


def is_whole(state):
    """Whether a flat dictionary has the token and the decoder of an A2MIM, ours or official, and so holds all of it."""
    is_ours = any(key.endswith('encoder.mask_token') for key in state) \
        and any(key.endswith(f'{DECODER}weight') for key in state)
    is_official = any(key.endswith(f'{OFFICIAL_ENCODER}{TOKENS[0]}') for key in state) \
        and any(decoder in key for key in state for decoder in OFFICIAL_DECODERS)
    return is_ours or is_official


def kind_of_token(state):
    """Return the kind of token, as of --token, that a flat dictionary is likely to be of; None if it does not tell.

    A gain is a tensor. The other two kinds have the same tensors: of official files, SimMIM's older ones put the
    token in the place of features, those of A2MIM without a gain (ViTs) add it.
    """
    if any(key.endswith(('encoder.mask_gain', f'{OFFICIAL_ENCODER}{TOKENS[1]}')) for key in state):
        return 'gain'
    a2mims, simmims = (any(decoder in key for key in state) for decoder in OFFICIAL_DECODERS)
    return 'residual' if a2mims else 'replace' if simmims else None


def is_part_of_whole(network):
    """Whether a Network of a CNN was found inside of a whole A2MIM, ours or official."""
    return network.is_beside(ENCODER, {'encoder.mask_token', 'decoder'}) \
        or network.is_beside(OFFICIAL_ENCODER, {f'{OFFICIAL_ENCODER}{TOKENS[0]}', 'neck'})
