"""The recipes that --recipe names: their values, and the augmentation, loss, schedule and average that they bring."""
import json
import math
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.scheduler import CosineLRScheduler
from torch import nn

import tests.small_convvit  # noqa: F401
from common.distributed import Ranks
from common.images.augmented import Augmented
from common.training.finetuning import Average
from common.training.layer_decay import parameter_groups as layer_groups
from common.training.optim import build_optimizer, parameter_groups, set_schedule
from downstream_imagenet.class_folders import find_labelled
from downstream_imagenet.classifier import Classifier, LinearProbe, bce_sum, build_classifier
from downstream_imagenet.config import recommended
from downstream_imagenet.data import evaluation_transform, training_transform
from downstream_imagenet.linear import mae_recipe
from downstream_imagenet.main import fine_tune
from downstream_imagenet.published import NAMED, PROBES
from downstream_imagenet.recipe import Recipe, unfit
from downstream_imagenet.run import Run
from tests.conftest import ROOT, Stop, same, stop_after
from tests.downstream_imagenet.runs import parse, saved

RSB = {'batch_size': 2048, 'warmup': 5, 'opt': 'lamb', 'clipping': 1, 'weight_decay': 0.02, 'final_lr': 1e-6,
       'lr_by_epoch': True, 'layer_decay': 1, 'crop': 0.95, 'erase': 0, 'mixup': 0.1, 'cutmix': 1, 'smoothing': 0,
       'loss_name': 'bce_sum', 'head_std': 0.01}
A2 = {**RSB, 'epochs': 300, 'peak_lr': 5e-3, 'size': (224, 224), 'evaluated_size': (224, 224), 'repeats': 3,
      'augmentation': 'rand-m7-n2-mstd0.5-inc1', 'ema': 0, 'ema_warmup': 0}
A3 = {**RSB, 'epochs': 100, 'peak_lr': 8e-3, 'size': (160, 160), 'evaluated_size': (224, 224), 'repeats': 0,
      'augmentation': 'rand-m6-n2-mstd0.5-inc1', 'ema': 0, 'ema_warmup': 0}
LIKE_CONVNEXT = {'opt': 'adamw', 'weight_decay': 0.05, 'final_lr': 1e-6, 'lr_by_epoch': False, 'size': (224, 224),
                 'evaluated_size': (224, 224), 'crop': 0.875, 'augmentation': 'rand-m9-mstd0.5-inc1', 'erase': 0.25,
                 'mixup': 0.8, 'cutmix': 1, 'smoothing': 0.1, 'loss_name': 'ce', 'ema_warmup': 0, 'head_std': 0.01}
CONVNEXT = {**LIKE_CONVNEXT, 'batch_size': 4096, 'epochs': 300, 'warmup': 5, 'clipping': math.inf, 'peak_lr': 4e-3,
            'layer_decay': 1, 'repeats': 0, 'ema': 0.9999}
MAE = {**LIKE_CONVNEXT, 'batch_size': 1024, 'epochs': 100, 'warmup': 5, 'clipping': math.inf, 'peak_lr': 2e-3,
       'layer_decay': 0.65, 'repeats': 0, 'ema': 0, 'drop_path': 0.1, 'head_std': 2e-5, 'lr_schedule': 'mae',
       'crop_retries': True, 'freeze': False, 'crop_scale': (0.08, 1.0)}
VIT = {**LIKE_CONVNEXT, 'batch_size': 1024, 'warmup': 20, 'clipping': 5, 'peak_lr': 2.5e-3, 'layer_decay': 0.65,
       'drop_path': 0.1}
PROBE = {'freeze': True, 'probe_norm': False, 'batch_size': 256, 'epochs': 100, 'warmup': 0, 'opt': 'sgd', 'peak_lr': 30,
         'weight_decay': 0, 'clipping': math.inf, 'lr_steps': (60, 80), 'augmentation': 'none', 'erase': 0, 'mixup': 0,
         'cutmix': 0, 'smoothing': 0, 'loss_name': 'ce', 'ema': 0, 'repeats': 0, 'size': (224, 224)}

