"""What clusters, disks and numbers do to a run, and that it equals the run that nothing happened to."""
import dataclasses
import errno
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from benchmarks.chaos import VARYING, chaos, is_alive, ranks_of
from common.distributed import Ranks
from common.reliability import checkpoint, writer
from common.reliability.checkpoint import (
    CannotWrite,
    earlier,
    load_run,
    read_plain,
    read_run,
    save,
    save_checkpoint,
    write_atomically,
)
from common.reliability.heartbeat import TRAINING, Heartbeat
from common.reliability.stopping import STOPPED, Stopped, Unwritten
from common.reliability.writer import Writer
from common.training import trainer
from common.training.finetuning import Average
from common.training.run import Run
from common.training.trainer import NotFinite
from pretrain.main import pretrain
from pretrain.pretraining import Pretraining
from pretrain.spark_method import SparKOptions as Options
from tests.conftest import ROOT, Stop, assert_same_run, flags, log_of, main_sh, same, saved, stop_after

NAME = 'your_convnet_still_pretraining'
ALONE = Ranks(0, 1, torch.device('cpu'))


@pytest.fixture(autouse=True)
def without_nohup():
    """Under nohup, SIGHUP is ignored, by our runs too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope='module')
def undisturbed(world, tmp_path_factory):
    """The folder of a run of 10 steps that nothing happened to; tests do not touch it."""
    from tests.conftest import TINY
    return pretrain(Options(**TINY, run_dir=str(tmp_path_factory.mktemp('undisturbed') / 'run'), data_path=str(world)))


def in_step(monkeypatch, number, act):
    """Have act() called at the beginning of the step of that number (counted from 0, in this process)."""
    original, count = trainer.train_step, []

    def train_step(*arguments):
        count.append(1)
        if len(count) == number + 1:
            act()
        return original(*arguments)

    monkeypatch.setattr(trainer, 'train_step', train_step)


def spoiled(monkeypatch, steps):
    """Make the images of these steps (counted in this process) not finite."""
    original, count = trainer.train_step, []

    def train_step(model, parts, *rest):
        bad = float('nan') if len(count) in steps else 1
        count.append(1)
        return original(model, ((images * bad, visible) for images, visible in parts), *rest)

    monkeypatch.setattr(trainer, 'train_step', train_step)
    return count


# Checkpoints

def test_the_last_checkpoints_stay_and_those_of_every_so_many_epochs_for_good(tiny):
    folder = pretrain(tiny(epochs=6, save_every_steps=2, keep=3, keep_every=2, val_every=6))
    assert sorted(earlier(folder / f'{NAME}.pth')) == [10, 20, 26, 28] and saved(folder)['step'] == 30
    assert read_run(folder / f'{NAME}_step20.pth')['step'] == 20
    folder = pretrain(tiny(run_dir=str(folder.with_name('one')), keep=1))
    assert not earlier(folder / f'{NAME}.pth')


def test_a_file_system_without_links_keeps_checkpoints_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'link', lambda *paths: _fail(errno.EPERM))
    path = tmp_path / 'a.pth'
    for step in (1, 2, 3):
        save_checkpoint(path, {'step': step}, step - 1 or None, keep=2)
    assert earlier(path) == {2: tmp_path / 'a_step2.pth'} and read_plain(tmp_path / 'a_step2.pth') == {'step': 2}


def test_checkpoints_by_the_clock(tiny):
    folder = pretrain(tiny(save_every_minutes=1e-6, keep=100, save_every=2))
    assert sorted(earlier(folder / f'{NAME}.pth')) == list(range(1, 10))


def test_what_is_written_is_flushed_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace', 'link'):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, original=original: (calls.append(name), original(*given))[1])
    (tmp_path / 'a').write_bytes(b'old')
    write_atomically(tmp_path / 'a', lambda file: file.write(b'new'), tmp_path / 'before')
    assert calls == ['fsync', 'link', 'replace', 'fsync']  # the file; names; the folder
    assert (tmp_path / 'a').read_bytes() == b'new' and (tmp_path / 'before').read_bytes() == b'old'


def test_training_goes_on_while_a_checkpoint_is_written(tiny, monkeypatch, undisturbed, tmp_path):
    """The first write is held until the run has gone a step further; what it writes is the state at its own step."""
    further, original, steps = threading.Event(), checkpoint.save, []

    def slow(path, content, *rest):
        if content.get('step') == 5:
            assert further.wait(60)
            assert len(steps) > 5
        original(path, content, *rest)

    monkeypatch.setattr(checkpoint, 'save', slow)
    in_step(monkeypatch, 6, further.set)
    in_step(monkeypatch, -1, None)
    counting = trainer.train_step
    monkeypatch.setattr(trainer, 'train_step', lambda *given: (steps.append(1), counting(*given))[1])
    folder = pretrain(tiny())
    assert_same_run(undisturbed, folder)
    one, other = (read_run(run / f'{NAME}_step5.pth') for run in (undisturbed, folder))
    assert same(one['model'], other['model']) and same(one['optimizer'], other['optimizer'])


def test_an_error_in_the_writing_thread_ends_the_run_as_it_is(tiny, monkeypatch):
    monkeypatch.setattr(checkpoint, 'save', lambda *given: _raise(MemoryError('no memory for the copy')))
    with pytest.raises(MemoryError, match='no memory for the copy'):
        pretrain(tiny())


def flip(path, position, bit=1):
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


@pytest.mark.parametrize('damage', [
    lambda path: path.write_bytes(b''), lambda path: os.truncate(path, path.stat().st_size // 2),
    lambda path: flip(path, path.stat().st_size // 2), lambda path: path.write_bytes(b'\0' * 5000),
])
def test_a_damaged_checkpoint_is_skipped_and_the_one_before_is_used(tiny, undisturbed, tmp_path, monkeypatch, capsys, damage):
    options = tiny(save_every_steps=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stop):
            pretrain(options)
    newest = tmp_path / f'run/{NAME}.pth'
    assert read_run(newest)['step'] == 8
    damage(newest)
    pretrain(options)
    said = capsys.readouterr()
    assert f'It is {NAME}_damaged.pth now' in said.err and 'going on from step 6' in said.out
    assert (tmp_path / f'run/{NAME}_damaged.pth').exists()
    assert_same_run(undisturbed, tmp_path / 'run')


def test_nothing_whole_is_an_error_and_nothing_is_touched(undisturbed, tmp_path, tiny):
    shutil.copytree(undisturbed, tmp_path / 'run')
    for file in (tmp_path / 'run').glob(f'{NAME}*.pth'):
        os.truncate(file, 100)
    before = sorted(path.name for path in (tmp_path / 'run').iterdir())
    with pytest.raises(ValueError, match=f'{NAME}.pth is damaged.*--fresh'):
        pretrain(tiny())
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == before


def fuzz(folder, number, seed):
    """Truncate the newest checkpoint or flip a bit of it, so many times; what load_run makes of each.

    Every one must be read as it was, or the one before it be taken; 'read' and 'before' are counted.
    """
    newest, old = folder / f'{NAME}.pth', folder / f'{NAME}_step5.pth'
    whole, contents = newest.read_bytes(), [read_run(newest), read_run(old)]
    rng, counts = random.Random(seed), {'read': 0, 'before': 0}
    for i in range(number):
        # A third cut off; a third with a bit flipped anywhere, a third near the end, where the directory of the archive is.
        if i % 3 == 0:
            damaged = whole[:rng.randrange(len(whole))]
        else:
            at = rng.randrange(len(whole)) if i % 3 == 1 else len(whole) - 1 - rng.randrange(20_000)
            damaged = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:]
        newest.write_bytes(damaged)
        found = load_run(None, newest, ALONE)
        which = 'before' if found['path'] == str(old) else 'read'
        assert same({key: value for key, value in found.items() if key not in ('path', 'own', 'damaged')},
                    contents[which == 'before']), i
        counts[which] += 1
    return counts


def test_a_sample_of_damages_never_leads_to_a_wrong_resume(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / 'run')
    counts = fuzz(tmp_path / 'run', 60, seed=0)
    assert counts['before'] >= 35 and sum(counts.values()) == 60


@pytest.mark.slow
def test_a_thousand_damages_never_lead_to_a_wrong_resume(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / 'run')
    counts = fuzz(tmp_path / 'run', 1000, seed=1)
    print(counts)
    assert counts['before'] >= 600 and sum(counts.values()) == 1000


def test_versions(undisturbed, tmp_path, tiny, monkeypatch):
    content = read_run(undisturbed / f'{NAME}_step5.pth')
    (tmp_path / 'run').mkdir()
    save(tmp_path / f'run/{NAME}.pth', {**content, 'version': 3})
    with pytest.raises(ValueError, match='written by a later version of this program'):
        pretrain(tiny())
    first = {key: content[key] for key in ('step', 'sums', 'images', 'accum', 'ranks', 'config', 'model', 'optimizer')}
    first['config'] = {key: value for key, value in first['config'].items() if key not in ('keep', 'max_skips', 'rewind')}
    save(tmp_path / f'run/{NAME}.pth', {'version': 1, **first})  # as before there were fingerprints
    folder = pretrain(tiny())
    assert same(saved(folder)['model'], saved(undisturbed)['model'])


def test_too_little_space_is_an_error_before_the_start(tiny, monkeypatch):
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1_000_000))
    with pytest.raises(ValueError, match=r'0\.00 GB of free space; a checkpoint takes 0\.00 GB, .* room for 3'):
        pretrain(tiny())
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=50_000_000))
    pretrain(tiny(epochs=1))


# Disks that are full, read-only or gone

def _raise(error):
    raise error


def _fail(number):
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_training_goes_on_when_the_disk_fails_and_writes_again_when_it_does_not(tiny, undisturbed, monkeypatch, capsys, number):
    """From the first save to the last step nothing can be flushed to the disk."""
    flush, broken = os.fsync, []
    monkeypatch.setattr(writer, 'RETRY', 0.0)
    monkeypatch.setattr(os, 'fsync', lambda file: _fail(number) if broken else flush(file))
    in_step(monkeypatch, 3, lambda: broken.append(1))
    in_step(monkeypatch, 9, broken.clear)
    folder = pretrain(tiny(save_every_steps=2))
    assert_same_run(undisturbed, folder)
    said = capsys.readouterr().err
    assert f'{os.strerror(number)}. ' in said and 'The run goes on' in said and 'is written now' in said
    assert 'Traceback' not in said and not list(folder.glob('.*writing'))


def test_the_exit_tells_that_the_last_state_could_not_be_written(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, 'END_PATIENCE', 0.1)
    monkeypatch.setattr(writer, 'RETRY', 0.05)
    flush = os.fsync
    in_step(monkeypatch, 7, lambda: monkeypatch.setattr(os, 'fsync', lambda file: _fail(errno.ENOSPC)))
    with pytest.raises(Unwritten, match='come to its end, but its last files could not be written'):
        pretrain(tiny())
    monkeypatch.setattr(os, 'fsync', flush)
    assert saved(tmp_path / 'run')['step'] == 5  # what was there is there
    pretrain(tiny())
    assert saved(tmp_path / 'run')['step'] == 10 and [line['epoch'] for line in log_of(tmp_path / 'run')[0]] == [0, 1, 2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    where = tmp_path / 'disk'
    where.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', str(where)]
    if sys.platform != 'linux' or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('no right to mount a small file system here; test_training_goes_on_when_the_disk_fails injects the errors')
    yield where
    subprocess.run(['umount', '-l', str(where)], capture_output=True)


def test_a_disk_that_is_really_full_and_one_that_is_gone(tiny, undisturbed, monkeypatch, small_disk, capsys):
    where = small_disk
    monkeypatch.setattr(writer, 'RETRY', 0.0)
    big, at_work, submit = where / 'of_others', [], ThreadPoolExecutor.submit

    def watched(self, *arguments):
        at_work.append(submit(self, *arguments))
        return at_work[-1]

    monkeypatch.setattr(ThreadPoolExecutor, 'submit', watched)

    def fill():
        wait(at_work)  # a save that is under way would end by removing an old checkpoint: room for all that follow
        with pytest.raises(OSError, match='No space left'), big.open('wb', buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass

    in_step(monkeypatch, 3, fill)
    in_step(monkeypatch, 6, big.unlink)
    folder = pretrain(tiny(run_dir=str(where / 'run'), save_every_steps=1))
    said = capsys.readouterr().err
    assert 'No space left' in said and 'is written now' in said and 'Traceback' not in said
    assert_same_run(undisturbed, folder)

    monkeypatch.undo()
    monkeypatch.setattr(trainer, 'END_PATIENCE', 0.1)
    in_step(monkeypatch, 6, lambda: subprocess.run(['umount', '-l', str(where)], check=True))
    with pytest.raises(Unwritten, match='make room there'):
        pretrain(tiny(run_dir=str(where / 'gone'), save_every_steps=1))
    assert not (where / 'gone').exists()  # and nothing is written to where the mount was


def test_one_that_failed_gives_way_to_the_next_for_the_same_path(monkeypatch):
    """The writer's memory is bounded, its order kept."""
    done, said = [], []

    def failing():
        raise CannotWrite('cannot write a')
    one = Writer(lambda: None, said.append)
    one.put('a', failing)
    one.put('b', lambda: done.append('b'))
    one.put('a', lambda: done.append('a'))
    one.wait()
    assert done == ['b', 'a'] and not one.pending and len(said) == 2
    one.put('a', failing)
    assert not one.close() and said[2].startswith('cannot write a')


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
    """Before the first step, and behind the last one: the log of the run that goes on has every line once."""
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


