"""A folder has one run that writes into it."""
import errno
import os
import signal
import subprocess
import sys

import pytest

from common.reliability import lock
from pretrain.main import pretrain
from tests.conftest import ROOT


@pytest.fixture
def writer(tiny, tmp_path):
    """A process that writes into the run folder, as long as the test wants."""
    (tmp_path / 'run').mkdir()
    code = f"""import sys, time
from common.training.log import RunLog
from pretrain.spark_options import SparKOptions as Options
log = RunLog({str(tmp_path / 'run')!r}, 0, 'pretrain_log.txt', Options(name='x'))
import os
if os.fork():
    print('holds it', flush=True)
time.sleep(600)"""
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    assert process.stdout.readline() == 'holds it\n'
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize('fresh', [False, True])
def test_a_folder_that_another_process_writes_into_is_refused(tiny, writer, tmp_path, fresh):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=f'is in use by process {writer.pid} on .*give this run another name'):
        pretrain(tiny(fresh=fresh))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    os.kill(writer.pid, signal.SIGKILL)  # its child, as a loading process would, lives on and holds nothing
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
    assert (pretrain(tiny(fresh=fresh, epochs=1)) / 'your_convnet_1kpretrained.pth').exists()


def test_the_lock_of_another_machine_is_waited_for(writer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock.socket, 'gethostname', lambda: 'elsewhere')
    waited = []
    monkeypatch.setattr(lock.time, 'sleep', waited.append)
    with pytest.raises(ValueError, match=f'is in use by process {writer.pid} on'):
        lock.FolderLock(tmp_path / 'run')
    assert sum(waited) == lock.PATIENCE
    assert capsys.readouterr().err.count('Waiting for up to 180 s') == 1

    def sleep(seconds):
        os.kill(writer.pid, signal.SIGKILL)
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(lock.time, 'sleep', sleep)
    lock.FolderLock(tmp_path / 'run').release()


def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch):
    def lockf(*arguments):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(lock.fcntl, 'lockf', lockf)
    one, other = lock.FolderLock(tmp_path), lock.FolderLock(tmp_path)
    one.release()
    other.release()


def test_a_run_lets_go_of_its_folder(tiny):
    pretrain(tiny(epochs=1))
    assert pretrain(tiny(epochs=1)).name == 'run'
