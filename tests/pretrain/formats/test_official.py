"""Files of the official program: what is written, and what is read."""
import json

import pytest
import safetensors
import timm
import torch
from safetensors.torch import load_file

from common.networks.renaming import to_timm
from common.reliability.checkpoint import plain_state, save
from pretrain import export
from pretrain.saved import read_saved
from pretrain.spark import build_spark
from pretrain.spark_options import SparKOptions as Options
from pretrain.spark_weights import official_encoder
from tests.pretrain.official import GOLDEN, fill, official_value
from tests.pretrain.runs import line_of, saved_run


@pytest.mark.parametrize('model', ['resnet26', pytest.param('convnext_tiny', marks=pytest.mark.slow)])
def test_official_names_shapes_and_round_trip(tmp_path, model):
    saved = saved_run(tmp_path, model, 96, 768)
    said = ' '.join(export.export(saved, 'official', tmp_path))
    assert 'the official program itself was not run' in said
    keys = json.loads((GOLDEN / f'spark_{model}_96.json').read_text())['keys']
    whole = torch.load(tmp_path / f'{model}_withdecoder_1kpretrained_spark_style.pth', weights_only=True)['module']
    assert {key: list(value.shape) for key, value in whole.items()} == keys
    style = {'resnet26': 'timm', 'convnext_tiny': 'official'}[model]
    encoder = torch.load(tmp_path / f'{model}_1kpretrained_{style}_style.pth', weights_only=True)
    assert {f'sparse_encoder.sp_cnn.{key}' for key in encoder} == {key for key in keys if 'sp_cnn' in key}
    own = saved.network.state_dict()
    again = read_saved(tmp_path / f'{model}_withdecoder_1kpretrained_spark_style.pth', input_size=96)
    outside = tuple(f'encoder.cnn.{name}' for name in saved.network.encoder.unused)
    assert all(torch.equal(again.network.state_dict()[key], own[key]) for key in own if key not in outside)


def test_the_official_program_has_no_light_decoder(tmp_path):
    saved = saved_run(tmp_path, 'resnet26', 64, 16, decoder='light')
    assert 'no file with the decoder' in ' '.join(export.export(saved, 'official', tmp_path))
    assert [path.name for path in tmp_path.glob('*_style.pth')] == ['resnet26_1kpretrained_timm_style.pth']


@pytest.mark.parametrize('model', ['resnet26', 'convnext_tiny'])
def test_official_style_in_and_out_is_byte_equal(model):
    keys = json.loads((GOLDEN / f'spark_{model}_96.json').read_text())['keys']
    state = {key.removeprefix('sparse_encoder.sp_cnn.'): official_value(key, shape).float() for key, shape in keys.items()
             if 'sp_cnn' in key}
    back = official_encoder(to_timm(dict(state), timm.create_model(model)))
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.slow
def test_golden_numbers_through_an_exported_official_file(tmp_path):
    want = json.loads((GOLDEN / 'spark_resnet26_96.json').read_text())
    spark = build_spark('resnet26', 96)
    spark.load_official({name: official_value(name, shape).float() for name, shape in want['keys'].items()})
    options = Options(name='golden', model='resnet26', input_size=96)
    save(tmp_path / 'g_still_pretraining.pth', {'version': 1, 'step': 1, 'images': 1, 'config': options.as_dict(),
                                                'model': plain_state(spark), 'optimizer': {}})
    export.export(read_saved(tmp_path / 'g_still_pretraining.pth'), 'official', tmp_path)
    again = build_spark('resnet26', 96).double()
    again.load_official(torch.load(tmp_path / 'resnet26_withdecoder_1kpretrained_spark_style.pth', weights_only=True))
    images = fill('input', (want['batch'], 3, 96, 96))
    loss = again.train()(images, torch.tensor(want['visible']))
    assert abs(loss.item() / want['loss_train'] - 1) < 1e-5  # the file holds float32


@pytest.mark.parametrize('model', ['resnet18d', 'seresnet18'])
def test_relatives_of_official_networks_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match=f'knows plain ResNets and ConvNeXts, not {model}'):
        export.export(saved_run(tmp_path, model), 'official', tmp_path)


@pytest.mark.parametrize('model', ['resnet18', pytest.param('convnext_tiny', marks=pytest.mark.slow)])
def test_an_official_encoder_for_torchvision_and_timm(tmp_path, monkeypatch, model):
    import torchvision
    state = official_encoder(timm.create_model(model).state_dict())
    torch.save(state, tmp_path / 'w.pth')
    saved = read_saved(tmp_path / 'w.pth', input_size=64)
    said = export.export(saved, 'torchvision', tmp_path)[0]
    names = {'torch': torch, 'torchvision': torchvision, 'safetensors': safetensors}
    exec(line_of(said), names)  # the lines as they are printed
    theirs = names['model']
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = saved.network.encoder(images)[-1].mean((2, 3))
        assert torch.allclose(theirs.eval()(images), ours, rtol=1e-3, atol=1e-4)
    said = export.export(saved, 'timm', tmp_path)[0]
    assert ('lacks 2 (head.norm.weight, head.norm.bias)' in said) == (model == 'convnext_tiny')
    assert len(load_file(tmp_path / f'{model}_timm.safetensors')) == len(state)
    monkeypatch.chdir(tmp_path)
    eval(line_of(said), {'timm': timm})
