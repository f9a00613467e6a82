"""The stages of benchmarks.evidence, their runner, and the page that is made of the results."""
import json
import re
import time
from pathlib import Path

import pytest

from benchmarks import evidence
from benchmarks.evidence_report import Results, made, mean_and_error, page, verdict
from benchmarks.evidence_runs import Records, Runner, command
from benchmarks.evidence_stages import QUESTIONS, SCALES, TUNING_SEED, Plan, Stage
from common.demo_world import write_world
from tests.conftest import ROOT


@pytest.fixture(params=SCALES)
def plan(request):
    return Plan(SCALES[request.param], 3, 9469)


def test_every_stage_comes_once_and_after_what_it_needs(plan):
    stages = plan.stages()
    names = [stage.name for stage in stages]
    assert len(names) == len(set(names))
    for place, stage in enumerate(stages):
        assert stage.after <= set(names[:place])


@pytest.mark.parametrize('letter', QUESTIONS)
def test_a_question_alone_has_all_that_it_needs(plan, letter):
    stages = plan.stages((letter,))
    assert all(stage.after <= {each.name for each in stages} for stage in stages)
    assert {stage.question for stage in stages} == {'a', letter}


def test_the_commands_are_right(plan):
    """The options of each stage are options of its program, which gets every file that it reads from an earlier stage."""
    from benchmarks.norm_shift import Options as NormOptions
    from common.cli import parse
    from downstream_imagenet import config
    from downstream_imagenet.features import Options as ProbeOptions
    from pretrain.methods import parse_options
    for stage in plan.stages():
        program, *words = stage.words
        words += ['--lr=1e-2'] if stage.rates else []
        words += ['--epochs=5'] if stage.epochs else []
        if program == 'benchmarks.ablations':
            words = words[1:]
        if stage.kind == 'pretrain':
            parse_options(words)
        elif stage.kind in ('tune', 'finetune'):
            config.parse_options(words)
        else:
            parse(NormOptions if stage.kind == 'norms' else ProbeOptions, program, '', words)
        for run in re.findall(r'output_(\w+)/', ' '.join(words)):
            assert run in stage.after


def test_both_sides_of_a_comparison_differ_in_their_weights_alone(plan):
    """The same options, seeds and rates that are compared; else it would be no fair comparison."""
    stages = {stage.name: stage for stage in plan.stages()}

    def without(stage, start):
        return {word.replace(f'_{start}_', '_START_') for word in stage.words if '--finetune_from' not in word}

    for percent in ('1', '10', '100'):
        for seed in plan.seeds:
            sides = [without(stages[f'final_{percent}_{start}_{seed}'], start) for start in ('scratch', 'sparse', 'zeroed')]
            assert sides[0] == sides[1] == sides[2]
        for rate in plan.scale.rates:
            sides = [without(stages[f'tune_{percent}_{start}_{rate}'], start) for start in ('scratch', 'sparse', 'zeroed')]
            assert sides[0] == sides[1] == sides[2]


def test_nothing_is_chosen_on_the_validation_images(plan):
    stages = plan.stages()
    tunings = {stage.name: stage for stage in stages if stage.kind == 'tune'}
    for stage in tunings.values():
        assert '--data_path=photos/train' in stage.words and '--val_fraction=0.2' in stage.words
        assert not any('--val_path' in word for word in stage.words)
        assert f'--seed={TUNING_SEED}' in stage.words
    assert TUNING_SEED not in plan.seeds
    for stage in stages:
        assert set(stage.rates.values()) <= set(tunings)
        if stage.kind == 'pretrain':
            assert '--data_path=photos/train' in stage.words


def test_the_images_of_the_choice_are_none_of_the_validation_images(tmp_path):
    """What a tuning run trains on and is measured on, and what the final run is measured on, have no image in common."""
    from downstream_imagenet.config import parse_options
    from downstream_imagenet.labelled import labelled_images
    write_world(tmp_path / 'photos', 120, 48, 32, 0)
    stages = {stage.name: stage for stage in Plan(SCALES['cpu'], 1, 120).stages(('a',))}

    def contents(name):
        words = [word.replace('=photos', f'={tmp_path}/photos') for word in stages[name].words[1:]]
        options = parse_options([*words, '--lr=1e-2', '--epochs=5'])
        return [{each.content(i) if hasattr(each, 'content') else Path(each.name(i)).read_bytes() for i in range(len(each))}
                for each in labelled_images(options)[:2]]

    trained, chosen_on = contents('tune_100_scratch_1e-2')
    final, measured_on = contents('final_100_scratch_0')
    assert trained and chosen_on and not trained & chosen_on
    assert trained | chosen_on == final
    assert not measured_on & (trained | chosen_on)


