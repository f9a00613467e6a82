"""A process in which Python no longer runs is ended by the one beside it, and no other."""
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.images.loading import outlive_stops
from common.reliability import watchdog
from common.reliability.stopping import STALLED
from common.reliability.watchdog import AFTER_SIGNAL, BEAT, BYE, Silence, Watchdog, exit_pipe, is_stopped
from tests.conftest import ROOT

HANGS = """import ctypes, os, sys, time
from common.reliability.watchdog import Watchdog
python = ctypes.PyDLL(None)  # its calls keep the interpreter's lock
def mutex():
    lock = ctypes.create_string_buffer(64)
    while True:
        python.pthread_mutex_lock(lock)
def pause():
    while python.pause():
        pass
def fork():  # as loading processes are begun, and they outlive it
    if os.fork():
        mutex()
    time.sleep(3)
    os._exit(0)
with Watchdog(3, float(sys.argv[1]), sys.argv[2]):
    print('begun', flush=True)
    globals()[sys.argv[3]]()
"""


@pytest.mark.parametrize('how', ['mutex', 'pause', 'fork'])
def test_a_call_that_keeps_the_lock_for_ever_ends_with_the_code_and_says_where(tmp_path, how):
    (tmp_path / 'stderr_backup.txt').write_text('before\n')
    done = subprocess.run([sys.executable, '-c', HANGS, '0.03', str(tmp_path), how], cwd=ROOT, capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == STALLED and done.stdout == 'begun\n'
    assert re.search(r'error: rank 3 \(process \d+ on .*\): no Python code has run for \d+\.\d minutes \(--stall_minutes\)',
                     done.stderr)
    assert f'in {"mutex" if how == "fork" else how}' in done.stderr  # the function of the traceback
    backup = (tmp_path / 'stderr_backup.txt').read_text()
    assert backup.startswith('before\nerror: rank 3') and backup.endswith(done.stderr[done.stderr.index('error: rank'):])


def test_a_process_that_python_runs_in_comes_to_its_end(tmp_path):
    """Several times one after the other; nothing of it stays, but for the exit pipe of the process."""
    code = """import os, sys, time
from common.reliability import watchdog
from common.reliability.watchdog import Watchdog
watchdog.PAUSE = 0.1  # several signs of life are given, and none would be missed for minutes
def files():
    return len(os.listdir('/proc/self/fd'))
for i in range(4):
    with Watchdog(0, 30 if i < 3 else 0, sys.argv[1]) as one:
        time.sleep(0.5)
        assert (one.process is None) == (i == 3)
    if i == 0:
        before = files()
    assert files() == before
    try:
        os.waitpid(-1, os.WNOHANG)
        raise AssertionError('a process is left')
    except ChildProcessError:
        pass
"""
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, '') and not list(tmp_path.iterdir())


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """A Watchdog of this process, and the reading end of the pipe that its own process would read."""
    begin, ends = subprocess.Popen, {}

    def popen(command, pass_fds, **options):
        about = dict(word.split('=') for word in command[6:])
        ends.update({name: os.dup(int(about[name])) for name in ('life', 'trace')})
        return begin(['true'])

    monkeypatch.setattr(subprocess, 'Popen', popen)
    monkeypatch.setattr(watchdog, 'PAUSE', 1000)
    with Watchdog(0, 10 ** 6, tmp_path):
        yield ends
    for end in ends.values():
        os.close(end)


def test_signals_are_handed_on_without_python(watched):
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        sent = b''
        while signal.SIGUSR1 not in sent:  # children of other tests may end meanwhile, which is a signal too
            assert select.select([watched['life']], [], [], 600)[0]
            sent += os.read(watched['life'], 64)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_has_the_process_say_where_it_is(watched):
    os.kill(os.getpid(), signal.SIGUSR2)
    assert b'test_a_signal_has_the_process_say_where_it_is' in os.read(watched['trace'], 65536)


def test_loading_processes_do_not_hand_their_signals_on(watched):
    child = os.fork()
    if child == 0:
        try:
            outlive_stops(0)
            os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_silence_is_counted_in_pauses():
    one = Silence(patience=100, pause=10)
    assert [one.on_pause(False) for _ in range(11)] == [None, None, 'warn', *[None] * 7, 'end']
    assert one.on_bytes(bytes([BEAT])) is None and one.on_pause(False) is None and one.seconds == 10
    for _ in range(50):  # a process that is stopped is not silent
        assert one.on_pause(True) is None
    assert one.on_bytes(b'') == 'leave' and one.on_bytes(bytes([BEAT, BYE])) == 'leave'


def test_a_process_that_was_asked_to_stop_has_less_time():
    one = Silence(patience=30 * 60, pause=30)
    assert one.on_bytes(bytes([BEAT, signal.SIGALRM, signal.SIGCHLD])) is None and one.patience == 30 * 60
    assert one.on_bytes(bytes([signal.SIGTERM])) is None and one.asked and one.patience == AFTER_SIGNAL
    assert [one.on_pause(False) for _ in range(3)] == [None, None, 'end']
    short = Silence(patience=5, pause=0.25)
    short.on_bytes(bytes([signal.SIGINT]))
    assert short.patience == 5


def test_a_process_that_is_stopped_is_told_from_one_that_runs():
    process = subprocess.Popen(['sleep', '1000'])
    try:
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_stopped(process.pid)
    finally:
        process.kill()
        process.wait()
    assert not is_stopped(process.pid)


def test_a_process_that_cannot_be_watched_says_so(monkeypatch, tmp_path):
    def popen(*command, **options):
        raise BlockingIOError(11, 'Resource temporarily unavailable')
    before = sorted(os.listdir('/proc/self/fd')) if Path('/proc/self/fd').exists() and exit_pipe(os.getpid()) else None
    monkeypatch.setattr(subprocess, 'Popen', popen)
    with pytest.warns(UserWarning, match='Resource temporarily unavailable'), Watchdog(0, 30, tmp_path) as one:
        assert one.process is None
    assert before is None or sorted(os.listdir('/proc/self/fd')) == before


@pytest.mark.skipif(sys.platform != 'linux', reason='the layout of Linux')
def test_the_structures_have_the_sizes_of_the_library():
    assert ctypes.sizeof(watchdog.SigEvent) == 64 and watchdog.ReadRequest.event.offset == 32
    assert ctypes.sizeof(watchdog.ReadRequest) >= 168


@pytest.mark.slow
def test_torchrun_sees_the_code_and_the_others_end(tmp_path):
    (tmp_path / 'hang.py').write_text("""import ctypes
import torch.distributed as dist
from common.distributed import distributed
with distributed(0.1) as ranks:
    dist.barrier()
    if ranks.rank == 1:
        while True:
            ctypes.PyDLL(None).pause()
    dist.barrier()
""")
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', 'hang.py'],
                          cwd=tmp_path, capture_output=True, text=True, timeout=900,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 1 and 'error: rank 1 (process' in done.stderr
    assert re.search(r'exitcode *: 69', done.stderr), done.stderr
