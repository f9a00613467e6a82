"""The stages of benchmarks.evidence, their runner, and the page that is made of the results."""
import dataclasses
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import evidence, evidence_images
from benchmarks.evidence_records import Records, check_records, command, packed, unpacked
from benchmarks.evidence_report import Results, answers, filled, mean_and_error, page, verdict
from benchmarks.evidence_runs import Runner, to_run
from benchmarks.evidence_stages import QUESTIONS, SCALES, STARTS, TUNING_SEED, Plan, Stage
from common.demo_world import write_world
from tests.common.runs import until
from tests.conftest import ROOT


@pytest.fixture(params=['cpu', 'cuda'])
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
        program, *words = stage.arguments
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
        return {word.replace(f'_{start}_', '_START_') for word in stage.arguments if '--finetune_from' not in word}

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
        assert '--data_path=photos/train' in stage.arguments and '--val_fraction=0.2' in stage.arguments
        assert not any('--val_path' in word for word in stage.arguments)
        assert f'--seed={TUNING_SEED}' in stage.arguments
    assert TUNING_SEED not in plan.seeds
    for stage in stages:
        assert set(stage.rates.values()) <= set(tunings)
        if stage.kind == 'pretrain':
            assert '--data_path=photos/train' in stage.arguments


def test_the_images_of_the_choice_are_none_of_the_validation_images(tmp_path):
    """What a tuning run trains on and is measured on, and what the final run is measured on, have no image in common."""
    from downstream_imagenet.config import parse_options
    from downstream_imagenet.labelled import labelled_images
    write_world(tmp_path / 'photos', 120, 48, 32, 0)
    stages = {stage.name: stage for stage in Plan(SCALES['cpu'], 1, 120).stages(('a',))}

    def contents(name):
        words = [word.replace('=photos', f'={tmp_path}/photos') for word in stages[name].arguments[1:]]
        options = parse_options([*words, '--lr=1e-2', '--epochs=5'])
        return [{each.content(i) if hasattr(each, 'content') else Path(each.name(i)).read_bytes() for i in range(len(each))}
                for each in labelled_images(options)[:2]]

    trained, chosen_on = contents('tune_100_scratch_1e-2')
    final, measured_on = contents('final_100_scratch_0')
    assert trained and chosen_on and not trained & chosen_on
    assert trained | chosen_on == final
    assert not measured_on & (trained | chosen_on)


def test_what_reads_weights_needs_the_stage_that_makes_them(plan):
    stages = plan.stages()
    makers = {stage.weights: stage.name for stage in stages if stage.weights}
    readers = 0
    for stage in stages:
        for file in re.findall(r'--(?:finetune_from|weights)=(\S+)', ' '.join(stage.arguments)):
            assert makers[file] in stage.needs
            readers += 1
    assert readers > len(makers) > 20


def test_each_start_is_measured_by_its_own_weights(plan):
    for stage in plan.stages():
        found = re.findall(r'--(?:finetune_from|weights)=(\S+)', ' '.join(stage.arguments))
        if stage.kind not in ('finetune', 'knn', 'linear', 'norms'):
            continue
        start, seed = re.fullmatch(r'(?:final_\d+|knn|linear|norms)(?:_estimated)?_(\w+)_(\d)', stage.name).groups()
        assert f'--seed={seed}' in stage.arguments
        if '_estimated_' in stage.name:
            assert found == [f'norms_{start}_{seed}.pth'] and f'norms_{start}_{seed}' in stage.after
        elif STARTS[start].pretrained:
            assert found == [f'output_{start}_{seed}/{plan.scale.model}_1kpretrained.pth']
        else:
            assert not found and ('--random' in stage.arguments) == (stage.kind != 'finetune')


