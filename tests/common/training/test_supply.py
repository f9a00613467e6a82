"""How many images a second are loaded beside how many the steps could take: what is said, and when."""
import time
from types import SimpleNamespace

import pytest
import torch

from common.images.augmented import ROWS, Augmented, CentreCrop
from common.images.loading import loader
from common.training.progress import Progress
from common.training.supply import MEASURED, SETTLED, Supply, rounded
from common.training.unit import Unit
from pretrain.main import pretrain
from tests.common.images.drawn import noise
from tests.common.runs import Log, Taking

CPU = torch.device('cpu')


def a_run(workers=8, ranks=1, images_per_rank=64, per_epoch=1000):
    """As much of a Run as Supply looks at."""
    options = SimpleNamespace(batch_size=images_per_rank * ranks, epochs=2, max_skips=10)
    return SimpleNamespace(workers=workers, epochs=2, unit=Unit(),
                           ranks=SimpleNamespace(size=ranks, device=CPU, is_main=True), images_per_rank=images_per_rank,
                           per_epoch=per_epoch, steps=2 * per_epoch, options=options, schedule=lambda step: (0.1, 0.0))


def told(run, seconds_an_item, looks):
    """What Progress tells of looks, each (steps, seconds, seconds waited)."""
    log = Log()
    progress = Progress(run, log, None, lambda step: [], 'more --workers', lambda: seconds_an_item)
    progress.start_epoch()
    for steps, seconds, waited in looks:
        for step in range(steps):
            progress.add(step, 1.0, 1.0, True)
        progress.look(seconds, waited)
    return progress, [line for line in log.said if 'to go' not in line], log.warned


def test_first_steps_that_are_told_of_apart_say_nothing_of_the_speed():
    log = Log()
    progress = Progress(a_run(), log, None, lambda step: [], 'more --workers', lambda: 8 / 1200)
    progress.start_epoch()
    progress.add(0, 1.0, 1.0, True)
    progress.add_first_step(20.0)
    progress.look(0.001)
    assert log.said == []
    progress.add(1, 1.0, 1.0, True)
    progress.look(0.5)
    assert log.said[0].startswith('The next step took 0.50 s')


SLOW_START = [(5, 20.0, 10.0), (21, 3.0, 1.0)]  # the first steps, and two batches of each of 8 processes


def test_the_first_steps_are_left_out():
    assert sum(steps for steps, *_ in SLOW_START) == SETTLED + 2 * 8
    _, said, warned = told(a_run(), 8 / 1200, SLOW_START)
    assert said == warned == []


def test_steps_that_do_not_wait_get_one_short_line():
    looks = [*SLOW_START, (10, 10 * 64 / 2400, 0.0), (10, 1.0, 0.9)]
    _, said, warned = told(a_run(), 8 / 3100, looks)
    assert said == ['Images: 8 loading processes give about 3,100 images/s, and the steps could take 2,400.'] and warned == []


def test_steps_that_wait_get_a_warning_with_the_remedy():
    computing, whole = 10 * 64 / 2400, 10 * 64 / 1200
    progress, said, warned = told(a_run(), 8 / 1200, [*SLOW_START, (10, whole, whole - computing)])
    assert said == [] and len(warned) == 1
    assert warned[0].startswith('8 loading processes give about 1,200 images/s, and the steps could take 2,400: 50 % of the '
                                'time was spent waiting for images. Training is faster with more --workers. This machine has ')
    progress.warn_of_waiting(1, 0.5, 100.0)  # the end of the epoch says it no more
    assert len(warned) == 1


def test_after_the_warning_of_an_epoch_the_rates_alone_are_said():
    run, log = a_run(), Log()
    progress = Progress(run, log, None, lambda step: [], 'more --workers', lambda: 8 / 1200)
    progress.start_epoch()
    progress.warn_of_waiting(1, 0.5, 100.0)
    for steps in (SETTLED + 2 * run.workers, MEASURED):
        for step in range(steps):
            progress.add(step, 1.0, 1.0, True)
        progress.look(steps * 64 / 1200, steps * 64 / 2400)
    assert len(log.warned) == 1 and '50 % of the time of epoch 1' in log.warned[0]
    assert log.said[-1] == 'Images: 8 loading processes give about 1,200 images/s, and the steps could take 2,400.'


def test_an_epoch_that_waits_a_moment_is_not_warned_of():
    _, said, warned = told(a_run(per_epoch=10), 8 / 1200, [*SLOW_START, (10, 0.5, 0.25)])
    assert len(said) == 1 and warned == []


@pytest.mark.parametrize(('run', 'seconds', 'text'), [
    (a_run(workers=0), 1 / 300, 'the training process itself loads about 300 images/s (--workers=0), and the steps could take '
                                '1,300'),
    (a_run(workers=1), 1 / 300, '1 loading process gives about 300 images/s, and the steps could take 1,300'),
    (a_run(workers=4, ranks=8, images_per_rank=8), 1 / 300,
     '4 loading processes a rank give about 1,200 images/s, and the steps could take 160'),
    (a_run(images_per_rank=1), 1.0, '8 loading processes give about 8 images/s, and the steps could take 20'),
])
def test_rates_are_those_of_a_rank(run, seconds, text):
    """The steps take 0.05 s each, and wait as long again."""
    supply = Supply(run, lambda: seconds)
    supply.add(SETTLED + 2 * run.workers, 1.0, 0.0)
    supply.add(MEASURED, 1.0, 0.5)
    assert supply.is_measured and supply.share_waited == 0.5
    assert supply.describe() == text


def test_rates_have_two_digits():
    assert [rounded(rate) for rate in (1234, 35.4, 2.04, 0.2134, 1e6)] == ['1,200', '35', '2', '0.21', '1,000,000']


def test_a_process_adds_up_what_its_images_take(monkeypatch):
    """With a loading process and without; the clock is in no item."""
    clock = [0.0]
    monkeypatch.setattr('common.images.augmented.time', SimpleNamespace(perf_counter=lambda: clock[0]))
    for workers in (0, 1):
        augmented = Augmented(Taking([noise(9, 9)] * 6, 0.25, clock), CentreCrop((8, 8)), None)
        batches = list(loader(augmented, [[(0, 1), (0, 2)], [(0, 3)]], workers, CPU))
        assert augmented.time_spent.sum(0).tolist() == [0.75, 3.0] and augmented.seconds_an_item() == 0.25
        assert [len(images) for images, *_ in batches] == [2, 1]
        assert (augmented.time_spent[:, 1] > 0).sum() == 1 and len(augmented.time_spent) == ROWS


def test_a_run_says_its_rates_once(tiny, tmp_path, monkeypatch):
    """Each image takes 0.25 s, a batch of 8 two seconds, and a step nothing else, by these clocks."""
    clock = [0.0]
    for module in ('common.training.trainer', 'common.training.waits', 'common.training.progress', 'common.images.augmented'):
        monkeypatch.setattr(f'{module}.time', SimpleNamespace(perf_counter=lambda: clock[0], strftime=time.strftime))
    monkeypatch.setattr('common.training.progress.WAIT_WARNED', 2.0)  # never
    folder = pretrain(tiny(epochs=8, picture_every=0, run_dir=str(tmp_path / 'run')),
                      dataset=Taking([noise(32, 32)] * 40, 0.25, clock))
    said = (folder / 'stdout_backup.txt').read_text()
    assert said.count('Images: the training process itself loads about 4 images/s (--workers=0), and the steps could take') == 1
