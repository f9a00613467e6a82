"""Detectron2's folder, without Detectron2: the conversion key by key, layers and configs against numbers written here."""
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from common.demo_coco import write_coco
from downstream_d2.lr_decay import last_layer, layer_of, parameter_groups
from tests.conftest import ROOT, randomise

FOLDER = ROOT / 'downstream_d2'


def program(name):
    """A program of the folder as a module; its name may have hyphens."""
    spec = importlib.util.spec_from_file_location('program', FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(state, folder):
    """The entries that the converter makes of a content, through files."""
    torch.save(state, folder / 'timm.pth')
    program('convert-timm-to-d2.py').main([str(folder / 'timm.pth'), str(folder / 'd2.pkl')])
    content = pickle.loads((folder / 'd2.pkl').read_bytes())
    assert content['matching_heuristics'] is True
    return content['model']


class Conv(nn.Conv2d):
    """A convolution that holds its norm, as Detectron2's Conv2d does."""

    def __init__(self, cin, cout, size, stride=1):
        super().__init__(cin, cout, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x):
        return self.norm(super().forward(x))


class Block(nn.Module):
    """Detectron2's BottleneckBlock with STRIDE_IN_1X1 False."""

    def __init__(self, cin, width, stride):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Conv(cin, width, 1), Conv(width, width, 3, stride), Conv(width, 4 * width, 1)
        if stride > 1 or cin != 4 * width:
            self.shortcut = Conv(cin, 4 * width, 1, stride)

    def forward(self, x):
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + (self.shortcut(x) if hasattr(self, 'shortcut') else x))


class Replica(nn.Module):
    """A ResNet whose parameters are named as Detectron2's."""

    def __init__(self, blocks):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = Conv(3, 64, 7, 2)
        for stage, count in enumerate(blocks):
            width, first = 64 * 2 ** stage, 64 if stage == 0 else 128 * 2 ** stage
            self.add_module(f'res{stage + 2}', nn.Sequential(*(
                Block(4 * width if i else first, width, 2 if stage and not i else 1) for i in range(count))))

    def forward(self, x):
        x, maps = F.max_pool2d(F.relu(self.stem.conv1(x)), 3, 2, 1), []
        for stage in (self.res2, self.res3, self.res4, self.res5):
            x = stage(x)
            maps.append(x)
        return maps


def d2_resnet(blocks):
    """The replica, or Detectron2's own ResNet where it is installed."""
    if importlib.util.find_spec('detectron2') is None:
        return Replica(blocks)
    from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
    stages = [ResNet.make_stage(BottleneckBlock, count, in_channels=64 if i == 0 else 128 * 2 ** i, out_channels=256 * 2 ** i,
                                bottleneck_channels=64 * 2 ** i, norm='BN', stride_in_1x1=False,
                                stride_per_block=[1 if i == 0 else 2] + [1] * (count - 1)) for i, count in enumerate(blocks)]
    network = ResNet(BasicStem(3, 64, 'BN'), stages, out_features=['res2', 'res3', 'res4', 'res5'])
    forward = network.forward
    network.forward = lambda x: list(forward(x).values())
    return network


@pytest.mark.parametrize(('name', 'blocks', 'entries'), [
    ('resnet50', (3, 4, 6, 3), 318), ('resnet101', (3, 4, 23, 3), 624),
    pytest.param('resnet152', (3, 8, 36, 3), 930, marks=pytest.mark.slow)])
def test_a_converted_resnet_computes_the_same(name, blocks, entries, tmp_path, capsys):
    cnn = randomise(timm.create_model(name)).eval()
    converted = convert(cnn.state_dict(), tmp_path)
    assert len(converted) == entries and f'{entries} entries of a ResNet-{name[6:]} in' in capsys.readouterr().out
    network = d2_resnet(blocks)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in converted.items()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(network.eval()(x), cnn.forward_intermediates(x, intermediates_only=True)[1:]):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_keys_one_by_one(tmp_path):
    keys = set(convert(timm.create_model('resnet50').state_dict(), tmp_path))
    assert keys >= {'stem.conv1.weight', 'stem.conv1.norm.weight', 'stem.conv1.norm.running_var', 'res2.0.shortcut.weight',
                    'res2.0.shortcut.norm.bias', 'res4.5.conv2.weight', 'res5.2.conv3.norm.num_batches_tracked'}
    assert not any('fc' in key or 'layer' in key or 'downsample' in key or 'bn' in key for key in keys)