def test_pretrainings_differ_in_what_they_are_to_compare(plan):
    stages = {stage.name: stage for stage in plan.stages()}
    differences = {
        'zeroed': {'benchmarks.ablations', 'zeroed'}, 'zeroed_time': {'benchmarks.ablations', 'zeroed'},
        'single_level': {'benchmarks.ablations', 'single_level'}, 'mask_40': {'--mask_ratio=0.4'},
        'mask_75': {'--mask_ratio=0.75'}, 'a2mim': {'--method=a2mim'}, 'quarter': set(), 'triple': set(),
        'images_11': {'--val_fraction=0.8889'}, 'images_33': {'--val_fraction=0.6667'}}
    lengths = {'quarter': 1 / 4, 'triple': 3, 'images_11': 9, 'images_33': 3}
    assert {*differences, 'sparse'} == {start.name for start in STARTS.values() if start.pretrained}
    for seed in plan.seeds:
        plain = stages[f'sparse_{seed}']
        assert plain.arguments[0] == 'pretrain.main' and f'--seed={seed}' in plain.arguments
        for start, expected in differences.items():
            stage = stages[f'{start}_{seed}']
            left_out = {'pretrain.main'} if expected & {'benchmarks.ablations'} else set()
            left_out |= set(plan.scale.decoder) if start == 'a2mim' else set()
            assert set(stage.arguments) - set(plain.arguments) == expected | {f'--name={start}_{seed}'}
            assert set(plain.arguments) - set(stage.arguments) == left_out | {f'--name=sparse_{seed}'}
            assert stage.epochs == plan.scale.epochs * lengths.get(start, 1)


def test_equal_time_is_that_of_all_seeds(plan):
    stages = {stage.name: stage for stage in plan.stages()}
    assert stages['zeroed_time_1'].equal_time == (['sparse_0', 'sparse_1', 'sparse_2'], ['zeroed_0', 'zeroed_1', 'zeroed_2'])
    budget, likes = stages['final_10_scratch_long_2'].equal_time
    assert set(budget) == {f'{name}_{seed}' for name in ('sparse', 'final_10_sparse') for seed in range(3)}
    assert likes == ['final_10_scratch_0', 'final_10_scratch_1', 'final_10_scratch_2']
    with_equal_time = {name for name, stage in stages.items() if stage.equal_time}
    assert with_equal_time == {name for name in stages if re.match(r'zeroed_time_\d|final_\d+_scratch_long', name)}


def say(name, text, **more):
    """A stage that prints a text."""
    return Stage(name, 'a', 'knn', ('timeit', '-n1', '-r1', f'print({text!r})'), 0, **more)


def wait(name, seconds=600):
    """A stage that sleeps."""
    return Stage(name, 'a', 'knn', ('timeit', '-n1', '-r1', f'import time; time.sleep({seconds})'), 0)


@pytest.fixture
def records(tmp_path):
    found = Records(tmp_path, {'machine': 'a machine'})
    yield found
    found.lock.release()


def known(records, name, top1=0.0, seconds=10.0, arguments=('program',)):
    """A record as if a stage had been run."""
    records.path(name).write_text(json.dumps({'command': ['python', '-m', *arguments], 'figures': {'top1': top1},
                                              'seconds': seconds, 'cpu_seconds': seconds}))


def test_the_runner_runs_each_stage_once_and_in_order(records, capsys):
    stages = [say('second', 'k = 20: top-1 51.5', needs=('first',)), say('first', 'k = 20: top-1 42.25')]
    assert Runner(records, 2, 'cpu_seconds').run(stages) == []
    assert records.read('first')['figures'] == {'top1': 42.25} and records.read('second')['figures'] == {'top1': 51.5}
    assert records.read('first')['machine'] == 'a machine'
    assert re.findall(r'(\d) of 2  (\w+)', capsys.readouterr().out) == [('1', 'first'), ('2', 'second')]
    assert records.read('first')['cpu_seconds'] > 0
    assert Runner(records, 2, 'cpu_seconds').run(stages) == []
    assert capsys.readouterr().out == ''


def test_a_stage_that_fails_ends_the_runner_with_the_place_of_its_words(records):
    with pytest.raises(SystemExit, match=r'error: broken failed: see .*logs.broken.txt'):
        Runner(records, 1, 'seconds').run([Stage('broken', 'a', 'knn', ('no_such_program',), 0)])
    assert 'no_such_program' in (records.folder / 'logs' / 'broken.txt').read_text()


