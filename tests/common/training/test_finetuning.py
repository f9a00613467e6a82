"""What a fine-tuning run says of an epoch, and which of its weights it keeps."""
from types import SimpleNamespace

import pytest
from torch import nn

from common.training.finetuning import FineTuning
from common.training.unit import Unit
from tests.common.runs import ALONE


class Detection(FineTuning):
    best_called = 'mask AP'


class Classification(FineTuning):
    best_called = 'top-1'
    value_suffix = ' %'


@pytest.mark.parametrize(('program', 'values', 'text'), [
    (Classification, {'model': 71.2, 'ema': 70.3}, 'top-1 71.20 % (EMA 70.30 %)'),
    (Classification, {'model': 0.0}, 'top-1 0.00 %'),
    (Detection, {'model': 12.34, 'ema': 0.0}, 'mask AP 12.34 (EMA 0.00)'),
    (Detection, {'model': None, 'ema': None}, 'mask AP not measured'),
    (Detection, {}, ''),
])
def test_an_epoch_says_what_was_measured(program, values, text):
    assert program.__new__(program).told(values) == text


def test_the_best_weights_are_kept_of_equal_ones_the_first():
    class Tuning(FineTuning):
        best_by = 'top1'

    put, tuning = [], Tuning.__new__(Tuning)
    tuning.best, tuning.ranks, tuning.network = {}, ALONE, nn.Linear(2, 2)
    tuning.options = SimpleNamespace(as_dict=dict)
    tuning.run = SimpleNamespace(unit=Unit(), file=lambda which: which)
    tuning.session = SimpleNamespace(put=lambda path, write: put.append((path, write.args[1]['epoch'])))
    for epoch, top1 in enumerate((10.0, 30.0, 20.0, 30.0, None, 40.0), 1):
        tuning.keep_if_best('model', epoch, {'top1': top1}, None)
    assert put == [('best', 1), ('best', 2), ('best', 6)] and tuning.best['model'] == {'epoch': 6, 'top1': 40.0}
