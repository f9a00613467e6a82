"""What happens before the first step: loading processes start while the network goes to its device."""
import multiprocessing
import os
import signal
import time

import pytest

from common.images.loading import naming_the_file
from common.training import trainer
from pretrain.main import pretrain
from pretrain.pretraining import Pretraining
from tests.common.images.drawn import noise
from tests.conftest import assert_same_run


def until(condition):
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def loaded(run):
    """How many images the loading processes of a run have made."""
    return run.train_dataset.time_spent[:, 1].sum().item()


def before(monkeypatch, method, do):
    """Have do(run) called before a method of Pretraining."""
    original = getattr(Pretraining, method)
    monkeypatch.setattr(Pretraining, method, lambda run: do(run) or original(run))


def test_images_are_loaded_before_the_network_is_on_its_device(tiny, tmp_path, monkeypatch):
    plain = pretrain(tiny(workers=1))
    before(monkeypatch, 'place_network', lambda run: until(lambda: loaded(run) >= 16))  # two batches a process
    assert_same_run(plain, pretrain(tiny(workers=1, run_dir=str(tmp_path / 'early'))))


def test_where_the_parts_of_a_batch_are_found_out_loading_follows_that(tiny, tmp_path, monkeypatch):
    seen = []
    fit = trainer.fit_accumulation
    monkeypatch.setattr(trainer, 'fit_accumulation', lambda *given, **named: fit(*given, **named) and 2)
    before(monkeypatch, 'place_network', lambda run: seen.append(run.batches is not None))
    before(monkeypatch, 'build_optimizer', lambda run: until(lambda: loaded(run) >= 8))  # two parts of four images
    one = pretrain(tiny(workers=1, accum='auto', run_dir=str(tmp_path / 'auto')))
    monkeypatch.undo()
    assert_same_run(one, pretrain(tiny(accum=2, run_dir=str(tmp_path / 'given'))))
    assert seen == [False]


def test_an_error_before_the_first_step_ends_the_loading_processes(tiny, monkeypatch):
    def fail(run):
        until(lambda: loaded(run))
        assert len(multiprocessing.active_children()) == 2
        raise ValueError('mine')

    before(monkeypatch, 'build_optimizer', fail)
    with pytest.raises(ValueError, match='^mine$'):
        pretrain(tiny(workers=2))
    assert not multiprocessing.active_children()


class Deadly(list):
    """Images, the reading of which ends the process."""

    def __getitem__(self, index):
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_death_before_the_first_step_is_told_with_the_file(tiny, monkeypatch):
    before(monkeypatch, 'build_optimizer', lambda run: time.sleep(60))
    with pytest.raises(ValueError, match=r'a loading process died .* while it read number \d+\. If that repeats'):
        pretrain(tiny(workers=1), dataset=Deadly([noise(32, 32)] * 40))


def test_a_stop_before_the_first_step_ends_the_loading_processes(tiny, monkeypatch):
    def stop(run):
        until(lambda: loaded(run))
        os.kill(os.getpid(), signal.SIGTERM)

    before(monkeypatch, 'build_optimizer', stop)
    with pytest.raises(trainer.Stopped, match='which is saved'):
        pretrain(tiny(workers=1))
    assert not multiprocessing.active_children()


def test_images_to_measure_on_are_watched_too(tiny, monkeypatch):
    """Both data sets are in the context that names the file of a process that dies, from the start of loading on."""
    seen = []
    monkeypatch.setattr(trainer, 'naming_the_file', lambda *augmented: seen.append(augmented) or naming_the_file(*augmented))
    runs = []
    before(monkeypatch, 'place_network', lambda run: runs.append((run.train_dataset, run.val_dataset)))
    pretrain(tiny())
    assert seen == runs
