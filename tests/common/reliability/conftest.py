"""What the tests of reliability share: the signals of a process in the foreground."""
import signal

import pytest


@pytest.fixture(autouse=True)
def without_nohup():
    """Signals as in a shell's foreground: nohup ignores SIGHUP, a script's `&` ignores SIGINT, and then runs do too."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGINT, interrupt)
