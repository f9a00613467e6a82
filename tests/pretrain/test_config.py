"""The command line: official spellings, precedence, errors."""
import dataclasses
import io
import itertools
import os
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import changes, errors_in_one_sentence, parser_of, reader_may_leave
from common.words import counted
from pretrain.methods import parse_options, recommended
from pretrain.options import MOST_USED, OPTIONS, examples_of
from pretrain.spark_options import SparKOptions as Options

ALIASES = {
    'mask': 'mask_ratio', 'bs': 'batch_size', 'ep': 'epochs', 'wp_ep': 'warmup_epochs', 'dp': 'drop_path', 'wd': 'weight_decay',
    'wde': 'weight_decay_end', 'clip': 'clip_grad', 'sbn': 'sync_bn', 'ada': 'beta2', 'resume_from': 'resume',
    'init_weight': 'init', 'exp_name': 'name', 'exp_dir': 'run_dir', 'opt': 'opt', 'dataloader_workers': 'workers',
    'tb_lg_dir': 'tensorboard_dir', 'base_lr': 'base_lr', 'input_size': 'input_size', 'model': 'model',
    'data_path': 'data_path',
}


def parse(line):
    return parse_options(['--name=n', *line.split()])


def test_an_official_command_line():
    options = parse('--data_path=D --model=convnext_large --input_size=384 --mask=0.75 --bs=2048 --base_lr=4e-4 --sbn=True '
                    '--dp=0.4 --ep=800 --wp_ep=40')
    assert (options.data_path, options.model, options.input_size, options.mask_ratio, options.batch_size, options.base_lr,
            options.sync_bn, options.drop_path, options.epochs, options.warmup) == (
        'D', 'convnext_large', 384, 0.75, 2048, 4e-4, True, 0.4, 800, 40)
    assert options.peak_lr == pytest.approx(4e-4 * 8)


@pytest.mark.parametrize('alias', ALIASES)
def test_every_official_spelling_means_our_option(alias):
    value = {'sbn': 'False', 'opt': 'adamw'}.get(alias, '0.5' if isinstance(
        getattr(Options(name='n'), ALIASES[alias]), float) else '7')
    value = '0.5' if alias in ('dp', 'ada', 'mask') else value
    assert parse(f'--{alias}={value}') == parse(f'--{ALIASES[alias]}={value}') != parse('')


def test_recipe_stands_between_default_and_command_line():
    assert parse('').drop_path == 0.05
    assert parse('--model=convnext_base').drop_path == parse('--model=convnext_base.fb_in1k').drop_path == 0.3
    assert recommended(model='convnext_base', name='n') == parse('--model=convnext_base')
    assert parse('--model=resnet18').drop_path is None
    assert parse('--model=convnext_base --dp 0').drop_path == 0


def test_booleans_sizes_and_lists():
    assert parse('--sbn=False').sync_bn is False and parse('--sbn').sync_bn is True and parse('--no_sync_bn').sync_bn is False
    assert parse('--no_flip').flip is False
    assert parse('--input_size=192,256').input_size == (192, 256)
    options = parse('--in_chans=2 --mean=0.5,0.4 --std=0.2,0.1 --crop_scale=0.2,1')
    assert options.normalisation == ((0.5, 0.4), (0.2, 0.1)) and options.crop_scale == (0.2, 1)
    assert parse('--in_chans=1').normalisation[0] == pytest.approx((0.449,))
    assert parse('--accum=auto').accum == 'auto' and parse('--accum=4').accum == 4
    assert parse('--clip=inf').clip_grad == float('inf')


def test_what_is_not_given_is_computed():
    assert [parse(f'--ep={epochs}').warmup for epochs in (1600, 100)] == [40, 10] and parse('--ep=100 --wp_ep=0').warmup == 0
    assert parse('--bs=4096 --base_lr=2e-4').peak_lr == pytest.approx(2e-4 * 16) and parse('--lr=3e-2 --bs=32').peak_lr == 3e-2
    assert parse('').folder == 'output_n' and parse('--exp_dir=D').folder == 'D'


