"""What a run says: to the terminal, to files in its folder, to TensorBoard, and to a tracker if one is asked for."""
import importlib
import json
import logging
import sys
import time
import uuid
from pathlib import Path

import torch

from common.checkpoint import write_atomically
from common.cli import needs
from common.lock import FolderLock


class RunLog:
    """Messages, JSON lines and scalars of one run. Only the main rank has files; warnings of all ranks reach stderr.

    `say` goes to stdout and stdout_backup.txt, `warn` and Python's warnings to stderr and stderr_backup.txt,
    `record` to pretrain_log.txt (or log_name), scalars and pictures to TensorBoard, and to the options' tracker. Holds the
    folder's lock. Raises ValueError if another process does.
    """

    def __init__(self, folder, rank, log_name, options, purge_step=0):
        is_main, self.rank = rank == 0, rank
        self.is_main, self.path, self.on_line, self.said = is_main, Path(folder, log_name), False, time.monotonic()
        self.out, self.err = logging.Logger('stdout'), logging.Logger('stderr')  # of this run, not the process's
        self.err.addHandler(logging.StreamHandler(sys.stderr))
        self.board, self.tracker, self.warned = None, None, set()
        self.lock = FolderLock(Path(folder)) if is_main else None
        if is_main:
            from torch.utils.tensorboard import SummaryWriter
            self.out.addHandler(logging.StreamHandler(sys.stdout))
            self.out.addHandler(logging.FileHandler(Path(folder, 'stdout_backup.txt'), encoding='utf-8'))
            self.err.addHandler(logging.FileHandler(Path(folder, 'stderr_backup.txt'), encoding='utf-8'))
            self.board = SummaryWriter(options.tensorboard_dir or str(Path(folder, 'tensorboard_log')), purge_step=purge_step)
            self.tracker = start_tracker(options, folder) if options.tracker else None
        else:
            self.out.addHandler(logging.NullHandler())

    def __enter__(self):
        logging.captureWarnings(True)
        for handler in self.err.handlers:
            logging.getLogger('py.warnings').addHandler(handler)
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception) and self.is_main:  # the caller tells the terminal
            self.err.handlers[-1].handle(self.err.makeRecord('stderr', logging.ERROR, '', 0, 'stopped by an error', (),
                                                             (kind, error, trace)))
        elif isinstance(error, Exception) and not getattr(error, 'on_all_ranks', False):
            self.err.error('error on rank %d: %s', self.rank, error)
        self.end_line()
        if self.tracker is not None:
            try:
                self.tracker.finish()
            except Exception as failure:  # what the run has come to is more important
                self.warn(f'{self.tracker.__name__} cannot end its run: {type(failure).__name__}: {failure}')
        logging.captureWarnings(False)
        for handler in self.err.handlers:
            logging.getLogger('py.warnings').removeHandler(handler)
        for handler in (*self.out.handlers, *self.err.handlers):
            if isinstance(handler, logging.FileHandler):
                handler.close()
        if self.board is not None:
            self.board.close()
        if self.lock is not None:
            self.lock.release()

    def say(self, message):
        self.said = time.monotonic()
        self.end_line()
        self.out.info(message)

    def warn(self, message):
        self.end_line()
        self.err.warning('warning: %s', message)

    def warn_once(self, message):
        if message not in self.warned:
            self.warned.add(message)
            self.warn(message)

    def progress(self, message):
        """One line that replaces itself in a terminal; elsewhere a line of its own, at most once a minute."""
        if self.is_main and sys.stdout.isatty():
            sys.stdout.write(f'\r\x1b[K{message}')
            sys.stdout.flush()
            self.on_line = True
        elif time.monotonic() - self.said > 60:
            self.say(message)

    def end_line(self):
        if self.on_line:
            sys.stdout.write('\r\x1b[K')
            self.on_line = False

    def record(self, entry):
        if self.is_main:
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(entry) + '\n')

    def forget_after(self, step):
        """Drop the epochs that a run will do again after this step, so that each stands in the log once."""
        if self.is_main and self.path.exists():
            lines = [line for line in self.path.read_text(encoding='utf-8').splitlines(keepends=True) if line.endswith('\n')]
            kept = [line for line in lines if 'epoch' not in (entry := json.loads(line)) or entry['step'] <= step]
            write_atomically(self.path, lambda file: file.write(''.join(kept).encode()))

    def scalars(self, values, step):
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.tracker is not None:
            self.track(values, step)

    def picture(self, name, image, step):
        if self.board is not None:
            self.board.add_image(name, image, step)
        if self.tracker is not None:
            self.track({name: image}, step)

    def track(self, values, step):
        """Tell the tracker: {name: number, or picture (3, H, W)}. Whatever a service can do, it must not stop a run."""
        try:
            self.tracker.log({name: self.tracker.Image(value.permute(1, 2, 0).mul(255).byte().numpy())
                              if torch.is_tensor(value) else value for name, value in values.items()}, step=step)
        except Exception as error:
            self.warn_once(f'{self.tracker.__name__} takes nothing any more: {type(error).__name__}: {error}')


def start_tracker(options, folder):
    """The module of a tracker (wandb, or one that is called alike), with a run begun or gone on with. Raises ValueError."""
    needs(options.tracker)
    tracker, known = importlib.import_module(options.tracker), Path(folder, 'tracker_run.txt')
    if not known.exists():  # --fresh moves it away with the folder, and begins another run there too
        write_atomically(known, lambda file: file.write(f'{Path(folder).name}-{uuid.uuid4().hex[:8]}'.encode()))
    name = known.read_text()
    more = {'id': name} if options.tracker == 'wandb' else {}
    try:
        tracker.init(project='spark', name=name, config=options.as_dict(), resume='allow', **more)
    except Exception as error:  # no login, no network: as the tracker puts it
        raise ValueError(f'{options.tracker} cannot begin ({type(error).__name__}: {error}): set it up, or leave --tracker '
                         'away') from error
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
