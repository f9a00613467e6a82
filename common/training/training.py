"""The life of a training run of any kind: steps, looks, epochs, checkpoints; how it is stopped, and how it ends."""
import os
import sys
import time
from contextlib import ExitStack, contextmanager

import torch
from torch import distributed as dist

from common.reliability.checkpoint import VERSION, copied, earlier, git_commit, require_space, save_checkpoint, set_aside
from common.reliability.stopping import Stopped, StopRequest, Unwritten, tell
from common.reliability.watch import TRAINING, Watch
from common.reliability.writer import Writer
from common.training.engine import train_one_epoch
from common.training.optim import BufferGuard, Lars
from common.training.waits import Waits

PATIENCE = 300.0  # seconds for which the files of a run at its end are tried to be written
GRACE = 10.0  # and for which those of one that was asked to stop are
REWINDS = 5  # times that a run goes back by itself


class NotFinite(ValueError):
    """Several steps in a row were NaN or infinite; they changed nothing. steps: a range."""
    on_all_ranks = True  # so that one of them says it

    def __init__(self, message, steps):
        super().__init__(message)
        self.steps = steps


class Session:
    """What surrounds a run while it trains: it notes signals, gives signs of life, and writes files beside the training.

    On all ranks; only the main one writes. `saved`: step of the newest checkpoint in the run folder, None without.
    """

    def __init__(self, run, log, saved):
        self.run, self.ranks, self.log, self.options = run, run.ranks, log, run.options
        self.stop, self.writer = StopRequest(), Writer(log.flush, log.warn) if run.ranks.is_main else None
        self.watch = Watch(run.folder, run.ranks, run.options.stall_minutes, log.warn, self.stop.ask)
        self.saved = saved['own'] if saved else None
        self.waits = Waits(run.ranks.device)
        self.last, self.tensors = time.monotonic(), {}

    @contextmanager
    def opened(self):
        tell('')  # of a group that torchrun has started again, the last life counts
        with ExitStack() as stack:
            stack.enter_context(self.stop)
            stack.enter_context(self.watch)
            try:
                yield self
            except BaseException:
                if self.writer:
                    self.writer.close()
                raise

    def wishes(self):
        """(2,) on the device: whether this rank wants to stop, and whether the clock asks for a checkpoint."""
        minutes = self.options.save_every_minutes
        save = self.ranks.is_main and minutes > 0 and time.monotonic() - self.last > 60 * minutes
        wish = bool(self.stop.asked), save
        if wish not in self.tensors:  # made once each: a GPU would wait for every transfer
            self.tensors[wish] = torch.tensor(wish, dtype=torch.float32, device=self.ranks.device)
        return self.tensors[wish]

    def go_on(self):
        """For loops over images besides training: a sign of life; whether to go on with the next."""
        self.watch.now('evaluating')
        return not self.stop.asked

    def asked_to_stop(self):
        """Whether any rank was; on all ranks alike."""
        asked = torch.tensor(float(self.stop.asked is not None), device=self.ranks.device)
        return self.ranks.all_reduce(asked, dist.ReduceOp.MAX).item() > 0

    def batches(self, batches):
        """The same batches, with signs of life; how long they are waited for is added up."""
        batches = iter(batches)
        while True:
            self.watch.now('waiting for the images')
            with self.waits.one():
                batch = next(batches, None)
            if batch is None:
                return
            self.watch.now(TRAINING)
            yield batch

    def put(self, path, write):
        """Have write() called beside the training; on the main rank."""
        if self.writer:
            self.writer.put(path, write)

    def save(self, step, content):
        """Write a checkpoint beside the training. content() -> what is in it, in copies that training does not change."""
        if self.writer:
            self.writer.settle()  # before the copy: there is one at a time in memory
            state, every = {'version': VERSION, 'step': step, **content()}, self.options.keep_every

            def write():  # what is on the disk by then, another write may have failed to change
                save_checkpoint(self.run.checkpoint, state, None if self.saved == step else self.saved, self.options.keep,
                                every and every * self.run.per_epoch)
                self.saved = step

            self.writer.put(self.run.checkpoint, write)
        self.last = time.monotonic()

    def end(self, patience, message):
        """Wait until all is written, on all ranks. Raises Unwritten with the message if it could not be."""
        self.watch.now('waiting for the files to be written')
        good = self.writer.close(patience) if self.writer else True
        bad = torch.tensor(float(not good), device=self.ranks.device)
        if self.ranks.all_reduce(bad, dist.ReduceOp.MAX).item():
            raise Unwritten(message)


def rewinding(attempt, options):
    """attempt(fresh, left_out); with the option `rewind` again from the last checkpoint, without the steps that went wrong.

    left_out: [(first step, step behind the last)] of those.
    """
    left_out = []
    # A group or a job that its launcher starts again goes on: what was moved aside once stays there.
    again = any(int(os.environ.get(name) or 0) for name in ('TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT'))
    while True:
        try:
            return attempt(options.fresh and not left_out and not again, left_out)
        except NotFinite as error:
            if not options.rewind or len(left_out) == REWINDS:
                raise
            left_out.append((error.steps.start, error.steps.stop))


def is_finished(run, saved):
    """Whether nothing is left to do of what was saved: no step, nor the evaluation behind the last one."""
    return bool(saved) and saved['step'] >= run.steps and not epoch_is_open(saved)


def epoch_is_open(saved):
    """Whether steps were taken since the last line in the log."""
    return saved['sums'][2] + saved.get('skipped', 0) > 0


