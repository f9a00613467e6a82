"""What the tests of segmentation share: drawn images with masks, and options of a run that takes seconds."""
import pytest

from common.demo_masks import write_masks
from downstream_ade20k.config import Options
from tests.downstream_ade20k.runs import SMALL


@pytest.fixture(scope='session')
def drawn_masks(tmp_path_factory):
    """13 training and 5 validation images of 64 px; the 12th is empty."""
    folder = tmp_path_factory.mktemp('masks')
    write_masks(folder, 13, 5, 64, seed=1)
    return folder


@pytest.fixture
def small(drawn_masks, tmp_path):
    def make(**changes):
        given = {**SMALL, 'name': 'small', 'run_dir': str(tmp_path / 'run'), 'data_path': str(drawn_masks)}
        return Options(**{**given, **changes})
    return make