def test_all_files_of_a_resnet_are_read(tmp_path):
    state = timm.create_model('resnet50').state_dict()
    expected = convert(state, tmp_path)

    def under(prefix, **more):
        return {**{f'{prefix}{key}': value for key, value in state.items()}, **more}
    for content in ({'module': under('module.'), 'epoch': 3}, {'model': under('encoder.cnn.', mask_tokens=torch.ones(1))},
                    {'module': under('sparse_encoder.sp_cnn.', imn_m=torch.ones(1))}, {'model': state, 'classes': ['a', 'b']}):
        found = convert(content, tmp_path)
        assert found.keys() == expected.keys() and all((found[key] == expected[key]).all() for key in found)


class Code:
    def __reduce__(self):
        return os.mkdir, ('made',)


@pytest.mark.parametrize(('name', 'words'), [
    ('resnet18', 'with [2, 2, 2, 2] blocks'), ('convnext_atto', 'not the weights of a ResNet-50'),
    ('resnet50d', 'not the weights of a ResNet-50'), ('seresnet50', 'variant of ResNet'),
    ('resnext50_32x4d', 'wide or grouped'),
    pytest.param('resnet200', 'with [3, 24, 36, 3] blocks', marks=pytest.mark.slow)])
def test_other_networks_are_refused(name, words, tmp_path):
    with pytest.raises(SystemExit) as stop:
        convert(timm.create_model(name).state_dict(), tmp_path)
    assert words in stop.value.code and stop.value.code.startswith('error: ') and not (tmp_path / 'd2.pkl').exists()


def test_networks_for_other_images_are_refused(tmp_path):
    with pytest.raises(SystemExit, match='not for images of three channels'):
        convert(timm.create_model('resnet50', in_chans=1).state_dict(), tmp_path)


def test_parameters_are_converted_as_tensors_are(tmp_path):
    state = timm.create_model('resnet50').state_dict(keep_vars=True)
    module = program('convert-timm-to-d2.py')
    assert all(isinstance(value, np.ndarray) for value in module.convert(state).values())