def test_a_stage_that_takes_too_long_is_stopped_and_its_pieces_are_added(records):
    waiting = say('waiting', 'k = 20: top-1 1.0', needs=('long',))
    left = Runner(records, 2, 'seconds', stage_seconds=5.0).run([wait('long'), waiting, say('other', 'k = 20: top-1 2.0')])
    assert [stage.name for stage in left] == ['long', 'waiting']
    assert records.is_done('other') and not records.is_done('long')
    first = records.cost('long')['seconds']
    assert first >= 5.0
    assert Runner(records, 2, 'seconds', deadline=time.monotonic()).run([waiting]) == [waiting]  # It was not begun.
    assert Runner(records, 1, 'seconds').run([say('long', 'k = 20: top-1 3.0')]) == []
    lines = [json.loads(line) for line in (records.folder / 'pieces' / 'long.jsonl').read_text().splitlines()]
    assert [list(line) for line in lines] == [['began', 'machine'], ['seconds', 'cpu_seconds']] * 2
    assert records.read('long')['seconds'] == pytest.approx(first + lines[3]['seconds'])


def test_two_that_end_while_they_are_stopped_are_both_kept(records):
    """One of two ends by itself while the other is being stopped."""
    ends = Stage('ends', 'a', 'knn', ('timeit', '-n1', '-r1', "import time; time.sleep(1.5); print('k = 20: top-1 7.0')"), 0)
    left = Runner(records, 2, 'seconds', stage_seconds=1.0).run([wait('long'), ends])
    assert [stage.name for stage in left] == (['long'] if records.is_done('ends') else ['long', 'ends'])
    assert all(records.cost(name)['seconds'] for name in ('long', 'ends'))


def test_a_record_of_another_command_is_not_taken(records):
    Runner(records, 1, 'seconds').run([say('one', 'k = 20: top-1 1.0')])
    with pytest.raises(SystemExit, match=r'error: one was run with other options than it has now \(.*give another folder'):
        check_records([say('one', 'k = 20: top-1 2.0')], records, 'seconds')


def make(name, needs=()):
    """A stage that makes a file of weights."""
    code = f"print('k = 20: top-1 1.0'); open('{name}.pth', 'w').close()"
    return Stage(name, 'a', 'knn', ('timeit', '-n1', '-r1', code), 0, needs, weights=f'{name}.pth')


def test_what_is_known_runs_again_only_for_weights_that_are_needed(records, capsys):
    """And then just before the first that reads them; what was known of it stays."""
    chain = [make('first'), make('other'), make('second', ('first',)), say('third', 'k = 20: top-1 1.0', needs=('second',))]
    for stage in chain[:3]:
        known(records, stage.name, top1=77.0, arguments=stage.arguments)
    assert to_run(chain[:3], records) == []
    apart = say('apart', 'k = 20: top-1 1.0')
    assert [stage.name for stage in to_run([apart, *chain], records)] == ['apart', 'first', 'second', 'third']
    assert Runner(records, 2, 'seconds').run(chain) == []
    assert re.findall(r'(\d) of 3  (\w+)', capsys.readouterr().out) == [('1', 'first'), ('2', 'second'), ('3', 'third')]
    for name in ('first', 'second'):
        record = records.read(name)
        assert record['figures'] == {'top1': 77.0} and record['seconds'] == 10.0
        again, = record['again']
        assert again['figures'] == {'top1': 1.0} and again['machine'] == 'a machine' and again['seconds'] != 10.0
    assert 'again' not in records.read('other') and not (records.folder / 'other.pth').exists()
    records.path('third').unlink()
    assert [stage.name for stage in to_run(chain, records)] == ['third']


def test_times_of_different_machines_are_no_equal_time(records, capsys):
    """What was run again for its weights on the machine of the others has a time that can be compared."""
    stage = Stage('x', 'b', 'pretrain', ('program',), 0, epochs=30, equal_time=(['one'], ['other']))
    for name, machine in (('one', 'a'), ('other', 'b')):
        records.path(name).write_text(json.dumps({'seconds': 10.0, 'machine': machine}))
    runner = Runner(records, 1, 'seconds')
    assert runner.run([stage]) == [stage] and not records.is_done('x')
    evidence.say_left([stage], 1, records)
    assert 'x cannot be run: the times that its length follows from are of different machines' in capsys.readouterr().out
    again = {'seconds': 20.0, 'machine': 'b'}
    records.path('one').write_text(json.dumps({'seconds': 10.0, 'machine': 'a', 'again': [again]}))
    assert runner.can_begin(stage) and command(stage, records, 'seconds') == ['program', '--epochs=60']


