"""A2MIM's weight files."""
from common.networks.find import find_cnn
from common.networks.load import load_found, read_source


def load_official(state, a2mim):
    raise NotImplementedError


def load_init(network, source, model=None, adapt=False):
    state, path, which = read_source(source, model, network.encoder.in_chans)
    encoder = network.encoder
    found = find_cnn(encoder.cnn, state, encoder.unused, path=path, which=which, channels=encoder.in_chans, adapt=adapt)
    return load_found(encoder.cnn, found, encoder.unused)
