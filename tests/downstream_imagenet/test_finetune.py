"""Fine-tuning and probes: what is loaded, which layer learns how fast, what is measured, and that a run resumes."""
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from common.demo_world import write_world
from common.images.augmented import Augmented
from common.networks.classifier import head_parameters
from common.networks.create import create_cnn
from common.networks.load import load_classifier
from common.reliability.checkpoint import save
from common.training.finetuning import Average
from common.training.layer_decay import default_decay, layers_of, parameter_groups
from common.training.optim import build_optimizer, set_schedule
from downstream_imagenet import knn, linear
from downstream_imagenet.classifier import Classifier, LinearProbe
from downstream_imagenet.classifier import build_classifier as build
from downstream_imagenet.config import RECIPES, Options, recipe_of, recommended
from downstream_imagenet.data import (
    LabelledFolder,
    Mixing,
    check_labelled,
    class_names,
    evaluation_transform,
    find_labelled,
    share_of,
    training_transform,
)
from downstream_imagenet.evaluation import counts, evaluate
from downstream_imagenet.features import Features
from downstream_imagenet.features import Options as FeatureOptions
from downstream_imagenet.main import fine_tune
from downstream_imagenet.main import main as finetune_main
from tests.conftest import ROOT, Stop, randomise, same, stop_after
from tests.downstream_imagenet.runs import ALONE, parse, picture, saved

# -- options ----------------------------------------------------------------------------------------------------------

def test_official_command_lines_parse():
    options = parse('--data_path=D --exp_dir=E --model=resnet50 --resume_from=F --img_size=224 --bs=2048 --ep=300 --wp_ep=5 '
                    '--opt=lamb --base_lr=0.002 --lr_scale=0.7 --clip=-1 --wd=0.02 --mixup=0.1 --rep_aug=0 --drop_path=0.05 '
                    '--ema=0.9999 --sbn=False --dataloader_workers=8')
    assert (options.folder, options.resume, options.input_size, options.batch_size, options.layer_decay, options.clipping,
            options.repeats, options.sync_bn, options.workers) == ('E', 'F', 224, 2048, 0.7, float('inf'), 0, False, 8)
    assert options == dataclasses.replace(parse('--model=resnet50'), data_path='D', run_dir='E', resume='F', workers=8,
                                          clip_grad=float('inf'))
    for model in RECIPES:
        name, *size = model.split(' at ')
        assert parse(f'--model={name}' + (' --img_size=384' if size else '')).base_lr == RECIPES[model]['base_lr']


@pytest.mark.parametrize(('model', 'size', 'expected'), [
    ('convnext_small', 224, (4096, 400, 20, 'adamw', 2e-4, 0.7, 0.01, 0.8, 3, 0.3, 0.9999, 'ce')),
    ('convnext_base', 224, (4096, 400, 20, 'adamw', 1e-4, 0.7, 0.01, 0.8, 3, 0.4, 0.9999, 'ce')),
    ('convnext_large', 224, (4096, 200, 10, 'adamw', 1e-4, 0.7, 0.02, 0.8, 3, 0.5, 0.9999, 'ce')),
    ('convnext_large', 384, (1024, 200, 20, 'adamw', 6e-5, 0.7, 0.01, 0.8, 3, 0.5, 0.99995, 'ce')),
    ('resnet50', 224, (2048, 300, 5, 'lamb', 2e-3, 0.7, 0.02, 0.1, 0, 0.05, 0.9999, 'bce')),
    ('resnet200', 224, (2048, 300, 5, 'lamb', 1e-3, 0.8, 0.02, 0.1, 0, 0.2, 0.9999, 'bce')),
])
def test_the_recipes_of_the_paper(model, size, expected):
    o = recommended(name='n', model=model, input_size=size)
    assert (o.batch_size, o.epochs, o.warmup, o.opt, o.base_lr, o.layer_decay, o.weight_decay, o.mixup, o.repeats, o.drop_path,
            o.ema, o.loss_name) == expected
    assert o.augmentation == ('v0' if size == 384 else 'trivial') and o.smoothing == 0.1 and o.cutmix == 1 and o.erase == 0.25
    assert recipe_of(model, size)[0].startswith(model)


def test_zero_is_a_value_and_short_runs_warm_up_shortly():
    options = parse('--model=convnext_base --mixup=0 --dp=0 --ema=0 --rep_aug=0 --smoothing=0 --wp_ep=0 --wd=0')
    assert (options.mixup, options.drop_path, options.ema, options.repeats, options.smoothing, options.warmup,
            options.weight_decay) == (0, 0, 0, 0, 0, 0, 0)
    assert parse('--ep=20').warmup == 2 and parse('--ep=200').warmup == 5 and parse('--ep=20 --wp_ep=5').warmup == 5
    assert parse('--opt=adamw').loss_name == 'ce' and parse('--opt=adamw').clipping == float('inf')
    assert parse('').clipping == 1 and parse('--official_lamb').clipping == float('inf') and parse('--clip=3').clipping == 3