def say(name, text, **more):
    """A stage that prints a text."""
    return Stage(name, 'a', 'knn', ('timeit', '-n1', '-r1', f'print({text!r})'), 0, **more)


def test_the_runner_runs_each_stage_once_and_in_order(tmp_path, capsys):
    stages = [say('second', 'k = 20: top-1 51.5', needs=('first',)), say('first', 'k = 20: top-1 42.25')]
    records = Records(tmp_path)
    assert Runner(records, 2, 'cpu_seconds').run(stages) == []
    assert records.read('first')['figures'] == {'top1': 42.25} and records.read('second')['figures'] == {'top1': 51.5}
    assert re.findall(r'(\d) of 2  (\w+)', capsys.readouterr().out) == [('1', 'first'), ('2', 'second')]
    assert records.read('first')['cpu_seconds'] > 0
    assert Runner(records, 2, 'cpu_seconds').run(stages) == []
    assert capsys.readouterr().out == ''


def test_a_stage_that_fails_ends_the_runner_with_the_place_of_its_words(tmp_path):
    with pytest.raises(SystemExit, match=r'error: broken failed: see .*logs.broken.txt'):
        Runner(Records(tmp_path), 1, 'seconds').run([Stage('broken', 'a', 'knn', ('no_such_program',), 0)])
    assert 'no_such_program' in (tmp_path / 'logs' / 'broken.txt').read_text()


def test_a_stage_that_takes_too_long_is_stopped_and_goes_on_later(tmp_path):
    records = Records(tmp_path)
    long = Stage('long', 'a', 'knn', ('timeit', '-n1', '-r1', 'import time; time.sleep(600)'), 0)
    waiting = say('waiting', 'k = 20: top-1 1.0', needs=('long',))
    left = Runner(records, 2, 'seconds', longest=1.0).run([long, waiting, say('other', 'k = 20: top-1 2.0')])
    assert [stage.name for stage in left] == ['long', 'waiting']
    assert records.is_done('other') and not records.is_done('long') and len(records.pieces('long')) == 1
    left = Runner(records, 2, 'seconds', until=time.monotonic()).run([long])
    assert left == [long] and len(records.pieces('long')) == 1  # It was not begun.


def test_the_best_rate_and_equal_time_follow_from_earlier_stages(tmp_path):
    records = Records(tmp_path)
    for name, top1, seconds in (('low', 50.0, 10), ('high', 60.0, 20), ('other', 0.0, 90)):
        records.path(name).write_text(json.dumps({'figures': {'top1': top1}, 'seconds': seconds, 'cpu_seconds': seconds}))
    stage = Stage('x', 'a', 'finetune', ('program',), 0, epochs=30, rates={'1e-3': 'low', '1e-2': 'high'},
                  time=(('high', 'other'), 'low'))
    assert command(stage, records, 'seconds') == ['program', '--lr=1e-2', '--epochs=330']
    assert stage.after == {'high', 'other', 'low'}


def results(values, seeds=3):
    """Content of a file of results. values: {(start, measure): accuracies of the seeds}."""
    stages = {f'{measure}_{start}_{seed}': {'figures': {'top1': value}, 'seconds': 10.0, 'cpu_seconds': 10.0}
              for (start, measure), each in values.items() for seed, value in enumerate(each)}
    return {'cpu': {'seeds': seeds, 'images': 9469, 'validation': 3925, 'machines': ['a machine'], 'stages': stages}}


def test_means_errors_and_paired_differences():
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3.0 and error == pytest.approx((14 / 2 / 3) ** 0.5)
    content = results({('sparse', 'final_10'): (61.0, 72.0, 86.0), ('scratch', 'final_10'): (60.0, 70.0, 83.0)})
    mean, error = Results('cpu', content['cpu']).difference('sparse', 'scratch', 'final_10')
    assert mean == 2.0 and error == pytest.approx(1 / 3 ** 0.5)  # of 1, 2, 3
    assert [verdict((mean, 0.9)) for mean in (2.0, 1.7, -1.7)] == ['shown', 'not shown', 'not shown']
    assert verdict((-2.0, 0.9)) == 'the opposite is shown'


def test_a_number_of_fewer_than_three_seeds_is_not_quoted():
    text = page(results({('sparse', 'final_10'): (61.0, 72.0), ('scratch', 'final_10'): (60.0, 70.0, 83.0)}))
    assert '| 71.0 +- 6.7 |' in text and '2 of 3 seeds' in text and '66.5' not in text and 'SparK over' not in text
    assert '*State*: not finished: 5 of 66 stages.' in text and '*State*: not run.' in text
    text = page(results({('sparse', 'final_10'): (61.0, 72.0), ('scratch', 'final_10'): (60.0, 70.0)}, seeds=2))
    assert '66.5' not in text and '65.0' not in text and '2 of 2 seeds' in text


