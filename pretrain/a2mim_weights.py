"""A2MIM's weight files: ours, whole or the network alone.

A whole file (*_still_pretraining.pth) has the keys of A2MIM's state_dict: those of the network, timm's, begin with
'encoder.cnn.', beside the token and the decoder.
"""
from common.networks.find import find_cnn, find_network
from common.networks.keys import is_within
from common.networks.load import load_found, read_source

ENCODER = 'encoder.cnn.'  # what the network's keys begin with in a whole A2MIM
TOKEN = 'encoder.mask_token'
DECODER = 'decoder'


def load_official(state, a2mim):
    raise NotImplementedError


def load_init(a2mim, source, model=None, adapt=False):
    """Start an A2MIM from weights: a whole one of ours fills all of it, any other file the network.

    Arguments, result and errors as of `load_init` in pretrain/spark_weights.py.
    """
    state, path, which = read_source(source, model, a2mim.encoder.in_chans)
    return load_found(*find_init(a2mim, state, path, which, adapt))


def find_init(a2mim, state, path='the given object', which=None, adapt=False):
    """Find what `load_init` takes from a flat dictionary of tensors.

    Returns the arguments of `load_found`: (module, Network, names of the parameters that may be missing). The
    module is the A2MIM itself for a whole file, else its network. Raises ValueError.
    """
    encoder = a2mim.encoder
    found = find_cnn(encoder.cnn, state, encoder.unused, path=path, which=which, channels=encoder.in_chans, adapt=adapt)
    names_encoder = which is not None and is_within('cnn', which + '.')
    if is_whole(state) and not found.adapted and not names_encoder:
        may_miss = [ENCODER + name for name in encoder.unused]
        return a2mim, find_network(a2mim, state, may_miss, path=path, which=which), may_miss
    return encoder.cnn, found, encoder.unused


def is_whole(state):
    """Whether a flat dictionary has an A2MIM's token and decoder, and so holds all of it."""
    return any(key.endswith(TOKEN) for key in state) and any(key.endswith(f'{DECODER}.weight') for key in state)


def is_in_whole(found):
    """Whether a Network of a CNN was found inside of a whole A2MIM."""
    return found.is_beside(ENCODER, {TOKEN, DECODER})
