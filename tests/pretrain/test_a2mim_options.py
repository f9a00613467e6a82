"""The options of A2MIM: the recipes of its authors by model, SimMIM's, what is refused, and what --help says."""
import subprocess
import sys

import pytest

from pretrain.a2mim_options import A2MIMOptions, family
from pretrain.methods import parse_options, recommended
from tests.conftest import ROOT

# The table of runs of the paper's code: error of a pixel, weight of the loss on spectra, its form, share of visible pixels.
RUNS = {
    'resnet50': ('focal_l1', 0.5, 'focal', 1e-3),
    'resnet101': ('focal_l1', 0.1, 'spectral', 1e-3),
    'resnet152': ('focal_l1', 0.5, 'none', 1e-3),
    'resnet200': ('focal_l1', 0.5, 'none', 1e-3),
    'convnext_tiny': ('focal_l1', 0.5, 'none', 1e-3),
    'convnext_small.fb_in1k': ('focal_l1', 0.5, 'none', 1e-3),
    'convnext_base': ('focal_l1', 0.5, 'none', 1e-3),
    'vit_small_patch16_224': ('l1', 0.1, 'focal', 0.0),
    'beit_abs_base_patch16_224': ('l1', 0.1, 'focal', 0.0),
    'deit_small_patch16_224': ('l1', 0.1, 'focal', 0.0),
    'regnety_040': ('focal_l1', 0.5, 'focal', 1e-3),
    'your_convnet': ('focal_l1', 0.5, 'focal', 1e-3),
}


def parse(line=''):
    return parse_options(['--name=n', '--method=a2mim', *line.split()])


@pytest.mark.parametrize('model', RUNS)
def test_the_losses_of_the_published_runs(model):
    options = parse(f'--model={model}')
    assert (options.spatial_loss, options.fourier_weight, options.fourier, options.fourier_visible) == RUNS[model]
    assert (options.mask_ratio, options.image_fill, options.fourier_fill, options.fourier_group) == (0.6, 'mean', 'mixed', None)
    assert options == recommended(name='n', method='a2mim', model=model)


@pytest.mark.parametrize(('model', 'expected'), [
    ('resnet50', ('gain', (0.8, 1.0), float('inf'), 0.1, 'cosine')),
    ('convnext_tiny', ('gain', (0.8, 1.0), float('inf'), 0.1, 'cosine')),
    ('vit_base_patch16_224', ('residual', (0.67, 1.0), 5.0, 1.0, 'drop')),
    ('deit_small_patch16_224', ('residual', (0.67, 1.0), 5.0, 1.0, 'cosine'))])
def test_what_differs_between_cnns_and_vits(model, expected):
    options = parse(f'--model={model}')
    assert (options.token, options.crop_scale, options.clip_grad, options.token_lr_scale, options.lr_schedule) == expected
    assert (options.interpolation, options.opt, options.beta2, options.drop_path) == ('bilinear', 'adamw', 0.999, None)
    assert (options.weight_decay, options.last_weight_decay) == (0.05, 0.05)
    assert [parse(f'--model={model} --ep={epochs}').warmup for epochs in (800, 100, 20)] == [10, 10, 2]


def test_what_is_given_stands_above_the_recipe():
    options = parse('--model=vit_base_patch16_224 --token=gain --crop_scale=0.5,1 --clip=2 --fourier_weight=0.2 --wd=0.1')
    assert (options.token, options.crop_scale, options.clip_grad, options.fourier_weight) == ('gain', (0.5, 1), 2, 0.2)
    assert options.last_weight_decay == 0.1 and parse('--wde=0.2').last_weight_decay == 0.2
    assert parse('--model=resnet152 --fourier=focal').fourier == 'focal'


@pytest.mark.parametrize(('model', 'token_at'), [
    ('resnet50', 'maxpool'), ('resnext50_32x4d', 'maxpool'), ('wide_resnet50_2', 'maxpool'), ('convnext_tiny', 'stem'),
    ('vit_base_patch16_224', 'patch_embed'), ('beit_abs_small_patch16_224', 'patch_embed'),
    ('deit_tiny_patch16_224', 'patch_embed')])