def test_the_page_is_what_its_results_make():
    """docs/transfer.md and docs/transfer.json are of one making: python -m benchmarks.evidence FOLDER --publish."""
    content = json.loads((ROOT / 'docs' / 'transfer.json').read_text())
    text = (ROOT / 'docs' / 'transfer.md').read_text()
    assert made(content, text) == text


def test_what_a_user_gets_wrong_is_said(tmp_path, capsys, monkeypatch):
    for words, message in (([], r'say where the images are: --data_path=DIR'), (['--data_path=x', '--only=a,z'], 'not z'),
                           (['--data_path=x', '--seeds=0'], '--seeds must be 1 or more')):
        with pytest.raises(SystemExit):
            evidence.arguments(words)
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(SystemExit, match='there is no folder .*train'):
        evidence.main([str(tmp_path / 'out'), f'--data_path={tmp_path}'])
    write_world(tmp_path / 'world', 24, 12, 32, 0)
    evidence.link_images(tmp_path / 'world', tmp_path / 'out')
    write_world(tmp_path / 'other', 24, 12, 32, 0)
    with pytest.raises(SystemExit, match='has results for the images .*world: give another folder'):
        evidence.link_images(tmp_path / 'other', tmp_path / 'out')


@pytest.mark.slow  # Two minutes: 52 programs.
def test_questions_a_and_b_on_a_drawn_world(tmp_path, monkeypatch, capsys):
    """From the images to the page through the ordinary commands; a second time none of them runs."""
    tiny = SCALES['cpu'].__class__(
        'cpu', 'small_resnet', ('--model=small_resnet', '--input_size=32', '--workers=0'),
        ('--picture_every=0',), ('--decoder_width=16',), SCALES['cpu'].fine_tuning, 1, {'1': 1, '10': 1, '100': 1},
        ('1e-2', '3e-2'))
    monkeypatch.setitem(evidence.SCALES, 'cpu', tiny)
    write_world(tmp_path / 'world', 240, 48, 32, 0)
    words = [str(tmp_path / 'out'), f'--data_path={tmp_path}/world', '--only=a,b', '--seeds=1', '--jobs=2']
    evidence.main([*words, '--plan'])
    said = capsys.readouterr().out
    assert re.search(r'measured here, one program: \d+ images/s in pretraining', said) and 'in all' in said
    evidence.main(words)
    assert 'of 52' in capsys.readouterr().out
    content = json.loads((tmp_path / 'out' / 'results.json').read_text())['cpu']
    assert len(content['stages']) == 52 and content['stages']['sparse_0']['figures']['epoch'] == 1
    assert str(tmp_path) not in json.dumps(content)
    text = (tmp_path / 'out' / 'results.md').read_text()
    assert text.count('*State*: complete.') == 2 and '1 of 1 seeds' in text
    evidence.main(words)
    assert 'of 52' not in capsys.readouterr().out


def test_results_are_published_beside_those_of_another_scale(tmp_path, monkeypatch):
    page = tmp_path / 'transfer.md'
    page.write_text('before\n<!-- answers -->\n<!-- end of answers -->\n<!-- results -->\nold\n<!-- end -->\nafter\n')
    monkeypatch.setattr(evidence, 'PAGE', page)
    monkeypatch.setattr(evidence, 'PUBLISHED', tmp_path / 'transfer.json')
    values = {(start, 'final_10'): (60.0 + place, 61.0 + 2 * place, 62.0) for place, start in enumerate(('scratch', 'sparse'))}
    found = results(values)
    for name in ('cuda', 'cpu'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'results.json').write_text(json.dumps({name: found['cpu']}))
        evidence.main([str(tmp_path / name), '--publish'])
    text = page.read_text()
    assert text.startswith('before') and text.endswith('after\n') and 'old' not in text
    assert list(json.loads((tmp_path / 'transfer.json').read_text())) == ['cuda', 'cpu']
    assert '## On a CPU' in text and '## On a GPU' in text and 'Not run.' not in text
    assert '* (a)' in text and '* Not measured with three seeds yet: (b) ' in text
    assert 'On a GPU, SparK over random weights, 10 % of labels: +1.0 +- 0.6 points, not shown.' in text
    assert page.with_suffix('.svg').exists() and '](transfer.svg)' in text
    with pytest.raises(SystemExit, match='there is no .*results.json: give the folder of a run'):
        evidence.main([str(tmp_path / 'none'), '--publish'])
