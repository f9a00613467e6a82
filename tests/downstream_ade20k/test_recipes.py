"""The recipes by numbers: what was published, and what the rule chooses for other images and devices."""
import re
import subprocess
import sys

import pytest
import torch

import tests.small_convvit  # noqa: F401  (tiny_convvit)
from common.distributed import Ranks
from common.training.schedule import Polynomial
from downstream_ade20k.config import Options, check_options
from downstream_ade20k.published import CHOSEN, RECIPES, WARMUP_START, nearest_divisor, recipe, recipe_of, size_of_crops
from downstream_ade20k.recipe import Recipe
from downstream_ade20k.run import Run
from tests.conftest import ROOT

LENGTH = {'batch_size': 16, 'iterations': 160_000, 'val_every': 16_000}
CONVNEXT = {**LENGTH, 'warmup_iterations': 1500, 'opt': 'adamw', 'peak_lr': 1e-4, 'weight_decay': 0.05, 'power': 1,
            'end_lr': 0, 'layer_decay': 0.9, 'layer_decay_by': 'stages', 'drop_path': 0.4, 'head_channels': 512,
            'map_norm': True, 'input_size': 512, 'slide': True}
RESNET = {**LENGTH, 'warmup_iterations': 0, 'opt': 'sgd', 'peak_lr': 0.01, 'weight_decay': 0.0005, 'power': 0.9,
          'end_lr': 0.0001, 'layer_decay': 1, 'layer_decay_by': 'layers', 'drop_path': None, 'head_channels': 512,
          'map_norm': False, 'input_size': 512, 'slide': False}
CONVMAE = {**CONVNEXT, 'layer_decay': 0.75, 'layer_decay_by': 'layers', 'drop_path': 0.2, 'head_channels': 768,
           'map_norm': False}


def chosen(model, images=20_210, device='cuda', ranks=1, **given):
    """(the options of a run, the sentence on them)."""
    options = Options(name='run', model=model, **{**recipe({'model': model, **given}), **given})
    return Recipe().settled(options, images, Ranks(0, ranks, torch.device(device)))


def settled(*args, **given):
    return chosen(*args, **given)[0]


def values(options, names):
    """{name: value} of some options; the peak rate, which is computed, without its rounding."""
    found = {name: getattr(options, name) for name in names}
    return {**found, 'peak_lr': round(options.peak_lr, 12)}


# -- what was published -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('model', 'expected'), [
    ('convnext_tiny', CONVNEXT),
    ('convnext_small.fb_in1k', {**CONVNEXT, 'drop_path': 0.3}),
    ('convnext_base', CONVNEXT),
    ('convnext_large', {**CONVNEXT, 'input_size': 640}),
    ('convnext_xlarge', {**CONVNEXT, 'input_size': 640, 'peak_lr': 8e-5}),
    ('resnet50', RESNET),
    ('resnet101', RESNET),
    ('convvit_base', CONVMAE),
    ('convvit_small', CONVMAE)])
def test_a_network_of_a_paper_has_its_published_recipe(model, expected):
    options, words = chosen(model)
    assert values(options, expected) == expected
    assert options.recipe == 'paper' and words == 'paper: batches of 16, 160,000 iterations'


@pytest.mark.parametrize(('model', 'expected'), [
    ('resnet18', RESNET), ('test_resnet', RESNET), ('tiny_convvit', CONVMAE),
    ('test_convnext', {**CONVNEXT, 'drop_path': 0.1, 'slide': False}),
    ('efficientnet_b0', {**CONVNEXT, 'drop_path': 0.1, 'slide': False, 'map_norm': False, 'layer_decay_by': 'layers',
                         'layer_decay': 0.9575}),
    ('your_convnet', {**CONVNEXT, 'drop_path': None, 'slide': False, 'map_norm': False, 'layer_decay_by': 'layers'})])
def test_another_network_has_the_recipe_of_its_kind(model, expected):
    assert values(settled(model), expected) == expected


def test_the_stem_of_another_network_has_the_share_of_that_of_convnext_tiny():
    from common.training.layer_decay import layers_of
    from downstream_ade20k.published import network_to_look_at
    for model in ('efficientnet_b0', 'regnety_032'):
        _, last, _ = layers_of(network_to_look_at(model)[0])
        assert settled(model).layer_decay ** last == pytest.approx(0.9 ** 7, rel=2e-3)