def begun(name, *arguments, cwd, **more):
    """bash pretrain/main.sh, running."""
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(['bash', str(ROOT / 'pretrain/main.sh'), name, *arguments], cwd=cwd, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.02)


def trains(folder):
    """Whether the first step is done, or the first steps are."""
    said = folder / 'stdout_backup.txt'
    return said.exists() and begins(said.read_text())


def begins(text):
    return re.search(r'The first (step|\d+ steps) took', text) is not None


def line_of(options):
    return [flag for flag in flags(options) if not flag.startswith('--run_dir')]


def test_a_signal_to_all_processes_of_a_job_reaches_the_loading_ones_too(tiny, tmp_path):
    """As SLURM and Ctrl-C send it: the run saves with what its loading processes still give it, and exits with 75."""
    line = line_of(tiny(epochs=2000, workers=1, save_every=2000, val_every=2000))
    process = begun('job', *line, '--ngpu_per_node=1', cwd=tmp_path, start_new_session=True)
    until(lambda: trains(tmp_path / 'output_job'))
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == STOPPED, said
    assert saved(tmp_path / 'output_job')['step'] >= 3 and 'Traceback' not in said


# Other numbers of ranks

def test_four_ranks_become_three(tiny):
    def run(batch, ranks, accum, saved=None):
        return Run(tiny(batch_size=batch, accum=accum), Ranks(0, ranks, torch.device('cpu')), 40).parts(saved)
    assert run(24, 4, 2) == 2 and run(24, 3, 2, {'ranks': 4, 'accum': 2}) == 2
    assert run(12, 4, 3) == 3 and run(12, 3, 3, {'ranks': 4, 'accum': 3}) == 4  # 4 images a rank are not cut into 3 parts
    assert run(24, 3, 'auto', {'ranks': 3, 'accum': 8}) == 8 and run(24, 3, 'auto', {'ranks': 4, 'accum': 8}) is None
    with pytest.raises(ValueError, match='16 images cannot be divided among 3 ranks: give --bs=15 or --bs=18; or, to go on '
                                         'with a run of that batch, start 2 or 4 processes'):
        run(16, 3, 1, {'ranks': 4, 'accum': 1})
    with pytest.raises(ValueError, match='12 images cannot be divided among 3 ranks in 3 parts each: give --bs=9 or --bs=18'):
        run(12, 3, 3)


