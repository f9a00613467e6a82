"""Exported networks: each is read back by whom it is for, equal, or not left behind."""
import json
import pickle

import pytest
import timm
import torch
from safetensors.torch import load_file

from common.checkpoint import plain_state, save
from common.weights import to_official, to_timm, to_torchvision
from pretrain import export
from pretrain.card import write_card
from pretrain.config import Options
from pretrain.log import read_log
from pretrain.saved import read_saved
from pretrain.spark import build_spark
from tests.conftest import randomise
from tests.test_golden import GOLDEN, fill, official_value


def saved_run(folder, model, size=64, width=64, decoder='unet'):
    """A checkpoint as of a run, with random weights, read back."""
    torch.manual_seed(0)
    options = Options(name='r', model=model, input_size=size, decoder_width=width, decoder=decoder)
    spark = randomise(build_spark(**options.network))
    save(folder / 'r_still_pretraining.pth', {'version': 1, 'step': 3, 'sums': [0, 0, 0], 'images': 10, 'accum': 1, 'ranks': 1,
                                              'config': options.as_dict(), 'model': plain_state(spark), 'optimizer': {}})
    return read_saved(folder / 'r_still_pretraining.pth')


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_timm(finished, tmp_path, suffix):
    saved = read_saved(finished)
    export.export(saved, 'timm', tmp_path, suffix)
    path = tmp_path / f'your_convnet_timm{suffix}'
    state = load_file(path) if suffix == '.safetensors' else torch.load(path, weights_only=True)
    own = torch.load(finished / 'your_convnet_1kpretrained.pth', weights_only=True)
    assert state.keys() == own.keys() and all(torch.equal(state[key], own[key]) for key in own)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again = read_saved(path, model='your_convnet', input_size=32)  # safetensors are read wherever weights are
    assert torch.equal(again.spark.encoder.cnn.head.weight, own['head.weight'])