def test_simmim(model, token_at):
    options = parse(f'--model={model} --recipe=simmim')
    assert (options.token, options.image_fill, options.spatial_loss, options.fourier, options.token_at) == (
        'replace', 'none', 'l1', 'none', token_at)
    plain = parse(f'--model={model}')
    for name in ('crop_scale', 'clip_grad', 'lr_schedule', 'token_lr_scale'):
        assert getattr(options, name) == getattr(plain, name)
    assert options.batch_size is options.epochs is options.lr is options.base_lr is None
    given = parse(f'--model={model} --recipe=simmim --token_at=there --spatial_loss=mse')
    assert (given.token_at, given.spatial_loss, given.token) == ('there', 'mse', 'replace')


def test_simmim_asks_for_the_first_layers_of_other_networks(capsys):
    with pytest.raises(SystemExit) as end:
        parse('--model=regnety_040 --recipe=simmim')
    assert end.value.code == 2 and 'give the name of a submodule as --token_at' in capsys.readouterr().err
    assert parse('--model=regnety_040 --recipe=simmim --token_at=stem').token == 'replace'
    with pytest.raises(SystemExit):  # SparK has no such recipe
        parse_options(['--name=n', '--recipe=simmim'])


def test_families():
    assert [family(model) for model in ('resnetv2_50', 'mobilevit_s', 'efficientvit_b0', 'resnet18.tv_in1k', 'deit3_base',
                                        'convnextv2_nano', 'vitamin_small_224')] == [
        None, None, None, 'resnet', 'deit', 'convnext', None]


@pytest.mark.parametrize(('line', 'word'), [
    ('--mask=1', 'mask_ratio must lie between 0 and 1'), ('--cell_size=0', 'cell_size must be more than 0'),
    ('--token=add', 'invalid choice'), ('--fourier_weight=0', '--fourier=none leaves the loss on spectra out'),
    ('--fourier_weight=nan', 'fourier_weight must be more than 0'), ('--fourier_visible=2', 'fourier_visible must lie'),
    ('--fourier_group=0', 'fourier_group must be 1 or more'), ('--ada=1', 'beta2'), ('--token_lr_scale=0', 'token_lr_scale'),
    ('--fourier_group=64 --model=resnet152', 'is for --fourier=focal, and it is none here'), ('--wd=-1', 'weight_decay'),
    ('--fourier_group=64 --bs=96', 'Give --fourier_group=48 or --fourier_group=96 or --bs=64 or --bs=128'),
    ('--fourier_group=64 --bs=128 --accum=4', '--accum=2'),
    ('--levels=a', '--levels is an option of --method=spark, and this is --method=a2mim')])
def test_mistakes_end_with_one_sentence_and_code_2(line, word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and word in message and message.count('\n') == 1


def test_groups_that_fit_are_taken():
    assert parse('--fourier_group=64 --bs=128 --accum=2').fourier_group == 64
    assert parse('--fourier_group=64').batch_size is None  # chosen later, and checked then


def test_the_options_are_of_a2mim_alone():
    with pytest.raises(ValueError, match='options of a2mim, not of spark'):
        A2MIMOptions(name='n', method='spark')


def test_help_has_the_defaults_of_the_method(capsys):
    with pytest.raises(SystemExit):
        parse('--help')
    text = ' '.join(capsys.readouterr().out.split())
    for said in ('{paper,auto,simmim}', 'for ViTs if not given (default: 0.8,1.0)', 'resized (default: bilinear)',
                 'optimiser (default: adamw)', 'at the start (default: 0.05)', '5 for ViTs if not given (default: inf)',
                 '10 if not given, or a tenth of the epochs', 'main.sh my_run --data_path=DIR --model=resnet50 --method=a2mim'):
        assert said in text, said
    with pytest.raises(SystemExit):
        parse_options(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for said in ('{paper,auto}', 'from,to (default: 0.67,1.0)', 'resized (default: bicubic)', 'optimiser (default: lamb)'):
        assert said in text, said


def test_options_are_checked_without_torch():
    code = ("import sys; from pretrain.options import parse_options; parse_options(['--name=n', '--method=a2mim', "
            "'--fourier_group=8', '--bs=16']); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
