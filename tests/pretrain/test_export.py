"""Exported networks: each is read back by whom it is for, equal, or not left behind."""
import dataclasses
import json
import pickle
import re
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file

from common.networks.renaming import to_timm, to_torchvision
from common.reliability.checkpoint import plain_state, save
from pretrain import export
from pretrain.formats import contents, to_detectron2, verify
from pretrain.models.custom import YourConvNet
from pretrain.results.card import write_card
from pretrain.results.read_log import read_log
from pretrain.saved import read_saved
from pretrain.spark import build_spark
from pretrain.spark_method import SparKOptions as Options
from pretrain.spark_weights import official_encoder
from tests.conftest import randomise
from tests.pretrain.official import GOLDEN, fill, official_value
from tests.pretrain.runs import saved_run


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_timm(finished, tmp_path, suffix):
    saved = read_saved(finished)
    export.export(saved, 'timm', tmp_path, suffix)
    path = tmp_path / f'your_convnet_timm{suffix}'
    state = load_file(path) if suffix == '.safetensors' else torch.load(path, weights_only=True)
    own = torch.load(finished / 'your_convnet_1kpretrained.pth', weights_only=True)
    trained = {key for key in own if not key.startswith('head.')}  # what pretraining does not train is not handed on
    assert state.keys() == trained and all(torch.equal(state[key], own[key]) for key in trained)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again = read_saved(path, model='your_convnet', input_size=32)  # safetensors are read wherever weights are
    assert torch.equal(again.spark.encoder.cnn.stages[0].conv1.weight, own['stages.0.conv1.weight'])
    assert set(again.loaded.missing) == {'head.weight', 'head.bias'} and not again.has_classifier


@pytest.mark.parametrize('model', ['resnet18', pytest.param('convnext_tiny', marks=pytest.mark.slow)])
def test_torchvision(tmp_path, model):
    import torchvision
    given = randomise(timm.create_model(model, num_classes=7)).eval()
    torch.save(given.state_dict(), tmp_path / 'tuned.pth')
    export.export(read_saved(tmp_path / 'tuned.pth', model=model, input_size=64), 'torchvision', tmp_path)
    theirs = torchvision.models.get_model(model, num_classes=7).eval()
    theirs.load_state_dict(load_file(tmp_path / f'{model}_torchvision.safetensors'))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs(images), given(images), rtol=1e-4, atol=1e-5)


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


def test_detectron2(tmp_path):
    saved = saved_run(tmp_path, 'resnet50')
    said = export.export(saved, 'detectron2', tmp_path)[0]
    with open(tmp_path / 'resnet50_detectron2.pkl', 'rb') as file:
        entries = pickle.load(file)['model']
    assert len(entries) == 318 and entries['res3.0.shortcut.norm.running_var'].shape == (512,)
    assert 'Detectron2 is not installed' in said or 'read by Detectron2' in said


@pytest.mark.parametrize('depth, count', [(50, 318), (101, 624), (152, 930)])
def test_detectron2_shapes_are_those_of_timm(depth, count):
    shapes = to_detectron2.backbone_shapes(depth)
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
    saved, entries_of = saved_run(tmp_path, 'resnet18'), contents.entries_of

    def broken(saved, classifier=True):
        entries = entries_of(saved, classifier)
        return {**entries, 'layer2.0.conv1.weight': entries['layer2.0.conv1.weight'].flip(0)}

    with monkeypatch.context() as patch:  # what is written is not what was given: seen by the features
        patch.setattr(verify, 'require_given', lambda *_, **__: None)
        patch.setattr(contents, 'entries_of', broken)
        with pytest.raises(ValueError, match="does not give the network's own output"):
            export.export(saved, to, tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())
    weights = {**saved.weights, 'layer2.0.bn2.running_mean': saved.weights['layer2.0.bn2.running_mean'] + 1e-7}

    def given(one, written, *arguments, **more):  # and by its bits
        require_given(dataclasses.replace(one, weights=weights), written, *arguments, **more)

    require_given = verify.require_given
    monkeypatch.setattr(verify, 'require_given', given)
    with pytest.raises(ValueError, match="network's own entries from what was written: 1 .layer2.0.bn2.running_mean"):
        export.export(saved, to, tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())


def test_what_was_there_stays_if_an_export_fails(tmp_path, monkeypatch):
    saved = saved_run(tmp_path, 'test_resnet')
    export.export(saved, 'timm', tmp_path / 'out')
    before = (tmp_path / 'out/test_resnet_timm.safetensors').read_bytes()
    monkeypatch.setattr(verify, 'require_same', lambda *_: open('/nowhere/at/all'))  # noqa: SIM115
    with pytest.raises(FileNotFoundError):
        export.export(saved, 'timm', tmp_path / 'out')
    assert [path.read_bytes() for path in (tmp_path / 'out').iterdir()] == [before]


def test_a_name_with_a_tag_and_another_number_of_classes(tmp_path):
    torch.save(timm.create_model('convnext_atto', num_classes=7).state_dict(), tmp_path / 'w.pth')
    export.export(read_saved(tmp_path / 'w.pth', model='convnext_atto.d2_in1k', input_size=64), 'timm', tmp_path)
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


