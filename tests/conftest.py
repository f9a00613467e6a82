"""What the tests share: a small picture world, options of a run that takes seconds, and randomised networks."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pretrain.models  # noqa: F401  (registers your_convnet with timm)
from benchmarks.chaos import VARYING, same
from common.demo_world import write_world
from common.training import trainer
from pretrain.main import pretrain
from pretrain.spark_options import SparKOptions as Options

ROOT = Path(__file__).resolve().parents[1]

# One thread in a test process and in the processes that it starts: `make test` runs a test process on each of two cores.
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'


@pytest.fixture(autouse=True)
def without_nohup():
    """Signals as in a shell's foreground: nohup ignores SIGHUP, a script's `&` ignores SIGINT, and then runs do too."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """train/ with 40 images and val/ with 10, 40 pixels wide."""
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, 40, 10, 40, seed=3)
    return folder


TINY = {'name': 'tiny', 'model': 'your_convnet', 'input_size': 32, 'decoder_width': 16, 'batch_size': 8, 'epochs': 2,
        'lr': 1e-2, 'workers': 0, 'warmup_epochs': 0.5, 'log_every': 3}


@pytest.fixture
def tiny(world, tmp_path):
    """Options of a run of 2 epochs with 5 steps each, a second or two; tiny(**changes)."""
    def make(**changes):
        return Options(**{**TINY, 'run_dir': str(tmp_path / 'run'), 'data_path': str(world), **changes})
    return make


@pytest.fixture(scope='session')
def finished(world, tmp_path_factory):
    """The folder of a finished run, with pictures after both epochs."""
    folder = tmp_path_factory.mktemp('finished') / 'output_tiny'
    return pretrain(Options(**TINY, run_dir=str(folder), data_path=str(world), val_every=1, picture_every=1))


@pytest.fixture
def whole(tiny, tmp_path):
    """The folder of a run that nothing happened to."""
    return pretrain(tiny(run_dir=str(tmp_path / 'whole')))


class Stop(BaseException):
    """Ends a run in the middle, as a kill would."""


def stop_after(monkeypatch, steps):
    """Make the run die in the step after so many."""
    original, count = trainer.train_step, []

    def train_step(*arguments):
        if len(count) == steps:
            raise Stop
        count.append(1)
        return original(*arguments)

    monkeypatch.setattr(trainer, 'train_step', train_step)


def saved(folder, model='your_convnet'):
    return torch.load(os.path.join(folder, f'{model}_still_pretraining.pth'), weights_only=True)


def log_of(folder):
    lines = [json.loads(line) for line in Path(folder, 'pretrain_log.txt').read_text().splitlines()]
    return [line for line in lines if 'epoch' in line], [line for line in lines if 'run' in line]


def assert_same_run(one, other, model='your_convnet'):
    a, b = saved(one, model), saved(other, model)
    for key in ('step', 'sums', 'images', 'accum', 'model', 'optimizer'):
        assert same(a[key], b[key]), key
    entries = [[{k: v for k, v in line.items() if k not in VARYING} for line in log_of(folder)[0]] for folder in (one, other)]
    assert entries[0] == entries[1]


def assert_goes_on(options, tmp_path, monkeypatch, steps, changes, model='your_convnet'):
    """A run that dies after some steps, and is started again, ends as one that was never disturbed, to the last bit."""
    whole = pretrain(options(**changes, run_dir=str(tmp_path / 'whole')))
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            pretrain(options(**changes))
    assert_same_run(whole, pretrain(options(**changes)), model)


def flags(options):
    """The command line that gives these options."""
    def text(value):
        return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
    default = type(options)(name='x')
    return [f'--{name}={text(value)}' for name, value in options.as_dict().items()
            if value != getattr(default, name) and name != 'name']


def main_sh(name, *arguments, cwd, timeout=900):
    """Run bash pretrain/main.sh as a user would; the finished process."""
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)
    return subprocess.run(['bash', str(ROOT / 'pretrain/main.sh'), name, *arguments], cwd=cwd, env=environment, timeout=timeout,
                          capture_output=True, text=True)


def randomise(network, seed=0):
    """Random one-dimensional parameters and zero-initialised weights: otherwise whole branches hide their errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim <= 1 or not parameter.any():
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return network