def test_other_networks_take_the_recipe_of_a_relative():
    assert recipe_of('efficientnet_b0')[0] == 'resnet50' and recipe_of('convnextv2_tiny')[0] == 'convnext_small'
    assert recipe_of('nfnet_f0')[0] == 'convnext_small' and recipe_of('your_convnet') == (
        'resnet50', {**RECIPES['resnet50'], 'layer_decay': None, 'drop_path': None})
    assert parse('--model=densenet121').drop_path is None and parse('--model=resnet18').drop_path == 0.05


@pytest.mark.parametrize(('line', 'word'), [
    ('--model=resnet5O', 'the nearest names are'), ('--mixup=-1', 'mixup must be 0 or more'), ('--clip=0', 'inf or -1'),
    ('--ema=1', 'ema must be'), ('--label_fraction=0', 'label_fraction'), ('--opt=adamw --official_lamb', 'is for --opt=lamb'),
    ('--num_classes=1', 'num_classes'), ('--register=not.there', '--register=not.there'), ('--augment=rand', 'invalid choice'),
])
def test_mistakes_end_with_one_sentence_and_code_2(line, word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and word in message and message.count('\n') == 1


# -- layer decay ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'last', 'some'), [
    ('resnet50', 7, {'conv1.weight': 0, 'bn1.bias': 0, 'layer1.2.conv3.weight': 1, 'layer2.1.bn1.weight': 2,
                     'layer2.2.conv1.weight': 3, 'layer3.0.conv1.weight': 4, 'layer3.5.conv1.weight': 5,
                     'layer4.0.downsample.0.weight': 6, 'fc.bias': 7}),
    ('resnet101', 13, {'conv1.weight': 0, 'layer2.3.conv1.weight': 3, 'layer3.2.conv1.weight': 4, 'layer3.3.conv1.weight': 5,
                       'layer3.22.conv1.weight': 11, 'layer4.2.conv1.weight': 12, 'fc.weight': 13}),
    ('resnet200', 18, {'layer2.3.conv1.weight': 2, 'layer2.4.conv1.weight': 3, 'layer2.23.conv1.weight': 7,
                       'layer3.0.conv1.weight': 8, 'layer3.35.conv1.weight': 16, 'layer4.0.conv1.weight': 17, 'fc.weight': 18}),
    ('convnext_small', 13, {'stem.0.weight': 0, 'stages.0.blocks.2.gamma': 1, 'stages.1.downsample.0.weight': 2,
                            'stages.1.blocks.1.norm.weight': 2, 'stages.2.downsample.1.bias': 3, 'stages.2.blocks.2.gamma': 3,
                            'stages.2.blocks.3.gamma': 4, 'stages.2.blocks.26.gamma': 11, 'stages.3.downsample.0.bias': 12,
                            'stages.3.blocks.0.gamma': 12, 'head.norm.weight': 13, 'head.fc.weight': 13}),
    ('convnext_base', 13, {'stages.2.blocks.14.gamma': 7, 'head.fc.bias': 13}),
    ('convnext_tiny', 7, {'stages.2.blocks.8.gamma': 5, 'stages.3.blocks.2.gamma': 6, 'head.fc.bias': 7}),
    ('efficientnet_b0', 17, {'conv_stem.weight': 0, 'blocks.0.0.conv_dw.weight': 1, 'blocks.6.0.conv_pw.weight': 16,
                             'classifier.weight': 17}),
    ('densenet121', 59, {'features.conv0.weight': 0, 'classifier.weight': 59}),
    ('regnety_032', 22, {'stem.conv.weight': 0, 's1.b1.conv1.conv.weight': 1, 'head.fc.weight': 22}),
])
def test_layers(name, last, some):
    cnn = timm.create_model(name)
    layers, found, _ = layers_of(cnn)
    assert found == last and {key: layers[key] for key in some} == some
    assert sorted(layers) == sorted(key for key, _ in cnn.named_parameters()) and set(layers.values()) == set(range(last + 1))


