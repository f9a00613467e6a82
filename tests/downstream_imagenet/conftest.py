"""What the tests of fine-tuning share: a labelled picture world, and options of a run that takes seconds."""
import pytest

from common.demo_world import write_world
from downstream_imagenet.config import Options


@pytest.fixture(scope='session')
def labelled(tmp_path_factory):
    """train/ with 4 images of each of 12 classes, val/ with 26 in all."""
    folder = tmp_path_factory.mktemp('labelled')
    write_world(folder, 48, 26, 40, seed=5)
    return folder


@pytest.fixture
def small(labelled, tmp_path):
    """Options of a run of 2 epochs with 4 steps each."""
    def make(**changes):
        return Options(**{'name': 'small', 'run_dir': str(tmp_path / 'run'), 'data_path': str(labelled), 'lr': 1e-2,
                          'model': 'your_convnet', 'input_size': 32, 'batch_size': 12, 'epochs': 2, 'workers': 0,
                          'warmup_epochs': 0.5, 'log_every': 3, 'ema': 0.9, **changes})
    return make
