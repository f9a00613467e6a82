"""The line that says what goes on: in a terminal, which is a pseudo-terminal here, and without one; by clocks set by hand."""
import io
import threading
import time

import pytest

from common import live_line
from common.live_line import LiveLine, is_terminal
from tests.terminal import Terminal


@pytest.fixture
def clock():
    """[seconds], which only the test sets forward."""
    return [100.0]


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    """No thread refreshes the line: the tests do, with `tick`."""
    monkeypatch.setattr(live_line, 'REFRESH', 1e6)


def on(terminal, clock, **more):
    """A LiveLine on a terminal. What it says goes there, as print() has it."""
    return LiveLine(lambda text: print(text, file=terminal.stream, flush=True), terminal=terminal.stream,
                    now=lambda: clock[0], **more)


@pytest.mark.parametrize('columns', [80, 40, 12])
def test_a_bar_fits_the_terminal(clock, columns):
    terminal = Terminal(columns)
    line = on(terminal, clock)
    with line.counting('validation images', 5000) as count:
        for _ in range(10):
            clock[0] += 7.0
            count.add(431)
            line.tick()
    terminal.end()
    assert terminal.lines == ['']  # nothing is left, and no row was broken in two
    assert max(map(len, terminal.drawn)) < columns
    assert ('░' in terminal.written) == (columns == 80)
    assert terminal.drawn[-1] == {
        80: 'validation images  ██████░  4,310/5,000  61.6 images/s  0:11 left  1:10 elapsed',
        40: 'validation images 86% 61.6/s 0:11 left', 12: 'validation '}[columns].strip()


def test_it_follows_a_terminal_that_is_resized(clock):
    terminal = Terminal(100)
    line = on(terminal, clock)
    with line.counting('features', 100) as count:
        clock[0] += 1.0
        count.add(10)
        line.tick()
        terminal.resize(30)
        line.tick()
        terminal.resize(100)
        line.tick()
    terminal.end()
    wide, narrow, again = terminal.drawn[-3:]
    assert wide == again and len(narrow) < 30 and len(wide) > 60


def test_time_goes_on_in_the_line_while_nothing_is_done(clock):
    terminal = Terminal(100)
    line = on(terminal, clock)
    with line.counting('features', 4) as count:
        for _ in range(3):
            clock[0] += 1.0
            line.tick()
        clock[0] += 7.0
        count.add()
        for _ in range(3):
            line.tick()
            clock[0] += 1.0
    terminal.end()
    texts = [text.split('  ') for text in terminal.drawn]
    assert [text[-1] for text in texts] == [f'0:{seconds:02} elapsed' for seconds in (0, 1, 2, 3, 10, 11, 12)]
    assert [text[-2] for text in texts[-3:]] == ['0:30 left', '0:29 left', '0:28 left']


def test_what_is_said_stands_above_the_bar(clock):
    terminal = Terminal(60)
    line = on(terminal, clock)
    with line.counting('reconstructed', 3) as count:
        for name in ('a much longer name than the bar that it replaces.png', 'b.png', 'c.png'):
            count.add()
            line.say(name)
            assert line.columns
    line.say('3 images')
    terminal.end()
    assert terminal.lines == ['a much longer name than the bar that it replaces.png', 'b.png', 'c.png', '3 images', '']


def test_a_dumb_terminal_gets_no_escape_sequences_and_its_own_characters(clock):
    terminal = Terminal(80, 'ascii')
    line = on(terminal, clock)
    with line.counting('features', 2) as count:
        count.add()
        line.tick()
        line.say('a.png')
    terminal.end()
    assert set(terminal.written) <= {'\r', '\n', *map(chr, range(32, 127))} and '###' in terminal.written


def test_one_line_within_another(clock):
    """The inner one is shown as long as it is there, then the outer one again."""
    terminal = Terminal(80)
    line = on(terminal, clock)
    with line.counting('outer', 2):
        with line.counting('inner', 2):
            line.tick()
        line.tick()
    terminal.end()
    assert [text.split()[0] for text in terminal.drawn] == ['outer', 'inner', 'inner', 'outer']


