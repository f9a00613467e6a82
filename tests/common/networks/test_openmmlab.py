"""Files of OpenMMLab's libraries: their names, their classifier beside the network, their averages."""
import json
from pathlib import Path

import pytest
import torch
from timm.models.beit import Beit

from common.networks.classifier import classifier_entries, num_classes_in
from common.networks.create import create_cnn, without_values
from common.networks.find import find_cnn
from common.networks.guess import guess_model
from common.networks.keys import unwrap
from common.networks.load import load_classifier
from common.networks.openmmlab import from_openmmlab, to_openmmlab, without_flat_averages
from common.reliability.checkpoint import read_plain
from tests.common.networks.test_weights import holds, randomised, under, without

GOLDEN = Path(__file__).parents[2] / 'golden'
VIT = {'img_size': 96, 'embed_dim': 48, 'depth': 3, 'num_heads': 4, 'mlp_ratio': 2, 'init_values': 0.1,
       'use_abs_pos_emb': True, 'use_rel_pos_bias': True}


def golden(name):
    """{official name of an entry of the network: its shape}, and timm's name of each."""
    recorded = json.loads((GOLDEN / f'a2mim_{name}.json').read_text())
    names = {key.removeprefix('backbone.'): here for key, here in recorded['timm'].items()}
    return {key: recorded['keys'][f'backbone.{key}'] for key in names}, names


def network(name):
    if name == 'vit_96':
        return Beit(**VIT, num_classes=0, global_pool='')
    return create_cnn({'convnext_tiny_96': 'convnext_tiny', 'resnet26_96': 'resnet26'}[name])


@pytest.mark.parametrize('name', ['convnext_tiny_96', 'vit_96', 'resnet26_96'])
def test_every_official_name_has_timms(name):
    shapes, names = golden(name)
    cnn = network(name)
    entries = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(shapes.items())}
    renamed = from_openmmlab(entries, cnn)
    assert renamed.keys() == set(names.values())
    own = cnn.state_dict()
    for key, value in entries.items():
        here = renamed[names[key]]
        assert torch.equal(here, value.reshape(own[names[key]].shape)) and here.shape == own[names[key]].shape
    back = to_openmmlab(renamed) if name != 'resnet26_96' else renamed
    assert back.keys() == shapes.keys()


@pytest.mark.parametrize('file', ['resnet', 'vit'])
def test_names_of_another_network_stay(file):
    state = {'conv1.weight': torch.ones(1)} if file == 'resnet' else {'layers.0.ln1.weight': torch.ones(1)}
    assert from_openmmlab(state, create_cnn('convnext_atto')) == state


def official(name, num_classes=None, prefix=''):
    """(timm's network, {key: tensor} as an official file has it), randomised. Without classes it is pretrained."""
    cnn = create_cnn(name, num_classes=num_classes)
    state = randomised(cnn)
    classifier = 'head.fc.' if name.startswith('convnext') else 'fc.'
    network = without(classifier, state)
    network = to_openmmlab(network) if name.startswith('convnext') else network
    keys = under('backbone.', network)
    if num_classes:
        keys |= {f'head.fc.{part}': state[f'{classifier}{part}'] for part in ('weight', 'bias')}
    return state, under(prefix, keys)


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('name', ['test_resnet', 'convnext_atto'])
def test_a_fine_tuned_file_with_its_classifier(tmp_path, name, prefix):
    state, keys = official(name, 7, prefix)
    torch.save({'meta': {'epoch': 3, 'config': 'model = ...'}, 'state_dict': keys, 'optimizer': {'x': torch.ones(1)}},
               tmp_path / 'w.pth')
    cnn = create_cnn(name, num_classes=7)
    report = load_classifier(cnn, tmp_path / 'w.pth', name, (64, 64))
    assert holds(cnn, state) and not report.missing and not report.left_out and report.beside == ('optimizer',)
    content = unwrap(read_plain(tmp_path / 'w.pth'))
    assert num_classes_in(content, create_cnn(name), classifier_entries(name)) == 7
    other = create_cnn(name, num_classes=3)
    report = load_classifier(other, tmp_path / 'w.pth', name, (64, 64))
    assert len(report.left_out) == 2 and holds(other, {k: v for k, v in state.items() if k not in report.left_out})


