"""The time that training waits for images, by a clock that only the test sets forward."""
import re
import time
from types import SimpleNamespace

import pytest
import torch

from common.training import trainer
from common.training.waits import Waits
from pretrain.main import pretrain
from tests.common.images.drawn import noise
from tests.common.runs import Taking
from tests.conftest import log_of


@pytest.fixture
def clock(monkeypatch):
    """Stands in for the clock that training reads: [seconds], which only the test sets forward."""
    now = [0.0]
    for module in ('common.training.trainer', 'common.training.waits', 'common.training.progress'):
        monkeypatch.setattr(f'{module}.time', SimpleNamespace(perf_counter=lambda: now[0], strftime=time.strftime))
    return now


def taking(monkeypatch, clock, seconds):
    """Have each training step take so many seconds, besides what reading its images does."""
    original = trainer.train_step

    def train_step(*arguments):
        clock[0] += seconds
        return original(*arguments)

    monkeypatch.setattr(trainer, 'train_step', train_step)


def test_the_time_spent_waiting_for_images_is_told(tiny, tmp_path, monkeypatch, clock):
    """A batch takes 8 s to read, and a step 2 s; the first batch of all is not counted."""
    taking(monkeypatch, clock, 2.0)
    folder = pretrain(tiny(run_dir=str(tmp_path / 'slow'), picture_every=0), dataset=Taking([noise(32, 32)] * 40, 1.0, clock))
    assert [entry['data_wait'] for entry in log_of(folder)[0][1:]] == [32 / 50, 40 / 50]
    assert [entry['images_per_second'] for entry in log_of(folder)[0][1:]] == pytest.approx([40 / 50, 40 / 50])
    said, warned = ((folder / f'std{kind}_backup.txt').read_text() for kind in ('out', 'err'))
    assert re.findall(r', waited (\d\d) % for images', said) == ['64', '80']
    told = re.findall(r'(\d\d) % of the time of epoch (\d) was spent waiting for images \(--workers=0\)', warned)
    assert told == [('64', '1')]  # once
    assert all(word in warned for word in ('more --workers', '--decode=fast', 'tar shards'))
    board = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    shares = board.EventAccumulator(str(folder / 'tensorboard_log')).Reload().Scalars('speed/data_wait')
    assert len(shares) >= 3 and all(0.5 < share.value < 0.81 for share in shares)


@pytest.mark.parametrize(('seconds', 'share'), [(0.01, 0.074), (0.001, 0.008)])
def test_who_waits_little_is_not_warned(tiny, tmp_path, monkeypatch, clock, seconds, share):
    """A step takes 1 s, and a batch 0.08 s to read, which is told; or 0.008 s, which is not."""
    monkeypatch.setattr('common.training.progress.SHORTEST_WAIT', 0.0)
    taking(monkeypatch, clock, 1.0)
    folder = pretrain(tiny(run_dir=str(tmp_path / 'fast'), picture_every=0),
                      dataset=Taking([noise(32, 32)] * 40, seconds, clock))
    assert log_of(folder)[0][-1]['data_wait'] == pytest.approx(share, abs=1e-3)
    assert ('waited 7 % for images' in (folder / 'stdout_backup.txt').read_text()) == (share > 0.05)
    assert 'spent waiting' not in (folder / 'stderr_backup.txt').read_text()


def test_a_gpu_waits_only_while_it_has_nothing_to_do(monkeypatch):
    """With events that stand in for a GPU's, whose clock is set by hand; those in the future have not come yet."""
    host = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = max(host[0], busy_until)

        def query(self):
            return self.at <= host[0]

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    waits, busy_until = Waits(torch.device('cuda')), 0.0
    for work, wait in ((0, 100.0), (5.0, 3.0), (5.0, 2.0), (0.0, 7.0)):  # the GPU is given work; the host waits for a batch
        busy_until = max(host[0], busy_until) + work
        with waits.one():
            host[0] += wait
    assert waits.taken() == 2.0  # works until 110, waits from there to 112; the first batch is not counted
    busy_until = 120.0
    with waits.one():
        host[0] += 1.0
    assert waits.taken() == 0.0 and len(waits.pairs) == 1
    host[0] = 130.0
    assert waits.taken() == 0.0 and not waits.pairs
