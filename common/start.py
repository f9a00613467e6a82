"""What a program says while it starts, so that a user sees at once that it does something."""
import os
import sys
import threading
from contextlib import contextmanager, suppress

PATIENCE = 0.5  # seconds for which nothing is said


def say(text, file=None):
    """Print a line at once, in the first of the processes that torchrun started, or in the only one.

    file: stdout if not given.
    """
    if int(os.environ.get('RANK', 0)) == 0:
        with suppress(BrokenPipeError):  # nobody reads it any more; common/cli.py ends the program
            print(text, file=file, flush=True)


def say_loading(file=None):
    """Say that PyTorch is loaded, which takes seconds, if it is not there yet. file: stdout if not given."""
    if 'torch' not in sys.modules:
        say('Starting: loading PyTorch ...', file)


def start_tool():
    """Say on stderr, since stdout may be a tool's result, that PyTorch is loaded. It comes before the imports that do it."""
    say_loading(sys.stderr)


@contextmanager
def said_if_long(what):
    """Within it, `what ...` is printed if it is not left within PATIENCE seconds."""
    timer = threading.Timer(PATIENCE, say, [f'{what} ...'])
    timer.daemon = True  # it does not keep the program from ending
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