def size_of(module, optimizer, averaged):
    """Bytes of a checkpoint, about: the weights, their average, and what the optimiser keeps of each trained one."""
    weights = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group['params'])
    return weights * (1 + averaged) + trained * (1 if isinstance(optimizer, (torch.optim.SGD, Lars)) else 2)


def train(run, log, session, saved, progress, *, parallel, module, optimizer, accum, clip_grad, description, warnings, batches,
          unreadable, content, measure, before=None, finish_epoch=None, after_step=None):
    """All that is left of a run, from where it was saved or from the beginning, to its end.

    parallel(*batch) -> loss; module: the same without the exchange between ranks. batches: the arguments of parallel, as
    train_one_epoch takes them. unreadable: set of names of images that could not be read, which grows with them. content() ->
    what a checkpoint holds besides what all runs have. measure(epoch, whether it is the last) -> ({name: value} for the log,
    the same for a person), or None if a signal cut it short; before() -> whether it was not, in the beginning.
    finish_epoch(epoch, last): on the main rank, behind the epoch's line in the log. after_step as for train_one_epoch.
    Raises Stopped, Unwritten, NotFinite; ValueError if there is no room for the checkpoints.
    """
    options, ranks, start, guard = run.options, run.ranks, saved['step'] if saved else 0, BufferGuard(module)
    heard = {'stop': False, 'save': False}

    def tell(step, loss, norm, finite, stop, save):
        progress.add(step, loss, norm, finite)
        session.watch.step = step
        heard['stop'], heard['save'] = heard['stop'] or stop > 0, heard['save'] or save > 0
        return stop > 0 or save > 0 or progress.is_lost

    def look(seconds):
        progress.look(seconds, session.waits.taken())
        if session.writer:
            session.writer.tend()

    def save(step):
        unreadable.update(ranks.union(unreadable))
        session.save(step, lambda: {
            'sums': list(progress.sums), 'skipped': progress.skipped, 'left_out': run.left_out, 'images': run.images,
            'fingerprint': run.fingerprint, 'unreadable': sorted(unreadable), 'accum': accum, 'ranks': ranks.size,
            'config': options.as_dict(), 'optimizer': copied(optimizer.state_dict()), **content()})
        heard['save'] = False

    def stop(step):
        save(step)
        who = session.stop.asked or 'a signal to another rank'
        session.end(GRACE, f'stopped by {who} after step {step:,}, but that state could not be saved: the same command goes on '
                           'from the last checkpoint')
        raise Stopped(f'stopped by {who} after step {step:,}, which is saved: the same command goes on from there')

    def give_up(epoch):
        steps, message = range(progress.bad[0][0], progress.bad[-1][0] + 1), progress.story(progress.bad)
        if options.rewind:  # all ranks read the same checkpoint, once it is written
            if session.writer:
                session.writer.close(GRACE)
            if session.asked_to_stop():
                raise Stopped('stopped by a signal while it went back: the same command goes on from the last checkpoint')
        else:
            since = max(steps.start, epoch * run.per_epoch)  # they changed nothing: this is the state before them
            progress.skipped -= sum(step >= since for step, *_ in progress.bad)
            save(since)
            session.end(GRACE, f'{message}. The state before them could not be saved')
            message += (f'. They changed nothing, and the state at step {since:,} is saved. Go on from it with a lower rate '
                        '(--lr or --base_lr), clipping (--clip) or --precision=fp32, or without these images: --rewind')
        raise NotFinite(message, steps)

    if ranks.is_main:
        there = len(earlier(run.checkpoint)) + run.checkpoint.exists()
        size = size_of(module, optimizer, bool(getattr(options, 'ema', 0)))
        require_space(run.folder, size, max(1, options.keep + 1 - there))
        set_aside(saved['damaged'] if saved else {}, log.warn)
    pending = start > 0 and start % run.per_epoch == 0 and saved['images'] == run.images and epoch_is_open(saved)
    log.forget_after(start, again=pending or start == 0)
    log.say(description)
    if ranks.is_main:
        for warning in warnings:
            log.warn(warning)
        log.record(run.record(start, accum, git_commit(), sys.argv))
    if start == 0 and before is not None and not before():
        stop(0)
    for epoch in range(start // run.per_epoch - pending, options.epochs):
        progress.start_epoch()
        for at, last in run.stretches(epoch, start):
            while at < last:
                at = train_one_epoch(
                    parallel, batches, range(at, last), optimizer=optimizer, guard=guard, ranks=ranks, seed=options.seed,
                    schedule=run.schedule, autocast=run.autocast, accum=accum, clip_grad=clip_grad, log_every=options.log_every,
                    wishes=session.wishes, tell=tell, look=look, after_step=after_step)
                if heard['stop']:
                    stop(at)
                if progress.is_lost:
                    give_up(epoch)
                if heard['save'] or at == last and run.saves_at(at):
                    save(at)
        done, final = epoch + 1, epoch + 1 == options.epochs
        found = measure(done, final)
        if found is None:  # once more when the run goes on
            stop(done * run.per_epoch)
        unreadable.update(ranks.union(unreadable))
        progress.end_epoch(done, found[0], len(unreadable), found[1])
        if ranks.is_main and finish_epoch is not None:
            finish_epoch(done, final)
        if final or done % options.save_every == 0:
            save(done * run.per_epoch)
    session.end(PATIENCE, f'the run has come to its end, but its last files could not be written into {run.folder}: make room '
                          'there, and the same command goes on from the last checkpoint')