MAE_PROBE = {'freeze': True, 'probe_norm': True, 'batch_size': 4096, 'epochs': 90, 'warmup': 10, 'opt': 'lars', 'peak_lr': 1.6,
             'weight_decay': 0, 'clipping': math.inf, 'lr_schedule': 'mae', 'final_lr': None, 'augmentation': 'none',
             'erase': 0, 'mixup': 0, 'cutmix': 0, 'smoothing': 0, 'loss_name': 'ce', 'ema': 0, 'repeats': 0, 'size': (224, 224),
             'evaluated_size': (224, 224), 'crop': 0.875, 'crop_scale': (0.08, 1.0), 'crop_retries': False, 'flip': True}


def settled(recipe, model, images=1_281_167, device='cuda', **given):
    """The options of a run with a named recipe."""
    options = recommended(name='n', model=model, recipe=recipe, **given)
    return Recipe().settled(options, images, Ranks(0, 8 if device == 'cuda' else 1, torch.device(device)))[0]


def values(options, names):
    """{name: value} of some options; the peak rate, which is computed, without its rounding."""
    found = {name: getattr(options, name) for name in names}
    return {**found, 'peak_lr': round(options.peak_lr, 9)}


def run_of(options, images=1_281_167):
    return Run(options, Ranks(0, 1, torch.device('cpu')), images)


# -- the values -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('recipe', 'model', 'expected'), [
    ('rsb_a2', 'resnet50', {**A2, 'drop_path': 0.05, 'ema': 0.9999, 'ema_warmup': 20}),
    ('rsb_a2', 'resnet101', {**A2, 'drop_path': 0.1}),
    ('rsb_a2', 'resnet152.a1_in1k', {**A2, 'drop_path': 0.15}),
    ('rsb_a2', 'resnet200', {**A2, 'drop_path': 0.2}),
    ('rsb_a2', 'resnet18', {**A2, 'drop_path': 0.05}),
    ('rsb_a2', 'your_convnet', {**A2, 'drop_path': None}),
    ('rsb_a3', 'resnet50', {**A3, 'drop_path': 0}),
    ('rsb_a3', 'your_convnet', {**A3, 'drop_path': None}),
    ('a2mim_convnext', 'convnext_small', {**CONVNEXT, 'drop_path': 0.4}),
    ('a2mim_convnext', 'convnext_base', {**CONVNEXT, 'drop_path': 0.5}),
    ('a2mim_vit', 'test_vit', {**VIT, 'epochs': 200, 'ema': 0, 'repeats': 0}),
    ('a2mim_vit', 'vit_base_patch16_224', {**VIT, 'epochs': 100, 'ema': 0.99996, 'repeats': 0}),
    ('a2mim_vit', 'vit_large_patch16_224', {**VIT, 'epochs': 150, 'ema': 0.99996, 'repeats': 3}),
    ('linear_probe', 'resnet50', PROBE),
    ('mae', 'test_vit', MAE),
    ('mae', 'your_convnet', {**MAE, 'drop_path': None}),
    ('paper', 'convvit_base', MAE),
    ('paper', 'convvit_small', MAE),
    ('paper', 'tiny_convvit', MAE),  # another ConvViT has the same
    ('mae_probe', 'convvit_base', MAE_PROBE)])
def test_a_recipe_has_the_values_of_the_table(recipe, model, expected):
    assert values(settled(recipe, model), expected) == expected


def test_what_is_given_stands_above_the_recipe():
    given = {'batch_size': 512, 'epochs': 50, 'warmup_epochs': 2.0, 'augment': 'trivial', 'ema': 0.99}
    options = settled('rsb_a3', 'resnet50', **given)
    assert {name: getattr(options, name) for name in given} == given
    assert options.peak_lr == pytest.approx(8e-3 * 512 / 2048) and options.loss_name == 'bce_sum'
    assert settled('rsb_a3', 'resnet50', input_size=128).evaluated_size == (128, 128)
    assert settled('rsb_a3', 'resnet50', input_size=128, test_size=192).evaluated_size == (192, 192)
    assert settled('rsb_a3', 'resnet50', epochs=20).warmup == 2  # a tenth
    assert settled('a2mim_vit', 'test_vit', epochs=20).warmup == 2
    assert settled('linear_probe', 'resnet50', epochs=10).lr_steps == (6, 8)
    assert settled('mae_probe', 'tiny_convvit', epochs=45).warmup == 5 and settled('mae', 'tiny_convvit', epochs=20).warmup == 2


