"""Runs that never trained, to be read, shown and exported."""
import torch

from common.reliability.checkpoint import plain_state, save
from pretrain.saved import read_saved
from pretrain.spark import build_spark
from pretrain.spark_method import SparKOptions as Options
from tests.conftest import randomise


def saved_run(folder, model, size=64, width=64, decoder='unet'):
    """A checkpoint as of a run, with random weights, read back."""
    torch.manual_seed(0)
    options = Options(name='r', model=model, input_size=size, decoder_width=width, decoder=decoder)
    spark = randomise(build_spark(**options.network))
    save(folder / 'r_still_pretraining.pth', {'version': 1, 'step': 3, 'sums': [0, 0, 0], 'images': 10, 'accum': 1, 'ranks': 1,
                                              'config': options.as_dict(), 'model': plain_state(spark), 'optimizer': {}})
    return read_saved(folder / 'r_still_pretraining.pth')