def test_elsewhere_a_line_is_written_every_thirty_seconds(clock):
    said = []
    line = LiveLine(said.append, now=lambda: clock[0])
    with line.counting('features', 100) as count:
        for _ in range(12):
            clock[0] += 8.0
            count.add()
            line.tick()
        assert said == [f'features, {done}/100, 0.12 images/s, {left} left, {elapsed} elapsed' for done, left, elapsed in
                        ((4, '12:48', '0:32'), (8, '12:16', '1:04'), (12, '11:44', '1:36'))]
        clock[0] += 29.0
        line.say('another line')
        clock[0] += 29.0
        line.tick()
        assert said[3:] == ['another line']  # thirty seconds from the last line
        clock[0] += 1.0
        line.tick()
        assert len(said) == 5


def test_a_file_beside_the_terminal_gets_these_lines(clock):
    terminal, noted = Terminal(), []
    line = on(terminal, clock, note=noted.append)
    with line.counting('features', 100):
        for _ in range(35):
            clock[0] += 1.0
            line.tick()
    terminal.end()
    assert noted == ['features, 0/100, 0:30 elapsed'] and len(terminal.drawn) == 36


def test_stdout_is_drawn_on_only_where_print_prints(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stdout', terminal.stream)
    with LiveLine([].append).counting('quiet', 2), LiveLine(None).counting('silent', 2):
        assert LiveLine(print).terminal is terminal.stream
    LiveLine(None).say('nothing')
    monkeypatch.undo()
    terminal.end()
    assert terminal.written == ''


def test_consoles_without_a_descriptor_and_notebooks_are_no_terminals():
    terminal = Terminal()

    class Idle(io.StringIO):
        def isatty(self):
            return True

    class Notebook(io.StringIO):
        def fileno(self):
            return terminal.stream.fileno()

    assert [is_terminal(stream) for stream in (terminal.stream, Idle(), Notebook(), io.StringIO())] == [
        True, False, False, False]
    terminal.end()


def test_a_file_gets_what_is_said_at_once(monkeypatch):
    file = io.TextIOWrapper(io.BufferedWriter(raw := io.BytesIO()), write_through=False)
    monkeypatch.setattr('sys.stdout', file)
    LiveLine(print).say('a line')
    monkeypatch.undo()
    assert raw.getvalue() == b'a line\n'


def test_a_terminal_or_a_reader_that_is_gone_stops_nothing(clock):
    terminal = Terminal()
    line = on(terminal, clock)
    with line.counting('features', 2):
        terminal.end()
        line.terminal = open('/dev/full', 'w')  # noqa: SIM115
        line.tick()
    line.terminal.close()

    def gone(text):
        raise BrokenPipeError

    line = LiveLine(gone, now=lambda: clock[0])
    with line.counting('features', 2):
        clock[0] += 100.0
        line.tick()
    with pytest.raises(BrokenPipeError):
        line.say('what the program itself says')


def test_a_loading_process_waits_for_no_lock_and_draws_nothing(clock):
    """It may be forked while the thread of its parent holds the lock, which nobody opens there."""
    terminal = Terminal()
    line = on(terminal, clock)
    line.process = -1  # that of the parent
    held, done = threading.Event(), threading.Event()

    def hold():
        with line.lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    line.shown.append(None)  # would fail if it was drawn
    with line.above():
        pass
    done.set()
    thread.join()
    terminal.end()
    assert terminal.written == ''


def test_a_thread_refreshes_the_line(clock, monkeypatch):
    monkeypatch.setattr(live_line, 'REFRESH', 0.001)
    terminal = Terminal()
    line = on(terminal, clock)
    with line.counting('features', 2):
        deadline = time.monotonic() + 60
        while len(terminal.drawn) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert all(thread.name != 'live line' for thread in threading.enumerate())
    terminal.end()
