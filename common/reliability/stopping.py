"""How a run is asked to stop, and the exit codes by which it says how it ended.

A run that is asked to stop by a signal finishes the step that all ranks agree on, saves, and exits with STOPPED: the same
command goes on from there. A second signal ends it at once, as the signal does by itself.
"""
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

# Codes of sysexits.h; 0 is finished, 1 an error that a sentence explains, 2 a wrong flag.
STALLED = 69  # a rank, or what it waits for, gave no sign of life; ended by the watchdog (common/reliability/watch.py)
UNWRITTEN = 74  # the end was reached, but its files could not be written
STOPPED = 75  # asked to stop, and saved

SIGNALS = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
ECHO = 3.0  # seconds in which the same signal may come twice: from the cluster, and handed on by torchrun


class Ended(SystemExit):
    """The end of a run that is no error of the program. Raised on all ranks; a script that does not catch it exits with `code`.

    What it says is told by the run's log.
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
    """Within it, the signals that ask a run to stop are noted in `asked` instead of obeyed; a second one is obeyed."""

    def __init__(self):
        self.asked, self.before = None, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python takes signals there only
            for name in SIGNALS:
                number = getattr(signal, name, None)
                ignored = number is not None and signal.getsignal(number) == signal.SIG_IGN
                if number is not None and not (ignored and name in ('SIGHUP', 'SIGINT')):  # nohup, or & in a script
                    self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(self, number, frame):
        if self.asked is None:
            self.ask(signal.Signals(number).name)
            # Not print: the signal may have come in the middle of one.
            with suppress(OSError):  # of a terminal that is gone
                os.write(2, f'\n{self.asked}: the run saves and stops; a second signal ends it at once\n'.encode())
        elif time.monotonic() - self.since > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def ask(self, why):
        self.since, self.asked = time.monotonic(), why


def leave(code):
    """End the program. torchrun knows only 0 and 1, and may start again what ends with 1: it is told 0 where main.sh asks."""
    sys.exit(0 if tell(code) else code)


def tell(code):
    """Write the exit code to be for main.sh, which asks for it where there is torchrun; whether it does."""
    path = os.environ.get('RUN_EXIT_CODE_FILE')
    try:
        return path is not None and Path(path).write_text(str(code)) > 0
    except OSError:
        return False
