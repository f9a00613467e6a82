"""A process beside each rank that ends the rank when Python itself no longer runs there.

The threads of common/reliability/heartbeat.py need Python's interpreter lock. A call into C that keeps the
lock and never returns stops them, and every handler of a signal with them. This process needs nothing of the
rank but its silence.
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

from common.reliability.stopping import SIGNALS, STALLED, write_exit_code

PAUSE = 30.0  # the most seconds between two signs of life
AFTER_SIGNAL = 60.0  # seconds of silence after which a rank is ended that was asked to stop
# A rank sends bytes: these two, and the numbers of the signals that it gets, which Python's handler in C writes.
BEAT, BYE = 0, 255
ROOT = Path(__file__).resolve().parents[2]


class Watchdog:
    """Within it, another process ends this one with STALLED if no Python code has run here for `patience` minutes.

    Before that it writes a message, and where each thread stands, to stderr and to stderr_backup.txt of the
    run folder, if there is one. Once a signal has asked this process to stop, AFTER_SIGNAL seconds without
    Python are enough. Time in which this process is stopped (by SIGSTOP, or on a laptop that sleeps) does not count.

    SIGUSR2 makes this process write where each of its threads stands, unless somebody else has a handler for it.

    rank: a number, for the message. patience: in minutes; 0 means that nothing is watched. folder: the run folder.
    """

    def __init__(self, rank, patience, folder):
        self.rank = rank
        self.patience = 60 * patience  # seconds
        self.folder = Path(folder).absolute()
        self.pause = min(PAUSE, self.patience / 20)
        self.ended = threading.Event()
        self.process = None
        # whether Python's handler in C writes the numbers of signals to that process
        self.takes_signals = False

    def __enter__(self):
        if self.patience and os.name == 'posix' and sys.executable:
            try:
                self.start()
            except OSError as error:  # The limit on processes may be reached, for one.
                warnings.warn(f'no process could be started that watches this one ({error}): should a call '
                              "into C hold Python's lock for ever, nothing ends the run", stacklevel=2)
        return self

    def start(self):
        """Start the process, and the thread that sends it signs of life. Raises OSError."""
        exit_fd, _ = exit_pipe(os.getpid())
        life, self.life = os.pipe()
        trace, self.trace = os.pipe()
        os.set_blocking(self.life, False)  # The handler of a signal writes there too, and must not block.
        self.traces = signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        descriptors = {'life': life, 'trace': trace}
        if exit_fd is not None:
            descriptors['exit_fd'] = exit_fd
        arguments = {'pid': os.getpid(), 'rank': self.rank, 'patience': self.patience, 'pause': self.pause,
                     'traces': int(self.traces), **descriptors}
        command = [sys.executable, '-S', '-E', '-m', 'common.reliability.watchdog', self.folder,
                   *(f'{name}={value}' for name, value in arguments.items())]
        try:
            # A session of its own, which Ctrl-C does not reach.
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.DEVNULL, pass_fds=tuple(descriptors.values()),
                                            start_new_session=True)
        finally:
            unused = (life, trace) if self.process else (life, trace, self.life, self.trace)
            for descriptor in unused:
                os.close(descriptor)
        if self.traces:
            faulthandler.register(signal.SIGUSR2, self.trace)
        if threading.current_thread() is threading.main_thread():
            self.take_signals()
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()

    def take_signals(self):
        """Have Python's handler in C write the number of each signal to the process, unless somebody else has
        it do so.
        """
        previous = signal.set_wakeup_fd(self.life, warn_on_full_buffer=False)
        self.takes_signals = previous == -1
        if not self.takes_signals:  # Somebody else, such as asyncio, wants them.
            signal.set_wakeup_fd(previous)

    def beat(self):
        """Send a sign of life after each pause, until the end."""
        while not self.ended.wait(self.pause):
            self.send(BEAT)

    def send(self, byte):
        with suppress(OSError):  # The pipe may be full, or the process gone.
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
        self.send(BYE)  # To close the pipe is not enough, since loading processes hold it too.
        os.close(self.life)
        os.close(self.trace)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class SigEvent(ctypes.Structure):
    """struct sigevent of Linux on 64 bits, the same in glibc and musl; 64 bytes."""
    _fields_ = [('value', ctypes.c_void_p), ('signo', ctypes.c_int), ('notify', ctypes.c_int),
                ('function', ctypes.c_void_p), ('attributes', ctypes.c_void_p), ('rest', ctypes.c_char * 32)]


class ReadRequest(ctypes.Structure):
    """struct aiocb of Linux on 64 bits, up to its sigevent. What follows belongs to the library, and is 0 at first."""
    _fields_ = [('file', ctypes.c_int), ('opcode', ctypes.c_int), ('priority', ctypes.c_int),
                ('buffer', ctypes.c_void_p), ('length', ctypes.c_size_t), ('event', SigEvent),
                ('rest', ctypes.c_char * 512)]


SIGEV_THREAD = 2  # a value of sigevent.notify: call a function in a thread


@functools.cache
def exit_pipe(pid):
    """A pipe by which another process can end this one with STALLED, whatever Python does.

    The C library waits for a byte there (aio_read), and then calls its own `_exit`, in threads that know
    nothing of Python. The pipe and that read stay until this process ends; neither can be taken back.

    pid: the id of this process. The result is kept for each, since a process that is forked has no such threads.

    Returns (file descriptor to write the byte to, memory that must be kept), or (None, None) on a system
    other than Linux on 64 bits.
    """
    if sys.platform != 'linux' or ctypes.sizeof(ctypes.c_void_p) != 8 or sys.byteorder != 'little':
        return None, None
    try:
        libc = ctypes.CDLL(None)
        # Before glibc 2.34 it is in a library of its own.
        aio_read = libc.aio_read if hasattr(libc, 'aio_read') else ctypes.CDLL('librt.so.1').aio_read
    except (OSError, AttributeError):
        return None, None
    reading, writing = os.pipe()
    byte = ctypes.create_string_buffer(1)
    request = ReadRequest(file=reading, buffer=ctypes.addressof(byte), length=1)
    request.event.notify = SIGEV_THREAD
    request.event.value = STALLED
    request.event.function = ctypes.cast(libc._exit, ctypes.c_void_p).value
    if aio_read(ctypes.byref(request)):
        os.close(reading)
        os.close(writing)
        return None, None
    return writing, (request, byte)


class Silence:
    """How long a rank has been silent, and what is to be done about it.

    The time is counted in pauses. So time in which the counting process itself is stopped does not count.

    patience: seconds of silence after which the rank is ended. pause: seconds.
    """

    def __init__(self, patience, pause):
        self.patience = patience
        self.pause = pause
        self.seconds = 0.0
        self.warned = False
        self.asked = False  # whether a signal has asked the rank to stop
        self.stop_signals = {getattr(signal, name) for name in SIGNALS if hasattr(signal, name)}

    def on_bytes(self, sent):
        """Note what the rank has sent, b'' at the end of the pipe. Returns 'leave' if it has come to its end, else None."""
        self.seconds = 0.0
        self.warned = False
        if self.stop_signals & set(sent):
            self.asked = True
            self.patience = min(self.patience, AFTER_SIGNAL)
        return 'leave' if not sent or BYE in sent else None

    def on_pause(self, is_stopped):
        """Note that the rank has sent nothing during a pause. is_stopped: whether its process was stopped.

        Returns 'warn' once, at a tenth of the patience, and 'end' after all of it, else None.
        """
        self.seconds = 0.0 if is_stopped else self.seconds + self.pause
        if self.seconds > self.patience:
            return 'end'
        if self.seconds > max(self.patience / 10, 2 * self.pause) and not self.warned:
            self.warned = True
            return 'warn'
        return None


def is_stopped(pid):
    """Whether a process is stopped, by SIGSTOP or a debugger."""
    try:
        status = Path(f'/proc/{pid}/stat').read_bytes()
    except OSError:  # macOS has no /proc.
        with suppress(OSError):
            shown = subprocess.run(['ps', '-o', 'state=', '-p', str(pid)], capture_output=True).stdout
            return shown[:1] == b'T'
        return False
    _, _, after_name = status.rpartition(b')')
    return after_name.split()[0] in (b'T', b't')


def say(text):
    """Write a text to stderr."""
    with suppress(OSError):  # The terminal may be gone.
        sys.stderr.write(text)
        sys.stderr.flush()


def append(text, path):
    """Append a text to a file, if there is one."""
    with suppress(OSError):
        if path.exists():
            with path.open('a', encoding='utf-8') as file:
                file.write(text)


def text_from(pipe, seconds):
    """What comes out of a pipe until nothing has come for so many seconds, as text."""
    parts = []
    while select.select([pipe], [], [], seconds)[0]:
        part = os.read(pipe, 65536)
        if not part:
            break
        parts.append(part)
    return b''.join(parts).decode(errors='replace')


def end(pid, exit_fd):
    """End the parent process `pid`: with STALLED if it has an exit_pipe, else by SIGKILL."""
    write_exit_code(STALLED)
    with suppress(OSError):
        if exit_fd is not None:
            os.write(exit_fd, b'.')
            for _ in range(100):
                if os.getppid() != pid:
                    return
                time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


def main():
    """The process beside a rank, which Watchdog starts as the rank's child.

    Its arguments are the run folder, and NAME=NUMBER for each of `arguments` in Watchdog.start.
    """
    folder = sys.argv[1]
    arguments = {}
    for word in sys.argv[2:]:
        name, value = word.split('=')
        arguments[name] = float(value)
    pid = int(arguments['pid'])
    trace = int(arguments['trace'])
    for name in (*SIGNALS, 'SIGUSR2'):  # Some clusters signal every process of a job.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    silence = Silence(arguments['patience'], arguments['pause'])
    rank = f'rank {arguments["rank"]:.0f} (process {pid} on {socket.gethostname()})'
    if wait_for_end(silence, pid, int(arguments['life']), trace, rank) != 'end':
        return
    exit_fd = int(arguments['exit_fd']) if 'exit_fd' in arguments else None
    timer = threading.Timer(20, end, (pid, exit_fd))  # Writing to a terminal may hang too.
    timer.daemon = True
    timer.start()
    reason = '--stall_minutes, or a signal' if silence.asked else '--stall_minutes'
    text = (f'error: {rank}: no Python code has run for {silence.seconds / 60:.1f} minutes ({reason}): a '
            'call into C holds its lock. The same command goes on from the last checkpoint\n')
    say(text)
    if arguments['traces']:
        with suppress(OSError):
            os.kill(pid, signal.SIGUSR2)
        stacks = text_from(trace, 1.0)
        say(stacks)
        text += stacks
    end(pid, exit_fd)
    append(text, Path(folder, 'stderr_backup.txt'))  # This comes last, since it may hang with the storage.


def wait_for_end(silence, pid, life, trace, rank):
    """Follow the signs of life of a rank; returns 'end' if it is to be ended, anything else if it has ended.

    life, trace: file descriptors of pipes, for signs of life and for what the rank says of its threads.
    rank: its name in messages.
    """
    action = None
    while action not in ('leave', 'end') and os.getppid() == pid:
        ready, _, _ = select.select([life, trace], [], [], silence.pause)
        action = None
        if trace in ready:
            say(text_from(trace, 0.1))
        if life in ready:
            action = silence.on_bytes(os.read(life, 4096))
        elif not ready:
            action = silence.on_pause(is_stopped(pid))
        if action == 'warn':
            say(f'warning: {rank}: no Python code has run for {silence.seconds:.0f} s: a call into C may '
                'hold its lock\n')
    return action


if __name__ == '__main__':
    main()