def test_another_optimiser_brings_its_own_numbers():
    adamw = {**RESNET, 'opt': 'adamw', 'peak_lr': 1e-4, 'weight_decay': 0.05, 'power': 1, 'end_lr': 0,
             'warmup_iterations': 1500, 'layer_decay': 0.9}
    assert values(settled('resnet50', opt='adamw'), adamw) == adamw
    sgd = {**CONVNEXT, **{name: RESNET[name] for name in ('peak_lr', 'weight_decay', 'power', 'end_lr', 'layer_decay',
                                                          'layer_decay_by', 'warmup_iterations')}, 'opt': 'sgd'}
    assert values(settled('convnext_large', opt='sgd'), sgd) == {**sgd, 'input_size': 640}
    assert recipe_of('convvit_base', 'adamw') is RECIPES['convvit_base']


def test_what_is_given_stands_above_the_recipe():
    given = {'batch_size': 32, 'iterations': 80_000, 'warmup_iterations': 7, 'val_every': 8000, 'base_lr': 3e-4,
             'layer_decay': 0.8, 'drop_path': 0.0, 'head_channels': 256, 'slide': False, 'input_size': 256}
    options = settled('convnext_tiny', **given)
    assert {name: getattr(options, name) for name in given} == given and options.peak_lr == pytest.approx(6e-4)
    assert settled('convnext_tiny', lr=5e-5).peak_lr == 5e-5
    assert settled('convnext_tiny', recipe='paper', device='cpu', images=10).iterations == 160_000
    assert settled('convnext_tiny', iterations=8000).warmup_iterations == 800  # a tenth
    assert recipe({'model': 'convvit_base', 'head': 'fpn'}) == {**recipe({'model': 'convvit_base'}), 'head_channels': 128}
    assert recipe({'model': 'convnext_tiny', 'eval': 'FILE'}) == {}
    with pytest.raises(ValueError, match='no network is called "convnext_tinny"'):
        recipe({'model': 'convnext_tinny'})


def test_the_learning_rate_of_a_recipe_at_some_iterations():
    """By hand: 1e-4 * (1 - s / 160,000), in the warm-up times s / 1,500; and 1e-4 + 0.0099 * (1 - s / 160,000) ** 0.9."""
    at = {'convnext_base': {0: 1e-10, 300: 0.2 * 9.98125e-5, 16_000: 9e-5, 120_000: 2.5e-5},
          'resnet50': {0: 0.01, 80_000: 1e-4 + 0.0099 * 2 ** -0.9, 155_000: 1e-4 + 0.0099 * 2 ** -4.5}}  # 1/2, 1/32 left
    for model, rates in at.items():
        options = settled(model)
        curve = Polynomial(options.power, options.end_lr, WARMUP_START)
        for step, rate in rates.items():
            share, floor = curve.parts(step, options.iterations, options.warmup_iterations)
            assert floor + share * options.peak_lr == pytest.approx(rate, rel=1e-5), (model, step)


@pytest.mark.parametrize(('given', 'expected'), [
    ({'model': 'convnext_large'}, {'input_size': 640}), ({'model': 'convnext_tiny.fb_in1k'}, {'input_size': 512}),
    ({}, {'input_size': 512}), ({'model': 'efficientnet_b0'}, {}), ({'model': 'convnext_large', 'eval': 'FILE'}, {})])
def test_the_size_of_crops_is_known_before_the_network_is_made(given, expected):
    assert size_of_crops(given) == expected


def test_sizes_are_checked_against_the_crops_of_the_recipe(capsys):
    line = ['--name=n', '--data_path=DIR', '--model=convnext_large']
    assert check_options([*line, '--slide_stride=600']).slide_stride == 600
    with pytest.raises(SystemExit):
        check_options([*line, '--slide_stride=650'])
    assert 'the smaller side of input_size, 640' in capsys.readouterr().err


def test_published_recipes_are_read_without_torch():
    program = ('import sys; from downstream_ade20k.published import recipe; '
               'assert recipe({"model": "convnext_tiny.fb_in1k", "register": "downstream_ade20k.published"}); '
               'assert "torch" not in sys.modules')
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)


