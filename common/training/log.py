"""What a run says: to the terminal, to files in its folder, to TensorBoard, and to a tracker if one is asked for."""
import errno
import importlib
import json
import logging
import os
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import torch

from common.cli import needs
from common.live_line import LiveLine
from common.reliability.checkpoint import CannotWrite, write_atomically
from common.reliability.lock import FolderLock
from common.reliability.stopping import Ended
from common.training.tags import tag_of

AGAIN = 60.0  # seconds after which TensorBoard is tried again


class Terminal(logging.StreamHandler):
    """What was said, to a terminal that may be gone; where logging prints a trace, the run goes on.

    line: the LiveLine that it stands above.
    """

    def __init__(self, stream, line):
        super().__init__(stream)
        self.line = line

    def emit(self, record):
        with self.line.above():
            super().emit(record)

    def handleError(self, record):
        pass


class Backup(logging.FileHandler):
    """A copy of what was said; where it cannot be written, it stays in memory and the run goes on."""

    def handleError(self, record):
        pass  # the same full disk is told of by what matters


class RunLog:
    """Messages, JSON lines and scalars of one run. Only the main rank has files; warnings of all ranks reach stderr.

    `line` says what goes on: a LiveLine in a terminal, whose text goes to stdout_backup.txt now and then.
    `say` goes to stdout and stdout_backup.txt, `warn` and Python's warnings to stderr and stderr_backup.txt,
    `record` to the file log_name, scalars and pictures to TensorBoard, and to the options' tracker, under the
    name `project`. What cannot be written stops nothing: lines of `record` are kept until they can. Holds the
    folder's lock. Raises ValueError if another process does.
    """

    def __init__(self, folder, rank, log_name, options, project='runs', purge_step=0):
        is_main = rank == 0
        self.rank = rank
        self.is_main = is_main
        self.path = Path(folder, log_name)
        self.line = LiveLine(self.say if is_main else None, self.note, sys.stdout)
        # Loggers of this run alone: those that logging.getLogger() returns belong to the whole process.
        self.out, self.err = logging.Logger('stdout'), logging.Logger('stderr')
        self.err.addHandler(Terminal(sys.stderr, self.line))
        self.board = None
        self.board_again = 0.0  # the time at which it is tried again
        self.tracker = None
        self.warned = set()
        self.lines = []
        self.lock = FolderLock(Path(folder)) if is_main else None
        if is_main and options.tracker:
            try:
                self.tracker = start_tracker(options, folder, project)
            except BaseException:
                self.lock.release()
                raise
        if is_main:
            self.out.addHandler(Terminal(sys.stdout, self.line))
            self.out.addHandler(Backup(Path(folder, 'stdout_backup.txt'), encoding='utf-8'))
            self.err.addHandler(Backup(Path(folder, 'stderr_backup.txt'), encoding='utf-8'))
            self.board_folder = options.tensorboard_dir or str(Path(folder, 'tensorboard_log'))
            self.to_board('flush', purge_step=purge_step)
        else:
            self.out.addHandler(logging.NullHandler())

    def __enter__(self):
        logging.captureWarnings(True)
        self.hook, threading.excepthook = threading.excepthook, self.thread_failed
        for handler in self.err.handlers:
            logging.getLogger('py.warnings').addHandler(handler)
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Ended) and self.is_main:
            record = self.out.makeRecord('stdout', logging.INFO, '', 0, str(error), (), None)
            self.err.handlers[0].handle(record)  # stderr
            self.note(str(error))
        elif isinstance(error, Exception) and self.is_main:  # the caller tells the terminal
            self.err.handlers[-1].handle(self.err.makeRecord('stderr', logging.ERROR, '', 0, 'stopped by an '
                                                                                             'error', (),
                                                             (kind, error, trace)))
        elif isinstance(error, Exception) and not getattr(error, 'on_all_ranks', False):
            self.err.error('error on rank %d: %s', self.rank, error)
        if self.tracker is not None:
            try:
                self.tracker.finish()
            except Exception as failure:  # what the run has come to is more important
                self.warn(f'{self.tracker.__name__} cannot end its run: {type(failure).__name__}: {failure}')
        logging.captureWarnings(False)
        threading.excepthook = self.hook
        for handler in self.err.handlers:
            logging.getLogger('py.warnings').removeHandler(handler)
        with suppress(CannotWrite):  # said, and what a checkpoint depends on was written before it
            self.flush()
        for handler in (*self.out.handlers, *self.err.handlers):
            if isinstance(handler, logging.FileHandler):
                with suppress(OSError):
                    handler.close()
        if self.board is not None:
            with suppress(OSError):
                self.board.close()
        if self.lock is not None:
            self.lock.release()

    def say(self, message):
        self.out.info(message)

    def note(self, message):
        """Write to stdout_backup.txt alone."""
        self.out.handlers[-1].handle(self.out.makeRecord('stdout', logging.INFO, '', 0, message, (), None))

    def warn(self, message):
        self.err.warning('warning: %s', message)

    def warn_once(self, message):
        if message not in self.warned:
            self.warned.add(message)
            self.warn(message)

    def record(self, entry):
        if self.is_main:
            self.lines.append(json.dumps(entry) + '\n')
            try:
                self.flush()
            except CannotWrite as error:
                self.warn_once(f'{error}. The run goes on, and its lines are kept until they can be written')

    def flush(self):
        """Write what `record` was given to the disk. Raises CannotWrite; nothing is written in part then."""
        if not self.lines:
            return
        try:
            with open(self.path, 'ab', buffering=0) as file:
                before, text = file.tell(), ''.join(self.lines).encode()
                try:
                    if file.write(text) < len(text):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        os.ftruncate(file.fileno(), before)
                    raise
        except OSError as error:
            raise CannotWrite(f'cannot write {self.path}: {error}') from error
        self.lines = []

    def forget_after(self, step, again=False, unit='epoch'):
        """Drop what a run will do again after this step, so that each epoch stands in the log once.

        again: it will write the line of the epoch that ends at this very step too. unit: the name of the Unit, by
        which these lines are told from others. Lines that are about no step stay, such as the time of the first steps.
        """
        if self.is_main and self.path.exists():
            lines = [line for line in self.path.read_text(encoding='utf-8').splitlines(keepends=True) if line.endswith('\n')]
            kept = [line for line in lines if 'run' in (entry := json.loads(line)) or 'step' not in entry
                    or entry['step'] < step or entry['step'] == step and not (again and unit in entry)]
            write_atomically(self.path, lambda file: file.write(''.join(kept).encode()))

    def first_loss(self):
        """The mean loss of the first epoch that has one; None without any, or on a rank that keeps no log."""
        if not self.is_main:
            return None
        written = self.path.read_text(encoding='utf-8').splitlines() if self.path.exists() else []
        losses = (json.loads(line).get('loss') for line in [*written, *self.lines])
        return next((loss for loss in losses if loss is not None), None)

    def scalars(self, values, step):
        """Tell {name: number} to TensorBoard and to the tracker, under the tags of common/training/tags.py."""
        tagged = {tag_of(name): value for name, value in values.items()} if self.is_main else {}
        for tag, value in tagged.items():
            self.to_board('add_scalar', tag, value, step)
        if self.tracker is not None:
            self.track(tagged, step)

    def picture(self, name, image, step):
        """Tell a picture (3, H, W) to TensorBoard and to the tracker."""
        tag = f'pictures/{name}'
        if self.is_main:
            self.to_board('add_image', tag, image, step)
        if self.tracker is not None:
            self.track({tag: image}, step)

    def to_board(self, method, *arguments, purge_step=None):
        """Tell TensorBoard, opening it where there is none or where it has failed; what it cannot write is lost."""
        if self.board is None and time.monotonic() < self.board_again:
            return
        try:
            if self.board is None:
                from torch.utils.tensorboard import SummaryWriter
                self.board = SummaryWriter(self.board_folder, purge_step=purge_step)
            getattr(self.board, method)(*arguments)
        except OSError as error:
            self.board, self.board_again = None, time.monotonic() + AGAIN
            self.warn_once(f'TensorBoard misses something, since nothing can be written there: {error}')

    def thread_failed(self, about):
        """What threading prints otherwise, with a trace: libraries such as TensorBoard write in threads."""
        self.warn_once(f'{about.thread.name if about.thread else "a thread"}: {about.exc_type.__name__}: '
                       f'{about.exc_value}')

    def track(self, values, step):
        """Tell the tracker: {name: number, or picture (3, H, W)}. Whatever a service can do, it must not stop a run."""
        try:
            self.tracker.log({name: self.tracker.Image(value.permute(1, 2, 0).mul(255).byte().numpy())
                              if torch.is_tensor(value) else value for name, value in values.items()}, step=step)
        except Exception as error:
            self.warn_once(f'{self.tracker.__name__} takes nothing any more: {type(error).__name__}: {error}')