def test_large_images_are_evaluated_on_their_middle_square_with_the_recipes_of_mae():
    for recipe in ('mae', 'mae_probe', 'paper'):
        assert settled(recipe, 'convvit_base', input_size=384).crop == 1.0
        assert settled(recipe, 'convvit_base', input_size=(384, 416), test_size=224).crop == 0.875
        assert settled(recipe, 'convvit_base', test_size=384, crop=0.9).crop == 0.9
    ramp = torch.linspace(0, 1, 256).expand(1, 256, 256)
    assert torch.equal(evaluation_transform(settled('mae', 'convvit_base'))(ramp), ramp[:, 16:-16, 16:-16])
    whole = evaluation_transform(settled('mae', 'convvit_base', input_size=384))
    middle = torch.arange(500.0)[58:-58].expand(1, 384, 384)
    assert torch.equal(whole(torch.arange(500.0).expand(1, 384, 500)), middle)


def test_a_run_that_began_with_another_evaluation_goes_on_with_it():
    options = recommended(name='n', model='convvit_base', input_size=384)
    ranks = Ranks(0, 1, torch.device('cpu'))
    for crop in (None, 1.0):
        goes_on, _ = Recipe().settled(options, 1000, ranks, {**options.as_dict(), 'crop': crop})
        assert goes_on.crop == crop


def test_a_run_that_goes_on_keeps_its_epochs_of_falling_rate():
    began = settled('linear_probe', 'resnet50', epochs=10)
    again = recommended(name='n', model='resnet50', recipe='linear_probe', epochs=20)
    goes_on, _ = Recipe().settled(again, 1000, Ranks(0, 1, torch.device('cpu')), began.as_dict())
    assert goes_on.lr_steps == (6, 8) and goes_on.epochs == 20


@pytest.mark.parametrize(('line', 'word'), [
    ('--recipe=a2mim_vit --model=resnet50', 'is for vision transformers, and resnet50 is none'),
    ('--recipe=rsb_a2 --freeze', 'give --recipe=linear_probe'),
    ('--recipe=linear_probe --no_freeze', 'leave --no_freeze out'), ('--recipe=mae_probe --no_freeze', 'leave --no_freeze out'),
    ('--recipe=mae --freeze', 'or mae_probe'), ('--lr_schedule=mae --lr_by_epoch', 'leave --lr_by_epoch out'),
    ('--lr_schedule=mae --lr_steps=6', 'instead of a cosine'),
    ('--recipe=rsb', 'invalid choice'), ('--augment=rand-7', 'augment is trivial'), ('--augment=rand-m7-n0', 'augment is'),
    ('--augment=rand-m7-x', 'augment is trivial, v0, none, or a RandAugment'), ('--test_size=0', 'test_size is a side'),
    ('--head_std=0', 'head_std must be more than 0'), ('--final_lr=0', 'final_lr must be'), ('--ema_warmup=-1', 'ema_warmup'),
    ('--lr_steps=8,6', 'ascending order'), ('--lr_steps=6,8 --ep=8', 'do not lie within 8 epochs'),
    ('--lr_steps=6 --final_lr=1e-6', 'instead of a cosine')])
