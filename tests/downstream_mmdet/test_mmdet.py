"""MMDetection's folder, without MMDetection: layers, weights and configs against numbers written here."""
import json
import os
import re
import runpy
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from common.demo_coco import write_coco
from downstream_mmdet.data import use_data
from downstream_mmdet.layers import layer_of, parameter_groups
from downstream_mmdet.weights import convnext, load
from tests.conftest import ROOT
from tests.pretrain.official import official_name

CONFIGS = ROOT / 'downstream_mmdet' / 'configs'


class Backbone(nn.Module):
    """What downstream_mmdet/convnext.py registers, as far as names go."""

    def __init__(self, arch):
        super().__init__()
        cnn = convnext(arch)
        self.stem, self.stages, self.norm0 = cnn.stem, cnn.stages, nn.LayerNorm(8)


@pytest.mark.parametrize(('name', 'layer'), [
    ('backbone.stem.0.weight', 0), ('backbone.stages.0.blocks.2.norm.weight', 1),
    ('backbone.stages.1.downsample.0.weight', 2), ('backbone.stages.1.blocks.0.gamma', 2),
    ('backbone.stages.2.downsample.1.weight', 3), ('backbone.stages.2.blocks.2.gamma', 3),
    ('backbone.stages.2.blocks.3.gamma', 4), ('backbone.stages.2.blocks.26.mlp.fc1.bias', 11),
    ('backbone.stages.3.downsample.0.bias', 12), ('backbone.stages.3.blocks.2.gamma', 12), ('backbone.norm0.weight', 13),
    ('neck.lateral_convs.0.conv.weight', 13), ('roi_head.mask_head.conv_logits.bias', 13)])
def test_layers_of_a_convnext(name, layer):
    assert layer_of(name, 12) == layer


def test_layers_of_a_convnext_t():
    names = [f'backbone.{name}' for name in convnext('convnext_tiny').state_dict() if name.startswith(('stem', 'stages'))]
    assert {layer_of(name, 6) for name in names} == {0, 1, 2, 3, 4, 5, 6}
    assert layer_of('backbone.stages.2.blocks.8.gamma', 6) == 5 and layer_of('neck.x', 6) == 7


def test_groups_hold_every_parameter_once():
    model = nn.Module()
    model.backbone, model.neck = Backbone('convnext_atto'), nn.Conv2d(3, 3, 1)
    groups = parameter_groups(model.named_parameters(), 2e-4, 0.05, 0.65, 6)
    assert sorted(id(p) for group in groups for p in group['params']) == sorted(map(id, model.parameters()))
    at = {id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    assert at[id(model.neck.weight)] == (2e-4, 0.05) and at[id(model.neck.bias)] == (2e-4, 0)
    assert at[id(model.backbone.stem[0].weight)] == (pytest.approx(2e-4 * 0.65 ** 7), 0.05)
    assert at[id(model.backbone.stages[3].blocks[0].gamma)] == (pytest.approx(2e-4 * 0.65), 0)
    assert at[id(model.backbone.norm0.weight)] == (2e-4, 0)
    with pytest.raises(ValueError, match='num_layers is 4, and this ConvNeXt has 5'):
        parameter_groups(model.named_parameters(), 2e-4, 0.05, 0.65, 4)


def test_weights_of_any_kind_are_read(tmp_path):
    cnn = timm.create_model('convnext_atto')
    state = cnn.state_dict()

    def under(prefix):
        return {f'{prefix}{key}': value for key, value in state.items()}

    official = {official_name(f'encoder.cnn.{key}').removeprefix('sparse_encoder.sp_cnn.'): value
                for key, value in state.items() if not key.startswith('head')}
    assert 'downsample_layers.0.0.weight' in official
    for i, content in enumerate((state, {'module': under('module.')}, official,
                                 {'model': {**under('encoder.cnn.'), 'mask_tokens.0': torch.ones(1)}},
                                 {'state_dict': {**under('model._orig_mod.'), 'projector.weight': torch.ones(1)},
                                  'ema': {key: value + 1 for key, value in under('model.').items()}})):
        torch.save(content, tmp_path / f'{i}.pth')
        backbone = Backbone('convnext_atto')
        assert load(backbone, tmp_path / f'{i}.pth', convnext('convnext_atto')) == len(
            [key for key in state if not key.startswith('head')])
        assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items() if key != 'norm0.weight'
                   and key != 'norm0.bias')


def test_a_convnext_v2_has_no_layer_scale(tmp_path):
    torch.save(timm.create_model('convnextv2_atto').state_dict(), tmp_path / 'w.pth')
    backbone = Backbone('convnextv2_atto')
    assert load(backbone, tmp_path / 'w.pth', convnext('convnextv2_atto')) > 100
    assert not [key for key in backbone.state_dict() if key.endswith('gamma')]
    assert (convnext('convnext_atto', layer_scale=0.5).stages[0].blocks[0].gamma == 0.5).all()


