"""Files that are written beside the training, and what happens when they cannot be."""
import time
from concurrent.futures import ThreadPoolExecutor

from common.reliability.checkpoint import CannotWrite

AGAIN = 60.0  # seconds after which what could not be written is tried again


class Writer:
    """Writes files in a thread of its own, one after the other in the order given; what fails is kept, said and tried again.

    Memory is bounded: a new `put` waits until what is being written is, and one that failed gives way to the next for the same
    path. first(): called by the thread that puts, before anything is written; may raise CannotWrite too.
    """

    def __init__(self, first, warn):
        self.first, self.warn = first, warn
        self.pending, self.job, self.again, self.failing = {}, None, 0.0, False
        self.thread = ThreadPoolExecutor(1, thread_name_prefix='writer')

    def put(self, path, write):
        """Have write() called in the thread; it raises CannotWrite, or is done."""
        self.settle()
        self.pending.pop(path, None)  # to the end of the order
        self.pending[path] = write
        self.start()

    def start(self):
        try:
            self.first()
        except CannotWrite as error:
            self.failed(error)
        else:
            self.job = self.thread.submit(self.work)

    def work(self):
        for path, write in list(self.pending.items()):
            write()
            del self.pending[path]

    def settle(self):
        """Wait for what is being written. Raises what is no CannotWrite, such as running out of memory."""
        if self.job is not None:
            job, self.job = self.job, None
            error = job.exception()
            if isinstance(error, CannotWrite):
                self.failed(error)
            elif error is not None:
                raise error
            elif self.failing:
                self.failing = False
                self.warn('what could not be written is written now')

    def failed(self, error):
        self.again = time.monotonic() + AGAIN
        if not self.failing:
            self.warn(f'{error}. The run goes on, and tries again every {AGAIN:g} s')
        self.failing = True

    def tend(self):
        """Look at what the thread came to, and try again what is due; called every few steps."""
        if self.job is not None and self.job.done():
            self.settle()
        if self.pending and self.job is None and time.monotonic() >= self.again:
            self.start()

    def close(self, patience=0.0):
        """Whether all is written, after so many seconds of trying at most, at an error; nothing can be put any more."""
        end = time.monotonic() + patience
        self.settle()
        while self.pending and time.monotonic() < end:
            time.sleep(max(0.0, min(self.again, end) - time.monotonic()))
            self.start()
            self.settle()
        self.thread.shutdown()
        return not self.pending