def test_each_parameter_is_in_one_group_with_its_rate():
    for cnn in (timm.create_model('resnet18'), timm.create_model('test_convnext'), timm.create_model('your_convnet')):
        layers, last, _ = layers_of(cnn)
        groups, names = parameter_groups(cnn, 0.05, 0.5), {id(p): name for name, p in cnn.named_parameters()}
        found = {names[id(p)]: group for group in groups for p in group['params']}
        assert sorted(found) == sorted(names.values()) == sorted(names[id(p)] for group in groups for p in group['params'])
        for name, group in found.items():
            assert group['lr_scale'] == 0.5 ** (last - layers[name])
            free = name.endswith(('bias', 'gamma')) or cnn.get_parameter(name).ndim == 1
            assert group['weight_decay'] == (0 if free else 0.05)
    layers, last, rule = layers_of(timm.create_model('your_convnet'))
    assert (layers['stages.0.conv1.weight'], layers['head.weight'], last, rule) == (0, 3, 3, 'the order of its modules')
    assert default_decay(7) == default_decay(3) == 0.7 and default_decay(59) ** 59 == pytest.approx(0.7 ** 7)


def test_rates_of_groups_follow_the_schedule():
    groups = parameter_groups(timm.create_model('your_convnet'), 0.05, 0.5)
    optimizer = build_optimizer('adamw', groups)
    set_schedule(optimizer, 0.8, 0.1)
    assert sorted({group['lr'] for group in optimizer.param_groups}) == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.0, 0.1}


def test_official_lamb_equals_timms_without_correction_and_with_trust_everywhere():
    def problem():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2)).double()
        return net, [{'params': list(net.parameters()), 'weight_decay': 0.1, 'decays': True}]
    (ours, one), (theirs, other) = problem(), problem()
    optimizers = (build_optimizer('lamb', one, official=True), timm.optim.Lamb(
        other, lr=0.0, eps=1e-6, bias_correction=False, max_grad_norm=None, always_adapt=True))
    x, y = torch.randn(16, 5).double(), torch.randn(16, 2).double()
    for _ in range(5):
        for net, optimizer in zip((ours, theirs), optimizers):
            for group in optimizer.param_groups:
                group['lr'] = 0.01
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# -- weights ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'expected'), [
    ('resnet18', ['fc.weight', 'fc.bias']),
    ('test_convnext', ['head.norm.weight', 'head.norm.bias', 'head.fc.weight', 'head.fc.bias']),
    ('your_convnet', ['head.weight', 'head.bias']), ('mobilenetv3_small_050', [
        'conv_head.weight', 'conv_head.bias', 'classifier.weight', 'classifier.bias']),
])
def test_the_head_is_what_the_features_do_not_need(name, expected):
    assert head_parameters(timm.create_model(name), (64, 64)) == expected


@pytest.mark.parametrize('name', ['convnext_tiny', 'resnet18', 'densenet121'])
def test_torchvision_weights(name):
    theirs = randomise(getattr(torchvision.models, name)()).eval()
    ours = create_cnn(name).eval()
    loaded = load_classifier(ours, theirs.state_dict(), name, (64, 64))
    assert not loaded.missing and not loaded.left_out
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3 * theirs(x).abs().max().item())


def test_every_kind_of_file(tmp_path):
    donor = randomise(create_cnn('your_convnet', num_classes=12))
    state = donor.state_dict()
    body = {k: v for k, v in state.items() if not k.startswith('head.')}
    kinds = {'plain': state, 'without head': body, 'other classes': create_cnn('your_convnet').state_dict() | body,
             'wrapped': {'model': state}, 'ours, whole': {'model': {f'encoder.cnn.{k}': v for k, v in state.items()}},
             'official, fine-tuned': {'module': {f'module.{k}': v for k, v in state.items()}, 'epoch': torch.tensor(3)}}
    for kind, content in kinds.items():
        save(tmp_path / 'w.pth', content)
        cnn = create_cnn('your_convnet', num_classes=12)
        loaded = load_classifier(cnn, str(tmp_path / 'w.pth'), 'your_convnet', (32, 32))
        assert all(torch.equal(cnn.state_dict()[k], v) for k, v in body.items()), kind
        assert bool(loaded.missing) == (kind == 'without head') and bool(loaded.left_out) == (kind == 'other classes'), kind
    save(tmp_path / 'w.pth', {k: v for k, v in state.items() if k != 'stages.1.conv1.weight'})
    with pytest.raises(ValueError, match='missing: stages.1.conv1.weight'):
        load_classifier(cnn, str(tmp_path / 'w.pth'), 'your_convnet', (32, 32))


# -- data -------------------------------------------------------------------------------------------------------------

def test_imagenets_layout(tmp_path):
    for i, name in enumerate(('train/b/1.png', 'train/a/x/2.png', 'train/b/3.png', 'val/b/4.png')):
        picture(tmp_path / name, i)
    images, val = find_labelled(tmp_path)
    assert images.classes == val.classes == ['a', 'b'] and [images[i][1] for i in range(3)] == [0, 1, 1] and val[0][1] == 1
    picture(tmp_path / 'val/c/5.png')
    with pytest.raises(ValueError, match='classes that the training images do not have: c'):
        find_labelled(tmp_path)
    (tmp_path / 'flat').mkdir()
    picture(tmp_path / 'flat/6.png')
    with pytest.raises(ValueError, match="not in ImageNet's layout"):
        LabelledFolder(tmp_path / 'flat')
    with pytest.raises(ValueError, match='no folder .*none/train'):
        find_labelled(tmp_path / 'none')


