"""How a part of `benchmarks.gpu` tells what it has found, while it goes on."""
import faulthandler
import json
import signal
import time


class Report:
    """Writes rows, one JSON object a line, so that those of a part that is ended later are kept.

    Of rows of the same case the last one counts. began: when the part began, by time.monotonic().
    """

    def __init__(self, file, began):
        self.file = file
        self.began = began

    def __call__(self, case, text, aim=None, met=None, **numbers):
        """case: what was measured. text: what came of it, for a person. aim: what it should be. met: whether it is.

        `after` is added to the row: seconds since the part began.
        """
        row = {'case': case, 'text': text, 'aim': aim, 'met': met, 'after': round(self.seconds(), 1), **numbers}
        print(json.dumps(row), file=self.file, flush=True)

    def seconds(self):
        """Seconds since the part began."""
        return time.monotonic() - self.began

    def failed(self, case, error):
        lines = str(error).strip().splitlines() or ['']
        self(case, f'failed: {type(error).__name__}: {lines[0]}', met=False)


def read_rows(text):
    """The rows that a Report wrote: of each case the last one, in the order in which the cases began."""
    rows = {}
    for line in text.splitlines():
        if line.endswith('}'):  # the last line may have been cut off
            row = json.loads(line)
            rows[row['case']] = row
    return list(rows.values())


def say_where_it_ends():
    """Have this process say on stderr which functions it was in, the innermost first, if SIGTERM ends it."""
    faulthandler.register(signal.SIGTERM, all_threads=False, chain=True)
