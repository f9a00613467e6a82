"""A run that is asked to stop, or that ends in the middle, goes on to the end of the run that nothing happened to."""
import errno
import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from benchmarks.chaos import VARYING
from common.reliability.checkpoint import read_run
from common.reliability.stopping import STOPPED, Stopped
from common.training.trainer import NotFinite, Trainer
from pretrain.main import pretrain
from pretrain.pretraining import Pretraining
from tests.common.runs import begun, fail, in_step, line_of, spoiled, trains, until
from tests.conftest import ROOT, Stop, assert_same_run, log_of, same, saved


def test_results_that_are_read_later_as_on_a_gpu_change_nothing(tiny, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, 'lag', 2)
    with monkeypatch.context() as patch:
        in_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped) as stopped:
            pretrain(tiny())
    step = saved(tmp_path / 'run')['step']
    assert 7 <= step <= 9 and f'after step {step},' in str(stopped.value)
    pretrain(tiny())
    assert_same_run(tmp_path / 'run', undisturbed)


def test_the_exit_code_of_an_earlier_life_is_forgotten(tiny, tmp_path, monkeypatch):
    (tmp_path / 'code').write_text('69')
    monkeypatch.setenv('RUN_EXIT_CODE_FILE', str(tmp_path / 'code'))
    pretrain(tiny(epochs=1))
    assert (tmp_path / 'code').read_text() == ''


# Signals

@pytest.mark.parametrize(('name', 'step', 'changes'), [
    ('SIGTERM', 2, {}), ('SIGINT', 6, {'workers': 1}), ('SIGUSR1', 4, {}), ('SIGHUP', 9, {}), ('SIGTERM', 7, {'accum': 2}),
])
def test_a_signal_stops_the_run_after_the_step_and_it_goes_on_to_the_same_end(tiny, undisturbed, tmp_path, monkeypatch, capsys,
                                                                              name, step, changes):
    options = tiny(**changes)
    before = signal.getsignal(getattr(signal, name))
    with monkeypatch.context() as patch:
        in_step(patch, step, lambda: os.kill(os.getpid(), getattr(signal, name)))
        with pytest.raises(Stopped, match=f'stopped by {name} after step {step + 1}, which is saved') as stopped:
            pretrain(options)
    assert stopped.value.code == STOPPED  # of a script of the user's own, too
    assert capsys.readouterr().err.count('which is saved: the same command goes on from there\n') == 1
    assert signal.getsignal(getattr(signal, name)) == before
    assert saved(tmp_path / 'run')['step'] == step + 1
    assert 'stopped by' in (tmp_path / 'run/stdout_backup.txt').read_text()
    assert (pretrain(options) / 'your_convnet_1kpretrained.pth').exists()
    if 'accum' not in changes:
        assert_same_run(undisturbed, tmp_path / 'run')


@pytest.mark.parametrize('when', [0, 1])
def test_a_signal_during_an_evaluation_is_heard_and_the_evaluation_done_again(tiny, undisturbed, tmp_path, monkeypatch, when):
    """Before the first step, and after the last one: the log of the run that goes on has every line once."""
    original, calls = Pretraining.held_out_loss, []

    def held_out_loss(self):
        calls.append(1)
        if len(calls) == when + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, 'held_out_loss', held_out_loss)
        with pytest.raises(Stopped):
            pretrain(tiny())
    assert saved(tmp_path / 'run')['step'] == (0, 10)[when]
    pretrain(tiny())
    assert_same_run(undisturbed, tmp_path / 'run')


def test_a_second_signal_ends_a_process_at_once_but_not_an_echo_of_the_first():
    code = """import os, signal, sys, time
from common.reliability import stopping
with stopping.StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    print(stop.asked, flush=True)
    stop.since -= stopping.ECHO
    os.kill(os.getpid(), signal.SIGTERM)
    print('still there', flush=True)"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == 'SIGTERM\n'
    assert 'a second signal ends it at once' in done.stderr


@pytest.mark.parametrize(('raised', 'code'), [("Stopped('said by the log')", 75), ("Unwritten('said by the log')", 74)])
def test_a_script_that_does_not_catch_the_end_exits_with_its_code_and_no_trace(raised, code):
    script = f'from common.reliability.stopping import *\nraise {raised}'
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, '', '')


def test_a_hangup_that_nohup_ignores_stays_ignored():
    code = """import os, signal