def test_classes_are_counted_and_named(labelled):
    images, _ = find_labelled(labelled)
    assert class_names(images) == images.classes and len(class_names(images, 20)) == 20
    with pytest.raises(ValueError, match='more than --num_classes=3'):
        class_names(images, 3)
    with pytest.raises(ValueError, match='give --num_classes'):
        class_names([(torch.zeros(3, 8, 8), 0)])
    assert class_names([(torch.zeros(3, 8, 8), 0)], 3) == ['0', '1', '2']
    with pytest.raises(ValueError, match='must be .image, class.'):
        check_labelled([torch.zeros(3, 8, 8)], parse('--augment=none'), 2)
    with pytest.raises(ValueError, match='--augment=none'):
        check_labelled([(torch.zeros(3, 8, 8), 0)], parse(''), 2)
    timms = timm.data.create_dataset('folder/', root=str(labelled), split='train')
    assert class_names(timms) == images.classes


def test_a_share_of_the_labels_is_of_each_class_and_a_function_of_the_seed(labelled):
    images, _ = find_labelled(labelled)
    half, again, other = (share_of(images, 0.5, seed) for seed in (0, 0, 1))
    assert len(half) == 24 and half.indices == again.indices != other.indices
    assert sorted(half[i][1] for i in range(24)) == sorted([*range(12)] * 2)
    assert len(share_of(images, 0.01, 0)) == 12 and share_of(images, 1, 0) is images


def test_mixing_by_hand():
    x, y = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1])  # odd
    images, targets = Mixing(parse('--mixup=0.8 --cutmix=0'), 3)(x, y, 7)
    share = images[1, 0, 0, 0].item()  # of 1 with 0, the one before it in the roll: share * 1 + (1 - share) * 0
    one_hot = torch.eye(3)[y]
    expected = (share * one_hot + (1 - share) * one_hot.roll(1, 0)) * 0.9 + 0.1 / 3
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(images[:, 0, 0, 0], share * torch.arange(5.0) + (1 - share) * torch.arange(5.0).roll(1))
    again, _ = Mixing(parse('--mixup=0.8 --cutmix=0'), 3)(x, y, 7)
    assert torch.equal(images, again)
    images, targets = Mixing(parse('--mixup=0 --cutmix=1 --smoothing=0'), 3)(x, y, 3)
    pasted = (images[1, 0] == 0).float().mean()
    assert 0 < pasted < 1 and targets[1].tolist() == pytest.approx([pasted.item(), 1 - pasted.item(), 0])
    images, targets = Mixing(parse('--mixup=0 --cutmix=0'), 3)(x, y, 3)
    assert torch.equal(images, x) and targets[0].tolist() == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    both = Mixing(parse(''), 3)
    assert len({round(both(x, y, seed)[1][1].max().item(), 4) for seed in range(9)}) > 5


def test_losses_by_hand():
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.7, 0.3]])
    bce, ce = (Classifier(nn.Identity(), loss)(logits, targets).item() for loss in ('bce', 'ce'))
    p = torch.sigmoid(logits)[0].tolist()
    assert bce == pytest.approx(-sum(t * np.log(q) + (1 - t) * np.log(1 - q) for t, q in zip((0.7, 0.3), p)) / 2)
    s = torch.softmax(logits, 1)[0].tolist()
    assert ce == pytest.approx(-0.7 * np.log(s[0]) - 0.3 * np.log(s[1]))


def test_transforms(labelled):
    images, _ = find_labelled(labelled)
    for line in ('--img_size=32', '--img_size=32,48 --augment=v0', '--img_size=384'):
        options = parse(line)
        for transform in (training_transform(options), evaluation_transform(options)):
            item = Augmented(images, transform, options.normalisation, labelled=True)[(0, 7)]
            assert item[0].shape == (3, *options.size) and item[1] == images[7][1] and not item[2]
    ramp = torch.linspace(0, 1, 100).expand(1, 100, 100)
    cut = evaluation_transform(parse('--img_size=95'))(ramp)
    assert cut[0, 0, 0] == pytest.approx(0.02, abs=0.01) and cut.shape == (1, 95, 95)


# -- evaluation -------------------------------------------------------------------------------------------------------