def test_what_does_not_go_together_is_refused(line, word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and word in message and message.count('\n') == 1


def test_two_recipes_and_a_final_rate_above_the_peak_are_refused():
    with pytest.raises(ValueError, match='--mae is a recipe'):
        mae_recipe({'recipe': 'linear_probe'})
    with pytest.raises(ValueError, match='--final_lr=1e-06, which is not below its peak of 1e-06'):
        run_of(settled('rsb_a3', 'resnet50', lr=1e-6))
    with pytest.raises(ValueError, match='vit_tiny_patch16_224 cannot take images of 96x96 .*--test_size'):
        build_classifier(recommended(name='n', model='vit_tiny_patch16_224', test_size=96), 3)


def test_few_images_and_a_cpu_are_warned_of_with_numbers_that_work():
    gpu, cpu = (Ranks(0, 1, torch.device(device)) for device in ('cuda', 'cpu'))
    options = settled('rsb_a2', 'resnet50')
    assert list(unfit(options, 1_281_167, gpu)) == []
    told, = unfit(options, 20_000, gpu)
    flags = dict(re.findall(r'--(\w+)=([\d.e-]+)', told))
    assert 'an epoch is 10 steps of 2,048 images' in told
    assert {name: float(value) for name, value in flags.items()} == {'bs': 1024, 'ep': 100, 'lr': 0.005, 'ema': 0.995}
    told, = unfit(options, 1_281_167, cpu)
    assert 'on a CPU. Give --bs=32 ' in told
    given = settled('rsb_a2', 'resnet50', batch_size=32)
    assert list(unfit(given, 2_000, cpu)) == []
    assert run_of(options, 100).against_few_images().startswith('Give --bs=8 --ep=100 --lr=0.005 ')


def table_of_the_page():
    """{name of a recipe: {name of a row: text}} of the table in the folder's README.md."""
    page = (ROOT / 'downstream_imagenet/README.md').read_text(encoding='utf-8')
    table = re.search(r'<!-- named recipes -->\n(.*?)<!-- end -->', page, re.DOTALL)[1]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
    names = [name.strip('`') for name in rows[0][1:]]
    return {name: {row[0]: row[column] for row in rows[2:]} for column, name in enumerate(names, 1)}


@pytest.mark.parametrize(('recipe', 'model'), [('rsb_a2', 'resnet50'), ('rsb_a3', 'resnet50'),
                                               ('a2mim_convnext', 'convnext_small'), ('a2mim_vit', 'vit_base_patch16_224'),
                                               ('mae', 'convvit_base')])
def test_the_table_of_the_page_is_what_the_code_does(recipe, model):
    told, options = table_of_the_page()[recipe], settled(recipe, model)
    numbers = {'epochs': options.epochs, 'batch': options.batch_size, 'warm-up': options.warmup,
               'peak learning rate': options.peak_lr, 'weight decay': options.weight_decay, 'erasing': options.erase,
               'mixup, CutMix': options.mixup, 'label smoothing': options.smoothing,
               'training images': options.size[0], 'validation images': options.evaluated_size[0]}
    for row, value in numbers.items():
        assert float(re.search(r'[\d.]+(e-\d)?', told[row].replace(',', ''))[0]) == pytest.approx(value), row
    assert options.augmentation in told['RandAugment'] and f'`{options.loss_name}`' in told['loss']
    assert f'{options.ema:g}' in told['EMA'] or options.ema == 0 and told['EMA'] == 'none'
    assert f'{options.drop_path:g}' in told['drop path'] and options.opt in told['optimiser'].lower()
    assert (str(options.layer_decay) in told['layer decay']) or options.layer_decay == 1 and told['layer decay'] == 'none'
    assert set(table_of_the_page()) == set(NAMED) - set(PROBES)


# -- augmentation -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('recipe', 'model', 'magnitude'), [('rsb_a3', 'resnet50', 6), ('rsb_a2', 'resnet50', 7),
                                                            ('a2mim_convnext', 'convnext_small', 9)])
def test_timm_reads_the_randaugment_as_it_is_meant(recipe, model, magnitude):
    augment = training_transform(settled(recipe, model)).transforms[-1].augment
    assert augment.num_layers == 2 and len(augment.ops) == 15
    for operation in augment.ops:
        assert (operation.magnitude, operation.magnitude_std, operation.prob) == (magnitude, 0.5, 0.5)
        assert operation.kwargs == {'fillcolor': (124, 116, 104), 'resample': Image.Resampling.BICUBIC}
    names = [operation.name for operation in augment.ops]
    assert all(f'{name}Increasing' in names and name not in names for name in ('Posterize', 'Solarize', 'Color', 'Sharpness'))


@pytest.mark.parametrize('channels', [1, 3])
def test_randaugment_takes_every_image(labelled, channels):
    images, _ = find_labelled(labelled, in_chans=channels)
    options = parse(f'--img_size=32 --augment=rand-m10-n4-p1-inc1 --in_chans={channels}')  # Posterize would keep 0 bits.
    augmented = Augmented(images, training_transform(options), options.normalisation, labelled=True)
    assert all(augmented[(epoch, 3)][2] == [] for epoch in range(60))