@pytest.mark.parametrize('model', ['resnet18', pytest.param('convnext_tiny', marks=pytest.mark.slow)])
def test_torchvision(tmp_path, model):
    import torchvision
    saved = saved_run(tmp_path, model)
    export.export(saved, 'torchvision', tmp_path)
    theirs = torchvision.models.get_model(model).eval()
    theirs.load_state_dict(load_file(tmp_path / f'{model}_torchvision.safetensors'))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs(images), saved.spark.encoder.cnn(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('model', ['resnet18', 'resnext50_32x4d', 'convnext_tiny', 'densenet121'])
def test_torchvision_s_names(model):
    import torchvision
    with torch.device('meta'):
        theirs = {key: value.shape for key, value in torchvision.models.get_model(model).state_dict().items()}
    ours = {key: value.shape for key, value in to_torchvision(timm.create_model(model).state_dict()).items()}
    assert ours == theirs


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
    own = saved.spark.state_dict()
    again = read_saved(tmp_path / f'{model}_withdecoder_1kpretrained_spark_style.pth', input_size=96)
    outside = tuple(f'encoder.cnn.{name}' for name in saved.spark.encoder.unused)
    assert all(torch.equal(again.spark.state_dict()[key], own[key]) for key in own if key not in outside)


def test_the_official_program_has_no_light_decoder(tmp_path):
    saved = saved_run(tmp_path, 'resnet26', 64, 16, decoder='light')
    assert 'no file with the decoder' in ' '.join(export.export(saved, 'official', tmp_path))
    assert [path.name for path in tmp_path.glob('*_style.pth')] == ['resnet26_1kpretrained_timm_style.pth']


@pytest.mark.parametrize('model', ['resnet26', 'convnext_tiny'])
def test_official_style_in_and_out_is_byte_equal(model):
    keys = json.loads((GOLDEN / f'spark_{model}_96.json').read_text())['keys']
    state = {key.removeprefix('sparse_encoder.sp_cnn.'): official_value(key, shape).float() for key, shape in keys.items()
             if 'sp_cnn' in key}
    back = to_official(to_timm(dict(state), timm.create_model(model)))
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


def test_detectron2(tmp_path):
    saved = saved_run(tmp_path, 'resnet50')
    said = export.export(saved, 'detectron2', tmp_path)[0]
    with open(tmp_path / 'resnet50_detectron2.pkl', 'rb') as file:
        entries = pickle.load(file)['model']
    assert len(entries) == 318 and entries['res3.0.shortcut.norm.running_var'].shape == (512,)
    assert 'Detectron2 is not installed' in said or 'read by Detectron2' in said


@pytest.mark.parametrize('depth, count', [(50, 318), (101, 624), (152, 930)])
def test_detectron2_shapes_are_those_of_timm(depth, count):
    shapes = export.detectron2_shapes(depth)
    state = timm.create_model(f'resnet{depth}').state_dict()
    assert len(shapes) == count == len([key for key in state if not key.startswith('fc.')])
    assert sorted(shapes.values()) == sorted(tuple(value.shape) for key, value in state.items() if not key.startswith('fc.'))


def test_mmdet(tmp_path):
    saved = saved_run(tmp_path, 'convnext_atto')
    said = export.export(saved, 'mmdet', tmp_path)[0]
    assert 'strictly (124 entries of convnext_atto)' in said


def needs_a_hub():
    if not timm.models._hub.has_hf_hub():
        pytest.skip('this timm cannot use the huggingface_hub that is installed')


@pytest.mark.parametrize('model', ['resnet18', 'convnext_atto', 'efficientnet_b0'])
def test_a_folder_for_a_hub(tmp_path, model):
    needs_a_hub()
    saved = saved_run(tmp_path, model)
    export.export(saved, 'hf', tmp_path, licence='mit')
    folder = tmp_path / f'{model}_hf'
    assert {'config.json', 'model.safetensors', 'README.md'} <= {path.name for path in folder.iterdir()}
    theirs = timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=7).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert theirs(images).shape == (1, 7)
        ours = saved.spark.encoder(images)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4)
                   for a, b in zip(ours, saved.spark.encoder.pyramid(images, cnn=theirs)))
    assert theirs.pretrained_cfg['input_size'] == (3, 64, 64)
    config = json.loads((folder / 'config.json').read_text())['pretrained_cfg']
    assert config['paper_ids'] == 'arXiv:2301.03580' and not {'origin_url', 'test_input_size', 'url'} & config.keys()
    card = (folder / 'README.md').read_text()
    assert card.startswith('---\nlicense: mit\n') and '60% of cells of 32 px hidden' in card and '{' not in card
    with pytest.raises(ValueError, match='is there already'):
        export.export(saved, 'hf', tmp_path)
    assert (folder / 'README.md').exists()  # what was there is not what failed


def test_the_card_of_a_run(finished, tmp_path):
    pytest.importorskip('matplotlib')
    write_card(read_saved(finished), tmp_path)
    card = (tmp_path / 'README.md').read_text()
    loss = read_log(finished).epochs[-1]['loss']
    for text in ('license: other', 'did not say', '40 images without labels', '| epochs | 2 of 2 |', f'{loss:.4f}', 'curve.png',
                 'after epoch 2', '## Limits'):
        assert text in card
    assert (tmp_path / 'curve.png').read_bytes()[:4] == b'\x89PNG' and (tmp_path / 'reconstructions.png').exists()