def test_what_ran_on_two_machines_has_no_known_time(records):
    records.add_piece('one')
    records.add_piece('one', seconds=4.0, cpu_seconds=4.0)
    assert records.cost('one')['seconds'] == 4.0
    records.about = {'machine': 'another'}
    records.add_piece('one')
    records.add_piece('one', seconds=4.0, cpu_seconds=4.0)
    assert records.cost('one')['seconds'] is None


def test_equal_time_is_not_mixed_of_different_numbers_of_seeds(records):
    known(records, 'x', arguments=('program', '--epochs=30'))
    known(records, 'one')
    stage = Stage('x', 'b', 'pretrain', ('program',), 0, epochs=30, equal_time=(['one', 'two'], ['one']))
    with pytest.raises(SystemExit, match='the epochs of x follow from the times of fewer seeds: give as many --seeds'):
        check_records([stage], records, 'seconds')


def test_results_that_are_known_are_taken(records, tmp_path):
    images = {'train': 10, 'val': 5, 'fingerprint': 'abc'}
    stages = {name: {'figures': {'top1': 1.0}, 'command': ['python', '--precision=bf16']} for name in ('one', 'two')}
    file = tmp_path / 'known.json'
    file.write_text(json.dumps({'cpu': {'images': 10, 'validation': 5, 'fingerprint': 'abc', 'stages': stages}}))
    known(records, 'two', top1=2.0)
    scale = SCALES['cpu']
    records.take(evidence.known_results(file, scale, images))
    assert records.read('one') == stages['one'] and records.read('two')['figures']['top1'] == 2.0
    with pytest.raises(SystemExit, match='has results for other images'):
        evidence.known_results(file, scale, {**images, 'fingerprint': 'abd'})
    for name, other in ((file, 'cuda'), (file, 'cpu_fp32'), (tmp_path / 'none.json', 'cpu')):
        with pytest.raises(SystemExit, match=f'has no results of runs on a {SCALES[other].title} .*leave --known out'):
            evidence.known_results(name, SCALES[other], images)


@pytest.mark.parametrize('is_fast', [True, False])
def test_the_precision_is_one_that_the_processor_has(monkeypatch, capsys, is_fast):
    monkeypatch.setattr(evidence, 'cpu_is_fast_in', lambda precision: is_fast)
    words = evidence.scale_for('cpu').network
    assert (f'--precision={"bf16" if is_fast else "fp32"}' in words) and len(words) == len(SCALES['cpu'].network)
    assert ('in fp32' in capsys.readouterr().out) != is_fast
    assert evidence.scale_for('cuda') is SCALES['cuda']


def test_the_scales_of_a_cpu_differ_in_their_precision_alone():
    fast, slow = (dataclasses.asdict(SCALES[name]) for name in ('cpu', 'cpu_fp32'))
    assert set(slow.pop('network')) ^ set(fast.pop('network')) == {'--precision=bf16', '--precision=fp32'}
    assert {name for name in fast if fast[name] != slow[name]} == {'name', 'title'}


def test_a_folder_has_results_of_one_scale(tmp_path):
    images = {'train': 10, 'val': 5, 'fingerprint': 'abc'}
    for _ in range(2):
        evidence.check_folder(tmp_path, 'cpu', images)
    with pytest.raises(SystemExit, match="has results for .*'cpu'.*, not for .*'cpu_fp32'.*: give another folder"):
        evidence.check_folder(tmp_path, 'cpu_fp32', images)
    (tmp_path / 'about.json').write_text(json.dumps({'device': 'cpu', **images}))
    evidence.check_folder(tmp_path, 'cpu', images)


def test_a_time_that_is_not_known_is_no_equal_time(records):
    records.add_piece('one')
    records.add_piece('one')
    records.add_piece('one', seconds=4.0, cpu_seconds=4.0)
    assert records.cost('one') == {'seconds': None, 'cpu_seconds': None}
    known(records, 'one_0', seconds=None)
    known(records, 'other_0', seconds=4.0)
    known(records, 'other_1', seconds=None)
    known(records, 'other_2', seconds=8.0)
    stage = Stage('x', 'b', 'pretrain', ('program',), 0, epochs=30, equal_time=(['one_0'], ['other_0']))
    with pytest.raises(SystemExit, match='error: how long one took is not known of any seed'):
        command(stage, records, 'seconds')