def test_validation_images_have_their_own_size():
    ramp = torch.linspace(0, 1, 236).expand(1, 236, 236)
    cut = evaluation_transform(settled('rsb_a3', 'resnet50'))(ramp)  # resized to 236, of which the middle 224
    assert cut.shape == (1, 224, 224) and torch.equal(cut, ramp[:, 6:-6, 6:-6])
    ramp = torch.linspace(0, 1, 256).expand(1, 256, 256)
    assert torch.equal(evaluation_transform(settled('a2mim_convnext', 'convnext_small'))(ramp), ramp[:, 16:-16, 16:-16])
    assert training_transform(settled('rsb_a3', 'resnet50'))(Image.new('RGB', (300, 200))).size == (160, 160)


# -- loss and classifier ----------------------------------------------------------------------------------------------

def test_the_sum_over_classes_is_their_number_times_the_mean():
    logits, targets = torch.randn(5, 7).double(), torch.rand(5, 7).double()
    mean, total = (Classifier(nn.Identity(), loss)(logits, targets).item() for loss in ('bce', 'bce_sum'))
    assert total == pytest.approx(7 * mean, rel=1e-6)
    assert Classifier(nn.Identity(), 'bce_sum')(torch.zeros(4, 10), torch.rand(4, 10)).item() == pytest.approx(10 * math.log(2))


def test_the_classifier_starts_from_a_normal_distribution():
    for model, name in (('resnet50', 'fc'), ('test_convnext', 'head.fc'), ('your_convnet', 'head'), ('test_vit', 'head')):
        own, drawn = (build_classifier(recommended(name='n', model=model, head_std=std, input_size=160), 400)
                      for std in (None, 0.01))
        layer = drawn.cnn.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05) and not layer.bias.any(), model
        others = {key: value for key, value in drawn.cnn.state_dict().items() if not key.startswith(f'{name}.')}
        assert same({key: own.cnn.state_dict()[key] for key in others}, others)


def test_a_linear_probe_without_a_norm():
    options = settled('linear_probe', 'your_convnet', input_size=32)
    probe = build_classifier(options, 5)
    assert isinstance(probe, LinearProbe) and not any(key.startswith('norm') for key in probe.state_dict())
    images = torch.randn(3, 3, 32, 32)
    features = probe.eval().cnn.forward_features(images).mean((2, 3))
    torch.testing.assert_close(probe.logits(images), probe.fc(features))


# -- schedule ---------------------------------------------------------------------------------------------------------

def test_the_cosine_by_epoch_is_timms():
    run = run_of(settled('rsb_a3', 'resnet50'), images=2048 * 4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=8e-3)
    timms = CosineLRScheduler(optimizer, t_initial=100, lr_min=1e-6, warmup_t=5, warmup_lr_init=4e-5)
    assert run.per_epoch == 4 and run.warmup_steps == 20
    for epoch in range(100):
        timms.step(epoch)
        rates = {run.schedule(4 * epoch + step)[0] for step in range(4)}
        if epoch < 5:
            assert len(rates) == 4 and min(rates) == pytest.approx(optimizer.param_groups[0]['lr'])
        else:
            assert len(rates) == 1 and rates.pop() == pytest.approx(optimizer.param_groups[0]['lr'], rel=1e-12)
    assert 1e-6 < run.schedule(399)[0] < 1e-6 + 8e-3 * 3e-4


def test_the_other_curves():
    run = run_of(settled('a2mim_convnext', 'convnext_small'))
    rates = [run.schedule(step)[0] for step in (0, 5 * 313, 300 * 313 - 1)]
    assert rates == pytest.approx([0.005 * 4e-3, 4e-3, 1e-6], rel=1e-9)
    run = run_of(settled('linear_probe', 'resnet50'), images=2560)
    rates = [run.schedule(10 * epoch + step)[0] for epoch, step in ((0, 0), (59, 9), (60, 0), (79, 9), (80, 0), (99, 9))]
    assert rates == pytest.approx([30, 30, 3, 3, 0.3, 0.3])


