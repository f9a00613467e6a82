"""A terminal that stands for a person's: a pseudo-terminal, and what is to be seen on it."""
import contextlib
import fcntl
import os
import pty
import struct
import termios
import threading


class Terminal:
    """What is written to `stream` is shown on a screen that scrolls, `columns` wide.

    written: all that was written. drawn: the texts that stood in a row before a carriage return.
    """

    def __init__(self, columns=80, encoding='utf-8'):
        self.screen, behind = pty.openpty()
        self.stream = open(behind, 'w', encoding=encoding)  # noqa: SIM115 (closed by end)
        self.encoding = encoding
        self.bytes = b''
        self.resize(columns)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def resize(self, columns):
        self.columns = columns
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))

    def read(self):
        while True:
            try:
                part = os.read(self.screen, 65536)
            except OSError:  # the other side is closed
                return
            if not part:
                return
            self.bytes += part

    def end(self):
        """Close the terminal; all that was written is read then."""
        self.stream.close()
        self.reader.join(60)
        os.close(self.screen)

    @property
    def written(self):
        return self.bytes.decode(self.encoding)

    @property
    def drawn(self):
        return [row.rstrip() for row in self.written.replace('\n', '\r').split('\r') if row.strip()]

    @property
    def lines(self):
        """The lines on the screen. A character in the last column but one begins no new line."""
        rows, column = [''], 0
        for letter in self.written:
            if letter == '\r':
                column = 0
            elif letter == '\n':
                rows.append('')
            else:
                if column == self.columns:
                    rows.append('')
                    column = 0
                row = rows[-1].ljust(column)
                rows[-1] = row[:column] + letter + row[column + 1:]
                column += 1
        return [row.rstrip() for row in rows]


@contextlib.contextmanager
def as_stdout(columns=120):
    """Within it, stdout is a Terminal, which is yielded; behind it all is read."""
    terminal = Terminal(columns)
    with contextlib.redirect_stdout(terminal.stream):
        yield terminal
    terminal.end()