def test_equal_time_is_the_mean_of_the_seeds_whose_time_is_known(records):
    for name, seconds in {'one_0': 4.0, 'one_1': None, 'one_2': 8.0, 'tuned_0': 1.0, 'tuned_1': 3.0, 'tuned_2': None}.items():
        known(records, name, seconds=seconds)
    stage = Stage('x', 't', 'finetune', ('program',), 0, epochs=30, equal_time=(
        ['one_0', 'one_1', 'one_2', 'tuned_0', 'tuned_1', 'tuned_2'], ['tuned_0', 'tuned_1', 'tuned_2']))
    assert command(stage, records, 'seconds') == ['program', f'--epochs={30 * (6 + 2) // 2}']


def test_the_best_rate_and_equal_time_follow_from_earlier_stages(records):
    for name, top1, seconds in (('low_0', 50.0, 10), ('high_0', 60.0, 20), ('other_0', 0.0, 90)):
        known(records, name, top1, seconds)
    stage = Stage('x', 'a', 'finetune', ('program',), 0, epochs=30, rates={'1e-3': 'low_0', '1e-2': 'high_0'},
                  equal_time=(['high_0', 'other_0'], ['low_0']))
    assert command(stage, records, 'seconds') == ['program', '--lr=1e-2', '--epochs=330']
    assert stage.after == {'high_0', 'other_0', 'low_0'}


def test_figures_are_those_of_the_last_epoch(records):
    folder = records.folder / 'output_run'
    folder.mkdir()
    lines = [{'epoch': 1, 'step': 2, 'loss': 0.5, 'top1': 90.0}, {'epoch': 2, 'step': 4, 'loss': 0.4, 'top1': 80.0}]
    (folder / 'finetune_log.txt').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert records.figures(Stage('run', 'a', 'finetune', (), 0)) == lines[1]


def test_a_folder_is_for_one_program(records, tmp_path):
    code = f"from benchmarks.evidence_records import Records; Records({str(tmp_path)!r})"
    other = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode and 'is in use by process' in other.stderr


def started(folder, before=''):
    """A process with two stages that wait, both begun; before: code that runs first."""
    code = ('import signal; from benchmarks import evidence; from benchmarks.evidence_stages import Plan\n'
            'from tests.project.test_evidence import wait\n'
            'Plan.stages = lambda *_: [wait("one"), wait("two")]\n'
            f'{before}\n'
            f'evidence.main([{str(folder)!r}, "--data_path={folder}/world", "--jobs=2"])\n')
    write_world(folder / 'world', 24, 12, 32, 0)
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, text=True, **pipes)
    until(lambda: len(list((folder / 'logs').glob('*.txt'))) == 2)
    return process


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_the_programs_that_run(tmp_path, number):
    """They are told to stop once, whatever comes after it, and none is left behind."""
    process = started(tmp_path)
    process.send_signal(number)
    process.send_signal(number)
    said, errors = process.communicate(timeout=120)
    assert said.endswith('2 of 2 stages are left: the same command goes on\n') and not errors and process.returncode == 0
    for name in ('one', 'two'):
        assert 'seconds' in (tmp_path / 'pieces' / f'{name}.jsonl').read_text().splitlines()[1]


def test_under_nohup_the_end_of_a_terminal_stops_nothing(tmp_path):
    process = started(tmp_path, 'signal.signal(signal.SIGHUP, signal.SIG_IGN)')
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120)[0].endswith('the same command goes on\n')


def results(values, seeds=3):
    """Content of a file of results. values: {(start, measure): accuracies of the seeds}."""
    stages = {f'{measure}_{start}_{seed}': {'figures': {'top1': value}, 'seconds': 10.0, 'cpu_seconds': 10.0, 'machine': 'one'}
              for (start, measure), each in values.items() for seed, value in enumerate(each)}
    return {'cpu': {'seeds': seeds, 'images': 9469, 'validation': 3925, 'fingerprint': 'abc', 'stages': stages}}


