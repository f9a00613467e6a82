"""The benchmark that people with a GPU run: its limits, its table, its aims, and all of it on tiny networks."""
import json
import subprocess
import sys
import time

import pytest

from benchmarks import gpu
from benchmarks.gpu import Outcome, Part, aims, chosen, parts_for, run_part, run_parts, table
from benchmarks.gpu_report import Report, read_rows
from tests.conftest import ROOT

WRITE = 'import json, sys; row = {"case": "a case", "text": "a result", "aim": None, "met": None};' \
        'print(json.dumps(row), file=open(sys.argv[-1], "a"), flush=True);'
H200, OTHER = 'NVIDIA H200, torch 2.14', 'NVIDIA A100, torch 2.14'


def test_what_fails_or_hangs_costs_its_own_lines(tmp_path):
    child = 'import subprocess; subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])'
    parts = [Part('works', ('-c', WRITE), 1, 60), Part('fails', ('-c', f'{WRITE}raise ValueError("no luck")'), 1, 60),
             Part('hangs', ('-c', f'print("a sign of life", flush=True); {WRITE}{child}'), 1, 10),
             Part('too long', ('-c', WRITE), 1000, 2000),
             Part('works with what it is given', ('-c', f'import os; assert os.environ["GIVEN"] == "1"; {WRITE}'), 1, 60,
                  {'GIVEN': '1'})]
    seen = []
    began = time.monotonic()
    outcomes = run_parts(parts, 300, tmp_path, lambda outcomes: seen.append(outcomes[-1].part.name))
    assert time.monotonic() - began < 300  # its child was ended, too
    assert seen == [part.name for part in parts]
    problems = [outcome.problem for outcome in outcomes]
    assert problems[0] is None and problems[4] is None
    assert problems[1:3] == ['failed: ValueError: no luck', 'ended after its limit of 10 s']
    assert problems[3].startswith('skipped: it usually takes 1000 s, and 2')
    assert [len(outcome.rows) for outcome in outcomes] == [1, 1, 1, 0, 1]  # what was written before is kept
    assert outcomes[2].said == ('a sign of life',)
    lines = table(outcomes, H200).splitlines()
    assert sum('a case' in line and 'a result' in line for line in lines) == 4
    assert all(any(problem in line for line in lines) for problem in problems if problem)
    assert sum('a sign of life' in line for line in lines) == 1


def test_a_part_ends_with_the_total(tmp_path):
    part = Part('hangs', ('-c', 'import time; time.sleep(60)'), 1, 60)
    outcome, = run_parts([part], 10, tmp_path, lambda outcomes: None)
    assert outcome.problem == 'ended after its limit of 10 s' and outcome.is_wrong


def test_a_part_that_is_ended_says_where_it_was(tmp_path):
    code = ('import time; from benchmarks.gpu_report import say_where_it_ends; say_where_it_ends()\n'
            'def slow(): time.sleep(60)\n'
            'slow()')
    outcome = run_part(Part('hangs', ('-c', code), 1, 60), 15, tmp_path)
    assert any('in slow' in line for line in outcome.said), outcome.said


def test_a_later_row_takes_the_place_of_an_earlier_one(tmp_path):
    with open(tmp_path / 'rows', 'w') as file:
        report = Report(file, time.monotonic() - 100)
        report('compiling', '1 graph', graphs=1)
        report('speed', '3 images/s')
        report('compiling', '2 graphs', graphs=2)
        file.write('{"case": "cut o')
    rows = read_rows((tmp_path / 'rows').read_text())
    assert [(row['case'], row['text']) for row in rows] == [('compiling', '2 graphs'), ('speed', '3 images/s')]
    assert all(row['after'] >= 100 for row in rows) and rows[0]['graphs'] == 2


@pytest.mark.parametrize('device', ['cuda', 'cpu'])
def test_the_important_parts_fit_into_the_total(device):
    for is_quick, number, total in ((True, 5, gpu.QUICK_TOTAL), (False, 6, gpu.TOTAL)):
        parts = parts_for(device, is_quick, 'folder')
        assert sum(part.usual for part in parts[:number]) <= total * gpu.SLOWER[device]
        assert all(part.usual < part.limit for part in parts)
        assert len({part.name for part in parts}) == len(parts) > number
        assert all(('--quick' in part.command) == is_quick for part in parts)
    assert gpu.TOTAL < 360 and gpu.QUICK_TOTAL < 180
    assert sum(part.usual for part in parts_for(device, False, 'folder')) <= 1200 * gpu.SLOWER[device]  # as it is said


def test_parts_are_chosen_by_name():
    parts = parts_for('cuda', False, 'folder')
    names = [part.name for part in chosen(parts, ['fp16', 'compilation resnet50 cold', 'steps', 'compilation'])]
    assert names == ['fp16', 'compilation resnet50 cold', 'steps resnet50', 'steps convnext_base', 'compilation resnet50 warm',
                     'compilation convnext_base cold', 'compilation convnext_base warm']
    with pytest.raises(ValueError, match="'step' is none of .*'steps resnet50'"):
        chosen(parts, ['step'])


def row(case, ms, **more):
    return {'case': case, 'text': '', 'aim': None, 'met': None, 'ms': ms, 'images_per_s': 64000 / ms, **more}


def test_aims():
    steps = Outcome(Part('steps', ('steps', 'resnet50'), 1, 1), [
        row('graph', 34.0, mib=83.0), row('eager', 60.0, mib=83.0), row('supervised, graph', 17.0)])
    compiled = Outcome(Part('compilation', ('compilation', 'resnet50', 'cold'), 1, 1), [
        {'case': 'compiling, cold', 'text': '30 s', 'aim': None, 'met': None}, row('compiled, graph', 20.4, mib=75.0)])

    def found(outcomes, name=H200):
        return [(each['text'], each['met']) for each in aims(outcomes, name)]

    assert found([steps, compiled]) == [('1.20 times', True), ('9.2 times', True), ('75 MiB', True)]
    assert found([steps]) == [('2.00 times', False), ('5.5 times', False), ('83 MiB', True)]
    assert found([compiled], OTHER) == [('9.2 times', None), ('75 MiB', True)]
    assert found([]) == []
    assert ': MISSED]' in table([steps], H200) and ': met]' in table([compiled], H200)


def test_a_gpu_must_be_there(capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(['--device=cuda'])
    assert '--device=cpu' in capsys.readouterr().err


@pytest.mark.slow
def test_all_parts_run_on_tiny_networks(tmp_path):
    command = [sys.executable, '-m', 'benchmarks.gpu', '--device=cpu', '--total=3600', f'--json={tmp_path}/found.json']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / 'found.json').read_text())
    assert [part['problem'] for part in found['parts']] == [None] * len(parts_for('cpu', False, tmp_path))
    rows = [row for part in found['parts'] for row in part['rows']]
    assert all(row['met'] is not False for row in rows), rows
    assert all(row['case'] in done.stdout and row['text'] in done.stdout for row in rows)