def test_counts_by_hand():
    logits = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]])
    assert counts(logits, torch.tensor([6, 6]))[[0, 1, 3]].tolist() == [1, 1, 2]
    assert counts(logits, torch.tensor([2, 0]))[[0, 1, 3]].tolist() == [1, 2, 2]
    assert counts(logits[:, :3], torch.tensor([0, 1]))[[0, 1, 3]].tolist() == [0, 2, 2]


EVALUATE = '''
import sys
import torch
from common.images.augmented import Augmented
from common.distributed import distributed
from downstream_imagenet.config import recommended
from downstream_imagenet.data import evaluation_transform, find_labelled
from downstream_imagenet.evaluation import evaluate
from downstream_imagenet.classifier import build_classifier as build
import pretrain.models
options = recommended(name='n', model='your_convnet', input_size=32)
torch.manual_seed(0)
model = build(options, 12)
with distributed() as ranks:
    if ranks.rank:
        torch.nn.init.normal_(model.cnn.stages[0].bn1.running_mean)  # only the main rank's statistics count
    _, val = find_labelled(sys.argv[1])
    images = Augmented(val, evaluation_transform(options), options.normalisation, labelled=True, stand_ins=False)
    found = evaluate(model, images, 12, int(sys.argv[2]), ranks, torch.enable_grad)
    if ranks.is_main:
        print(repr(found))
'''


@pytest.mark.slow
def test_each_image_counts_once_on_any_number_of_processes(labelled, tmp_path):
    (tmp_path / 'e.py').write_text(EVALUATE)
    results = []
    for processes, batch in ((1, 26), (1, 4), (2, 5), (3, 4)):
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}',
                   str(tmp_path / 'e.py'), str(labelled), str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True,
                              env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
        results.append(eval(done.stdout.strip().splitlines()[-1]))
    assert all(r['images'] == 26 and r['top1'] == results[0]['top1'] and r['top5'] == results[0]['top5'] for r in results)
    assert all(r['loss'] == pytest.approx(results[0]['loss'], rel=1e-5) for r in results) and 0 < results[0]['top5'] < 100


def test_unreadable_validation_images_are_left_out_and_named(tmp_path):
    for i in range(7):
        picture(tmp_path / f'{i % 2}/{i}.png', i)
    (tmp_path / '0/2.png').write_bytes(b'')
    options = recommended(name='n', model='your_convnet', input_size=16)
    images = Augmented(LabelledFolder(tmp_path), evaluation_transform(options), options.normalisation, labelled=True,
                       stand_ins=False)
    told = []
    found = evaluate(build(options, 2), images, 2, 3, ALONE, torch.enable_grad, warn=told.append)
    assert found['images'] == 6 and len(told) == 1 and '0/2.png' in told[0]


# -- runs -------------------------------------------------------------------------------------------------------------

def test_a_run_leaves_its_files(small, capsys):
    folder = fine_tune(small())
    assert {p.name for p in folder.iterdir()} == {
        'your_convnet_1kfinetuned_last.pth', 'your_convnet_1kfinetuned_best.pth', 'your_convnet_1kfinetuned_best_ema.pth',
        'your_convnet_1kfinetuned_last_step4.pth', 'finetune_log.txt', 'stdout_backup.txt', 'stderr_backup.txt',
        'tensorboard_log', 'run.lock', 'heartbeat'}
    lines = [json.loads(line) for line in (folder / 'finetune_log.txt').read_text().splitlines()]
    assert [line.get('epoch') for line in lines] == [None, 1, 2]
    assert {'top1', 'top5', 'top1_ema', 'val_loss'} <= lines[-1].keys()
    out = capsys.readouterr().out
    for text in ('none of its own; that of resnet50', '12 classes', 'EMA of the weights, decay 0.9', 'x 0.3430',
                 'after the last epoch', 'chosen on these same images, so it is no test result'):
        assert text in out, text
    assert saved(folder)['classes'][0] == 'arrow_waves' and saved(folder, 'best')['epoch'] in (1, 2)
    found = fine_tune(small(eval=str(folder / 'your_convnet_1kfinetuned_last.pth')))
    assert found['model']['top1'] == pytest.approx(lines[-1]['top1'])
    assert found['ema']['top1'] == pytest.approx(lines[-1]['top1_ema'])
    cnn = timm.create_model('your_convnet', num_classes=12)
    cnn.load_state_dict(saved(folder, 'best')['model'])


@pytest.mark.parametrize('changes', [
    {}, {'opt': 'adamw', 'lr': 1e-3, 'repeats': 3, 'accum': 2, 'workers': 1}, {'official_lamb': True}])