def test_means_errors_and_paired_differences():
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3.0 and error == pytest.approx((14 / 2 / 3) ** 0.5)
    content = results({('sparse', 'final_10'): (61.0, 72.0, 86.0), ('scratch', 'final_10'): (60.0, 70.0, 83.0)})
    mean, error, pairs = Results('cpu', content['cpu']).difference('sparse', 'scratch', 'final_10')
    assert mean == 2.0 and error == pytest.approx(1 / 3 ** 0.5) and pairs == [1.0, 2.0, 3.0]
    assert '+2.0 +- 0.6 points (+1.0, +2.0, +3.0): shown at two standard errors, but not at p < 0.05' in page(content)
    assert [verdict(mean, 0.9, 3) for mean in (1.7, -1.7)] == ['not shown', 'not shown']
    assert verdict(2.0, 0.9, 3) == 'shown at two standard errors, but not at p < 0.05'
    assert verdict(-2.0, 0.9, 3) == 'the opposite is shown at two standard errors, but not at p < 0.05'
    assert [verdict(4.0, 0.9, number) for number in (3, 20)] == ['shown (p < 0.05)'] * 2


def test_the_error_over_images_is_that_of_the_mean_over_seeds():
    content = results({('sparse', 'final_10'): (50.0, 75.0, 50.0), ('scratch', 'final_10'): (25.0, 50.0, 50.0)})
    content['cpu']['validation'] = 4
    right = {'sparse': ([1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0]), 'scratch': ([1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1])}
    for start, seeds in right.items():
        for seed, each in enumerate(seeds):
            text = packed(np.array(each, bool))
            assert unpacked(text, 4).tolist() == each
            content['cpu']['stages'][f'final_10_{start}_{seed}']['figures']['right'] = text
    # The differences of the images are 0, 1, 0, 0; then 0, 0, 1, 0; then 0, 0, 1, -1.
    expected = 100 * statistics.stdev([0, 1 / 3, 2 / 3, -1 / 3]) / 2
    assert Results('cpu', content['cpu']).error_over_images('sparse', 'scratch', 'final_10') == pytest.approx(expected)
    assert f'+- {expected:.1f} over the images' in page(content)
    del content['cpu']['stages']['final_10_scratch_2']['figures']['right']
    assert 'over the images' not in page(content)


def test_a_number_of_fewer_than_three_seeds_or_than_planned_is_not_quoted():
    text = page(results({('sparse', 'final_10'): (61.0, 72.0), ('scratch', 'final_10'): (60.0, 70.0, 83.0)}))
    assert '| 71.0 +- 6.7 |' in text and '2 of 3 seeds' in text and '66.5' not in text and 'SparK minus' not in text
    assert '*State*: not finished: 5 of ' in text and '*State*: not run.' in text
    text = page(results({('sparse', 'final_10'): (61.0, 72.0), ('scratch', 'final_10'): (60.0, 70.0)}, seeds=2))
    assert '66.5' not in text and '65.0' not in text and '2 of 3 seeds' in text
    text = page(results({('sparse', 'final_10'): (61.0, 72.0, 86.0), ('scratch', 'final_10'): (60.0, 70.0, 83.0)}, seeds=4))
    assert '+2.0' not in text and 'not finished: 3 of 4 seeds' in text


def test_a_comparison_beside_a_question_does_not_answer_it():
    content = results({('zeroed', 'final_10'): (61.0, 72.0, 86.0), ('scratch', 'final_10'): (60.0, 70.0, 83.0)})
    text = page(content)
    assert '| *hidden pixels zeroed, dense network; equal epochs minus random weights* |  |  |  | +2.0 +- 0.6 |  |' in text
    said = answers(content)
    assert 'zeroed pixels' in said.split('Not measured')[1] and '+2.0' not in said


def test_the_page_is_what_its_results_make():
    """docs/transfer.md and docs/transfer.json are of one making: python -m benchmarks.evidence FOLDER --publish."""
    content = json.loads((ROOT / 'docs' / 'transfer.json').read_text())
    text = (ROOT / 'docs' / 'transfer.md').read_text()
    assert filled(text, content, 'transfer.svg') == text


def test_the_page_says_what_the_scale_has():
    """The sentences on how it is measured are written by hand."""
    text = ' '.join((ROOT / 'docs' / 'transfer.md').read_text().split())
    scale = SCALES['cpu']
    some, few, most = (scale.tuned_epochs[percent] for percent in ('10', '1', '100'))
    width = scale.decoder[0].partition('=')[2]
    for words in (f'{scale.epochs} epochs, the batch (32)', f'a decoder {width} channels wide',
                  'crops of 0.35 to 1 of the area',
                  f'{few}, {some} and {most} epochs with 1, 10 and 100 % of the labels', 'the best of four',
                  'four fifths of the *training* images', '`small_resnet`', 'at 80 px', '**Seeds** 0, 1 and 2'):
        assert words in text
    assert '--batch_size=32' in scale.fine_tuning and '--crop_scale=0.35,1' in scale.fine_tuning and len(scale.rates) == 4
    assert '--model=small_resnet' in scale.network and '--input_size=80' in scale.network