# -- the rule ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('images', 'device', 'ranks', 'expected'), [
    (4000, 'cuda', 1, ('paper', 16, 160_000, 16_000, 1500, 1e-4)),
    (3999, 'cuda', 1, ('auto', 16, 20_000, 2000, 1500, 1e-4)),
    (1000, 'cuda', 1, ('auto', 16, 12_600, 1260, 1260, 1e-4)),  # 63 iterations a pass, 200 passes
    (255, 'cuda', 1, ('auto', 8, 6400, 640, 640, 7.1e-5)),
    (20, 'cuda', 1, ('auto', 4, 1000, 100, 100, 5e-5)),
    (20, 'cuda', 4, ('auto', 8, 600, 60, 60, 7.1e-5)),  # two images a rank
    (701, 'cpu', 1, ('auto', 4, 2000, 200, 200, 5e-5)),
    (20_210, 'cpu', 1, ('auto', 4, 2000, 200, 200, 5e-5)),
    (9, 'cpu', 1, ('auto', 4, 600, 60, 60, 5e-5)),
    (1, 'cpu', 1, ('auto', 4, 200, 20, 20, 5e-5))])
def test_the_rule_for_a_convnext(images, device, ranks, expected):
    options = settled('convnext_tiny', images, device, ranks)
    names = ('recipe', 'batch_size', 'iterations', 'val_every', 'warmup_iterations', 'peak_lr')
    assert tuple(getattr(options, name) for name in names) == expected


def test_the_rule_for_a_resnet_has_a_warmup_and_says_what_it_chose():
    options, words = chosen('resnet50', 255)
    assert (options.opt, options.peak_lr, options.warmup_iterations, options.end_lr) == ('sgd', 0.0071, 640, 1e-4)
    assert words == ("auto, for 255 images on GPUs: batches of 8, 6,400 iterations, a peak learning rate of 0.0071 (the "
                     "paper's is for 4,000 or more images on GPUs)")


@pytest.mark.parametrize('ranks', [1, 2, 4])
@pytest.mark.parametrize('images', [1, 3, 10, 300])
@pytest.mark.parametrize('model', ['resnet50', 'convnext_tiny'])
def test_nothing_that_the_rule_chose_is_warned_of(model, images, ranks):
    run = Run(settled(model, images, 'cpu', ranks), Ranks(0, ranks, torch.device('cpu')), images)
    assert not list(run.warnings(saved=None, accum=1))


def test_a_batch_that_was_given_is_warned_of_where_images_are_fewer():
    run = Run(settled('resnet50', 6, 'cpu', batch_size=8), Ranks(0, 1, torch.device('cpu')), 6)
    warning, = run.warnings(saved=None, accum=1)
    assert warning == '6 images are fewer than one batch of 8, which therefore repeats them. Give --bs=4'


@pytest.mark.parametrize(('given', 'iterations', 'val_every', 'warmup'), [
    ({'iterations': 500}, 500, 50, 50), ({'iterations': 505}, 505, 101, 50), ({'iterations': 7}, 7, 1, 0),
    ({'iterations': 23}, 23, 1, 2),  # a prime number, of which 1 is nearer to a tenth than 23
    ({'iterations': 1237, 'val_every': 1237}, 1237, 1237, 123),
    ({'val_every': 300}, 2100, 300, 210), ({'val_every': 5000}, 5000, 5000, 500),
    ({'iterations': 90, 'val_every': 45}, 90, 45, 9)])
def test_evaluations_divide_the_iterations_whichever_of_them_is_given(given, iterations, val_every, warmup):
    options = settled('convnext_tiny', 701, 'cpu', **given)
    assert (options.iterations, options.val_every, options.warmup_iterations) == (iterations, val_every, warmup)
    assert iterations % val_every == 0


@pytest.mark.parametrize(('iterations', 'round_number'), [(1237, 1240), (1234, 1230), (37, 40)])
def test_iterations_without_a_divisor_near_a_tenth_are_refused(iterations, round_number):
    with pytest.raises(ValueError, match=f'of {iterations} no divisor is near a tenth: give --iterations={round_number},'):
        settled('convnext_tiny', 701, 'cpu', iterations=iterations)
    assert settled('convnext_tiny', 701, 'cpu', iterations=round_number).val_every == round_number // 10


def test_the_nearest_divisor_is_nearest_by_ratio():
    assert [nearest_divisor(*pair) for pair in ((100, 10), (100, 11), (100, 45), (1234, 123), (13, 1.3), (1, 0.1))] == \
        [10, 10, 50, 617, 1, 1]


