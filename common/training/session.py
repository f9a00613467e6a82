"""What surrounds a run while it trains: signals, signs of life, and files that are written beside the training."""
import time
from contextlib import ExitStack, contextmanager

import torch

from common.reliability.checkpoint import VERSION, save_checkpoint
from common.reliability.heartbeat import TRAINING, Heartbeat
from common.reliability.stopping import StopRequest, Unwritten, write_exit_code
from common.reliability.writer import Writer
from common.training.waits import Waits


class Session:
    """Notes signals, gives signs of life, and writes files in a thread beside the training.

    It is the same on all ranks, but only the main one writes. run: Run. log: RunLog. saved: what `load_run`
    returned, None for a run that begins.
    """

    def __init__(self, run, log, saved):
        self.run = run
        self.ranks = run.ranks
        self.log = log
        self.options = run.options
        self.stop = StopRequest()
        self.writer = Writer(log.flush, log.warn) if run.ranks.is_main else None
        self.heartbeat = Heartbeat(run.folder, run.ranks, run.options.stall_minutes, log.warn, self.stop.ask)
        self.waits = Waits(run.ranks.device)
        self.saved_step = saved['own'] if saved else None  # of the newest checkpoint in the run folder
        self.last_save = time.monotonic()
        self.request_tensors = {}

    @contextmanager
    def noting_errors(self):
        """The context in which a run works: once an error ends it, what follows is no step any more."""
        try:
            yield
        except BaseException:
            self.heartbeat.now('ending after an error')
            raise

    @contextmanager
    def opened(self):
        """The context in which a run trains."""
        write_exit_code('')  # torchrun may start a group again: only the exit code of the last start counts
        with ExitStack() as stack:
            stack.enter_context(self.stop)
            stack.enter_context(self.heartbeat)
            try:
                yield self
            except BaseException:
                if self.writer:
                    self.writer.close()
                raise

    def requests(self):
        """(2,) on the device: 1 if this rank wants to stop, and 1 if the clock asks for a checkpoint; else 0."""
        minutes = self.options.save_every_minutes
        is_time = self.ranks.is_main and minutes > 0 and time.monotonic() - self.last_save > 60 * minutes
        request = bool(self.stop.asked), is_time
        if request not in self.request_tensors:  # made once each: a GPU would wait for every transfer
            self.request_tensors[request] = torch.tensor(request, dtype=torch.float32, device=self.ranks.device)
        return self.request_tensors[request]

    def go_on(self):
        """For loops over images besides training: gives a sign of life; whether to go on with the next images."""
        self.heartbeat.now('evaluating')
        return not self.stop.asked

    def asked_to_stop(self):
        """Whether any rank was asked to stop; the same on all ranks."""
        return self.ranks.any(self.stop.asked is not None)

    def batches(self, batches):
        """The same batches, with signs of life; the time that is spent waiting for them is added up."""
        batches = iter(batches)
        while True:
            self.heartbeat.now('waiting for the images')
            with self.waits.one():
                batch = next(batches, None)
            if batch is None:
                return
            self.heartbeat.now(TRAINING)
            yield batch

    def put(self, path, write):
        """Have write() called beside the training, on the main rank. path: what it writes."""
        if self.writer:
            self.writer.put(path, write)

    def tend_writer(self):
        """Let the writer try again what it could not write; called now and then."""
        if self.writer:
            self.writer.poll()

    def save(self, step, content):
        """Write a checkpoint beside the training.

        content() returns what is in it, in copies that training does not change.
        """
        if self.writer:
            with self.log.line.counting('writing the earlier checkpoint'):
                self.writer.wait()  # before the copy: there is one at a time in memory
            state = {'version': VERSION, 'step': step, **content()}
            keep_every = self.options.keep_every and self.options.keep_every * self.run.per_epoch

            def write():  # in the writer's thread. An earlier write may have failed, so `saved_step` is read only then.
                before = None if self.saved_step == step else self.saved_step
                save_checkpoint(self.run.checkpoint, state, before, self.options.keep, keep_every)
                self.saved_step = step

            self.writer.put(self.run.checkpoint, write)
        self.last_save = time.monotonic()

    def end(self, patience, message):
        """Wait for at most `patience` seconds until all is written, on all ranks.

        Raises Unwritten with the message if it could not be.
        """
        self.heartbeat.now('waiting for the files to be written')
        with self.log.line.counting('writing the last files'):
            is_written = self.writer.close(patience) if self.writer else True
        if self.ranks.any(not is_written):
            raise Unwritten(message)