def test_a_classifier_is_not_taken_from_elsewhere():
    state, keys = official('test_resnet', 7)
    keys['head.fc.weight'] = torch.ones(7, 5)  # of other features
    assert 'head' in load_classifier(create_cnn('test_resnet', num_classes=7), keys, 'test_resnet', (64, 64)).beside


@pytest.mark.parametrize('name', ['test_resnet', 'convnext_atto'])
def test_a_pretrained_file_with_its_token(name):
    state, keys = official(name)
    keys |= {'backbone.mask_token': torch.ones(1, 8, 1, 1), 'backbone.mask_gamma': torch.ones(1, 8, 1, 1),
             'neck.decoder_pred.0.weight': torch.ones(3072, 8, 1, 1)}
    cnn = create_cnn(name)
    report = load_classifier(cnn, keys, name, (64, 64))
    assert set(report.beside) == {'backbone.mask_token', 'backbone.mask_gamma', 'neck'}
    assert set(report.missing) <= {'fc.weight', 'fc.bias', 'head.fc.weight', 'head.fc.bias'}
    with pytest.raises(ValueError, match='not in the network: mask_other'):
        load_classifier(cnn, {**keys, 'backbone.mask_other': torch.ones(1)}, name, (64, 64))
    alone = {key.removeprefix('backbone.'): value for key, value in keys.items() if key.startswith('backbone.')}
    other = create_cnn(name)
    report = load_classifier(other, {'state_dict': alone, 'author': 'theirs'}, name, (64, 64))
    assert set(report.beside) == {'mask_token', 'mask_gamma'}
    assert holds(other, {key: state[key] for key in report.matched})


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_averages_under_flat_names_are_left_out(prefix):
    state, keys = official('test_resnet', 7, prefix)
    copies = {f'{prefix}ema_{key.removeprefix(prefix).replace(".", "_")}': value + 1 for key, value in keys.items()}
    cnn = create_cnn('test_resnet', num_classes=7)
    report = load_classifier(cnn, {'state_dict': {**keys, **copies}}, 'test_resnet', (64, 64))
    assert holds(cnn, state) and f'{len(copies)} copies ema_* are left out' in str(report)
    alone = {'conv.weight': torch.ones(1), 'ema_conv_weight': torch.ones(1), 'ema_other': torch.ones(1)}
    assert without_flat_averages(alone) == ({'conv.weight': torch.ones(1), 'ema_other': torch.ones(1)}, 1)


@pytest.mark.parametrize('name', ['resnet50', 'convnext_small', 'beit_abs_base_patch16_224'])
def test_the_network_is_guessed(name):
    state = without_values(lambda: create_cnn(name)).state_dict()
    state = state if name == 'resnet50' else to_openmmlab(state)
    assert guess_model(under('backbone.', state)) == name


# -- ViTs -------------------------------------------------------------------------------------------------------------

def test_the_norm_of_the_tokens_becomes_that_of_their_mean():
    tokens, mean = Beit(**VIT, num_classes=0, global_pool=''), Beit(**VIT, num_classes=5)
    state = randomised(tokens)
    keys = under('backbone.', to_openmmlab(state)) | {'backbone.layers.0.attn.relative_position_index': torch.ones(3)}
    entries = find_cnn(mean, keys, ['head.weight', 'head.bias']).entries
    assert torch.equal(entries['fc_norm.weight'], state['norm.weight']) and 'norm.weight' not in entries
    tuned = {key.replace('backbone.ln1.', 'backbone.ln2.'): value for key, value in keys.items()}
    tuned |= {'head.fc.weight': torch.ones(5, 48), 'head.fc.bias': torch.ones(5)}
    entries = find_cnn(mean, tuned).entries
    assert torch.equal(entries['fc_norm.weight'], state['norm.weight']) and entries.keys() == mean.state_dict().keys()


def test_objects_in_a_file_are_named_with_the_remedy(tmp_path):
    torch.save({'state_dict': {'a': torch.ones(1)}, 'meta': {'config': Path('x')}}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'it holds pathlib\.\S+ besides.*torch.save\(\{.state_dict'):
        read_plain(tmp_path / 'w.pth')
