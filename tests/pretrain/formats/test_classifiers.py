"""Classifiers, which were trained or were not, in every format."""
import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file

from pretrain import export
from pretrain.models.custom import YourConvNet
from pretrain.saved import read_saved
from tests.conftest import randomise
from tests.pretrain.runs import line_of, needs_a_hub, saved_run, tuned


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


@pytest.mark.slow
def test_a_classifier_of_several_layers_is_left_out_whole(tmp_path, monkeypatch):
    """timm makes a MetaFormer of no classes without the hidden layer of its classifier."""
    said = export.export(saved_run(tmp_path, 'convformer_s18'), 'timm', tmp_path)
    assert 'head.fc.fc1.weight' in said[1] and 'was not trained, and is left out' in said[1]
    monkeypatch.chdir(tmp_path)
    assert eval(line_of(said[0]), {'timm': timm}).num_classes == 0