def test_the_schedule_of_mae():
    """1,252 steps an epoch; the rate of each group is its share of this."""
    options = settled('mae', 'convvit_base')
    run, epoch = run_of(options), 1252
    assert run.per_epoch == epoch
    for at, rate in ((0, 0), (2.5, 1e-3), (5, 2e-3), (52.5, 1e-6 + (2e-3 - 1e-6) / 2)):
        assert run.schedule(round(at * epoch)) == (pytest.approx(rate, rel=1e-12), 0.05), at
    assert run.floor(50 * epoch) == 0 and 1e-6 < run.schedule(100 * epoch - 1)[0] < 1.00001e-6
    run = run_of(settled('mae_probe', 'convvit_base'))
    rates = [run.schedule(at * 313)[0] for at in (0, 5, 10, 50)]
    assert rates == pytest.approx([0, 0.8, 1.6, 0.8], rel=1e-12) and 0 < run.schedule(90 * 313 - 1)[0] < 1e-8


def test_a_longer_run_rises_again_and_falls_along_the_same_curve():
    def longer(options, images, **changes):
        return Run(options, Ranks(0, 1, torch.device('cpu')), images, ended_at=(1000,), **changes)
    run = longer(settled('rsb_a3', 'resnet50', epochs=150), 20480, first_warmup=50)
    assert run.schedule(1000)[0] == pytest.approx(1e-6) and run.schedule(1050)[0] == pytest.approx(8e-3, rel=0.05)
    assert run.schedule(1499)[0] == run.schedule(1490)[0] < run.schedule(1489)[0]
    run = longer(settled('linear_probe', 'resnet50', epochs=150, lr_steps=(60.0, 80.0)), 2560, first_warmup=0)
    rates = [run.schedule(step)[0] for step in (999, 1000, 1299, 1300, 1399, 1400)]
    assert rates == pytest.approx([0.3, 30, 30, 3, 3, 0.3])
    run = longer(settled('mae', 'convvit_base', epochs=150), 10240, first_warmup=50)
    assert [run.schedule(step)[0] for step in (999, 1000, 1050)] == pytest.approx([1e-6, 1e-6, 2e-3], rel=0.01)


# -- average ----------------------------------------------------------------------------------------------------------

def test_the_decay_of_the_average_rises():
    run = run_of(settled('rsb_a2', 'resnet50'), images=20480)
    assert [run.ema_decay(step) for step in (0, 100, 200, 5000)] == pytest.approx([0.89991, 0.949905, 0.9999, 0.9999])
    assert run_of(settled('a2mim_convnext', 'convnext_small')).ema_decay(0) == 0.9999


def test_an_average_takes_the_decay_of_the_step():
    model = nn.Linear(2, 1, bias=False)
    average, begin = Average(model, decay=0.9), model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    average.set_decay(0.75)
    average.update(model, torch.tensor(0.0))
    assert torch.equal(average.module.weight, begin)
    average.update(model, torch.tensor(1.0))
    torch.testing.assert_close(average.module.weight, begin + 0.25)
    average.set_decay(0.5)
    average.update(model, torch.tensor(1.0))
    torch.testing.assert_close(average.module.weight, begin + 0.625)


# -- optimiser --------------------------------------------------------------------------------------------------------

def test_lamb_with_the_clipping_of_a2_is_timms_with_its_defaults():
    def problem():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 4)).double()
        return net, parameter_groups(net, 0.02)
    (ours, groups), (theirs, other) = problem(), problem()
    optimizer, timms = build_optimizer('lamb', groups), timm.optim.Lamb(other, lr=5e-3)
    images, targets = torch.randn(16, 5).double(), torch.rand(16, 4).double()
    set_schedule(optimizer, 5e-3, 0.02)
    for _ in range(5):
        for net, each in ((ours, optimizer), (theirs, timms)):
            each.zero_grad()
            (10 * bce_sum(net(images), targets)).backward()  # so that it is clipped
        assert torch.nn.utils.clip_grad_norm_(ours.parameters(), settled('rsb_a2', 'resnet50').clipping) > 1
        optimizer.step()
        timms.step()
    for one, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# -- runs -------------------------------------------------------------------------------------------------------------

