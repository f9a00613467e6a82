"""One line that says what goes on: redrawn each second at the bottom of a terminal, written every 30 s elsewhere.

    line = LiveLine(print)
    with line.counting('features', len(images)) as count:
        for image in images:
            ...
            count.add()
            line.say(f'{image.name}: done')  # above the line

tqdm would draw such a bar, but it redraws only where it is told of progress: a thread of our own would still
be needed for a step that takes half a minute. It also writes carriage returns into files, and cuts off the
end of a text that is too wide, which is where the time left stands.
"""
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress

from common.live_facts import Count, composed

REFRESH = 1.0  # seconds between two drawings
WRITE = 30.0  # seconds after which a line is written where nothing is drawn
WIDTH = 80  # columns of a terminal that does not tell them, such as that of some CI services


class LiveLine:
    """The line of a program or of a run.

    say: prints a text; None for a line that neither says nor shows anything, as on all ranks but the main
    one. note: called with what is written every WRITE seconds where a terminal shows the bar instead; for a
    file that keeps what was said. terminal: the stream that is drawn on if it is a terminal. If not given, it
    is stdout where `say` is `print`: a caller that hands in another function gets all texts through it. now:
    the clock, in seconds.

    What is shown comes from the `status(now)` of an object: (share done, or None; facts as of common/live_facts.py).
    """

    def __init__(self, say, note=None, terminal=None, now=time.monotonic):
        stream = sys.stdout if terminal is None and say is print else terminal
        self.write = say
        self.note = note
        self.now = now
        self.stream = stream
        self.terminal = stream if stream is not None and is_terminal(stream) else None
        self.lock = threading.RLock()  # of the terminal
        self.shown = []  # those whose status is shown; the last one is
        self.columns = 0  # that are drawn on
        self.said = now()  # when a line was written last
        self.process = os.getpid()

    # -- what goes on ----------------------------------------------------------------------------------------

    @contextmanager
    def showing(self, shown):
        """Within it, the status of an object is shown, by a thread. It may be used within itself."""
        if self.write is None:
            yield shown
            return
        self.shown.append(shown)
        try:
            if len(self.shown) > 1:
                self.draw()
                yield shown
            else:
                with self.ticking():
                    yield shown
        finally:
            self.shown.pop()
            with self.locked():
                self.erase()

    @contextmanager
    def counting(self, what, total=None, unit='image'):
        """Within it, a Count is shown, and yielded. The arguments are the Count's."""
        with self.showing(Count(what, total, unit, self.now)) as count:
            yield count

    def say(self, text):
        """Print a text above the line."""
        if self.write is None:
            return
        with self.above():
            self.write(text)
            if self.stream is not None:
                self.stream.flush()  # a file or a pipe would get it with the next kilobytes only

    @contextmanager
    def above(self):
        """Around whatever else is written to the terminal: it stands above the line."""
        if self.terminal is None or os.getpid() != self.process:  # in a loading process there is no thread
            yield
            self.said = self.now()
            return
        with self.locked():
            self.erase()
            yield
            self.said = self.now()
            self.draw()

    # -- drawing ---------------------------------------------------------------------------------------------

    @contextmanager
    def ticking(self):
        """The thread that keeps the line up to date. Training does not wait for it, nor for the terminal."""
        ended = threading.Event()

        def keep_ticking():
            while not ended.wait(REFRESH):
                self.tick()

        thread = threading.Thread(target=keep_ticking, name='live line', daemon=True)
        self.draw()
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(REFRESH)  # not longer: it may be writing to a terminal that is stopped (Ctrl-S)

    def tick(self):
        """What is done each second."""
        self.draw()
        if self.now() - self.said < WRITE:
            return
        self.said = self.now()
        text = self.text()
        if self.terminal is None:
            with suppress(OSError):  # a reader that is gone is noticed where the program itself says something
                self.say(text)
        elif self.note is not None:
            self.note(text)

    def text(self):
        """What is shown in full, without a bar."""
        shown = self.shown[-1:]  # Another thread may take the last one away.
        if not shown:
            return ''
        _, facts = shown[0].status(self.now())
        return ', '.join(forms[0] for forms in facts)

    def draw(self):
        """Draw the line anew, in the width that the terminal has by now."""
        shown = self.shown[-1:]  # Another thread may take the last one away.
        if self.terminal is None or not shown:
            return
        with self.locked():
            width = self.width()
            text = composed(*shown[0].status(self.now()), width, self.cells())
            self.put('\r' + text.ljust(min(self.columns, width)))
            self.columns = len(text)

    @contextmanager
    def locked(self):
        """Within it, no other thread writes to the terminal.

        It is not waited for long: a terminal that is stopped (Ctrl-S) while a thread writes must not keep
        another thread from ending a run that hangs.
        """
        is_held = self.lock.acquire(timeout=REFRESH)
        try:
            yield
        finally:
            if is_held:
                self.lock.release()

    def erase(self):
        """Leave nothing of the line on the terminal."""
        if self.columns:
            self.put('\r' + ' ' * min(self.columns, self.width()) + '\r')
            self.columns = 0

    def put(self, text):
        """Write to the terminal. It needs no escape sequences, which a dumb one would show.

        The stream's own lock is not taken: a loading process could be forked while a thread holds it.
        """
        with suppress(OSError):  # a terminal that is gone must not stop a run
            os.write(self.terminal.fileno(), text.encode(self.terminal.encoding or 'utf-8', 'replace'))

    def width(self):
        """The columns that are drawn on: all but the last, after which some terminals begin a new line."""
        try:
            columns = os.get_terminal_size(self.terminal.fileno()).columns
        except OSError:
            columns = 0
        return (columns or WIDTH) - 1

    def cells(self):
        """The characters of a full and of an empty cell of a bar, as far as the terminal's encoding has them."""
        try:
            '█░'.encode(self.terminal.encoding or 'utf-8')
        except UnicodeEncodeError:
            return '#-'
        return '█░'


def is_terminal(stream):
    """Whether a stream is a terminal with a file descriptor.

    That of IDLE has none. That of a notebook is no terminal, but may have the descriptor of the server's.
    """
    try:
        return stream.isatty() and os.isatty(stream.fileno())
    except (OSError, ValueError):
        return False
