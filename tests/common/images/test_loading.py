"""Images that hang, and loading processes that die: they are given up, and named."""
import multiprocessing
import os
import signal
import time

import pytest
import torch

from common.distributed import Ranks
from common.images.augmented import Augmented, CentreCrop
from common.images.datasets import check_dataset
from common.images.loading import each_once, loader, naming_the_file
from common.images.timeout import at_most
from common.live_line import LiveLine

NORM = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device('cpu')


# -- files that hang --------------------------------------------------------------------------------------------------

class Doing:
    """Eight images, number 3 of which does something when it is read."""

    def __init__(self, what):
        self.what = what

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            self.what()
        return torch.full((3, 8, 8), index / 8)

    def name(self, index):
        return f'file{index}.png'


def test_images_are_counted_whether_they_can_be_read_or_not():
    """The main rank of two counts for both."""
    def broken():
        raise OSError('no image')

    for size in (1, 2):
        augmented, warned = Augmented(Doing(broken), CentreCrop((8, 8)), NORM, stand_ins=False), []
        with LiveLine(None).counting('images', 8) as count:
            done = [count.done for _ in each_once(augmented, 2, 0, Ranks(size - 1, size, CPU), warned.append, count=count)]
        assert (done, count.done, len(warned)) == (([0, 2, 4, 6], 8, 1) if size == 1 else ([0, 4], 8, 1))


def never():
    time.sleep(1000)


def alarmed():
    """Have the alarm that is set go off now, as if its time were over."""
    assert signal.setitimer(signal.ITIMER_REAL, 0.01)[0] > 0


def hanging():
    alarmed()
    never()