def tuned(folder, model='test_resnet', classes=5, wrap=lambda state: state, **made):
    """(a network with a trained classifier, its file)."""
    network = randomise(timm.create_model(model, num_classes=classes, **made)).eval()
    torch.save(wrap(network.state_dict()), folder / 'tuned.pth')
    return network, folder / 'tuned.pth'


def line_of(sentence):
    """The Python that an export prints to load it with."""
    return re.search(r'read by (.+?), (?:not )?strictly', sentence)[1]


@pytest.mark.parametrize('model, classes, in_chans', [('test_resnet', 5, 3), ('convnext_atto', 2, 1),
                                                      ('your_convnet', 1000, 5)])
def test_a_trained_classifier_goes_with_the_network(tmp_path, monkeypatch, model, classes, in_chans):
    network, file = tuned(tmp_path, model, classes, in_chans=in_chans)
    saved = read_saved(file, model=model, input_size=64, in_chans=in_chans, mean=(0.5,) * in_chans, std=(0.5,) * in_chans)
    said = export.export(saved, 'timm', tmp_path)
    monkeypatch.chdir(tmp_path)
    theirs = eval(line_of(said[0]), {'timm': timm})
    assert all(torch.equal(theirs.state_dict()[key], value) for key, value in network.state_dict().items())
    assert f'trained classifier is in it: {classes} classes' in said[1]


def test_without_a_classifier_none_is_written(tmp_path, monkeypatch):
    network = randomise(timm.create_model('mobilenetv3_small_050'))
    body = {key: value for key, value in network.state_dict().items() if not key.startswith('classifier.')}
    torch.save({'state_dict': {f'model.backbone.{key}': value for key, value in body.items()}}, tmp_path / 'w.pth')
    said = export.export(read_saved(tmp_path / 'w.pth', model='mobilenetv3_small_050', input_size=64), 'timm', tmp_path)
    assert 'no classifier: the given file has none' in said[1]
    state = load_file(tmp_path / 'mobilenetv3_small_050_timm.safetensors')
    assert state.keys() == body.keys() and all(torch.equal(state[key], body[key]) for key in body)
    monkeypatch.chdir(tmp_path)
    assert eval(line_of(said[0]), {'timm': timm}).num_classes == 0


@pytest.mark.parametrize('model', ['resnet18', 'convnext_tiny'])
def test_an_official_encoder_for_torchvision_and_timm(tmp_path, monkeypatch, model):
    import torchvision
    state = official_encoder(timm.create_model(model).state_dict())
    torch.save(state, tmp_path / 'w.pth')
    saved = read_saved(tmp_path / 'w.pth', input_size=64)
    said = export.export(saved, 'torchvision', tmp_path)[0]
    theirs = eval(re.search(r'model = (\S+)', said)[1], {'torchvision': torchvision})
    name = re.search(r"set_submodule\('([\w.]+)'", said)[1]
    theirs.set_submodule(name, torch.nn.Flatten())
    theirs.load_state_dict(load_file(tmp_path / f'{model}_torchvision.safetensors'))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = saved.spark.encoder(images)[-1].mean((2, 3))
        assert torch.allclose(theirs.eval()(images), ours, rtol=1e-3, atol=1e-4)
    said = export.export(saved, 'timm', tmp_path)[0]
    assert ('lacks 2 (head.norm.weight, head.norm.bias)' in said) == (model == 'convnext_tiny')
    assert len(load_file(tmp_path / f'{model}_timm.safetensors')) == len(state)
    monkeypatch.chdir(tmp_path)
    eval(line_of(said), {'timm': timm})


def test_which_classifiers_were_not_trained(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / 'run')
    body = torch.load(finished / 'your_convnet_1kpretrained.pth', weights_only=True)
    cnn = {f'cnn.{key}': value for key, value in body.items()}
    torch.save({'model': {**cnn, 'norm.running_mean': torch.zeros(128), 'norm.running_var': torch.ones(128),
                          'fc.weight': torch.zeros(3, 128), 'fc.bias': torch.zeros(3)}}, tmp_path / 'probe.pth')
    detector = {f'backbone.{key}': value for key, value in cnn.items()} | {'backbone.fpn.x': torch.zeros(1)}
    torch.save(detector, tmp_path / 'd.pth')
    torch.save(cnn, tmp_path / 'own.pth')  # another program's
    given = {'model': 'your_convnet', 'input_size': 32}
    for source, trained in ((folder, False), (folder / 'your_convnet_1kpretrained.pth', False), (tmp_path / 'probe.pth', False),
                            (tmp_path / 'd.pth', False), (tmp_path / 'own.pth', True)):
        saved = read_saved(source, **({} if source is folder else given))
        assert saved.has_classifier == trained and saved.is_encoder != trained, source
        said = ' '.join(export.export(saved, 'timm', tmp_path / 'out'))
        assert ('was not trained, and is left out' in said) != trained
    assert 'head.weight' in load_file(tmp_path / 'out/your_convnet_timm.safetensors')