def test_other_weights_are_refused(tmp_path):
    for name, words in (('convnext_femto', 'is .* not'), ('resnet18', 'is missing')):
        torch.save(timm.create_model(name).state_dict(), tmp_path / 'w.pth')
        with pytest.raises(ValueError, match=f'does not hold the weights of this ConvNeXt: .*{words}'):
            load(Backbone('convnext_atto'), tmp_path / 'w.pth', convnext('convnext_atto'))
    (tmp_path / 'w.pth').write_bytes(b'no weights')
    with pytest.raises(ValueError, match='no file of weights'):
        load(Backbone('convnext_atto'), tmp_path / 'w.pth', convnext('convnext_atto'))
    with pytest.raises(ValueError, match='there is no file'):
        load(Backbone('convnext_atto'), tmp_path / 'none.pth', convnext('convnext_atto'))
    with pytest.raises(ValueError, match='timm name of a ConvNeXt'):
        convnext('resnet50')


def test_the_schedule_is_the_papers():
    config = runpy.run_path(str(CONFIGS / 'schedule_3x.py'))
    assert config['optim_wrapper'] == {
        'type': 'OptimWrapper', 'constructor': 'ConvNeXtLayerDecay', 'paramwise_cfg': {'decay_rate': 0.65, 'num_layers': 12},
        'optimizer': {'type': 'AdamW', 'lr': 2e-4, 'betas': (0.9, 0.999), 'weight_decay': 0.05}}
    warmup, steps = config['param_scheduler']
    assert (warmup['start_factor'], warmup['end'], warmup['by_epoch']) == (0.001, 500, False)
    assert (steps['milestones'], steps['gamma'], config['train_cfg']['max_epochs']) == ([27, 33], 0.2, 36)
    assert config['train_dataloader']['batch_size'] == 2 and config['auto_scale_lr']['base_batch_size'] == 16
    one, other = next(step for step in config['train_pipeline'] if step['type'] == 'RandomChoice')['transforms']
    assert one[0]['scales'] == [(side, 1333) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
    assert [short for short, _ in other[0]['scales']] == [400, 500, 600] and other[1]['crop_size'] == (384, 600)
    assert other[2] == one[0]


@pytest.mark.parametrize(('file', 'arch', 'drop_path'), [
    ('mask-rcnn_convnext-b_fpn_3x', 'convnext_base', 0.5), ('mask-rcnn_convnext-s_fpn_3x', 'convnext_small', None),
    ('mask-rcnn_convnext-l_fpn_3x', 'convnext_large', None), ('mask-rcnn_convnext-t_fpn_3x', 'convnext_tiny', 0.4),
    ('cascade-mask-rcnn_convnext-b_fpn_3x', 'convnext_base', 0.5)])
def test_configs_name_the_network_and_its_channels(file, arch, drop_path):
    config = runpy.run_path(str(CONFIGS / f'{file}.py'))
    backbone = config['model']['backbone']
    assert backbone['arch'] == arch and backbone.get('drop_path_rate') == drop_path
    cnn = convnext(arch)
    assert config['model']['neck']['in_channels'] == [info['num_chs'] for info in cnn.feature_info]
    assert ('optim_wrapper' in config) == (len(cnn.stages[2].blocks) <= 9)
    if 'optim_wrapper' in config:
        assert config['optim_wrapper'] == {'paramwise_cfg': {'num_layers': 6}}


class Node(dict):
    """A part of a config: its keys are attributes too, as in MMEngine."""
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def config_for_coco():
    loaders = {f'{part}_dataloader': Node(dataset=Node(ann_file='coco')) for part in ('train', 'val', 'test')}
    heads = Node(bbox_head=[Node(num_classes=80), Node(num_classes=80)], mask_head=Node(num_classes=80))
    return Node(**loaders, val_evaluator=Node(), test_evaluator=Node(), model=Node(roi_head=heads))


def test_own_data_take_the_place_of_coco(tmp_path):
    write_coco(tmp_path, 3, 2, 64, seed=0)
    config = config_for_coco()
    use_data(config, tmp_path)
    classes = config.train_dataloader.dataset.metainfo['classes']
    assert len(classes) > 1
    for part, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        annotations = str(tmp_path / f'annotations/instances_{split}2017.json')
        assert config[f'{part}_dataloader'].dataset == {
            'data_root': '', 'ann_file': annotations, 'data_prefix': {'img': f'{tmp_path / split}2017/'},
            'metainfo': {'classes': classes}}
        assert part == 'train' or config[f'{part}_evaluator'].ann_file == annotations
    head = config.model.roi_head
    assert [one.num_classes for one in (*head.bbox_head, head.mask_head)] == [len(classes)] * 3


def test_categories_in_another_order_are_refused(tmp_path):
    write_coco(tmp_path, 3, 2, 64, seed=0)
    path = tmp_path / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    content['categories'].reverse()  # MMDetection counts classes in this order
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='do not name the same categories in one order'):
        use_data(config_for_coco(), tmp_path)