def test_a_killed_run_goes_on_to_the_same_end_to_the_last_bit(small, tmp_path, monkeypatch, changes):
    whole = fine_tune(small(run_dir=str(tmp_path / 'whole'), **changes))
    options = small(run_dir=str(tmp_path / 'cut'), save_every_steps=3, **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stop):
            fine_tune(options)
    fine_tune(options)
    one, other = saved(whole), saved(tmp_path / 'cut')
    for key in ('step', 'sums', 'model', 'ema', 'optimizer', 'best', 'classes'):
        assert same(one[key], other[key]), key
    assert saved(whole, 'best')['top1'] == saved(tmp_path / 'cut', 'best')['top1'] == one['best']['model']['top1']


def test_weights_given_to_resume_from_are_weights(small, tmp_path, capsys):
    save(tmp_path / 'w.pth', create_cnn('your_convnet').state_dict())
    folder = fine_tune(small(resume=str(tmp_path / 'w.pth'), epochs=1, warmup_epochs=0.0))
    assert 'matched' in capsys.readouterr().out
    with pytest.raises(ValueError, match='is of another run: batch_size was 12 and is 6 now'):
        fine_tune(small(batch_size=6, epochs=1, warmup_epochs=0.0))
    again = fine_tune(small(resume=str(folder / 'your_convnet_1kfinetuned_last.pth'), run_dir=str(tmp_path / 'b'), epochs=1,
                            warmup_epochs=0.0))
    assert 'This run is finished' in capsys.readouterr().out and again == tmp_path / 'b'


def test_the_average_starts_at_the_loaded_weights(small, tmp_path, monkeypatch):
    donor = randomise(create_cnn('your_convnet', num_classes=12))
    save(tmp_path / 'w.pth', donor.state_dict())
    seen = []

    def update(self, model, finite):
        if not seen:
            seen.append({k: v.clone() for k, v in self.module.state_dict().items()})
    monkeypatch.setattr(Average, 'update', update)
    fine_tune(small(finetune_from=str(tmp_path / 'w.pth'), epochs=1, warmup_epochs=0.0))
    assert all(torch.equal(seen[0][k], v) for k, v in donor.state_dict().items())


@pytest.mark.slow
def test_a_short_run_learns(tmp_path):
    write_world(tmp_path, 360, 96, 40, seed=2)
    folder = fine_tune(Options(name='n', run_dir=str(tmp_path / 'run'), data_path=str(tmp_path), model='your_convnet',
                               input_size=40, batch_size=24, epochs=25, warmup_epochs=2.0, lr=3e-2, workers=1, augment='none',
                               mixup=0.0, cutmix=0.0, erase=0.0, crop_scale=(0.5, 1.0), ema=0.9, layer_decay=1.0, val_every=25))
    last = [json.loads(line) for line in (folder / 'finetune_log.txt').read_text().splitlines()][-1]
    assert last['top1'] > 5 * 100 / 12 and last['top1_ema'] > 5 * 100 / 12


def test_data_of_your_own_and_refusals(small, tmp_path):
    class Bands(torch.utils.data.Dataset):
        classes = ['dark', 'light']

        def __len__(self):
            return 13

        def __getitem__(self, index):
            return torch.full((2, 20, 20), index % 2 * 0.5) + 0.1 * torch.rand(2, 20, 20), index % 2
    bands = {'in_chans': 2, 'mean': (0.5, 0.5), 'std': (0.2, 0.2), 'data_path': None, 'epochs': 1, 'warmup_epochs': 0.0}
    folder = fine_tune(small(**bands), Bands(), Bands())
    assert saved(folder)['classes'] == ['dark', 'light']
    with pytest.raises(ValueError, match='give a val_dataset'):
        fine_tune(small(**bands), Bands())
    with pytest.raises(ValueError, match='nothing to measure'):
        save(tmp_path / 'w.pth', create_cnn('your_convnet').state_dict())
        fine_tune(small(eval=str(tmp_path / 'w.pth')))


@pytest.mark.slow
def test_the_launch_line_in_the_folder_and_main_sh(labelled, tmp_path):
    flags = [f'--data_path={labelled}', '--model=your_convnet', '--img_size=32', '--bs=12', '--ep=1', '--lr=1e-3', '--ema=0',
             '--dataloader_workers=0', '--wp_ep=0']
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)
    one = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', 'main.py', '--exp_name=t',
           f'--exp_dir={tmp_path}/a', *flags]
    two = ['bash', str(ROOT / 'downstream_imagenet/main.sh'), 't', '--ngpu_per_node=1', *flags]
    for command, cwd in ((one, ROOT / 'downstream_imagenet'), (two, tmp_path)):
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        assert 'top-1' in done.stdout
    assert saved(tmp_path / 'a')['ranks'] == 2 and saved(tmp_path / 'output_t')['step'] == 4


# -- probes -----------------------------------------------------------------------------------------------------------

