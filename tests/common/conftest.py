"""What the tests of training share: a run that nothing happened to."""
import pytest

from pretrain.main import pretrain
from pretrain.spark_options import SparKOptions as Options
from tests.conftest import TINY


@pytest.fixture(scope='session')
def undisturbed(world, tmp_path_factory):
    """The folder of a run of 10 steps that nothing happened to; tests do not touch it."""
    return pretrain(Options(**TINY, run_dir=str(tmp_path_factory.mktemp('undisturbed') / 'run'), data_path=str(world)))
