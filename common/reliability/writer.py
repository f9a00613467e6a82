"""Files that are written in a thread beside the training, and written again later if they cannot be written."""
import time
from concurrent.futures import ThreadPoolExecutor

from common.reliability.checkpoint import CannotWrite

RETRY = 60.0  # seconds after which what could not be written is tried again


class Writer:
    """Writes files in a thread, one after the other in the order given. A file that cannot be written is tried again.

    Memory is bounded: put() waits until the thread is done, and a file that could not be written gives way to
    the next one for the same path.

    first: called without arguments by the thread that calls put(), before anything is written. It may raise
        CannotWrite as the functions that write files do.
    warn: called with the text of a warning.
    """

    def __init__(self, first, warn):
        self.first = first
        self.warn = warn
        self.pending = {}  # {path: the function that writes it}
        self.job = None  # the Future of what is being written
        self.retry_at = 0.0
        self.is_failing = False
        self.thread = ThreadPoolExecutor(1, thread_name_prefix='writer')

    def put(self, path, write):
        """Have write() called in the thread. It writes the file at `path`, or raises CannotWrite."""
        self.wait()
        self.pending.pop(path, None)  # It takes the last place in the order.
        self.pending[path] = write
        self.start()

    def start(self):
        """Begin to write what is pending."""
        try:
            self.first()
        except CannotWrite as error:
            self.note_failure(error)
        else:
            self.job = self.thread.submit(self.work)

    def work(self):
        for path, write in list(self.pending.items()):
            write()
            del self.pending[path]

    def wait(self):
        """Wait until the thread is done. Raises its errors other than CannotWrite, such as running out of memory."""
        if self.job is None:
            return
        job = self.job
        self.job = None
        error = job.exception()
        if isinstance(error, CannotWrite):
            self.note_failure(error)
        elif error is not None:
            raise error
        elif self.is_failing:
            self.is_failing = False
            self.warn('what could not be written is written now')

    def note_failure(self, error):
        self.retry_at = time.monotonic() + RETRY
        if not self.is_failing:
            self.warn(f'{error}. The run goes on, and tries again every {RETRY:g} s')
        self.is_failing = True

    def poll(self):
        """Note how the thread's work ended, and start what is to be tried again; called every few steps."""
        if self.job is not None and self.job.done():
            self.wait()
        if self.pending and self.job is None and time.monotonic() >= self.retry_at:
            self.start()

    def close(self, patience=0.0):
        """Wait for the thread, and end it. Returns whether all is written.

        patience: the most seconds in which what cannot be written is tried again.
        """
        end = time.monotonic() + patience
        self.wait()
        while self.pending and time.monotonic() < end:
            time.sleep(max(0.0, min(self.retry_at, end) - time.monotonic()))
            self.start()
            self.wait()
        self.thread.shutdown()
        return not self.pending