def test_knn_votes_by_hand():
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    features = Features(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[5.0, 0.2], [0.0, 3.0]]), torch.tensor([0, 1]), ['a', 'b'])
    (k, scores), = knn.votes(features, 2).items()
    assert k == 4
    cosine = torch.nn.functional.normalize(features.val_x) @ torch.nn.functional.normalize(x).T
    weight = (cosine / 0.07).exp()
    torch.testing.assert_close(scores, torch.stack([weight[:, :2].sum(1), weight[:, 2:].sum(1)], 1))


def test_the_linear_fit_is_the_minimum():
    torch.manual_seed(0)
    x, y = torch.randn(60, 4).double(), torch.randint(3, (60,))
    for penalty, (weight, bias) in zip((1.0, 0.01), linear.fit(x, y, 3, (1.0, 0.01))):
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
        gradient = torch.autograd.grad(value, [weight, bias])
        assert max(g.abs().max() for g in gradient) < 1e-5


def test_folds_divide_each_class():
    y = torch.tensor([0] * 10 + [1] * 7)
    parts = linear.folds(y, 0)
    assert len(parts) == 5 and sorted(torch.cat([out for _, out in parts]).tolist()) == list(range(17))
    assert all(len(set(y[out].tolist())) == 2 and len(inside) + len(out) == 17 for inside, out in parts)
    assert linear.folds(torch.tensor([0, 0, 1]), 0) == [] and len(linear.folds(torch.tensor([0, 0, 1, 1]), 0)) == 2


@pytest.mark.parametrize('flags', [['--random'], ['--weights=w.pth']])
def test_probes_from_the_command_line(labelled, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'w.pth', create_cnn('your_convnet').state_dict())
    common = [f'--data_path={labelled}', '--model=your_convnet', '--input_size=32', '--workers=0', *flags]
    knn.main(common)
    linear.main(common)
    out = capsys.readouterr().out
    assert 'k-NN, k = 20: top-1' in out and 'linear probe: top-1' in out and 'chosen by 4-fold cross-validation' in out
    assert ('matched' in out) == (flags != ['--random'])
    linear.main(['--mae', *common, '--name=p', '--bs=12', '--ep=2'])
    assert 'linear probe' in capsys.readouterr().out and saved(tmp_path / 'output_p')['config']['freeze']


def test_a_linear_probe_trains_its_classifier_only():
    options = recommended(name='n', model='your_convnet', input_size=32, freeze=True, loss='ce')
    model = build(options, 3).train()
    assert isinstance(model, LinearProbe) and not model.cnn.training
    before = {k: v.clone() for k, v in model.cnn.state_dict().items()}
    optimizer = build_optimizer('lars', [{'params': [p for p in model.parameters() if p.requires_grad], 'decays': False}])
    set_schedule(optimizer, 0.1, 0.0)
    model(torch.randn(6, 3, 32, 32), torch.eye(3)[[0, 1, 2, 0, 1, 2]]).backward()
    weight = model.fc.weight.detach().clone()
    optimizer.step()
    assert same(dict(model.cnn.state_dict()), before) and not torch.equal(model.fc.weight, weight)


@pytest.mark.parametrize('given', [{}, {'random': True, 'timm': True}, {'weights': 'f', 'random': True}])
def test_probes_ask_for_one_kind_of_weights(given):
    with pytest.raises(ValueError, match='one of --weights=FILE, --random and --timm'):
        FeatureOptions(**given)


# -- what went wrong once ---------------------------------------------------------------------------------------------

def test_lars_and_lamb_scale_their_steps_without_weight_decay_too():
    for name, lr, share in (('lars', 0.5, 0.5 * 0.001), ('lamb', 0.01, 0.01)):
        weight = nn.Parameter(torch.randn(4, 6))
        optimizer = build_optimizer(name, [{'params': [weight], 'weight_decay': 0.0, 'decays': True}])
        set_schedule(optimizer, lr, 0.0)
        before, weight.grad = weight.detach().clone(), torch.randn(4, 6)
        optimizer.step()
        assert ((weight - before).norm() / before.norm()).item() == pytest.approx(share, rel=1e-3)


def test_auto_augment_takes_every_image(labelled):
    options, (images, _) = parse('--img_size=32 --augment=v0'), find_labelled(labelled)
    augmented = Augmented(images, training_transform(options), options.normalisation, labelled=True)
    assert all(augmented[(epoch, 3)][2] == [] for epoch in range(200))