def test_what_a_user_gets_wrong_is_said(tmp_path, capsys, monkeypatch):
    for words, message in (([], r'say where the images are: --data_path=DIR'), (['--data_path=x', '--only=a,z'], 'not a,z'),
                           (['--data_path=x', '--seeds=0'], '--seeds must be 1 or more'),
                           (['--data_path=x', '--jobs=-1'], '--jobs must be 1 or more, not -1'),
                           (['--data_path=x', '--minutes=-2'], '--minutes must be 0 or more')):
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


@pytest.mark.slow  # Two minutes: 53 programs.
def test_questions_a_and_b_on_a_drawn_world(tmp_path, monkeypatch, capsys):
    """From the images to the page through the ordinary commands; a second time none of them runs."""
    tiny = dataclasses.replace(
        SCALES['cpu'], network=('--model=small_resnet', '--input_size=32', '--workers=0'), decoder=('--decoder_width=16',),
        epochs=1, tuned_epochs={'1': 1, '10': 1, '100': 1}, rates=('1e-2', '3e-2'))
    monkeypatch.setitem(evidence.SCALES, 'cpu', tiny)
    monkeypatch.setattr(evidence, 'cpu_is_fast_in', lambda precision: True)
    write_world(tmp_path / 'world', 240, 48, 32, 0)
    words = [str(tmp_path / 'out'), f'--data_path={tmp_path}/world', '--only=a,b', '--seeds=1', '--jobs=2']
    evidence.main([*words, '--plan'])
    said = capsys.readouterr().out
    assert re.search(r'measured here, one program: \d+ images/s in pretraining', said) and 'in all' in said
    evidence.main(words)
    assert 'of 53' in capsys.readouterr().out
    content = json.loads((tmp_path / 'out' / 'results.json').read_text())['cpu']
    assert len(content['stages']) == 53 and content['stages']['sparse_0']['figures']['epoch'] == 1
    assert str(tmp_path) not in json.dumps(content)
    text = (tmp_path / 'out' / 'results.md').read_text()
    assert text.count('*State*: complete.') == 2 and '1 of 3 seeds' in text
    evidence.main(words)
    assert 'of 53' not in capsys.readouterr().out
    evidence_images.main([words[0]])
    said = capsys.readouterr().out
    assert len(re.findall(r'final_10_\w+_0: [\d.]+ % of 48 images', said)) == 4
    evidence_images.main([words[0]])
    assert 'of 48 images' not in capsys.readouterr().out
    file = tmp_path / 'out' / 'records' / 'final_10_sparse_0.json'
    record = json.loads(file.read_text())
    assert unpacked(record['figures'].pop('right'), 48).mean() == pytest.approx(record['figures']['top1'] / 100, abs=1e-4)
    record['figures']['top1'] += 50
    file.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match='% were measured'):
        evidence_images.main([words[0]])
    monkeypatch.setitem(evidence.SCALES, 'cpu', dataclasses.replace(tiny, epochs=2))
    with pytest.raises(SystemExit, match='was run with other options than it has now'):
        evidence.main(words)


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
    assert '## On a CPU\n' in text and '## On a GPU\n' in text and 'Not run: on a CPU, in fp32.' in text
    assert '* (a)' in text and '* Not measured with all seeds yet:\n  * (b) ' in text
    assert 'On a GPU: **SparK minus random weights, 10 % of labels: +1.0 +- 0.6 points (+1.0, +2.0, +0.0): not shown.**' in text
    assert page.with_suffix('.svg').exists() and '](transfer.svg)' in text
    with pytest.raises(SystemExit, match='there is no .*results.json: give the folder of a run'):
        evidence.main([str(tmp_path / 'none'), '--publish'])
    del found['cpu']['stages']['final_10_scratch_0']
    (tmp_path / 'cpu' / 'results.json').write_text(json.dumps(found))
    with pytest.raises(SystemExit, match=r'error: not in .*, but in transfer.json: 1 \(.*\). Run with --known='):
        evidence.main([str(tmp_path / 'cpu'), '--publish'])
    assert page.read_text() == text
