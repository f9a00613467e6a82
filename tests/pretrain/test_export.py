"""Exported networks: each is read back by whom it is for, equal, or not left behind."""
import dataclasses
import json
import pickle
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from common.networks.renaming import to_torchvision
from pretrain import export
from pretrain.formats import contents, to_detectron2, verify
from pretrain.options import recommended
from pretrain.results.card import write_card
from pretrain.results.read_log import read_log
from pretrain.saved import read_saved
from tests.conftest import randomise
from tests.pretrain.runs import line_of, needs_a_hub, saved_as_of, saved_run, tuned


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
    assert torch.equal(again.network.encoder.cnn.stages[0].conv1.weight, own['stages.0.conv1.weight'])
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
        ours = saved.network.encoder(images)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4)
                   for a, b in zip(ours, saved.network.encoder.pyramid(images, cnn=theirs)))
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


def test_the_card_of_a_run_that_lost_its_way(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / 'run')
    log = (run / 'pretrain_log.txt').read_text()
    loss = read_log(run).epochs[-1]['loss']
    (run / 'pretrain_log.txt').write_text(log.replace(f'"loss": {loss}', '"loss": null'))  # no step was finite
    (tmp_path / 'card').mkdir()
    write_card(read_saved(run), tmp_path / 'card')
    card = (tmp_path / 'card' / 'README.md').read_text()
    first, last = (epoch['loss'] for epoch in read_log(run).epochs)
    assert f'| loss of the last epoch | {first:.4f} |' in card and last is None


@pytest.mark.parametrize('model', ['test_resnet', pytest.param('test_convnext', marks=pytest.mark.slow)])
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
        ours = saved.network.encoder(images)
    assert [level.shape for level in levels] == [tuple(level.shape) for level in ours]
    assert torch.allclose(torch.from_numpy(pooled), ours[-1].mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_onnx_of_levels_that_a_user_named(tmp_path):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    options = recommended(name='r', model='test_resnet', input_size=64, decoder_width=64, levels=['layer1', 'layer2'])
    sentences = export.export(saved_as_of(tmp_path, options), 'onnx', tmp_path)  # it compares the outputs
    assert any('the same stride_4, stride_8, pooled' in sentence for sentence in sentences)


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


def test_the_card_of_an_encoder_alone_tells_the_run_s_recipe(finished, tmp_path):
    pytest.importorskip('matplotlib')
    write_card(read_saved(finished / 'your_convnet_1kpretrained.pth'), tmp_path)
    card = (tmp_path / 'README.md').read_text()
    for text in ('| epochs | 2 of 2 |', '| batch | 8 |', 'learning rate up to 0.01 |'):
        assert text in card


@pytest.mark.parametrize('flags', [['--to=hf', '--pth'], ['--to=nobody']])
def test_flags_that_mean_nothing(finished, tmp_path, flags):
    with pytest.raises(SystemExit) as stop:
        export.main([str(finished), f'--out={tmp_path}', *flags])
    assert stop.value.code == 2 and not list(tmp_path.iterdir())


def test_an_export_lies_beside_the_run_and_its_place_is_said(finished, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(finished, tmp_path / 'output_tiny')
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    for source in ('output_tiny', 'output_tiny/your_convnet_1kpretrained.pth'):
        export.main([source, '--to=timm'])
        said = capsys.readouterr().out.splitlines()
        assert said[-1] == 'Written: output_tiny/export/your_convnet_timm.safetensors'
        network = eval(line_of(said[0]), {'timm': timm})  # what is printed works where it was printed
        assert network.num_classes == 0
    assert [path.name for path in (folder / 'export').iterdir()] == ['your_convnet_timm.safetensors']
    assert set(tmp_path.iterdir()) == before
    (folder / 'file').write_text('')
    with pytest.raises(SystemExit, match='cannot make the folder output_tiny/file/x .*: name another with --out'):
        export.main(['output_tiny', '--to=timm', '--out=output_tiny/file/x'])


@pytest.mark.parametrize('flag', ['--licence=MIT', '--license=mit'])
def test_a_licence_is_noted_where_there_is_a_place_for_it(finished, tmp_path, capsys, flag):
    export.main([str(finished), '--to=timm', f'--out={tmp_path}', flag])
    with safe_open(tmp_path / 'your_convnet_timm.safetensors', 'pt') as file:
        assert file.metadata() == {'format': 'pt', 'license': 'mit'}
    assert 'The licence' not in capsys.readouterr().out
    export.main([str(finished), '--to=timm', '--pth', f'--out={tmp_path}', flag])
    assert 'The licence, mit, is not in it' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='--licence is an identifier'):
        export.main([str(finished), '--to=timm', f'--out={tmp_path}', flag + ' x'])


def test_a_licence_in_a_graph(tmp_path):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    import onnxruntime
    export.export(saved_run(tmp_path, 'test_resnet'), 'onnx', tmp_path, licence='mit')
    session = onnxruntime.InferenceSession(str(tmp_path / 'test_resnet_onnx.onnx'))
    assert session.get_modelmeta().custom_metadata_map['license'] == 'mit'


@pytest.mark.parametrize('to, model', [('official', 'resnet26'), ('mmdet', 'convnext_atto')])
def test_a_format_without_a_place_for_a_licence_says_so(tmp_path, to, model):
    said = export.export(saved_run(tmp_path, model), to, tmp_path, licence='mit')
    assert any('The licence, mit, is not in it' in sentence for sentence in said)


def test_the_picture_of_a_card_is_wide_enough_to_be_looked_at(finished, tmp_path):
    write_card(read_saved(finished), tmp_path)
    assert '![reconstructions](reconstructions.png)' in (tmp_path / 'README.md').read_text()
    with Image.open(tmp_path / 'reconstructions.png') as shown, \
            Image.open(finished / 'reconstructions/epoch_0002.png') as small:
        scale = shown.width // small.width
        assert shown.size == (scale * small.width, scale * small.height) and 900 <= shown.width < 900 + small.width
        assert shown.resize(small.size, Image.Resampling.NEAREST).tobytes() == small.tobytes()


def test_a_card_without_matplotlib_has_no_curve_and_says_how_to_get_one(finished, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    remarks = write_card(read_saved(finished), tmp_path)
    assert 'pip install matplotlib' in ' '.join(remarks) and not (tmp_path / 'curve.png').exists()
    assert 'curve.png' not in (tmp_path / 'README.md').read_text()


def test_onnx_without_its_packages(finished, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install onnx onnxscript onnxruntime'):
        export.export(read_saved(finished), 'onnx', tmp_path)


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