@pytest.mark.parametrize(('line', 'word'), [
    ('--baselr=1', 'unknown flag --baselr: did you mean --base_lr'), ('--mask=1.5', 'mask_ratio must lie between 0 and 1'),
    ('--ngpu_per_nod=2', 'unknown flag --ngpu_per_nod: did you mean --ngpu_per_node'),
    ('--num_nodes=2', '--num_nodes is an option of main.sh'),
    ('--wp_ep=100 --ep=100', 'warmup_epochs 100.0 must be less than epochs 100'), ('--sbn=maybe', 'neither True nor False'),
    ('--opt=adam', 'invalid choice'), ('--clip=0', 'inf means no clipping'), ('--bs=0', 'batch_size must be 1 or more'),
    ('--bs=many', 'invalid int value'), ('--accum=0', 'accum must be auto'), ('--in_chans=4', 'give --mean and --std'),
    ('--mean=1,2', 'one number for each channel, 3 in all'), ('--crop_scale=0,1', 'crop_scale'), ('--dp=1', 'drop_path'),
    ('--lr=0', 'lr must be more'), ('--mean=a', 'no number'), ('--input_size=1,2,3', 'input_size'), ('--seed=-1', 'seed'),
    ('--data_path=', 'data_path cannot be'), ('--cell_size=0', 'cell_size'), ('--std=0,1,1', 'std must be more than 0'),
    ('--fresh --resume=x', 'give one of them'),
    ('stray', 'unrecognized arguments: stray'), ('--picture_every=-1', 'picture_every'),
])
def test_mistakes_end_with_one_sentence_and_code_2(line, word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert word in message and message.count('\n') == 1


def test_options_from_python_become_plain_values():
    options = Options(name='n', lr=np.float64(0.1), batch_size=np.int64(8), mean=[0.1, 0.2, 0.3], std=np.ones(3),
                      run_dir=Path('x'), input_size=[64, 96], epochs=3)
    assert options == Options(name='n', lr=0.1, batch_size=8, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), run_dir='x',
                              input_size=(64, 96), epochs=3)
    assert {type(v) for v in options.as_dict().values()} <= {int, float, str, bool, tuple, type(None)}
    torch.save(options.as_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == options.as_dict()


@pytest.mark.parametrize('wrong', [
    {'batch_size': '8'}, {'batch_size': 8.0}, {'input_size': '64'}, {'input_size': 64.0}, {'input_size': (64,)}, {'mean': 0.5},
    {'mask_ratio': None}, {'accum': '2'}, {'accum': 2.0}, {'lr': '1e-3'}, {'epochs': 1.5}, {'flip': 'no'}, {'model': None},
    {'cell_size': '8'}, {'data_path': ''}, {'seed': True},
])
def test_options_from_python_of_the_wrong_type_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(name='n', **wrong)


def test_name_is_asked_for():
    with pytest.raises(ValueError, match='--name'):
        Options()


def test_help_explains_every_option_in_a_group():
    text = parser_of(Options, 'p', '').format_help()
    for field in dataclasses.fields(Options):
        assert f'--{field.name}' in text and len(field.metadata['help']) > 5
        assert all(f'--{alias}' in text for alias in field.metadata['aliases'])
    for group in ('run', 'data', 'method', 'optimisation', 'machine', 'log'):
        assert f'\n{group}:' in text
    assert text.count('optimisation:') == 1


def test_help_begins_with_examples_and_ten_options(capsys):
    with pytest.raises(SystemExit):
        parse_options(['--help'])
    lines = capsys.readouterr().out.splitlines()
    first = lines[lines.index('most used:') + 1:]
    first = first[:first.index('')]
    assert [line.split()[0] for line in first if line.startswith('  --')] == [f'--{name}' for name in MOST_USED]
    assert len(MOST_USED) == 10 and lines.index('examples:') < lines.index('most used:') < lines.index('data:')
    shown = [line.split()[0] for line in lines if line.startswith('  --')]
    assert sorted(shown) == sorted(f'--{field.name}' for field in dataclasses.fields(Options))


@pytest.mark.parametrize('example', [command for name in OPTIONS for command, _ in examples_of(name)])
def test_the_examples_of_help_are_right(example):
    bash, script, name, *words = shlex.split(example)
    assert (bash, script) == ('bash', 'pretrain/main.sh')
    parse_options([f'--name={name}', *words])


def test_contradictions_list_what_may_not_change():
    saved = parse('--model=resnet18 --bs=64').as_dict()
    now = parse('--model=resnet34 --bs=64 --workers=3 --log_every=5 --exp_dir=elsewhere')
    assert changes(now, saved, may_change=False) == [('model', 'resnet34', 'resnet18')]
    assert changes(parse('--model=resnet18 --bs=64 --lr=1e-3'), saved, may_change=True) == [('lr', 1e-3, None)]
    assert changes(parse('--model=resnet18 --bs=64 --seed=4'), saved, may_change=False) == [('seed', 4, 0)]


@contextmanager
def unread(buffering):
    """stdout is a pipe that nobody reads any more, with a buffer (-1) or by lines (1)."""
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(writing, 'w', buffering=buffering) as stdout:
        patch.setattr(sys, 'stdout', stdout)
        yield  # at its end, what is left in the buffer goes nowhere: no error


PRINTS = [lambda: print('a line\n' * 3), lambda: print('x' * 1_000_000), lambda: (print('a line'), sys.exit(1))]


@pytest.mark.parametrize(('does', 'buffering'), [*itertools.product(PRINTS, [-1, 1])])
def test_a_program_whose_reader_is_gone_ends_without_a_word(does, buffering, capfd):
    with unread(buffering), pytest.raises(SystemExit) as end, reader_may_leave(), errors_in_one_sentence():
        does()
    assert end.value.code == 141 and capfd.readouterr().err == ''


@pytest.mark.parametrize('buffering', [-1, 1])
def test_help_whose_reader_is_gone_ends_without_a_word(buffering, capfd):
    with unread(buffering), pytest.raises(SystemExit) as end, reader_may_leave(), errors_in_one_sentence():
        parse_options(['--help'])
    assert end.value.code in (0, 141)  # argparse hides the error itself where the text is longer than the buffer
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('code', [0, 75])
def test_a_run_whose_reader_is_gone_keeps_its_code(code):
    with unread(-1), pytest.raises(SystemExit) as end, reader_may_leave(ends=False):
        print('a line')
        sys.exit(code)
    assert end.value.code == code
    with unread(-1), reader_may_leave(ends=False):
        print('a line')


def test_other_pipes_that_break_are_errors(tmp_path, monkeypatch):
    def does():
        raise BrokenPipeError(32, 'Broken pipe')
    with open(tmp_path / 'read', 'w') as file:
        monkeypatch.setattr(sys, 'stdout', file)
        with pytest.raises(BrokenPipeError), reader_may_leave():
            does()
        with pytest.raises(SystemExit, match='error: .* Broken pipe'), reader_may_leave(), errors_in_one_sentence():
            does()


def test_numbers_and_their_nouns():
    assert [counted(n, 'image') for n in (0, 1, 2, 1200, np.int64(1281167))] == [
        '0 images', '1 image', '2 images', '1,200 images', '1,281,167 images']
    assert (counted(1.0, 'epoch'), counted(0.5, 'epoch'), counted(1, 'class', 'classes'), counted(0, 'class', 'classes')) == (
        '1 epoch', '0.5 epochs', '1 class', '0 classes')