def test_other_files_are_refused(tmp_path):
    cut = timm.create_model('resnet50').state_dict()
    del cut['layer2.1.bn2.weight']
    for content, words in ((cut, 'layer2.1.bn2.weight is missing'), ({'epoch': 3}, 'holds no weights'),
                           (Code(), 'holds posix.mkdir besides tensors')):
        with pytest.raises(SystemExit, match=words):
            convert(content, tmp_path)
    assert not (tmp_path / 'd2.pkl').exists() and not Path('made').exists()
    with pytest.raises(SystemExit, match='there is no file'):
        program('convert-timm-to-d2.py').main([str(tmp_path / 'none.pth'), str(tmp_path / 'd2.pkl')])
    done = subprocess.run([sys.executable, str(FOLDER / 'convert-timm-to-d2.py'), 'timm.pth', 'd2.pkl'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith('error: ') and 'Traceback' not in done.stderr


def test_the_converter_needs_torch_alone(tmp_path):
    torch.save(timm.create_model('resnet50').state_dict(), tmp_path / 'timm.pth')
    words = ['program', str(tmp_path / 'timm.pth'), str(tmp_path / 'd2.pkl')]
    code = (f"import runpy, sys; sys.argv = {words}; sys.modules.update(timm=None, safetensors=None, torchvision=None); "
            f"runpy.run_path({str(FOLDER / 'convert-timm-to-d2.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and '318 entries of a ResNet-50' in done.stdout, done.stderr


def test_a_file_of_safetensors_asks_for_their_package(tmp_path, monkeypatch):
    (tmp_path / 'w.safetensors').touch()
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(SystemExit, match='cannot be read without safetensors.torch: pip install safetensors'):
        program('convert-timm-to-d2.py').main([str(tmp_path / 'w.safetensors'), str(tmp_path / 'd2.pkl')])


@pytest.mark.parametrize(('blocks', 'last', 'res4'), [(6, 5, [3, 3, 3, 4, 4, 4]), (23, 11, [3] * 3 + [4] * 3),
                                                      (36, 15, [3] * 3 + [4] * 3)])
def test_layers(blocks, last, res4):
    names = [f'backbone.bottom_up.res4.{i}.conv1.weight' for i in range(blocks)]
    assert last_layer(names) == last
    layers = [layer_of(name, last) for name in names]
    assert layers[:6] == res4 and max(layers) == last - 1
    for name, layer in (('backbone.bottom_up.stem.conv1.norm.bias', 0), ('backbone.bottom_up.res2.0.shortcut.weight', 1),
                        ('backbone.bottom_up.res3.3.conv2.weight', 2), ('backbone.bottom_up.res5.2.conv3.norm.weight', last),
                        ('backbone.fpn_lateral2.weight', last + 1), ('proposal_generator.rpn_head.conv.weight', last + 1),
                        ('roi_heads.box_head.conv1.norm.weight', last + 1)):
        assert layer_of(name, last) == layer
    with pytest.raises(ValueError, match='is for ResNets'):
        last_layer(['backbone.stages.0.weight'])


def test_groups_hold_every_parameter_once():
    model = nn.Module()
    model.backbone, model.head = Replica((3, 4, 6, 3)), nn.Linear(3, 3)
    model.head.weight.requires_grad_(False)
    groups = parameter_groups(model, 1.0, 0.6, 1e-4)
    held = [id(one) for group in groups for one in group['params']]
    assert sorted(held) == sorted(id(one) for one in model.parameters() if one.requires_grad)
    at = {id(one): (group['lr'], group['weight_decay']) for group in groups for one in group['params']}
    assert at[id(model.head.bias)] == (1.0, 1e-4)
    for name, rate in (('stem.conv1', 0.6 ** 6), ('res2.0.conv1', 0.6 ** 5), ('res4.2.conv1', 0.6 ** 3),
                       ('res4.3.conv1', 0.6 ** 2), ('res5.0.conv3', 0.6)):
        conv = model.backbone.get_submodule(name)
        assert at[id(conv.weight)] == (pytest.approx(rate), 1e-4) and at[id(conv.norm.weight)] == (pytest.approx(rate), 0.0)


def test_configs_are_the_papers():
    yaml = pytest.importorskip('yaml')  # matplotlib's and others' company; Detectron2 brings it
    base, own = (yaml.safe_load((FOLDER / 'configs' / name).read_text()) for name in
                 ('Base-RCNN-FPN.yaml', 'coco_R_50_FPN_CONV_1x_moco_adam.yaml'))
    assert own['_BASE_'] == 'Base-RCNN-FPN.yaml' and own['SOLVER'] == {
        'OPTIMIZER': 'ADAMW', 'LR_DECAY': 0.6, 'IMS_PER_BATCH': 16, 'BASE_LR': 2.5e-4, 'WEIGHT_DECAY': 1e-4, 'MAX_ITER': 90000,
        'STEPS': '(60000, 80000)', 'GAMMA': 0.25, 'WARMUP_FACTOR': 0.01, 'WARMUP_ITERS': 1000, 'CHECKPOINT_PERIOD': 5000}
    model = base['MODEL']
    assert (model['BACKBONE']['FREEZE_AT'], model['RESNETS']['STRIDE_IN_1X1'], base['INPUT']['FORMAT']) == (0, False, 'RGB')
    assert {model[part]['NORM'] for part in ('RESNETS', 'FPN', 'ROI_BOX_HEAD', 'ROI_MASK_HEAD')} == {'SyncBN'}
    assert (model['ROI_BOX_HEAD']['NAME'], model['ROI_BOX_HEAD']['NUM_CONV'], model['ROI_BOX_HEAD']['NUM_FC']) == (
        'FastRCNNConvFCHead', 4, 1)
    assert [model['RPN'][f'{when}_NMS_TOPK_{split}'] for split in ('TRAIN', 'TEST') for when in ('PRE', 'POST')] == [
        2000, 1000, 1000, 1000]
    assert base['INPUT']['MIN_SIZE_TRAIN'] == str(tuple(range(480, 897, 32)))
    assert (base['TEST']['EVAL_PERIOD'], base['TEST']['PRECISE_BN']['ENABLED'], model['MASK_ON']) == (5000, True, True)
    assert model['PIXEL_MEAN'] == [123.675, 116.28, 103.53] and model['PIXEL_STD'] == [58.395, 57.12, 57.375]


def test_without_detectron2_the_remedy_is_named():
    if importlib.util.find_spec('detectron2') is not None:
        pytest.skip('Detectron2 is installed here: the program runs')
    done = subprocess.run([sys.executable, str(FOLDER / 'train_net.py')], capture_output=True, text=True)
    assert done.returncode == 1 and 'see downstream_d2/README.md' in done.stderr.splitlines()[-1]


def install(source, folder):
    """downstream_d2/install.sh with a Python that only writes down what it is asked for; (process, what that was)."""
    python, asked = folder / 'python', folder / 'asked'
    python.write_text(f'''#!/bin/sh
echo "$@" >> {asked}
for last; do :; done
if [ -f "$last/setup.py" ]; then ls -A "$last" >> {asked}; fi
''')
    python.chmod(0o755)
    done = subprocess.run(['bash', str(FOLDER / 'install.sh')], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, 'PYTHON': str(python), 'D2_SRC': str(source), 'GIT_CEILING_DIRECTORIES': '/'})
    return done, asked.read_text().split() if asked.exists() else []


@pytest.fixture
def source(tmp_path):
    """What a source of Detectron2 looks like."""
    (tmp_path / 'a source/detectron2').mkdir(parents=True)
    (tmp_path / 'a source/setup.py').touch()
    return tmp_path / 'a source'


@pytest.mark.parametrize('kind', ['folder', 'checkout', 'bare repository'])
def test_detectron2_is_built_from_a_folder_with_or_without_git(tmp_path, source, kind):
    if kind != 'folder':
        git = ['git', '-C', str(source), '-c', 'user.name=a', '-c', 'user.email=a@b']
        (source / 'detectron2/a.py').touch()
        for words in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'a']):
            subprocess.run([*git, *words], check=True)
    if kind == 'bare repository':
        subprocess.run(['git', 'clone', '-q', '--bare', str(source), str(tmp_path / 'bare')], check=True)
        source = tmp_path / 'bare'
    done, asked = install(source, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'setup.py' in asked and asked[asked.index('setup.py') - 1] == 'detectron2'


@pytest.mark.parametrize(('make', 'sentence'), [
    (lambda path: None, 'does not exist: give a folder'),
    (lambda path: path.mkdir(), 'does not hold the code of Detectron2'),
    (lambda path: (path / 'detectron2').mkdir(parents=True), 'does not hold the code of Detectron2'),
    (lambda path: path.write_text('an archive'), 'git cannot clone Detectron2 from D2_SRC')])
def test_what_is_no_source_of_detectron2_is_said(tmp_path, make, sentence):
    make(tmp_path / 'there')
    done, asked = install('there', tmp_path)
    assert done.returncode == 1 and sentence in done.stderr.splitlines()[-1]
    assert 'git' in sentence or asked == []  # nothing was installed before


@pytest.mark.slow
def test_detectron2_trains_resumes_and_evaluates(tmp_path):
    pytest.importorskip('detectron2', reason='make test-d2 installs it')
    write_coco(tmp_path / 'coco', 8, 4, 128, seed=0)
    convert(timm.create_model('resnet50').state_dict(), tmp_path)
    words = {'MODEL.WEIGHTS': 'd2.pkl', 'OUTPUT_DIR': 'out', 'SOLVER.IMS_PER_BATCH': 2, 'SOLVER.STEPS': '(4,)',
             'SOLVER.WARMUP_ITERS': 2, 'SOLVER.CHECKPOINT_PERIOD': 3, 'TEST.EVAL_PERIOD': 3, 'TEST.PRECISE_BN.NUM_ITER': 2,
             'INPUT.MIN_SIZE_TRAIN': '(128,)', 'INPUT.MIN_SIZE_TEST': 128, 'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': 16,
             'MODEL.RPN.POST_NMS_TOPK_TRAIN': 50, 'DATALOADER.NUM_WORKERS': 0}

    def train(*flags, **more):
        command = [sys.executable, str(FOLDER / 'train_net.py'), *flags, '--num-gpus', '0', '--data-dir', 'coco',
                   '--config-file', str(FOLDER / 'configs/coco_R_50_FPN_CONV_1x_moco_adam.yaml')]
        command += [str(word) for pair in {**words, **more}.items() for word in pair]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True,
                              timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout + done.stderr

    first = train('--resume', **{'SOLVER.MAX_ITER': 3})
    assert 'Starting training from iteration 0' in first
    second = train('--resume', **{'SOLVER.MAX_ITER': 6})
    assert 'Starting training from iteration 3' in second
    lines = [json.loads(line) for line in (tmp_path / 'out/d2_coco_log.txt').read_text().splitlines()]
    assert [(line['iter'], set(line)) for line in lines] == [(3, {'iter', 'of', 'boxAP', 'mskAP'}),
                                                            (6, {'iter', 'of', 'boxAP', 'mskAP'})]
    again = train('--resume', '--eval-only')
    assert 'model_final.pth' in again and f"'boxAP': {lines[-1]['boxAP']}, 'mskAP': {lines[-1]['mskAP']}" in again


@pytest.mark.parametrize('prefix', ['module._orig_mod.', 'model.backbone.'])
def test_the_network_is_found_behind_any_prefix(tmp_path, prefix):
    state = {f'{prefix}{key}': value for key, value in timm.create_model('resnet50').state_dict().items()}
    content = {'state_dict': {**state, 'projector.weight': torch.ones(2)}, 'optimizer': {'state': {0: {'x': torch.ones(1)}}},
               'model_ema': {key: value + 1 for key, value in state.items()}}
    found = convert(content, tmp_path)
    assert len(found) == 318 and (found['stem.conv1.weight'] == state[f'{prefix}conv1.weight'].numpy()).all()
    with pytest.raises(SystemExit, match='holds several networks, under student/.*and teacher/'):
        convert({'student': state, 'teacher': content['model_ema']}, tmp_path)
