"""What a fine-tuning run says of an epoch."""
import pytest

from common.training.finetuning import FineTuning


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