def start_tracker(options, folder, project):
    """The module of a tracker (wandb, or one that is called alike), with a run begun or gone on with. Raises ValueError."""
    needs(options.tracker)
    tracker, known = importlib.import_module(options.tracker), Path(folder, 'tracker_run.txt')
    if not known.exists():  # --fresh moves it away with the folder, and begins another run there too
        write_atomically(known, lambda file: file.write(f'{Path(folder).name}-{uuid.uuid4().hex[:8]}'.encode()))
    name = known.read_text()
    more = {'id': name} if options.tracker == 'wandb' else {}
    try:
        tracker.init(project=project, name=name, config=options.as_dict(), resume='allow', **more)
    except Exception as error:  # no login, no network: as the tracker puts it
        raise ValueError(f'{options.tracker} cannot begin ({type(error).__name__}: {error}): set it up, or '
                         'leave --tracker away') from error
    return tracker


def duration(seconds):
    """3725 -> '1 h 02 min'."""
    days, rest = divmod(int(seconds), 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    if days:
        return f'{days} d {hours:02} h'
    return f'{hours} h {minutes:02} min' if hours else f'{minutes} min {rest % 60:02} s' if minutes else f'{rest} s'


def clock(seconds_from_now=0.0):
    """The local time then: '2025-01-31 14:05'."""
    return time.strftime('%Y-%m-%d %H:%M', time.localtime(time.time() + seconds_from_now))
