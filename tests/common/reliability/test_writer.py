"""Disks that are full, read-only or gone."""
import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from common.reliability import writer
from common.reliability.checkpoint import CannotWrite
from common.reliability.stopping import Unwritten
from common.reliability.writer import Writer
from common.training import trainer
from pretrain.main import pretrain
from tests.common.runs import fail, in_step
from tests.conftest import assert_same_run, log_of, saved


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_training_goes_on_when_the_disk_fails_and_writes_again_when_it_does_not(tiny, undisturbed, monkeypatch, capsys, number):
    """From the first save to the last step nothing can be flushed to the disk."""
    flush, broken = os.fsync, []
    monkeypatch.setattr(writer, 'RETRY', 0.0)
    monkeypatch.setattr(os, 'fsync', lambda file: fail(number) if broken else flush(file))
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
    in_step(monkeypatch, 7, lambda: monkeypatch.setattr(os, 'fsync', lambda file: fail(errno.ENOSPC)))
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
