"""Runs that never trained, to be read, shown and exported."""
import re

import pytest
import timm
import torch

from common.networks.load import load_found
from common.reliability.checkpoint import plain_state, save
from pretrain.methods import METHODS
from pretrain.saved import encoder_entries, read_saved
from pretrain.spark_options import SparKOptions as Options
from tests.conftest import randomise


def saved_run(folder, model, size=64, width=64, decoder='unet'):
    """A checkpoint as of a run with SparK, with random weights, read back."""
    return saved_as_of(folder, Options(name='r', model=model, input_size=size, decoder_width=width, decoder=decoder))


def saved_as_of(folder, options):
    """A checkpoint as of a run with these options, with random weights, read back."""
    torch.manual_seed(0)
    network = randomise(METHODS[options.method].build(options))
    save(folder / 'r_still_pretraining.pth', {'version': 1, 'step': 3, 'sums': [0, 0, 0], 'images': 10, 'accum': 1, 'ranks': 1,
                                              'config': options.as_dict(), 'model': plain_state(network), 'optimizer': {}})
    return read_saved(folder / 'r_still_pretraining.pth')


def needs_a_hub():
    if not timm.models._hub.has_hf_hub():
        pytest.skip('this timm cannot use the huggingface_hub that is installed')


def tuned(folder, model='test_resnet', classes=5, wrap=lambda state: state, **made):
    """(a network with a trained classifier, its file)."""
    network = randomise(timm.create_model(model, num_classes=classes, **made)).eval()
    torch.save(wrap(network.state_dict()), folder / 'tuned.pth')
    return network, folder / 'tuned.pth'


def assert_encoder_is_read(network, module, found, may_miss):
    """What `find_init` found in a whole file of a masked network holds all that is trained of its encoder, unchanged."""
    assert module is network
    entries = encoder_entries(found, load_found(module, found, may_miss))
    own = network.encoder.cnn.state_dict()
    assert entries.keys() >= own.keys() - set(network.encoder.unused)
    assert all(torch.equal(value, own[key]) for key, value in entries.items())


def line_of(sentence):
    """The Python that an export prints to load it with."""
    return re.search(r'read by (.+?), (?:not )?strictly', sentence)[1]
