"""What the tests of detection share: drawn scenes, and options of a run that takes seconds."""
import pytest

from common.demo_coco import write_coco
from downstream_coco.config import Options
from tests.downstream_coco.runs import SMALL


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """13 training and 5 validation images of 64 px; the 12th is empty, the 6th has a crowd."""
    folder = tmp_path_factory.mktemp('coco')
    write_coco(folder, 13, 5, 64, seed=1)
    return folder


@pytest.fixture
def small(scenes, tmp_path):
    def make(**changes):
        return Options(**{**SMALL, 'name': 'small', 'run_dir': str(tmp_path / 'run'), 'data_path': str(scenes), **changes})
    return make
