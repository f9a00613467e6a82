"""A time limit on the reading of a file: storage that hangs must not stop a run for ever."""
import signal
import threading
import time
from contextlib import contextmanager


@contextmanager
def at_most(seconds):
    """Raises TimeoutError if what is inside takes longer than so many seconds; None means no limit.

    Only a signal can interrupt a read. So there is no limit outside of a process's main thread (loading
    processes read in theirs) and on a system without SIGALRM, and code in C that does not return to Python is
    not interrupted. A timer that somebody else has set goes on afterwards.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if seconds is None or not hasattr(signal, 'SIGALRM') or not in_main_thread:
        yield
        return

    def give_up(*_):
        raise TimeoutError(f'it gave nothing for {seconds:g} seconds')

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, give_up)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # A second finally, since the alarm may still go off in the line above.
        # A handler of None was installed by C code, and cannot be restored.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left:  # The timer of somebody else. If its time has passed meanwhile, it goes off now.
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-6), interval)
