"""How a run is asked to stop, and the exit codes that say how it ended.

A run that a signal asks to stop finishes the step that all ranks agree on, saves its state, and exits with
STOPPED. The same command resumes it. A second signal ends it at once, as the signal would do by itself.
"""
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

# The codes are those of sysexits.h. Besides, 0 means finished, 1 an error that a sentence explains, 2 a wrong flag.
STALLED = 69  # A rank made no progress, and was ended (common/reliability/heartbeat.py and watchdog.py).
UNWRITTEN = 74  # The end was reached, but the files could not be written.
STOPPED = 75  # The run was asked to stop, and its state is saved.

SIGNALS = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
# Within so many seconds a repeated signal is taken for the same one: it comes from the cluster, and again from torchrun.
ECHO = 3.0


class Ended(SystemExit):
    """The end of a run that is no error of the program. It is raised on all ranks.

    A script that does not catch it exits with `code`. The run's log writes the message.
    """
    on_all_ranks = True

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class Stopped(Ended):
    """The run was asked to stop, and its state is saved."""

    def __init__(self, message):
        super().__init__(message, STOPPED)


class Unwritten(Ended):
    """The run came to its end, or was asked to stop, but its files could not be written."""

    def __init__(self, message):
        super().__init__(message, UNWRITTEN)


class StopRequest:
    """Within it, the first of SIGNALS is only noted: `asked` becomes its name. A second signal has its usual effect.

    `asked` is None as long as nobody has asked. Signals that the process ignores because of nohup, or because
    a script started it with &, stay ignored.
    """

    def __init__(self):
        self.asked = None
        self.previous_handlers = {}  # {number of a signal: handler}

    def __enter__(self):
        # Python lets no other thread install handlers.
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is None:
                    continue
                is_ignored = signal.getsignal(number) == signal.SIG_IGN
                if not (is_ignored and name in ('SIGHUP', 'SIGINT')):
                    self.previous_handlers[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *error):
        for number, handler in self.previous_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def handle(self, number, frame):
        """The handler of the signals."""
        if self.asked is None:
            self.ask(signal.Signals(number).name)
            # This is not print(), since the signal may have come in the middle of one.
            with suppress(OSError):  # The terminal may be gone.
                os.write(2, f'\n{self.asked}: the run saves and stops; a second signal ends it at '
                            'once\n'.encode())
        elif time.monotonic() - self.since > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def ask(self, reason):
        """Ask the run to stop, without a signal."""
        self.since = time.monotonic()
        self.asked = reason


def leave(code):
    """End the program with an exit code.

    torchrun replaces every code but 0 by 1, and may start the program again. So where main.sh started
    torchrun, the code goes into the file that main.sh reads, and the program exits with 0.
    """
    sys.exit(0 if write_exit_code(code) else code)


def write_exit_code(code):
    """Write the exit code into the file that main.sh reads. Returns whether there is such a file."""
    path = os.environ.get('RUN_EXIT_CODE_FILE')
    try:
        return path is not None and Path(path).write_text(str(code)) > 0
    except OSError:
        return False