class Waiting:
    """Opens a FIFO that nobody writes to."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        alarmed()
        with open(self.path, 'rb') as file:
            file.read()


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('fifo', [False, True])
def test_a_read_that_hangs_is_given_up(tmp_path, fifo, workers):
    os.mkfifo(tmp_path / 'fifo')
    images = Doing(Waiting(tmp_path / 'fifo') if fifo else hanging)
    augmented = Augmented(images, CentreCrop((8, 8)), NORM, timeout=1000)
    batches = list(loader(augmented, [[(0, i)] for i in (2, 3, 4)], workers, CPU))
    assert [failures for *_, failures in batches] == [[], [(3, 'TimeoutError: it gave nothing for 1000 seconds')], []]
    assert torch.equal(batches[1][0], batches[2][0])  # the next one stands in
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_someone_elses_alarm_goes_off_all_the_same():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with at_most(1000):
            time.sleep(0.2)
        for _ in range(10_000):  # an alarm ends no sleep
            if rung:
                break
            time.sleep(0.01)
        assert rung == [True]
        signal.setitimer(signal.ITIMER_REAL, 1000)
        with pytest.raises(TimeoutError), at_most(0.01):
            never()
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_without_a_limit_there_is_no_alarm():
    seen = []
    images = Doing(lambda: seen.append(signal.getitimer(signal.ITIMER_REAL)[0]))
    Augmented(images, CentreCrop((8, 8)), NORM)[0, 3]
    Augmented(images, CentreCrop((8, 8)), NORM, timeout=None)[0, 3]
    assert 0 < seen[0] <= 120 and seen[1] == 0
    assert loader(Augmented(images, CentreCrop((8, 8)), NORM, timeout=None), [], 1, CPU).timeout == 0
    assert loader(Augmented(images, CentreCrop((8, 8)), NORM), [], 1, CPU).timeout == 3600
    assert loader(Augmented(images, CentreCrop((8, 8)), NORM), [], 0, CPU).timeout == 0


def test_the_first_look_at_a_dataset_does_not_hang():
    images = torch.utils.data.Subset(Doing(never), [3])
    assert check_dataset(images, timeout=0.05) is images


# -- loading processes ------------------------------------------------------------------------------------------------

def killed():
    os.kill(os.getpid(), signal.SIGKILL)


class KilledLater:
    """Ends its process once somebody says so."""

    def __init__(self):
        self.listen, self.say = os.pipe()

    def __call__(self):
        os.read(self.listen, 1)
        killed()


def exits():
    os._exit(3)


def faults():
    os.kill(os.getpid(), signal.SIGSEGV)


def uninterrupted():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
    never()


def told_to_stop():
    for name in ('SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGTERM'):
        os.kill(os.getpid(), getattr(signal, name))


def ended():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    never()


def read_all(what, context=None, **options):
    """Read the images of Doing(what) with one process, beside another data set that is in order."""
    augmented, other = (Augmented(Doing(each), CentreCrop((8, 8)), NORM, **options) for each in (what, int))
    batches = loader(augmented, [[(0, i)] for i in range(8)], 1, CPU)
    batches.multiprocessing_context = context
    with naming_the_file(other, augmented):
        for _ in loader(other, [[(0, 5)]], 1, CPU):
            pass
        return [x for x, *_ in batches]


DEATHS = [(killed, 'killed by signal: Killed'), (exits, 'exited unexpectedly with exit code 3'),
          (faults, 'killed by signal: Segmentation fault'), (ended, 'killed by signal: Terminated')]


@pytest.mark.parametrize(('what', 'how'), DEATHS)
def test_a_death_is_told_with_the_file(what, how):
    with pytest.raises(ValueError, match=r'file3\.png\. If that repeats.*--workers') as error:
        read_all(what)
    died = str(error.value).split(' while it read file3.png.')[0]  # how is not known if a batch was being handed over
    assert died in (f'a loading process died ({how})', 'a loading process died (exited unexpectedly)')


@pytest.mark.slow
@pytest.mark.parametrize(('what', 'how'), DEATHS[:2])
def test_a_death_is_told_with_the_file_where_processes_are_spawned(what, how):
    with pytest.raises(ValueError, match=r'read file3\.png\. If that repeats'):
        read_all(what, 'spawn')


def test_a_death_is_told_wherever_the_training_process_is():
    """Not in the loop over the batches, but in the middle of a step."""
    later = KilledLater()
    augmented = Augmented(Doing(later), CentreCrop((8, 8)), NORM)
    batches = iter(loader(augmented, [[(0, i)] for i in (0, 3)], 1, CPU))
    with pytest.raises(ValueError, match='died .killed by signal: Killed. while it read file3.png'), naming_the_file(augmented):
        next(batches)
        os.write(later.say, b'.')
        time.sleep(600)


def fatal(items):
    killed()


def test_a_death_between_two_images_blames_none():
    augmented = Augmented(Doing(int), CentreCrop((8, 8)), NORM)
    with pytest.raises(ValueError, match='between two images: memory or /dev/shm ran out'), naming_the_file(augmented):
        list(loader(augmented, [[(0, 0)]], 1, CPU, collate=fatal))


def test_other_errors_pass(monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    with pytest.raises(RuntimeError, match='^mine$'), naming_the_file():
        raise RuntimeError('mine')
    with pytest.raises(FileNotFoundError, match='^mine$'), naming_the_file(Augmented(Doing(int), None, NORM)):
        raise FileNotFoundError('mine')


def test_a_process_that_has_read_nothing_is_ended_too():
    """While those stay that were there before."""
    augmented = Augmented(Doing(int), CentreCrop((8, 8)), NORM)
    before = iter(loader(augmented, [[(0, 1)]], 1, CPU))
    others = multiprocessing.active_children()
    with pytest.raises(ValueError, match='^mine$'), naming_the_file(augmented):
        batches = iter(loader(augmented, [], 2, CPU))
        assert len(multiprocessing.active_children()) == 3
        raise ValueError('mine')
    assert multiprocessing.active_children() == others and len(others) == 1
    assert len(list(before)) == 1 and list(batches) == []


def test_processes_outlive_what_stops_a_run():
    assert [float(x.mean()) for x in read_all(told_to_stop)] == [(i / 8 - 0.5) / 0.25 for i in range(8)]


def test_a_read_that_nothing_interrupts_ends_the_run():
    """And its process, which would keep the training process from ending."""
    with pytest.raises(ValueError, match=r'timed out after 6\.0 seconds, reading file3\.png: is the storage still there'):
        read_all(uninterrupted, timeout=0.2)
    assert not multiprocessing.active_children()