@pytest.mark.parametrize('model', ['test_resnet', 'test_convnext'])
def test_onnx(tmp_path, model):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    import onnxruntime
    saved = saved_run(tmp_path, model)
    export.export(saved, 'onnx', tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['r_still_pretraining.pth', f'{model}_onnx.onnx']
    session = onnxruntime.InferenceSession(str(tmp_path / f'{model}_onnx.onnx'))
    images = torch.randn(3, 3, 64, 64)
    *levels, pooled = session.run(None, {'images': images.numpy()})
    with torch.no_grad():
        ours = saved.spark.encoder(images)
    assert [level.shape for level in levels] == [tuple(level.shape) for level in ours]
    assert torch.allclose(torch.from_numpy(pooled), ours[-1].mean((2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('to, message', [
    ('torchvision', 'torchvision has no your_convnet'), ('official', 'knows plain ResNets'), ('mmdet', 'reads ConvNeXts'),
    ('detectron2', 'not the weights of a ResNet-50'), ('hf', 'timm cannot load it from a folder')])
def test_what_has_no_such_form_leaves_nothing(finished, tmp_path, to, message):
    if to == 'hf':
        needs_a_hub()
    with pytest.raises(SystemExit) as stop:
        export.main([str(finished), f'--to={to}', f'--out={tmp_path}'])
    assert message in str(stop.value) and str(stop.value).startswith('error: ')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('to', ['timm', 'torchvision', 'official', 'hf'])
def test_a_mismatch_deletes_the_file_and_says_why(tmp_path, monkeypatch, to):
    if to == 'hf':
        needs_a_hub()
    saved = saved_run(tmp_path, 'resnet18')
    state = plain_state(saved.spark.encoder.cnn)
    broken = {**state, 'layer2.0.conv1.weight': state['layer2.0.conv1.weight'].flip(0)}
    cnn = saved.spark.encoder.cnn
    monkeypatch.setattr(export, 'plain_state', lambda module: broken if module is cnn else plain_state(module))
    with pytest.raises(ValueError, match='does not give the network'):
        export.export(saved, to, tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())


def test_what_was_there_stays_if_an_export_fails(tmp_path, monkeypatch):
    saved = saved_run(tmp_path, 'test_resnet')
    export.export(saved, 'timm', tmp_path / 'out')
    before = (tmp_path / 'out/test_resnet_timm.safetensors').read_bytes()
    monkeypatch.setattr(export, 'require_same', lambda *_: open('/nowhere/at/all'))  # noqa: SIM115
    with pytest.raises(FileNotFoundError):
        export.export(saved, 'timm', tmp_path / 'out')
    assert [path.read_bytes() for path in (tmp_path / 'out').iterdir()] == [before]


def test_a_name_with_a_tag_and_another_number_of_classes(tmp_path):
    saved = saved_run(tmp_path, 'convnext_atto.d2_in1k')
    saved.spark.encoder.cnn.reset_classifier(7)
    export.export(saved, 'timm', tmp_path)
    assert load_file(tmp_path / 'convnext_atto_timm.safetensors')['head.fc.weight'].shape == (7, 320)


@pytest.mark.parametrize('model', ['resnet18d', 'seresnet18'])
def test_relatives_of_official_networks_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match=f'knows plain ResNets and ConvNeXts, not {model}'):
        export.export(saved_run(tmp_path, model), 'official', tmp_path)


def test_the_card_of_an_encoder_alone_tells_the_run_s_recipe(finished, tmp_path):
    pytest.importorskip('matplotlib')
    write_card(read_saved(finished / 'your_convnet_1kpretrained.pth'), tmp_path)
    card = (tmp_path / 'README.md').read_text()
    for text in ('| epochs | 2 of 2 |', '| batch | 8 |', 'learning rate up to 0.01 |'):
        assert text in card


@pytest.mark.parametrize('flags', [['--to=hf', '--pth'], ['--to=timm', '--licence=mit'], ['--to=nobody']])
def test_flags_that_mean_nothing(finished, tmp_path, flags):
    with pytest.raises(SystemExit) as stop:
        export.main([str(finished), f'--out={tmp_path}', *flags])
    assert stop.value.code == 2 and not list(tmp_path.iterdir())


def test_onnx_without_its_packages(finished, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install onnx onnxscript onnxruntime'):
        export.export(read_saved(finished), 'onnx', tmp_path)
