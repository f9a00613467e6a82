"""A process beside each rank that ends it when Python itself no longer runs there.

The thread of common/reliability/watch.py needs Python's interpreter lock. A call into C that keeps the lock and never returns stops that
thread, and every handler of signals with it. This process needs nothing of the rank but its silence.
"""
import ctypes
import faulthandler
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

from common.reliability.stopping import SIGNALS, STALLED, tell

PAUSE = 30.0  # seconds between signs of life, at most
AFTER_SIGNAL = 60.0  # seconds of silence that are the end once the rank was asked to stop
BEAT, BYE = 0, 255  # bytes that a rank sends; the others are the numbers of signals, which Python's handler in C writes
ROOT = Path(__file__).resolve().parents[2]


class Watchdog:
    """Within it, a process of its own ends this one with STALLED when no Python code has run here for `patience` minutes.

    It then says so, and where each thread stands, on stderr and in stderr_backup.txt of the run folder, if there is one. Once
    a signal has asked this process to stop, AFTER_SIGNAL seconds without Python are enough. Time in which this process is
    stopped (SIGSTOP, a laptop that sleeps) does not count. patience 0: nothing is watched.

    The signal SIGUSR2 has the process write where each of its threads stands, unless somebody else has a handler for it.
    """

    def __init__(self, rank, patience, folder):
        self.rank, self.patience, self.folder = rank, 60 * patience, Path(folder).absolute()
        self.pause = min(PAUSE, self.patience / 20)
        self.ended, self.process, self.takes_signals = threading.Event(), None, False

    def __enter__(self):
        if self.patience and os.name == 'posix' and sys.executable:
            try:
                self.start()
            except OSError as error:  # no process more is allowed, for one
                warnings.warn(f'no process could be started that watches this one ({error}): should a call into C hold '
                              "Python's lock for ever, nothing ends the run", stacklevel=2)
        return self

    def start(self):
        exit_fd = exit_pipe(os.getpid())[0]
        life, self.life = os.pipe()
        trace, self.trace = os.pipe()
        os.set_blocking(self.life, False)  # the handler of a signal writes there too
        self.traces = signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        files = {'life': life, 'trace': trace, **({} if exit_fd is None else {'exit_fd': exit_fd})}
        about = {'pid': os.getpid(), 'rank': self.rank, 'patience': self.patience, 'pause': self.pause,
                 'traces': int(self.traces), **files}
        try:
            self.process = subprocess.Popen(
                [sys.executable, '-S', '-E', '-m', 'common.reliability.watchdog', self.folder, *(f'{k}={v}' for k, v in about.items())],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=tuple(files.values()),
                start_new_session=True)  # where Ctrl-C does not reach it
        finally:
            for file in (life, trace) if self.process else (life, trace, self.life, self.trace):
                os.close(file)
        if self.traces:
            faulthandler.register(signal.SIGUSR2, self.trace)
        if threading.current_thread() is threading.main_thread():
            before = signal.set_wakeup_fd(self.life, warn_on_full_buffer=False)
            self.takes_signals = before == -1
            if not self.takes_signals:  # somebody else, such as asyncio, has them
                signal.set_wakeup_fd(before)
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()

    def beat(self):
        while not self.ended.wait(self.pause):
            self.send(BEAT)

    def send(self, byte):
        with suppress(OSError):  # full, or nobody is there any more
            os.write(self.life, bytes([byte]))

    def __exit__(self, *error):
        if self.process is None:
            return
        self.ended.set()
        self.thread.join()
        if self.takes_signals:
            signal.set_wakeup_fd(-1)
        if self.traces:
            faulthandler.unregister(signal.SIGUSR2)
        self.send(BYE)  # the end of the pipe is not enough: loading processes hold it too
        os.close(self.life)
        os.close(self.trace)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class SigEvent(ctypes.Structure):
    """struct sigevent of Linux on 64 bits, with glibc and musl alike; 64 bytes."""
    _fields_ = [('value', ctypes.c_void_p), ('signo', ctypes.c_int), ('notify', ctypes.c_int), ('function', ctypes.c_void_p),
                ('attributes', ctypes.c_void_p), ('rest', ctypes.c_char * 32)]


class ReadRequest(ctypes.Structure):
    """struct aiocb there, up to its sigevent; what follows is the library's own, and 0 at first."""
    _fields_ = [('file', ctypes.c_int), ('opcode', ctypes.c_int), ('priority', ctypes.c_int), ('buffer', ctypes.c_void_p),
                ('length', ctypes.c_size_t), ('event', SigEvent), ('rest', ctypes.c_char * 512)]


SIGEV_THREAD = 2


