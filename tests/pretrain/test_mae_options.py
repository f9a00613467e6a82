"""The options of MAE and ConvMAE: their authors' recipe, masks of an image, what is refused, and what --help says."""
import subprocess
import sys

import pytest

from pretrain.convmae_options import ConvMAEOptions
from pretrain.mae_options import MAEOptions
from pretrain.options import parse_options, recommended
from tests.conftest import ROOT

MODELS = {'mae': 'vit_base_patch16_224', 'convmae': 'convvit_base'}
methods = pytest.mark.parametrize('method', MODELS)


def parse(line='', method='convmae'):
    return parse_options(['--name=n', f'--method={method}', *line.split()])


@methods
def test_the_authors_recipe(method):
    options = parse(method=method)
    assert (options.model, options.target) == (MODELS[method], 'normalised')
    assert (options.mask_ratio, options.masks_per_image) == (0.75, 1)
    assert (options.crop_scale, options.interpolation, options.flip, options.drop_path) == ((0.2, 1.0), 'bicubic', True, None)
    assert (options.opt, options.beta2, options.weight_decay, options.last_weight_decay) == ('adamw', 0.95, 0.05, 0.05)
    assert options.clip_grad == float('inf') and options.recompute == 'none'
    assert options == recommended(name='n', method=method)


@methods
def test_the_arguments_of_the_network(method):
    line = '--model=m --input_size=64,96 --mask=0.5 --dp=0.1 --in_chans=1 --decoder_width=48 --decoder_depth=2 ' \
           '--decoder_heads=6 --masks_per_image=2 --target=pixels'
    assert parse(line, method).network == {
        'model': 'm', 'input_size': (64, 96), 'mask_ratio': 0.5, 'drop_path': 0.1, 'in_chans': 1, 'decoder_width': 48,
        'decoder_depth': 2, 'decoder_heads': 6, 'masks_per_image': 2, 'norm_pix': False}
    assert parse(method=method).network['norm_pix']


def test_the_masks_of_an_image_say_how_much_they_hide():
    for masks in range(1, 200):
        options = parse(f'--masks_per_image={masks}')
        assert 1 - options.mask_ratio == pytest.approx(1 / masks if masks > 1 else 0.25, abs=1e-6)
        assert recommended(name='n', method='mae', masks_per_image=masks).mask_ratio == options.mask_ratio


def test_a_mask_ratio_that_is_given_must_fit_the_masks(capsys):
    assert parse('--masks_per_image=4 --mask=0.75') == parse('--masks_per_image=4')
    assert parse('--masks_per_image=3 --mask_ratio=0.6666666666666667').masks_per_image == 3
    for line, remedy in (('--masks_per_image=4 --mask=0.6', '0.75'), ('--masks_per_image=3 --mask=0.67', '0.666667')):
        with pytest.raises(SystemExit):
            parse(line)
        assert f'give --mask_ratio={remedy}, or another --masks_per_image' in capsys.readouterr().err
        parse(f'{line} --mask={remedy}')  # the remedy is one


def test_warm_up():
    assert [parse(f'--ep={epochs}').warmup for epochs in (1600, 400, 200)] == [40, 40, 20]
    assert [parse(f'--masks_per_image=4 --ep={epochs}').warmup for epochs in (400, 50, 20)] == [10, 10, 4]
    assert parse('--masks_per_image=2 --ep=100').warmup == 20 and parse('--masks_per_image=4 --ep=50 --wp_ep=3').warmup == 3


@pytest.mark.parametrize(('line', 'word'), [
    ('--mask=1', 'mask_ratio must lie between 0 and 1'), ('--masks_per_image=0', 'masks_per_image must be 1 or more'),
    ('--decoder_width=514', 'decoder_width must be a multiple of 4'),
    ('--decoder_heads=7', 'decoder_width 512 must be a multiple of decoder_heads 7'),
    ('--decoder_depth=0', 'decoder_depth must be 1 or more'), ('--decoder_heads=0', 'decoder_heads must be 1 or more'),
    ('--decoder_width=0', 'decoder_width must be 1 or more'), ('--ada=1', 'beta2'), ('--recompute=encoder', 'invalid choice'),
    ('--target=normalized', 'invalid choice'), ('--wd=-1', 'weight_decay must be 0 or more'), ('--dp=1', 'drop_path'),
    ('--levels=a', '--levels is an option of --method=spark, and this is --method=convmae'),
    ('--fourier_group=8', '--fourier_group is an option of --method=a2mim, and this is --method=convmae'),
    ('--cell_size=32', '--cell_size is an option of --method=spark and --method=a2mim, and this is --method=convmae')])
def test_mistakes_end_with_one_sentence_and_code_2(line, word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and word in message and message.count('\n') == 1


def test_their_own_options_are_refused_by_the_others(capsys):
    for method in ('spark', 'a2mim'):
        with pytest.raises(SystemExit):
            parse('--masks_per_image=4', method)
        assert f'is an option of --method=mae and --method=convmae, and this is --method={method}' in capsys.readouterr().err


def test_the_options_are_of_one_method_alone():
    with pytest.raises(ValueError, match='options of convmae, not of mae'):
        ConvMAEOptions(name='n', method='mae')
    with pytest.raises(ValueError, match='options of mae, not of convmae'):
        MAEOptions(name='n', method='convmae')


@methods
def test_help_has_the_defaults_of_the_method(method, capsys):
    with pytest.raises(SystemExit):
        parse('--help', method)
    text = ' '.join(capsys.readouterr().out.split())
    for said in ('share of hidden cells; 1 - 1/n if not given with --masks_per_image=n (default: 0.75)', '(default: 0.2,1.0)',
                 'resized (default: bicubic)', 'optimiser (default: adamw)', 'at the start (default: 0.05)',
                 'with n masks an image 40/n', '{normalised,pixels}', 'blocks of the decoder (default: 8)',
                 f'main.sh my_run --data_path=DIR --model={MODELS[method]} --method={method}', f'(default: {MODELS[method]})'):
        assert said in text, said
    assert 'cell_size' not in text and 'resnet' not in text


def test_every_method_is_named_in_help(capsys):
    with pytest.raises(SystemExit):
        parse_options(['--help'])
    assert 'how the network is pretrained: spark, a2mim, mae or convmae' in ' '.join(capsys.readouterr().out.split())


@methods
def test_options_are_checked_without_torch(method):
    code = ("import sys; from pretrain.options import parse_options; parse_options(['--name=n', "
            f"'--method={method}', '--masks_per_image=4']); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
