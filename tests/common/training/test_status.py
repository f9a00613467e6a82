"""What the line of a run shows while it trains, by a clock set by hand; and a run in a terminal."""
from types import SimpleNamespace

import pytest

from common.live_facts import composed
from common.training import log
from common.training.status import TrainingStatus
from common.training.unit import Unit
from pretrain.main import pretrain
from tests.terminal import Terminal


@pytest.fixture
def clock():
    return [0.0]


def a_status(clock, epochs=3, per_epoch=5, batch=8, unit=None):
    run = SimpleNamespace(options=SimpleNamespace(epochs=epochs, batch_size=batch), steps=epochs * per_epoch,
                          epochs=epochs, unit=unit or Unit(), per_epoch=per_epoch)
    return TrainingStatus(run, lambda: clock[0])


def told(status, clock):
    """The facts in full."""
    return [forms[0] for forms in status.status(clock[0])[1]]


def test_before_the_first_step_is_done_time_is_seen_to_pass(clock):
    status = a_status(clock)
    status.begin(0)
    for seconds in (0, 1, 31):
        clock[0] = seconds
        assert told(status, clock) == ['epoch 1/3', 'step 0/15', 'first step', f'0:{seconds:02} elapsed']


def test_a_step_of_thirty_seconds(clock):
    """The time left becomes less while it goes on, and not less than what the later steps take."""
    status = a_status(clock)
    status.begin(0)
    clock[0] = 30.0
    status.add(0, 0.5)
    expected = {0.0: '7:00', 1.0: '6:59', 29.0: '6:31', 30.0: '6:30', 90.0: '6:30'}
    for seconds, left in expected.items():
        clock[0] = 30.0 + seconds
        assert told(status, clock)[2:5] == ['loss 0.5000', '0.27 images/s', f'{left} left']


def test_loss_and_speed_are_those_of_the_last_steps_and_time_left_of_all(clock):
    status = a_status(clock, epochs=10, per_epoch=10)
    status.begin(0)
    for step, (seconds, loss) in enumerate([(1.0, 1.0)] * 10 + [(3.0, 0.5)] * 10):
        clock[0] += seconds
        status.add(step, loss)
    share, facts = status.status(clock[0])
    assert share == 0.2
    recent = 3.0 - 2.0 * 0.9 ** 10
    assert [forms[0] for forms in facts] == [
        'epoch 3/10', 'step 20/100', f'loss {0.5 + 0.5 * 0.9 ** 10:.4f}', f'{8 / recent:.2f} images/s', '2:40 left',
        '0:40 elapsed']


@pytest.mark.parametrize('per_round', [1, 5])
def test_iterations_are_the_steps_whose_number_is_shown(clock, per_round):
    status = a_status(clock, per_epoch=per_round, unit=Unit('iteration', 'iterations', per_round))
    assert told(status, clock)[0] == f'step 0/{3 * per_round}'


def test_what_lies_between_steps_and_the_first_steps_of_a_gpu_do_not_count(clock):
    status = a_status(clock)
    status.begin(0)
    clock[0] = 60.0
    status.add(0, 1.0)
    status.forget_speed()
    assert told(status, clock)[2:] == ['loss 1.0000', '1:00 elapsed']
    for step in range(1, 5):
        clock[0] += 1.0
        status.add(step, 1.0)
    clock[0] += 100.0  # images are measured
    status.begin(5)
    assert told(status, clock) == ['epoch 2/3', 'step 5/15', 'loss 1.0000', '8.00 images/s', '0:10 left', '2:44 elapsed']


def test_a_step_that_was_not_finite_has_no_loss(clock):
    status = a_status(clock)
    status.add(0, 0.5)
    status.add(1, None)
    assert status.loss == 0.5 and status.done == 2


@pytest.mark.parametrize(('width', 'text'), [
    (119, 'epoch 1/3  ░░░░░  step 0/15  first step  top-1 71.20 % (EMA 70.30 %) after epoch 2  0:00 elapsed  '
          'waits 12 % for images'),
    (79, 'epoch 1/3 ░░░░░░ step 0/15 first step top-1 71.20 % (EMA 70.30 %) after epoch 2'),
    (39, 'epoch 1/3 ░░░░░░░░░░░░░░░ 0% first step'),
])
def test_what_was_measured_is_shown_with_its_epoch(clock, width, text):
    status = a_status(clock)
    status.measured = 'top-1 71.20 % (EMA 70.30 %)', 2
    status.share_waited = 0.12
    assert composed(*status.status(clock[0]), width, '█░') == text


def test_the_usual_facts_fit_into_eighty_columns_all_of_them(clock):
    status = a_status(clock, epochs=300, per_epoch=313, batch=4096)
    status.begin(313 * 12)
    for step in range(313 * 12, 313 * 12 + 20):
        clock[0] += 1.31
        status.add(step, 0.62134)
    status.measured = 'held-out 0.6301', 10
    assert composed(*status.status(clock[0]), 79, '█░') == \
        'epoch 13/300 ░░░░░ 4% loss 0.6213 held-out 0.6301 (ep 10) 3,127/s 1 d 08 h left'


def test_a_run_in_a_terminal_leaves_its_epochs_as_lines(tiny, tmp_path, monkeypatch):
    """Nothing of the bar is left, on the screen or in the file."""
    terminal = Terminal(150)
    monkeypatch.setattr('sys.stdout', terminal.stream)
    monkeypatch.setattr('common.start.PATIENCE', 600)  # On a slow machine a line would say that the network is being built.
    folder = pretrain(tiny(val_every=1, run_dir=str(tmp_path / 'run')))
    monkeypatch.undo()
    terminal.end()
    seen = [line for line in terminal.lines if line]
    assert [line.split(',')[0].split(': ')[0] for line in seen if line.startswith('epoch')] == ['epoch 1/2', 'epoch 2/2']
    assert (folder / 'stdout_backup.txt').read_text().replace('\n', '') == ''.join(terminal.lines)  # long lines are broken
    bars = [text for text in terminal.drawn if '░' in text]
    assert max(map(len, bars)) < 150 and any(text.startswith('held-out images') for text in bars)
    assert any(text.startswith('epoch 1/2 ') and 'first step' in text and 'held-out' in text for text in bars)


def test_elsewhere_a_run_says_the_same_every_thirty_seconds(tiny, tmp_path, monkeypatch, capsys):
    """By a clock that goes on by ten seconds with each look at it."""
    seconds = iter(range(0, 10 ** 9, 10))
    original = log.LiveLine
    monkeypatch.setattr('common.live_line.REFRESH', 0.001)
    monkeypatch.setattr(log, 'LiveLine', lambda *given: original(*given, now=lambda: next(seconds)))
    folder = pretrain(tiny(val_every=1, run_dir=str(tmp_path / 'run')))
    out = capsys.readouterr().out
    assert out.endswith((folder / 'stdout_backup.txt').read_text())  # what was said before the folder was there, it has not
    lines = [line for line in out.splitlines() if ' elapsed' in line]
    assert any(line.startswith('epoch 2/2, step ') and ', loss ' in line and ' after epoch 1, ' in line
               and ' images/s, ' in line and ' left, ' in line for line in lines)
    assert '\r' not in out and '█' not in out