def test_a_run_goes_on_with_what_it_began_with_on_any_device():
    began = settled('convnext_tiny', 255)
    options = Options(name='run', model='convnext_tiny', **recipe({'model': 'convnext_tiny'}))
    goes_on, words = Recipe().settled(options, 9000, Ranks(0, 1, torch.device('cpu')), began.as_dict())
    assert {name: getattr(goes_on, name) for name in CHOSEN} == {name: getattr(began, name) for name in CHOSEN}
    assert words == 'auto, as the run began'


def test_a_run_that_goes_on_is_given_a_multiple_of_its_iterations_between_evaluations():
    began = settled('convnext_tiny', 255, iterations=90, val_every=10).as_dict()
    given = {'name': 'run', 'model': 'convnext_tiny', **recipe({'model': 'convnext_tiny'})}
    with pytest.raises(ValueError, match='after each 10 iterations, which do not divide 145: give --iterations=150$'):
        Recipe().settled(Options(**given, iterations=145), 255, Ranks(0, 1, torch.device('cpu')), began)
    goes_on, _ = Recipe().settled(Options(**given, iterations=150), 255, Ranks(0, 1, torch.device('cpu')), began)
    assert (goes_on.iterations, goes_on.val_every) == (150, 10)


def test_the_end_of_the_learning_rate_is_below_its_peak():
    """The SGD recipe ends at 1e-4."""
    for given in ({'lr': 1e-4}, {'base_lr': 1e-4}):
        with pytest.raises(ValueError, match='end_lr 0.0001, which is not below its peak of 0.0001: give a smaller --end_lr'):
            settled('resnet50', **given)
        assert settled('resnet50', end_lr=5e-5, **given).peak_lr == 1e-4
    assert settled('resnet50', batch_size=32, base_lr=1e-4).peak_lr == 2e-4


# -- the page ---------------------------------------------------------------------------------------------------------

def table_of_the_page():
    """{cell at the head of a column: {name of a row: text}} of the table of recipes in ADE20K.md."""
    page = (ROOT / 'downstream_ade20k/ADE20K.md').read_text(encoding='utf-8')
    table = re.search(r'<!-- recipes -->\n(.*?)<!-- end -->', page, re.DOTALL)[1]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
    return {name: {row[0]: row[column] for row in rows[2:]} for column, name in enumerate(rows[0][1:], 1)}


def number(text):
    """The first number in a text; 0 if it says none."""
    return 0 if text == 'none' else float(re.search(r'[\d.]+(e-\d)?', text.replace(',', ''))[0])


@pytest.mark.parametrize(('column', 'model'), [
    ('`convnext_tiny`, `_small`, `_base`', 'convnext_tiny'), ('`convnext_large`, `_xlarge`', 'convnext_large'),
    ('`resnet50`, `resnet101`', 'resnet50'), ('`convvit_base`', 'convvit_base')])
def test_the_table_of_the_page_is_what_the_code_does(column, model):
    told, options = table_of_the_page()[column], settled(model)
    values = {'crops': options.input_size, 'batch': options.batch_size, 'iterations': options.iterations,
              'peak learning rate': options.peak_lr, 'warm-up': options.warmup_iterations,
              'weight decay': options.weight_decay, 'drop path': options.drop_path or 0,
              'channels of UPerNet': options.head_channels}
    assert {row: number(told[row]) for row in values} == {row: pytest.approx(value) for row, value in values.items()}
    falls = 'linearly to 0' if options.power == 1 else f'with power {options.power:g} to {options.end_lr:g}'
    assert told['the rate falls'] == falls.replace('0.0001', '1e-4')
    by_layers = f'{options.layer_decay:g} by {options.layer_decay_by}'
    assert told['layer decay'] == ('none' if options.layer_decay == 1 else by_layers)
    side, stride = options.input_size, options.input_size * 2 // 3
    assert told['evaluation'] == (f'window of {side} px, stride {stride}' if options.slide else 'whole image')
    assert told['LayerNorm on the maps'] == ('yes' if options.map_norm else 'no')
    assert told['optimiser'].lower().startswith(options.opt)


def test_the_page_tells_what_is_other_of_single_networks():
    small, large, *_ = table_of_the_page().values()
    assert f'(small: {settled("convnext_small").drop_path:g})' in small['drop path']
    assert number(large['peak learning rate'].partition('xlarge')[2]) == settled('convnext_xlarge').peak_lr