@pytest.fixture
def program(tmp_path):
    """program(name, *words) runs a tool of the folder on the drawn data set in tmp_path/coco; its output."""
    pytest.importorskip('mmdet', reason='make test-mmdet installs it')
    write_coco(tmp_path / 'coco', 8, 4, 128, seed=0)

    def run(tool, config, *words, good=True):
        command = [sys.executable, str(ROOT / 'downstream_mmdet/tools' / tool), str(CONFIGS / config), *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True,
                              timeout=900)
        assert (done.returncode == 0) == good, (done.stdout + done.stderr)[-3000:]
        return done.stdout + done.stderr
    return run


def figures(output):
    """Every box and mask AP that a run printed."""
    return re.findall(r'coco/bbox_mAP: (\S+).*coco/segm_mAP: (\S+)', output)


@pytest.mark.slow
def test_mmdetection_trains_from_sparks_file_resumes_evaluates_and_reloads(program, tmp_path):
    state = timm.create_model('convnext_atto').state_dict()
    torch.save(state, tmp_path / 'convnext_atto_1kpretrained.pth')
    count = sum(not key.startswith('head') for key in state)
    words = ['--data-dir', 'coco', '--work-dir', 'out', '--cfg-options', 'train_cfg.val_interval=1',
             'default_hooks.checkpoint.interval=1', 'model.backbone.init_cfg.checkpoint=convnext_atto_1kpretrained.pth']
    first = program('train.py', 'demo.py', *words, 'train_cfg.max_epochs=1')
    assert f'convnext_atto_1kpretrained.pth: {count} tensors of convnext_atto' in first
    second = program('train.py', 'demo.py', '--resume', *words, 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1, iter: 2' in second and 'Epoch(train) [1]' not in second
    last = figures(second)[-1]
    again = program('test.py', 'demo.py', 'out/epoch_2.pth', '--data-dir', 'coco', '--work-dir', 'out')
    assert figures(again) == [last]
    refused = program('test.py', 'demo.py', 'out/epoch_2.pth', '--data-dir', 'coco', '--work-dir', 'elsewhere', good=False)
    assert 'give --trust' in refused
    trusted = program('test.py', 'demo.py', 'out/epoch_2.pth', '--data-dir', 'coco', '--work-dir', 'elsewhere', '--trust')
    assert figures(trusted) == [last]


@pytest.mark.slow
def test_mmdetection_learns_the_drawn_images(program):
    """mmcv's roi_align reads maps in channels-last order wrongly: then the losses of the heads do not fall at all."""
    train = ['coco/annotations/instances_train2017.json', 'coco/train2017/']
    words = [f'val_dataloader.dataset.ann_file={train[0]}', f'val_dataloader.dataset.data_prefix.img={train[1]}',
             f'val_evaluator.ann_file={train[0]}']
    output = program('train.py', 'demo.py', '--data-dir', 'coco', '--cfg-options', *words)
    box, mask = map(float, figures(output)[-1])
    assert box > 0.5 and mask > 0.5


BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
register_all_modules()
config = Config.fromfile(sys.argv[2])
model = MODELS.build(config.model)
model.init_weights()
groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
held = sum(len(group['params']) for group in groups)
print(len(groups), held, len(list(model.parameters())), min(group['lr'] for group in groups))
"""


@pytest.mark.slow
def test_all_configs_build(program, tmp_path):
    for config in sorted(path.name for path in CONFIGS.glob('*mask-rcnn*.py')):
        name = 'convnext_' + {'b': 'base', 's': 'small', 'l': 'large', 't': 'tiny'}[config.split('convnext-')[1][0]]
        torch.save(timm.create_model(name).state_dict(), tmp_path / f'{name}_1kpretrained.pth')
        command = [sys.executable, '-c', BUILD, str(ROOT), str(CONFIGS / config)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        groups, held, parameters, least = done.stdout.splitlines()[-1].split()
        layers = 6 if 'convnext-t' in config else 12
        assert int(groups) == 2 * (layers + 2) and held == parameters
        assert float(least) == pytest.approx(2e-4 * 0.65 ** (layers + 1))