# Ends that are none of a run's making

def test_an_error_with_loading_processes_at_work_ends_the_process(tiny, tmp_path):
    """They ignore one SIGTERM; at its exit Python would send them that, and wait for ever."""
    code = f"""from common.training import trainer
from pretrain.spark_method import SparKOptions as Options
from pretrain.main import pretrain
from pretrain.pretraining import Pretraining
def train_step(*given):
    raise RuntimeError('CUDA error: an illegal memory access')
trainer.train_step = train_step
pretrain(Options(**{tiny(workers=1).as_dict()!r}))"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and 'illegal memory access' in done.stderr


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving(tiny, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        gone = False

        def isatty(self):
            return True

        def write(self, text):
            return _fail(errno.EIO) if self.gone else super().write(text)

    terminal, write = Terminal(), os.write
    monkeypatch.setattr(sys, 'stdout', terminal)
    monkeypatch.setattr(os, 'write', lambda file, text: _fail(errno.EIO) if file == 2 and terminal.gone else write(file, text))

    def hang_up():
        terminal.gone = True
        os.kill(os.getpid(), signal.SIGHUP)

    in_step(monkeypatch, 6, hang_up)
    with pytest.raises(Stopped):
        pretrain(tiny())
    assert 'step 3/10' in terminal.getvalue() and saved(tmp_path / 'run')['step'] == 7


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


# Numbers that are none

def test_a_step_that_is_not_finite_is_left_out_and_the_run_goes_on(tiny, tmp_path, monkeypatch, capsys):
    states = {}
    original = trainer.train_step

    def watched(model, parts, accum, optimizer, *rest):
        states[len(states)] = {key: value.clone() for key, value in model.state_dict().items()}
        return original(model, parts, accum, optimizer, *rest)

    monkeypatch.setattr(trainer, 'train_step', watched)
    spoiled(monkeypatch, {3, 6, 7})
    folder = pretrain(tiny(log_every=1))
    assert same(states[3], states[4]) and same(states[6], states[8]) and not same(states[4], states[5])
    epochs = log_of(folder)[0]
    assert [line.get('skipped') for line in epochs] == [None, 1, 2] and all(line['loss'] < 1.3 for line in epochs[1:])
    said = capsys.readouterr().err
    assert said.count('not finite') == 3 and 'at a learning rate of' in said and '.png' in said
    skipped = [json.loads(line) for line in (folder / 'pretrain_log.txt').read_text().splitlines() if 'skipped": [' in line]
    assert [line['skipped'] for line in skipped] == [[3], [6], [7]] and len(skipped[0]['images']) == 5


def test_too_many_in_a_row_stop_the_run_in_its_last_good_state(tiny, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoiled(patch, {1, 7, 8, 9})
        with pytest.raises(NotFinite, match=r'steps 7 to 9, 3 of them, were not finite: in the last one the loss was nan .* at '
                                            r'a learning rate of .*\.png.* the state at step 7 is saved'):
            pretrain(tiny(max_skips=3))
    state = saved(tmp_path / 'run')
    assert state['step'] == 7 and state['sums'][2] == 2 and all(v.isfinite().all() for v in state['model'].values())
    pretrain(dataclasses.replace(tiny(), lr=1e-3, clip_grad=1.0))  # the remedies that the error names
    epochs = log_of(tmp_path / 'run')[0]
    assert saved(tmp_path / 'run')['step'] == 10 and [line.get('skipped') for line in epochs] == [None, 1, 0]


def test_a_row_over_the_end_of_an_epoch_is_taken_back_to_its_beginning(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoiled(patch, {4, 5, 6})
        with pytest.raises(NotFinite, match='steps 4 to 6.* the state at step 5 is saved'):
            pretrain(tiny(max_skips=3))
    pretrain(tiny(max_skips=3))
    assert [line.get('skipped') for line in log_of(tmp_path / 'run')[0]] == [None, 1, 0]


def test_rewinding_goes_on_without_the_images_that_did_it(tiny, tmp_path, monkeypatch, capsys):
    """Steps 6 and 7 are bad whenever they come; the run goes back to step 5, and on without them."""
    draw, drawn = Pretraining.draw_visible, []
    original = trainer.train_step

    def train_step(model, parts, *rest):
        return original(model, ((images * (float('nan') if drawn[-1] in (6, 7) else 1), visible) for images, visible in parts),
                        *rest)

    monkeypatch.setattr(Pretraining, 'draw_visible', lambda self, *given: (drawn.append(*given), draw(self, *given))[1])
    monkeypatch.setattr(trainer, 'train_step', train_step)
    folder = pretrain(tiny(rewind=True, max_skips=2))
    assert drawn == [*range(8), 5, 8, 9] and saved(folder)['left_out'] == ((6, 8),)
    epochs, runs = log_of(folder)
    assert [line['epoch'] for line in epochs] == [0, 1, 2] and [line['step'] for line in runs] == [0, 5]
    assert 'the steps 6 to 7 are left out' in capsys.readouterr().err
    monkeypatch.undo()
    pretrain(tiny(run_dir=str(tmp_path / 'other'), rewind=True))
    assert not same(saved(tmp_path / 'other')['model'], saved(folder)['model'])


def test_a_stop_counts_more_than_going_back(tiny, tmp_path, monkeypatch):
    spoiled(monkeypatch, {6, 7})
    in_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match='after step 8'):
        pretrain(tiny(rewind=True, max_skips=2))
    assert saved(tmp_path / 'run')['step'] == 8 and saved(tmp_path / 'run')['skipped'] == 2


def test_rewinding_ends(tiny, monkeypatch):
    spoiled(monkeypatch, range(1, 10_000))
    with pytest.raises(NotFinite):
        pretrain(tiny(rewind=True, max_skips=1))


def test_the_average_of_the_weights_stays_where_a_step_is_called_off():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    average, theirs = Average(net, decay=0.9), Average(net, decay=0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    before = {key: value.clone() for key, value in average.module.state_dict().items()}
    average.update(net, torch.tensor(0.0))
    assert same(dict(average.module.state_dict()), before)
    average.update(net, torch.tensor(1.0))
    super(Average, theirs).update(net)
    for one, other in zip(average.module.state_dict().values(), theirs.module.state_dict().values()):
        torch.testing.assert_close(one, other)


# Data that changed

def test_data_that_changed_are_refused_or_allowed(tiny, world, tmp_path, monkeypatch, capsys):
    shutil.copytree(world, tmp_path / 'data')
    options = tiny(data_path=str(tmp_path / 'data'))
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(options)
    image = sorted((tmp_path / 'data/train').rglob('*.png'))[0]
    image.rename(image.with_name('another_name.png'))
    with pytest.raises(ValueError, match='the 40 training images have other names or sizes than then.*--allow_changed_data'):
        pretrain(options)
    pretrain(dataclasses.replace(options, allow_changed_data=True))
    assert 'are not those of before' in capsys.readouterr().err and saved(tmp_path / 'run')['step'] == 10


def test_so_few_images_that_nothing_would_be_left_are_refused(tiny, world, tmp_path):
    shutil.copytree(world, tmp_path / 'data')
    options = tiny(data_path=str(tmp_path / 'data'))
    pretrain(options)
    for image in sorted((tmp_path / 'data/train').rglob('*.png'))[10:]:
        image.unlink()
    with pytest.raises(ValueError, match='is of step 10; with 10 images the run has 4 steps only'):
        pretrain(dataclasses.replace(options, allow_changed_data=True))


# Stalls

def test_the_watch_says_which_rank_the_others_wait_for(tmp_path):
    said, now = [], time.time()
    ranks = Ranks(0, 4, torch.device('cpu'))
    watch = Heartbeat(tmp_path, ranks, 30, said.append, None)
    watch.now(TRAINING)
    watch.write()
    about = {'host': 'node7', 'pid': 4711, 'step': 56}
    for rank, doing, since, sign in ((1, TRAINING, 300, 5), (2, TRAINING, 300, 300), (3, 'waiting for the images', 200, 5)):
        (tmp_path / f'heartbeat/rank_{rank:05}.json').write_text(
            json.dumps({'rank': rank, 'doing': doing, 'since': now - since, 'time': now - sign, **about}))
    first, second, third = watch.describe_ranks().split('; ')
    assert first.startswith('rank 2 (process 4711 on node7) has given no sign of life for 300 s')
    assert second.startswith('rank 3') and 'is waiting for the images since 200 s, the last step done being 56' in second
    assert third.startswith('rank 0') and 'and 1 more is in the computation since 0 s' in third
    assert third.endswith('no step done yet, which waits for the device or for the other ranks')


def test_a_process_without_progress_is_ended_by_its_watch_but_not_one_that_was_stopped_itself(tmp_path):
    """Patience 3 s. The first process hangs; the second is stopped for longer than that, and then goes on."""
    code = f"""import sys, time