from common.reliability.stopping import StopRequest
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    print(stop.asked)"""
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True).stdout == 'None\n'


def test_a_signal_to_all_processes_of_a_job_reaches_the_loading_ones_too(tiny, tmp_path):
    """As SLURM and Ctrl-C send it: the run saves with what its loading processes still give it, and exits with 75."""
    line = line_of(tiny(epochs=2000, workers=1, save_every=2000, val_every=2000))
    process = begun('job', *line, '--ngpu_per_node=1', cwd=tmp_path, start_new_session=True)
    until(lambda: trains(tmp_path / 'output_job'))
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == STOPPED, said
    assert saved(tmp_path / 'output_job')['step'] >= 3 and 'Traceback' not in said


# Ends that are none of a run's making

def test_an_error_with_loading_processes_at_work_ends_the_process(tiny, tmp_path):
    """They ignore one SIGTERM; at its exit Python would send them that, and wait for ever."""
    code = f"""from common.training import trainer
from pretrain.spark_options import SparKOptions as Options
from pretrain.main import pretrain
from pretrain.pretraining import Pretraining
def train_step(*given):
    raise RuntimeError('CUDA error: an illegal memory access')
trainer.train_step = train_step
pretrain(Options(**{tiny(workers=1).as_dict()!r}))"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and 'illegal memory access' in done.stderr


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving(tiny, tmp_path, monkeypatch):
    screen, behind = pty.openpty()
    seen, write = [], os.write
    monkeypatch.setattr(sys, 'stdout', open(behind, 'w'))  # noqa: SIM115 (nobody could close it: its end is gone)
    monkeypatch.setattr(os, 'write', lambda file, text: fail(errno.EIO) if file == 2 and seen else write(file, text))

    def hang_up():
        seen.append(os.read(screen, 2 ** 16).decode())
        os.close(screen)
        os.kill(os.getpid(), signal.SIGHUP)

    in_step(monkeypatch, 6, hang_up)
    with pytest.raises(Stopped):
        pretrain(tiny())
    assert 'first step' in seen[0] and saved(tmp_path / 'run')['step'] == 7


def test_a_kill_behind_the_last_line_of_an_epoch_does_not_write_it_twice(tiny, undisturbed, tmp_path, monkeypatch):
    """The clock has saved the last step of the epoch; the line is written; then comes the kill."""
    from common.training.session import Session
    save_state, options = Session.save, tiny(save_every_minutes=1e-6)

    def only_at_the_end_of_steps(self, step, content):
        if step == 5 and (self.run.folder / 'pretrain_log.txt').read_text().count('"epoch"') == 2:
            self.writer.wait()
            raise Stop
        save_state(self, step, content)

    with monkeypatch.context() as patch:
        patch.setattr(Session, 'save', only_at_the_end_of_steps)
        with pytest.raises(Stop):
            pretrain(options)
    assert saved(tmp_path / 'run')['step'] == 5 and [line['epoch'] for line in log_of(tmp_path / 'run')[0]] == [0, 1]
    assert_same_run(undisturbed, pretrain(options))


def test_a_job_that_is_requeued_with_fresh_goes_on(tiny, tmp_path, monkeypatch):
    options = tiny(fresh=True)
    with monkeypatch.context() as patch:
        in_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Stopped):
            pretrain(options)
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    pretrain(options)
    assert [run['step'] for run in log_of(tmp_path / 'run')[1]] == [0, 7] and not (tmp_path / 'run_old1').exists()


# The same for fine-tuning

def test_fine_tuning_is_stopped_skips_and_goes_on_through_the_same_code(world, tmp_path, monkeypatch):
    from downstream_imagenet.config import Options as FineTuning
    from downstream_imagenet.main import fine_tune

    def tune(name, **changes):
        return fine_tune(FineTuning(run_dir=str(tmp_path / name), data_path=str(world), model='your_convnet', input_size=32,
                                    batch_size=8, epochs=3, lr=1e-2, warmup_epochs=1, workers=0, ema=0.9, **changes))

    def end_of(folder):
        state = read_run(folder / 'your_convnet_1kfinetuned_last.pth')
        lines = [json.loads(line) for line in (folder / 'finetune_log.txt').read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in VARYING} for line in lines if 'epoch' in line], \
            [state[key] for key in ('step', 'model', 'ema', 'optimizer', 'best', 'sums')]

    whole = tune('whole')
    with monkeypatch.context() as patch:
        in_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            tune('cut')
    assert read_run(tmp_path / 'cut/your_convnet_1kfinetuned_last.pth')['step'] == 6
    assert same(end_of(tune('cut')), end_of(whole))
    spoiled(monkeypatch, {2, 3})
    with pytest.raises(NotFinite, match='steps 2 to 3'):
        tune('bad', max_skips=2)
    assert read_run(tmp_path / 'bad/your_convnet_1kfinetuned_last.pth')['step'] == 2