@functools.cache
def exit_pipe(pid):
    """(file descriptor, memory to keep): a byte that is written there ends this process with STALLED, whatever Python does.

    (None, None) where there is no such thing.
    The C library reads the byte (aio_read) and calls its `_exit` in threads that know nothing of Python. The pipe and that read
    stay until the process ends: neither can be taken back. pid: of this process; one that is forked has no such threads.
    """
    if sys.platform != 'linux' or ctypes.sizeof(ctypes.c_void_p) != 8 or sys.byteorder != 'little':
        return None, None
    try:
        libc = ctypes.CDLL(None)
        read = libc.aio_read if hasattr(libc, 'aio_read') else ctypes.CDLL('librt.so.1').aio_read  # there before glibc 2.34
    except (OSError, AttributeError):
        return None, None
    reading, writing = os.pipe()
    byte = ctypes.create_string_buffer(1)
    request = ReadRequest(file=reading, buffer=ctypes.addressof(byte), length=1)
    request.event.notify, request.event.value = SIGEV_THREAD, STALLED
    request.event.function = ctypes.cast(libc._exit, ctypes.c_void_p).value
    if read(ctypes.byref(request)):
        os.close(reading)
        os.close(writing)
        return None, None
    return writing, (request, byte)


class Silence:
    """How long a rank has been silent, counted in pauses, so that time in which the counting process was stopped is none.

    heard(what it sent), and passed(whether it is stopped) after a pause without anything, say what is to be done: None,
    'leave', 'warn' (once, at a tenth of the patience) or 'end'.
    """

    def __init__(self, patience, pause):
        self.patience, self.pause = patience, pause
        self.seconds, self.warned, self.asked = 0.0, False, False
        self.stops = {getattr(signal, name) for name in SIGNALS if hasattr(signal, name)}

    def heard(self, sent):
        self.seconds, self.warned = 0.0, False
        if self.stops & set(sent):
            self.asked, self.patience = True, min(self.patience, AFTER_SIGNAL)
        return 'leave' if not sent or BYE in sent else None

    def passed(self, stopped):
        self.seconds = 0.0 if stopped else self.seconds + self.pause
        if self.seconds > self.patience:
            return 'end'
        if self.seconds > max(self.patience / 10, 2 * self.pause) and not self.warned:
            self.warned = True
            return 'warn'
        return None


def is_stopped(pid):
    """Whether a process is stopped, by SIGSTOP or a debugger."""
    try:
        return Path(f'/proc/{pid}/stat').read_bytes().rpartition(b')')[2].split()[0] in (b'T', b't')
    except OSError:  # no /proc: macOS
        with suppress(OSError):
            return subprocess.run(['ps', '-o', 'state=', '-p', str(pid)], capture_output=True).stdout[:1] == b'T'
        return False


def say(text):
    with suppress(OSError):  # of a terminal that is gone
        sys.stderr.write(text)
        sys.stderr.flush()


def append(text, path):
    """Write behind what is in a file, if there is one."""
    with suppress(OSError):
        if path.exists():
            with path.open('a', encoding='utf-8') as file:
                file.write(text)


def text_from(pipe, seconds):
    """What comes out of a pipe, until nothing has for so many seconds."""
    parts = []
    while select.select([pipe], [], [], seconds)[0]:
        part = os.read(pipe, 65536)
        if not part:
            break
        parts.append(part)
    return b''.join(parts).decode(errors='replace')


def end(pid, exit_fd):
    """End a process: with STALLED if it has an exit_pipe, else by SIGKILL."""
    tell(STALLED)
    with suppress(OSError):
        if exit_fd is not None:
            os.write(exit_fd, b'.')
            for _ in range(100):
                if os.getppid() != pid:
                    return
                time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


def main():
    """The process beside a rank; started by Watchdog, as the rank's child."""
    folder, about = sys.argv[1], {name: float(value) for name, value in (word.split('=') for word in sys.argv[2:])}
    pid, life, trace, exit_fd = (int(about[name]) if name in about else None for name in ('pid', 'life', 'trace', 'exit_fd'))
    for name in (*SIGNALS, 'SIGUSR2'):  # some clusters signal every process of a job
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    silence = Silence(about['patience'], about['pause'])
    rank = f'rank {about["rank"]:.0f} (process {pid} on {socket.gethostname()})'
    todo = None
    while todo not in ('leave', 'end') and os.getppid() == pid:
        ready = select.select([life, trace], [], [], silence.pause)[0]
        todo = None
        if trace in ready:
            say(text_from(trace, 0.1))
        if life in ready:
            todo = silence.heard(os.read(life, 4096))
        elif not ready:
            todo = silence.passed(is_stopped(pid))
        if todo == 'warn':
            say(f'warning: {rank}: no Python code has run for {silence.seconds:.0f} s: a call into C may hold its lock\n')
    if todo == 'end':
        timer = threading.Timer(20, end, (pid, exit_fd))  # writing to a terminal may hang too
        timer.daemon = True
        timer.start()
        text = (f'error: {rank}: no Python code has run for {silence.seconds / 60:.1f} minutes (--stall_minutes'
                + (', or a signal' if silence.asked else '') + '): a call into C holds its lock. The same command goes on from '
                'the last checkpoint\n')
        say(text)
        if about['traces']:
            with suppress(OSError):
                os.kill(pid, signal.SIGUSR2)
            where = text_from(trace, 1.0)
            say(where)
            text += where
        end(pid, exit_fd)
        append(text, Path(folder, 'stderr_backup.txt'))  # at last, for this may hang with the storage


if __name__ == '__main__':
    main()