from pathlib import Path
from types import SimpleNamespace
from common.reliability.heartbeat import Heartbeat
with Heartbeat(Path({str(tmp_path)!r}), SimpleNamespace(rank=0, size=1, is_main=True), 0.05,
           lambda text: print(text, flush=True), None) as watch:
    print('begun', flush=True)
    for i in range(int(sys.argv[1])):
        time.sleep(0.1)
        watch.now('working')
    time.sleep(float(sys.argv[2]))"""
    hanging, stopped = (subprocess.Popen([sys.executable, '-c', code, *given], cwd=ROOT, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, text=True) for given in (('1', '600'), ('30', '0')))
    assert stopped.stdout.readline() == 'begun\n'
    stopped.send_signal(signal.SIGSTOP)
    said = hanging.communicate(timeout=600)
    assert hanging.returncode == 69 and re.search(r'no progress for \d\.\d minutes \(--stall_minutes\); rank 0', said[1])
    assert 'no progress for' in said[0]  # the warning before
    time.sleep(2)
    stopped.send_signal(signal.SIGCONT)
    assert stopped.wait(120) == 0


def test_processes_whose_launcher_is_gone_stop(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'x')
    asked, parent = [], os.getppid()
    watch = Heartbeat(tmp_path, ALONE, 30, print, asked.append)
    watch.pause = 0.01
    monkeypatch.setattr(os, 'getppid', lambda: parent + 1)
    with watch:
        until(lambda: asked)
    assert asked[0] == 'the end of torchrun'


# Processes, launchers, clusters

def losses_of(folder):
    """{step: loss} as TensorBoard has them, with --log_every=1.

    Files begun in one second are read by their number in the process, as text: 10 before 9, which must purge nothing.
    """
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(folder / 'tensorboard_log'), {'scalars': 0}, purge_orphaned_data=False).Reload()
    return {event.step: event.value for event in events.Scalars('loss')}


@pytest.mark.slow
def test_one_rank_becomes_two_and_two_become_one_in_the_middle_of_an_epoch(tiny, tmp_path, monkeypatch):
    """The same images, masks and order: losses are equal to rounding. Two processes are stopped by a signal, code 75."""
    options = tiny(epochs=20, batch_size=4, log_every=1, val_every=20, picture_every=0, save_every=20,
                   run_dir=str(tmp_path / 'output_many'))
    with monkeypatch.context() as patch:
        in_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            pretrain(options)
    shutil.copytree(tmp_path / 'output_many', tmp_path / 'alone')
    alone = losses_of(pretrain(dataclasses.replace(options, run_dir=str(tmp_path / 'alone'))))
    process = begun('many', *line_of(options), '--ngpu_per_node=2', cwd=tmp_path)
    until(lambda: begins((tmp_path / 'output_many/stdout_backup.txt').read_text().partition('2 ranks')[2]))
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == STOPPED and 'Traceback' not in said, said
    stopped = saved(tmp_path / 'output_many')['step']
    assert 5 <= stopped < 200
    pretrain(options)
    many = losses_of(tmp_path / 'output_many')
    assert many.keys() == alone.keys() == set(range(1, 201))
    for step in range(5, 8):  # two ranks after one
        assert many[step] == pytest.approx(alone[step], rel=1e-5)
    assert many[stopped + 1] == pytest.approx(alone[stopped + 1], rel=2e-2)  # by then roundings have grown
    runs = log_of(tmp_path / 'output_many')[1]
    assert [(run['step'], run['ranks']) for run in runs] == [(0, 1), (4, 2), (stopped, 1)]


@pytest.mark.slow
def test_four_processes_become_three(tiny, tmp_path):
    """24 images in 2 parts: 3 a rank and part, then 4; in 4 parts, which 8 images a rank can be cut into and 6 cannot, more."""
    options = tiny(epochs=40, batch_size=24, accum=2, log_every=1, val_every=40, picture_every=0)
    process = begun('x', *line_of(options), '--ngpu_per_node=4', cwd=tmp_path)
    until(lambda: trains(tmp_path / 'output_x'))
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == STOPPED, said
    stopped = saved(tmp_path / 'output_x')['step']
    for name in ('four', 'three'):
        shutil.copytree(tmp_path / 'output_x', tmp_path / f'output_{name}')
    losses = []
    for name, ranks in (('four', 4), ('three', 3)):
        done = main_sh(name, *line_of(options), f'--ngpu_per_node={ranks}', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        losses.append(losses_of(tmp_path / f'output_{name}'))
    for step in range(stopped + 1, min(stopped + 4, 81)):  # BatchNorm is shared by the ranks and sees the parts of all
        assert losses[1][step] == pytest.approx(losses[0][step], rel=1e-4)


@pytest.mark.slow
def test_a_killed_rank_ends_the_group_and_torchrun_starts_it_again(tiny, tmp_path):
    options = tiny(epochs=20, save_every_steps=1, val_every=20, picture_every=0)
    whole = main_sh('whole', *line_of(options), '--ngpu_per_node=2', cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = begun('cut', *line_of(options), '--ngpu_per_node=2', '--max_restarts=2', cwd=tmp_path)
    until(lambda: trains(tmp_path / 'output_cut'))
    first = ranks_of(process.pid)
    os.kill(first[-1], signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in first))
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert_same_run(tmp_path / 'output_whole', tmp_path / 'output_cut')
    assert len(log_of(tmp_path / 'output_cut')[1]) == 2


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_and_the_run_ends(tiny, tmp_path):
    options = tiny(epochs=4000, val_every=4000, picture_every=0, save_every=4000, stall_minutes=0.25)
    process = begun('x', *line_of(options), '--ngpu_per_node=2', cwd=tmp_path)
    until(lambda: trains(tmp_path / 'output_x'))
    victim = ranks_of(process.pid)[1]
    os.kill(victim, signal.SIGSTOP)
    said, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert f'(process {victim} on ' in said and 'has given no sign of life for' in said and '(--stall_minutes)' in said
    assert not is_alive(victim)


@pytest.mark.slow
def test_slurm_puts_a_job_that_was_stopped_into_the_queue_again(tiny, tmp_path):
    """srun and scontrol are stood in for; the signal comes to the step's process group, as SLURM sends it."""
    tools = tmp_path / 'tools'
    tools.mkdir()
    (tools / 'scontrol').write_text('#!/bin/sh\nif [ "$1" = show ]; then echo localhost; else echo "$@" >> "$SAID"; fi\n')
    (tools / 'srun').write_text(f'#!{sys.executable}\n' + """import os, subprocess, sys
step = subprocess.Popen([word for word in sys.argv[1:] if not word.startswith('--cpus-per-task')], start_new_session=True)
open(os.environ['STEP'], 'w').write(str(step.pid))
sys.exit(step.wait())
""")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tools}:{os.environ["PATH"]}', 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1',
                   'SAID': str(tmp_path / 'said'), 'STEP': str(tmp_path / 'step'), 'SLURM_SUBMIT_DIR': str(ROOT),
                   'SLURM_JOB_NODELIST': 'node', 'SLURM_CPUS_PER_TASK': '1', 'SLURM_NNODES': '1', 'SLURM_GPUS_ON_NODE': '2',
                   'SLURM_NODEID': '0', 'SLURM_JOB_ID': '4711'}
    options = tiny(epochs=30, val_every=30, picture_every=0, save_every=30, run_dir=str(tmp_path / 'output_job'))
    command = ['bash', str(ROOT / 'pretrain/slurm.sh'), 'job', *flags(options)]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: trains(tmp_path / 'output_job'))
    os.killpg(int((tmp_path / 'step').read_text()), signal.SIGUSR1)
    said, _ = job.communicate(timeout=600)
    assert job.returncode == STOPPED, said
    assert (tmp_path / 'said').read_text() == 'requeue 4711\n' and 0 < saved(tmp_path / 'output_job')['step'] < 150
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert saved(tmp_path / 'output_job')['step'] == 150 and (tmp_path / 'said').read_text() == 'requeue 4711\n'


def test_three_kills_change_nothing(tmp_path):
    counts, wrong = chaos(3, 1, 0, tmp_path, say=lambda text: None)
    assert sum(counts.values()) == 3 and counts['inside a save'] >= 1 and not wrong


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
