"""What the tests of the analysis share: labelled images, classifiers in files, and settings that take a second."""
import pytest
import timm
import torch

import pretrain.models  # noqa: F401  registers your_convnet
from analysis.images import Settings
from common.demo_objects import CLASSES
from common.demo_world import write_world
from tests.conftest import randomise


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """val/ with 24 images of 12 classes, 32 pixels wide; train/ with others."""
    folder = tmp_path_factory.mktemp('pictures')
    write_world(folder, 12, 24, 32, seed=6)
    return folder


@pytest.fixture
def settings(pictures):
    def make(**changes):
        return Settings(**{'data_path': str(pictures), 'images': 6, 'size': (32, 32), 'crop': 1.0, 'batch_size': 4,
                           'workers': 0, **changes})
    return make


@pytest.fixture(scope='session')
def tuned(tmp_path_factory):
    """A file as a fine-tuning writes it, of a network with random weights."""
    return write_tuned(tmp_path_factory.mktemp('tuned') / 'your_convnet_1kfinetuned_best.pth', seed=1)


def write_tuned(path, seed, **config):
    cnn = randomise(timm.create_model('your_convnet', num_classes=12), seed)
    torch.save({'model': {f'cnn.{key}': value for key, value in cnn.state_dict().items()}, 'classes': sorted(CLASSES),
                'config': {'model': 'your_convnet', 'input_size': 32, 'smoothing': 0.1, **config}, 'top1': 50.0}, path)
    return path
