"""The record of a probe: it saves the probe where it is that network's, and counts as none elsewhere."""
import copy
import importlib
import io
import json
import sys

import pytest
import timm
import torch
from torch import nn

from pretrain.encoder import SparseEncoder
from pretrain.spark import build_spark
from pretrain.sparse import record as records
from pretrain.sparse.notes import NoteKind

FACTS = ('stride', 'cell_size', 'grid', 'level_indices', 'reductions', 'channels', 'norm', 'unused', 'taps', 'stop',
         'aligned', 'uncompiled', 'has_attention', 'orders', 'notes', 'record')
SIZE = (64, 96)


def network(name='test_resnet', **given):
    return timm.create_model(name, **given)


@pytest.fixture
def probed(monkeypatch):
    """Fills with the networks that are probed."""
    networks, original = [], sys.modules['pretrain.encoder'].probe

    def probe(cnn, *arguments, **given):
        networks.append(cnn)
        return original(cnn, *arguments, **given)

    monkeypatch.setattr('pretrain.encoder.probe', probe)
    return networks


def through_a_file(record):
    file = io.BytesIO()
    torch.save(record, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(('name', 'arguments'), [
    ('test_resnet', {}), ('test_convnext', {'cell_size': 32}), ('resnetblur18', {}),
    ('ghostnet_050', {'input_size': (64, 128)}),
    ('test_resnet', {'levels': ['layer2', 'layer3', 'layer4']}), ('test_resnet', {'levels': 'layer4'})])
def test_a_record_says_what_the_probe_found(probed, name, arguments):
    arguments = {'input_size': SIZE} | arguments
    first = SparseEncoder(network(name), **arguments)
    for record in (first.record, through_a_file(first.record), json.loads(json.dumps(first.record))):
        second = SparseEncoder(network(name), **arguments, record=record)
        assert all(getattr(second, fact) == getattr(first, fact) for fact in FACTS)
        assert [note.kind for note in second.notes] == [note.kind for note in first.notes]
    assert len(probed) == 1
    if name == 'resnetblur18':
        assert first.notes[0].kind is NoteKind.PADDING_MODE


def test_spark_is_the_same_with_a_record(probed):
    sparks = []
    for record in (None, build_spark('test_resnet', 64, decoder_width=32).encoder.record):
        torch.manual_seed(0)
        sparks.append(build_spark('test_resnet', 64, decoder_width=32, record=record))
    assert len(probed) == 2
    states = [spark.state_dict() for spark in sparks]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert sparks[0].single_valued == sparks[1].single_valued


@pytest.mark.parametrize(('name', 'weight'), [
    ('test_convnext', 'stem.0.weight'), ('test_resnet', 'conv1.0.weight')])
def test_what_decides_nothing_may_differ(probed, name, weight):
    """A run with drop path is read without; weights are trained, and modes change."""
    record = SparseEncoder(network(name, drop_path_rate=0.2), SIZE).record
    other = network(name).eval()
    with torch.no_grad():
        other.get_parameter(weight).add_(1)
    assert SparseEncoder(other, SIZE, record=record).record == record and len(probed) == 1


def strided(cnn):
    cnn.layer4[0].conv2.stride = (1, 1)
    cnn.layer4[0].downsample[0].stride = (1, 1)
    return cnn


def other_class(cnn):
    cnn.act1 = nn.GELU()
    return cnn


def frozen(cnn):
    cnn.conv1[0].weight.requires_grad_(False)
    return cnn


def longer(cnn):
    cnn.layer4.append(nn.Conv2d(cnn.num_features, cnn.num_features, 1))
    return cnn


@pytest.mark.parametrize('change', [strided, other_class, frozen, longer, lambda cnn: cnn.double()])
def test_another_network_is_probed_again(probed, change):
    record = SparseEncoder(network(), SIZE).record
    try:
        other = SparseEncoder(change(network()), SIZE, record=record)
    except ValueError:  # the probe's
        pass
    else:
        assert other.record != record
    assert len(probed) == 2


@pytest.mark.parametrize('arguments', [{'input_size': (96, 64)}, {'cell_size': 64, 'input_size': (64, 128)},
                                       {'levels': ['layer3', 'layer4']}])
def test_what_else_is_asked_is_probed_again(probed, arguments):
    record = SparseEncoder(network(), SIZE).record
    arguments = {'input_size': SIZE} | arguments
    assert SparseEncoder(network(), **arguments, record=record).input_size == arguments['input_size']
    assert len(probed) == 2


@pytest.mark.parametrize('version', [
    'torch.__version__', 'timm.__version__', 'pretrain.sparse.record.VERSION'])
def test_other_versions_are_probed_again(monkeypatch, probed, version):
    record = SparseEncoder(network(), SIZE).record
    monkeypatch.setattr(version, '0.1')
    assert SparseEncoder(network(), SIZE, record=record).record != record and len(probed) == 2


def damaged(record):
    """The record with one thing wrong, in every way."""
    for fact in record['facts']:
        for value in (None, 7, 'x', ('x',), [[]], object()):
            if value != record['facts'][fact]:
                yield record | {'facts': record['facts'] | {fact: value}}
        yield record | {'facts': {name: value for name, value in record['facts'].items() if name != fact}}
    yield from (None, 0, 'record', [], {}, {'facts': {}, 'digest': ''}, {'digest': record['digest']})
    for facts in (None, {1: 2, 'a': 3}, record['facts'] | {'more': 1}, torch.zeros(2)):
        yield record | {'facts': facts}
    for digest in (None, record['digest'][:-1], torch.zeros(2)):
        yield record | {'digest': digest}
    deep = copy.deepcopy(record)
    deep['facts']['notes'] = inner = []
    for _ in range(100_000):
        inner.append([])
        inner = inner[0]
    yield deep
    endless = copy.deepcopy(record)
    endless['facts']['notes'] = [endless]
    yield endless


def test_a_damaged_record_counts_as_none():
    encoder = SparseEncoder(network(), SIZE)
    asked = {'input_size': SIZE, 'in_chans': 3, 'cell_size': None, 'levels': None}
    assert records.read_record(encoder.record, encoder.cnn, asked) is not None
    for record in damaged(encoder.record):
        assert records.read_record(record, encoder.cnn, asked) is None


SOURCE = '''
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)

    def forward(self, x):
        first = self.first(x)
        return [first, self.second(first)]
'''


def test_a_network_whose_source_changed_is_probed_again(probed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    file = tmp_path / 'network_of_a_test.py'
    file.write_text(SOURCE)
    module = importlib.import_module(file.stem)
    record = SparseEncoder(module.Own(), (16, 16)).record
    SparseEncoder(module.Own(), (16, 16), record=record)
    assert len(probed) == 1
    file.write_text(SOURCE.replace('[first,', '[first.flip(2),'))
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match='flip'):
        SparseEncoder(importlib.reload(module).Own(), (16, 16), record=record)
    assert len(probed) == 2


def test_a_network_of_a_notebook_has_no_record(probed):
    scope = {'__name__': 'a_notebook'}
    exec(SOURCE, scope)
    encoder = SparseEncoder(scope['Own'](), (16, 16))
    assert encoder.record is None
    assert SparseEncoder(scope['Own'](), (16, 16), record=None).stride == 4 and len(probed) == 2
