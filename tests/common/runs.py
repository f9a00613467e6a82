"""Runs to which something happens in a step, runs in processes of their own, and what runs leave."""
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from common.distributed import Ranks
from common.live_line import LiveLine
from common.training import trainer
from tests.conftest import ROOT, flags

NAME = 'your_convnet_still_pretraining'
ALONE = Ranks(0, 1, torch.device('cpu'))


def in_step(monkeypatch, number, act):
    """Have act() called at the beginning of the step of that number (counted from 0, in this process)."""
    original, count = trainer.train_step, []

    def train_step(*arguments):
        count.append(1)
        if len(count) == number + 1:
            act()
        return original(*arguments)

    monkeypatch.setattr(trainer, 'train_step', train_step)


def spoiled(monkeypatch, steps):
    """Make the images of these steps (counted in this process) not finite."""
    original, count = trainer.train_step, []

    def train_step(model, parts, *rest):
        bad = float('nan') if len(count) in steps else 1
        count.append(1)
        return original(model, ((images * bad, visible) for images, visible in parts), *rest)

    monkeypatch.setattr(trainer, 'train_step', train_step)
    return count


class Taking(list):
    """Images each of which takes so many seconds to read, by a clock ([seconds]) that nothing else sets forward."""

    def __init__(self, images, seconds, clock):
        super().__init__(images)
        self.seconds, self.clock = seconds, clock

    def __getitem__(self, index):
        self.clock[0] += self.seconds
        return super().__getitem__(index)


class Log:
    """Stands in for a RunLog: notes what is said, warned of and recorded."""

    def __init__(self):
        self.line = LiveLine(None)
        self.said, self.warned, self.recorded = [], [], []
        self.say, self.warn, self.record = self.said.append, self.warned.append, self.recorded.append

    def scalars(self, *given):
        pass

    def first_loss(self):
        return None


def fail_with(error):
    """raise, where an expression is asked for."""
    raise error


def fail(number):
    """Fail as the operating system does, with this errno."""
    raise OSError(number, os.strerror(number))


def begun(name, *arguments, cwd, **more):
    """bash pretrain/main.sh, running."""
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(['bash', str(ROOT / 'pretrain/main.sh'), name, *arguments], cwd=cwd, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.02)


def trains(folder):
    """Whether the first step is done, or the first steps are."""
    said = folder / 'stdout_backup.txt'
    return said.exists() and begins(said.read_text())


def begins(text):
    return re.search(r'The first (step|\d+ steps) took', text) is not None


def line_of(options):
    return [flag for flag in flags(options) if not flag.startswith('--run_dir')]


def losses_of(folder):
    """{step: loss} as TensorBoard has them, with --log_every=1.

    Files begun in one second are read by their number in the process, as text: 10 before 9, which must purge nothing.
    """
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(folder / 'tensorboard_log'), {'scalars': 0}, purge_orphaned_data=False).Reload()
    return {event.step: event.value for event in events.Scalars('loss/train')}
