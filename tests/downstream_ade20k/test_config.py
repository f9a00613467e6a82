"""The options of a segmentation run: what fits together, and what is said where something does not."""
from argparse import SUPPRESS

import pytest

from common.cli import parser_of
from downstream_ade20k.config import Options, parse_options
from downstream_ade20k.published import recipe


def an_error(**given):
    with pytest.raises(ValueError) as error:
        Options(name='run', **given)
    return str(error.value)


@pytest.mark.parametrize('given, message', [
    ({'iterations': 0}, 'iterations must be 1 or more, not 0'),
    ({'iterations': 10, 'val_every': 3},
     'must divide iterations 10: give --iterations=12; or, if the run is a new one, --val_every=2'),
    ({'iterations': 10, 'warmup_iterations': 10}, 'warmup_iterations 10 must be less than iterations 10'),
    ({'warmup_iterations': -1}, 'warmup_iterations must be 0 or more, not -1'),
    ({'scales': (2.0, 0.5)}, r'scales is from,to with 0 < from <= to'),
    ({'test_scales': (0.5, 0.0)}, 'test_scales are numbers above 0'),
    ({'most_of_one': 0.0}, 'most_of_one must be more than 0 and at most 1'),
    ({'head_dropout': 1.0}, 'head_dropout must be 0 or more and less than 1'),
    ({'lr': 1e-5, 'end_lr': 1e-4}, 'falls to end_lr 0.0001, which is not below its peak of 1e-05: give a smaller --end_lr'),
    ({'base_lr': 1e-4, 'batch_size': 8, 'end_lr': 1e-4}, 'not below its peak of 5e-05'),
    ({'power': 0.0}, 'power must be more than 0'),
    ({'ignore': (-1,)}, 'ignore are values of masks, 0 or more'),
    ({'short_side': 512, 'long_side': 500}, 'long_side 500 must be short_side 512 or more'),
    ({'keep_size': True, 'short_side': 512}, 'leave --short_side and --long_side out'),
    ({'input_size': (256, 512), 'slide_stride': 300}, 'slide_stride 300 must be at most the smaller side of input_size, 256'),
    ({'freeze': True, 'frozen_bn': True}, '--freeze keeps the BatchNorms too'),
    ({'fresh': True, 'resume': 'x.pth'}, '--fresh starts over and --resume goes on'),
    ({'dataset': 'hfds/x'}, 'masks come from files')])
def test_what_does_not_fit_is_said_with_the_remedy(given, message):
    assert message in an_error(**given)


def test_sizes_follow_from_the_crop():
    options = Options(name='run', input_size=(256, 512))
    assert (options.resized_short_side, options.resized_long_side) == (256, 1024)
    options = Options(name='run', short_side=300)
    assert (options.resized_short_side, options.resized_long_side) == (300, 1200)


def test_the_peak_rate_grows_with_the_batch_or_is_given():
    assert Options(name='run', base_lr=1e-4, batch_size=32).peak_lr == pytest.approx(2e-4)
    assert Options(name='run', base_lr=1e-4, batch_size=32, lr=3e-4).peak_lr == 3e-4


def test_the_command_line_stands_above_the_recipe_of_the_network():
    options = parse_options(['--name=run', '--model=convnext_small', '--drop_path=0.1', '--no_slide', '--ignore=0,255'])
    assert (options.drop_path, options.slide, options.ignore) == (0.1, False, (0, 255))
    assert (options.layer_decay, options.layer_decay_by) == (0.9, 'stages')


def test_a_run_needs_a_name_and_an_evaluation_does_not(capsys):
    assert parse_options(['--eval=FILE']).eval == 'FILE'
    with pytest.raises(SystemExit):
        parse_options([])
    assert 'give the experiment a name' in capsys.readouterr().err


def test_folders_are_named_before_anything_is_loaded(tmp_path):
    for name in ('images/train', 'annotations/train', 'images/val'):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match='annotations/val'):
        Options(name='run', data_path=str(tmp_path)).require_paths()
    (tmp_path / 'annotations/val').mkdir()
    Options(name='run', data_path=str(tmp_path)).require_paths()
    with pytest.raises(ValueError, match='gone.txt'):
        Options(name='run', data_path=str(tmp_path), classes='gone.txt').require_paths()


def test_a_number_of_iterations_that_cannot_be_divided_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('images/train', 'annotations/train', 'images/val', 'annotations/val'):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match='--iterations=1240'):
        Options(name='run', data_path='.', iterations=1237).require_paths()
    (tmp_path / 'output_run').mkdir()  # A run that goes on has its val_every.
    Options(name='run', data_path='.', iterations=1237).require_paths()


def test_help_tells_no_default_of_what_the_recipe_of_a_network_sets():
    helps = {action.dest: action.help for action in parser_of(Options, 'main', 'What it does.')._actions
             if action.help != SUPPRESS}
    chosen = {name for model in ('resnet50', 'convnext_tiny') for name in recipe({'model': model})}
    assert len(chosen) > 8
    for name in chosen:
        assert 'recipe' in helps[name] and '(default' not in helps[name], name
    assert '(default: 0.1)' in helps['head_dropout']


def test_help_has_no_epochs():
    texts = [action.help for action in parser_of(Options, 'main', 'What it does.')._actions]
    assert any('iterations' in text for text in texts) and not any('epoch' in text for text in texts)