def like_a3(small, folder, **changes):
    """Options of a tiny run with all that the recipes A2 and A3 have."""
    recipe = {name: value for name, value in NAMED['rsb_a3'].items() if name not in ('batch_size', 'epochs', 'base_lr')}
    return small(**{**recipe, 'recipe': 'rsb_a3', 'run_dir': str(folder), 'input_size': 32, 'test_size': 40, 'repeats': 3,
                    'warmup_epochs': 0.5, 'ema': 0.9, 'ema_warmup': 1.0, **changes})


def test_a_killed_run_goes_on_to_the_same_end_to_the_last_bit(small, tmp_path, monkeypatch, capsys):
    whole = fine_tune(like_a3(small, tmp_path / 'whole'))
    out = capsys.readouterr().out
    for text in ('rsb_a3, under what was given', '32x32 px for training, 40x40 px for validation', 'a cosine between epochs to',
                 'bce_sum, label smoothing 0', 'augmentation rand-m6-n2-mstd0.5-inc1', 'decay 0.9, reached in 1 epoch\n'):
        assert text in out, text
    options = like_a3(small, tmp_path / 'cut', save_every_steps=3)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stop):
            fine_tune(options)
    fine_tune(options)
    graphed = fine_tune(like_a3(small, tmp_path / 'graphed', graph=True))
    one, *others = (saved(folder) for folder in (whole, tmp_path / 'cut', graphed))
    for other in others:
        for key in ('step', 'sums', 'model', 'ema', 'optimizer', 'best', 'classes'):
            assert same(one[key], other[key]), key
    found = fine_tune(small(eval=str(tmp_path / 'whole/your_convnet_1kfinetuned_last.pth'), input_size=224))
    last = [json.loads(line) for line in (whole / 'finetune_log.txt').read_text().splitlines()][-1]
    assert found['model']['top1'] == pytest.approx(last['top1'])
    assert 'test_size was' not in capsys.readouterr().out


def test_a_probe_is_trained_and_read_back(small, capsys):
    recipe = {name: value for name, value in NAMED['linear_probe'].items() if name not in ('batch_size', 'epochs', 'base_lr')}
    folder = fine_tune(small(**{**recipe, 'recipe': 'linear_probe', 'lr_steps': (1.0,), 'lr': 1.0, 'warmup_epochs': 0.0}))
    assert 'a tenth after each of the epochs 1;' in capsys.readouterr().out
    found = fine_tune(small(eval=str(folder / 'your_convnet_1kfinetuned_last.pth'), ema=0.0))
    assert np.isfinite(found['model']['top1']) and sorted(saved(folder)['model'])[-2:] == ['fc.bias', 'fc.weight']


def test_a_recipe_for_another_kind_of_network_is_warned_of(small, tmp_path, capsys):
    for number, (recipe, model, words) in enumerate((
            ('rsb_a2', 'test_vit', 'test_vit is a vision transformer: --recipe=a2mim_vit is for such'),
            ('a2mim_convnext', 'your_convnet', 'your_convnet has BatchNorm: --recipe=rsb_a2'))):
        fine_tune(small(recipe=recipe, model=model, input_size=64, epochs=1, warmup_epochs=0.0, lr=1e-3, ema=0.0,
                        base_lr=1e-4, augment='none', run_dir=str(tmp_path / str(number))))
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(('model', 'depth'), [('test_vit', 6), ('beit_base_patch16_224', 12)])
def test_the_layers_of_transformers(model, depth):
    network = timm.create_model(model)
    groups = layer_groups(network, 0.05, 0.65)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    last = depth + 1
    for group in groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            block = re.match(r'blocks\.(\d+)\.', name)
            embedded = name.split('.')[0] in ('cls_token', 'pos_embed', 'patch_embed')
            power = last - 1 - int(block[1]) if block else last if embedded else 0
            assert group['lr_scale'] == pytest.approx(0.65 ** power), name
            free = parameter.ndim == 1 or name in ('cls_token', 'pos_embed') or 'relative_position_bias_table' in name
            assert group['decays'] != free, name
