"""What a run writes down: errors of other ranks, trackers, energy."""
import contextlib
import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from common.training.energy import Meter
from common.training.log import RunLog
from pretrain.main import pretrain
from pretrain.spark_options import SparKOptions as Options


def test_an_error_on_another_rank_is_told(tmp_path, capsys):
    with pytest.raises(OSError, match='gone'), RunLog(tmp_path, 3, 'log.txt', Options(name='x')):
        raise OSError('the disk is gone')
    assert 'error on rank 3: the disk is gone' in capsys.readouterr().err


class Service:
    """Stands for wandb: remembers what it is told; log fails when its patience is over."""
    __name__, patience = 'wandb', 2

    def __init__(self):
        self.said, self.begun, self.finished = [], [], False

    def init(self, **given):
        self.begun.append(given)

    def log(self, values, step):
        if len(self.said) == self.patience:
            raise OSError('no connection')
        self.said.append((values, step))

    def finish(self):
        self.finished = True

    @staticmethod
    def Image(array):
        return array.shape


@pytest.fixture
def service(monkeypatch):
    service, known = Service(), importlib.util.find_spec
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name == 'wandb' or known(name))
    monkeypatch.setitem(sys.modules, 'wandb', service)
    return service


def test_a_tracker_is_told_and_cannot_stop_a_run(tiny, service, capsys):
    folder = pretrain(tiny(tracker='wandb', val_every=2, picture_every=1))
    begun = service.begun[0]
    assert begun['id'] == begun['name'] and begun['name'].startswith('run-') and begun['config']['model'] == 'your_convnet'
    assert begun['resume'] == 'allow' and service.finished and (folder / 'your_convnet_1kpretrained.pth').exists()
    assert list(service.said[0][0]) == ['loss/held_out'] and service.said[1][1] == 3
    assert 'optimisation/learning_rate' in service.said[1][0]
    assert capsys.readouterr().err.count('wandb takes nothing any more: OSError: no connection') == 1
    pretrain(tiny(tracker='wandb', val_every=2, picture_every=1))
    assert service.begun[1]['id'] == begun['id']  # the same run goes on there
    pretrain(tiny(tracker='wandb', val_every=2, picture_every=1, fresh=True))
    assert service.begun[2]['id'] != begun['id']


def test_pictures_for_a_tracker_and_a_failure_at_its_end(tiny, service, capsys):
    service.patience = 1000
    service.finish = lambda: Path('/nowhere/at/all').read_text()
    pretrain(tiny(tracker='wandb', picture_every=2))
    pictures = [(tag, value) for values, _ in service.said for tag, value in values.items() if isinstance(value, tuple)]
    assert len(pictures) == 1 and pictures[0][0].startswith('pictures/') and pictures[0][1][2] == 3
    assert 'wandb cannot end its run: FileNotFoundError' in capsys.readouterr().err


def open_files():
    """The paths of the files that this process has open."""
    for number in Path('/proc/self/fd').iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself is closed by now
            yield os.readlink(number)


@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='only Linux lists the open files of a process')
def test_a_tracker_that_is_not_there_or_does_not_begin(tiny, service, monkeypatch, tmp_path):
    service.init = lambda **given: Path('/nowhere/at/all').read_text()
    with pytest.raises(ValueError, match='nowhere.*leave --tracker away'):
        pretrain(tiny(tracker='wandb'))
    (tmp_path / 'other').mkdir()
    with pytest.raises(ValueError, match='leave --tracker away') as failed:
        RunLog(tmp_path / 'other', 0, 'log.txt', Options(name='x', tracker='wandb'))
    assert failed.tb is not None  # which keeps the objects of the call alive, as a notebook does
    assert not [one for one in open_files() if one.startswith(str(tmp_path))], 'nothing stays open or locked'
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install trackio'):
        pretrain(tiny(tracker='trackio'))


def test_energy_is_what_the_counter_says(monkeypatch):
    counts = iter([5_000, 7_200_005_000, 10_800_005_000])
    nvml = types.SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda name: name,
                                 nvmlDeviceGetTotalEnergyConsumption=lambda gpu: next(counts) if gpu == 'GPU-1-2' else None)
    monkeypatch.setitem(sys.modules, 'pynvml', nvml)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: types.SimpleNamespace(uuid='1-2'))
    meter = Meter(torch.device('cuda'))
    assert (meter.kwh(), meter.kwh()) == (2.0, 1.0)
    assert Meter(torch.device('cpu')).kwh() is None
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda gpu: 1 / 0  # a GPU that is lost in the middle
    assert meter.kwh() is None and meter.kwh() is None
    nvml.nvmlInit = None  # a driver that is not there
    assert Meter(torch.device('cuda')).kwh() is None