def test_images_that_cannot_be_augmented_end_the_run(small, tmp_path):
    for i in range(8):
        picture(tmp_path / f'w/train/{i % 2}/{i}.png', i)
        picture(tmp_path / f'w/val/{i % 2}/{i}.png', i)
    Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(tmp_path / 'w/train/1/7.png')
    with pytest.raises(ValueError, match=r'image .*7.png can be read, but not be prepared: .*--augment=none'):
        fine_tune(small(data_path=str(tmp_path / 'w'), in_chans=1, batch_size=8))


@pytest.mark.parametrize(('label', 'word'), [(2, 'an image has class 2, but there are 2 classes'), (-1, 'class -1'),
                                             (0.7, 'must be a number'), (torch.tensor([0, 1]), 'must be a number')])
def test_labels_that_are_none(small, label, word):
    images = [(torch.zeros(3, 20, 20), label)] * 6
    with pytest.raises(ValueError, match=word):
        fine_tune(small(num_classes=2, data_path=None, augment='none'), images, images)


def test_later_labels_are_checked_too(small):
    images = [(torch.zeros(3, 20, 20), 0)] * 11 + [(torch.zeros(3, 20, 20), 5)]
    with pytest.raises(ValueError, match='an image has class 5'):
        fine_tune(small(num_classes=2, data_path=None, augment='none', epochs=1, warmup_epochs=0.0), images, images)


def test_eval_minds_the_classes_and_asks_for_no_more_than_it_needs(small, labelled, tmp_path, capsys, monkeypatch):
    folder = fine_tune(small(epochs=1, warmup_epochs=0.0))
    file = folder / 'your_convnet_1kfinetuned_best.pth'
    shutil.copytree(labelled / 'val', tmp_path / 'test')
    monkeypatch.setattr(sys, 'argv', ['main'])
    finetune_main([f'--eval={file}', f'--val_path={tmp_path}/test', '--model=your_convnet', '--img_size=40', '--workers=0'])
    assert 'note: input_size was 32 in training, and is 40 here' in capsys.readouterr().out
    (tmp_path / 'test/bar_stripes').rename(tmp_path / 'test/bars')
    with pytest.raises(SystemExit, match='classes that the training images do not have: bars'):
        finetune_main([f'--eval={file}', f'--val_path={tmp_path}/test', '--model=your_convnet', '--img_size=32', '--workers=0'])


def test_a_linear_probes_file_is_evaluated_and_fine_tuned(small, tmp_path):
    probe = fine_tune(small(freeze=True, opt='lars', ema=0.0, run_dir=str(tmp_path / 'probe'), epochs=1, warmup_epochs=0.0))
    file = str(probe / 'your_convnet_1kfinetuned_last.pth')
    assert fine_tune(small(eval=file))['model']['images'] == 26
    cnn = create_cnn('your_convnet', num_classes=12)
    loaded = load_classifier(cnn, file, 'your_convnet', (32, 32))
    assert not loaded.missing
    assert torch.equal(cnn.stages[0].conv1.weight, saved(probe)['model']['cnn.stages.0.conv1.weight'])


def test_torchvisions_densenet_files_have_older_names():
    theirs = torchvision.models.densenet121().state_dict()
    file = {re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', key): value for key, value in theirs.items()}
    assert file.keys() != theirs.keys()
    assert not load_classifier(create_cnn('densenet121'), file, 'densenet121', (64, 64)).missing


def test_too_small_an_image_is_refused(small):
    with pytest.raises(ValueError, match='inception_v3 cannot take images of 32x32 .*--img_size'):
        fine_tune(small(model='inception_v3'))


def test_mae_asks_for_one_kind_of_weights():
    for flags in ([], ['--random', '--weights=f']):
        with pytest.raises(SystemExit, match='one of --weights=FILE, --random and --timm'):
            linear.main(['--mae', '--data_path=D', *flags])


def test_a_share_knows_its_images_by_name(labelled):
    images, _ = find_labelled(labelled)
    half = share_of(images, 0.5, 0)
    assert half.name(3) == images.name(half.indices[3])


def test_fresh_goes_with_weights_given_to_resume_from(small, tmp_path, capsys):
    save(tmp_path / 'w.pth', create_cnn('your_convnet').state_dict())
    folder = fine_tune(small(resume=str(tmp_path / 'w.pth'), fresh=True, epochs=1, warmup_epochs=0.0))
    with pytest.raises(ValueError, match='--fresh starts over'):
        fine_tune(small(resume=str(folder / 'your_convnet_1kfinetuned_last.pth'), fresh=True, epochs=1, warmup_epochs=0.0))


def test_timms_folders_must_have_the_same_classes(small, tmp_path):
    for name in ('train/a', 'train/b', 'val/b'):
        picture(tmp_path / f'w/{name}/1.png')
    with pytest.raises(ValueError, match='numbers the classes of its validation images in another way'):
        fine_tune(small(data_path=str(tmp_path / 'w'), dataset='folder/'))