def test_the_average_of_a_file_is_exported_when_it_is_asked_for(tmp_path, capsys):
    other = {key: value + 1 for key, value in timm.create_model('test_resnet', num_classes=4).state_dict().items()}
    network, file = tuned(tmp_path, classes=4, wrap=lambda state: {'model': state, 'ema': other, 'epoch': 3})
    for source, wanted in ((file, network.state_dict()), (f'{file}:ema', other)):
        export.main([str(source), '--model=test_resnet', '--input_size=64', '--to=timm', f'--out={tmp_path}'])
        state = load_file(tmp_path / 'test_resnet_timm.safetensors')
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
        assert f'the file holds {"ema" if source is file else "model"} besides, not loaded' in capsys.readouterr().out


def test_a_classifier_for_a_hub_with_the_names_of_its_classes(tmp_path):
    needs_a_hub()
    config = {'finetune_from': None, 'model': 'test_resnet', 'in_chans': 3, 'input_size': 64, 'mean': None, 'std': None}
    about = {'config': config, 'classes': ['a', 'b', 'c']}
    network, file = tuned(tmp_path, classes=3, wrap=lambda state: {'model': state, **about})
    export.export(read_saved(file), 'hf', tmp_path)
    theirs = timm.create_model(f'local-dir:{tmp_path / "test_resnet_hf"}', pretrained=True).eval()
    assert all(torch.equal(theirs.state_dict()[key], value) for key, value in network.state_dict().items())
    assert json.loads((tmp_path / 'test_resnet_hf/config.json').read_text())['label_names'] == ['a', 'b', 'c']
    assert 'classifier of 3 classes' in (tmp_path / 'test_resnet_hf/README.md').read_text()


def test_logits_of_onnx(tmp_path):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    import onnxruntime
    network, file = tuned(tmp_path, 'test_convnext', 6)
    export.export(read_saved(file, model='test_convnext', input_size=64), 'onnx', tmp_path)
    session, images = onnxruntime.InferenceSession(str(tmp_path / 'test_convnext_onnx.onnx')), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0]), network(images),
                              rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('to, model', [
    ('official', 'resnet26'), pytest.param('mmdet', 'convnext_atto', marks=pytest.mark.slow)])
def test_formats_without_a_place_for_a_classifier_say_so(tmp_path, to, model):
    _, file = tuned(tmp_path, model, 3)
    said = ' '.join(export.export(read_saved(file, model=model, input_size=64), to, tmp_path))
    assert f'is left out: --to={to} is for an encoder' in said


def test_no_layer_of_random_numbers_in_a_folder_for_a_hub(tmp_path):
    needs_a_hub()
    state = timm.create_model('mobilenetv3_small_050', num_classes=0).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith('conv_head.')}, tmp_path / 'w.pth')
    saved = read_saved(tmp_path / 'w.pth', model='mobilenetv3_small_050', input_size=64)
    with pytest.raises(ValueError, match=r'lacks 2 \(conv_head.weight, conv_head.bias\).*would be random'):
        export.export(saved, 'hf', tmp_path / 'out')


@pytest.mark.filterwarnings('error:Initializing zero-element')
def test_a_layer_of_no_classes_brings_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(YourConvNet, '__init__', template_with_an_empty_head(YourConvNet.__init__))
    saved = saved_run(tmp_path, 'your_convnet')
    export.export(saved, 'timm', tmp_path)
    needs_a_hub()
    with pytest.raises(ValueError, match='timm cannot load it from a folder'):
        export.export(saved, 'hf', tmp_path)


def template_with_an_empty_head(original):
    """A network of a user's, as the template was: its head is a linear layer even of no classes."""
    def init(self, in_chans=3, num_classes=1000, channels=(32, 64, 128)):
        original(self, in_chans, 1, channels)
        self.num_classes, self.head = num_classes, torch.nn.Linear(channels[-1], num_classes)
    return init


@pytest.mark.parametrize('model', ['resnet18', 'convnext_atto'])
def test_maps_of_timm_and_unets_from_a_file(tmp_path, model):
    """The lines of the README."""
    smp = pytest.importorskip('segmentation_models_pytorch')
    network, file = tuned(tmp_path, model, 1000)
    maps = timm.create_model(model, features_only=True, pretrained=True, pretrained_cfg_overlay={'file': str(file)}).eval()
    unet = smp.Unet(f'tu-{model}', encoder_weights=True, pretrained_cfg_overlay={'file': str(file)}).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = network.forward_intermediates(images, intermediates_only=True)
        for found in (maps(images), [level for level in unet.encoder(images)[1:] if level.shape[1]]):
            assert len(found) == len(wanted) and all(torch.equal(a, b) for a, b in zip(found, wanted))
    if model == 'resnet18':
        unet = smp.Unet('resnet18', encoder_weights=None)
        unet.encoder.load_state_dict(torch.load(file, weights_only=True))
        own = unet.encoder.state_dict()
        assert all(torch.equal(own[key], value) for key, value in network.state_dict().items() if not key.startswith('fc.'))
