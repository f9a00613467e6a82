"""The curves of the learning rate, against the numbers of their authors."""
import json
import math

import pytest

from common.training.schedule import Cosine, CosineToFloor, CosineToRate, Drop, HalfCosine, Polynomial, learning_rate
from tests.conftest import ROOT

PARTS = json.loads((ROOT / 'tests/golden/a2mim_parts.json').read_text())


def rate(curve, step, steps, warmup_steps, peak):
    share, floor = curve.parts(step, steps, warmup_steps)
    return floor + share * peak


@pytest.mark.parametrize('want', PARTS['schedule'], ids=lambda want: f'{want["epochs"]} epochs')
def test_a_cosine_to_a_floor_is_the_authors_also_for_a_group_with_a_tenth_of_the_rate(want):
    steps, warmup = (want[name] * want['iters_per_epoch'] for name in ('epochs', 'warmup_epochs'))
    curve = CosineToFloor(want['min_lr'])
    for step, lr, slow in want['iter_lr_slowlr']:
        assert rate(curve, step, steps, warmup, want['peak']) == pytest.approx(lr, rel=1e-12, abs=0)
        assert rate(curve, step, steps, warmup, want['peak'] / 10) == pytest.approx(slow, rel=1e-12, abs=0)


def test_a_cosine_to_a_floor_is_not_a_straight_warmup_to_a_share_of_the_peak():
    """At 300 epochs of 626 steps."""
    curve, steps, warmup = CosineToFloor(1e-5), 187_800, 6260
    middle = rate(curve, 3130, steps, warmup, 1.2e-3)
    assert middle < 6e-4 and middle == pytest.approx(6e-4 * (1 - 7e-4), rel=1e-4)
    assert rate(curve, 0, steps, warmup, 1.2e-3) == 0
    assert [rate(curve, steps - 1, steps, warmup, peak) for peak in (1.2e-3, 1.2e-4)] == pytest.approx([1e-5, 1e-5], rel=1e-7)


def test_without_warmup_a_cosine_to_a_floor_begins_at_the_peak():
    assert CosineToFloor(1e-5).parts(0, 10, 0) == (1, 0) and CosineToFloor(1e-5).parts(0, 1, 0) == (1, 0)


def test_a_longer_run_begins_at_the_floor_and_reaches_the_peak():
    again = CosineToFloor(1e-5).again
    rates = [rate(again, step, 100, 10, 1e-3) for step in range(100)]
    assert rates[0] == 1e-5 and rates[10] == 1e-3 and rates[99] == pytest.approx(1e-5, rel=0.1)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True) and again.again == again


def test_half_a_cosine_is_mae_s():
    """Batches of 3,072, 1,600 epochs of which 40 warm up: 9e-4 at epoch 20, 1.8e-3 at 40, 9e-4 at 820."""
    for per_epoch in (1, 417):
        at = [rate(HalfCosine(), epoch * per_epoch, 1600 * per_epoch, 40 * per_epoch, 1.8e-3) for epoch in (0, 20, 40, 820)]
        assert at == pytest.approx([0, 9e-4, 1.8e-3, 9e-4], rel=1e-12)
    curve = HalfCosine(end=0.1)
    assert rate(curve, 55, 100, 10, 1.0) == pytest.approx(0.55) and rate(curve, 99, 100, 10, 1.0) > 0.1
    assert rate(curve.again, 0, 100, 10, 1.0) == 0.1 and curve.again.again == curve.again
    assert HalfCosine().parts(0, 10, 0) == (1, 0)


def test_a_drop_is_a_tenth_from_the_700th_of_800_epochs_on():
    curve, steps, warmup = Drop(at=(7 / 8,)), 800 * 626, 10 * 626
    at = [0, warmup // 2, warmup, 700 * 626 - 1, 700 * 626, steps - 1]
    assert [rate(curve, step, steps, warmup, 4e-4) for step in at] == pytest.approx([0, 2e-4, 4e-4, 4e-4, 4e-5, 4e-5])
    assert [curve.again.parts(step, 100, 10)[0] for step in (0, 5, 10, 87, 88)] == pytest.approx([0.1, 0.55, 1, 1, 0.1])


def test_drops_are_at_each_place_a_tenth_of_what_was_before():
    curve = Drop(at=(0.07, 0.6, 0.8))
    assert [curve.parts(step, 100, 0)[0] for step in (0, 6, 7, 59, 60, 79, 80, 99)] == \
        pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert curve.again.parts(0, 100, 10)[0] == pytest.approx(0.001)


def test_a_cosine_to_a_rate_ends_there_for_every_group():
    curve = CosineToRate(0.005, 1e-6)
    for peak in (4e-3, 4e-5):
        rates = [rate(curve, step, 100, 10, peak) for step in (0, 5, 10, 99)]
        assert rates == pytest.approx([0.005 * peak, (0.005 + 0.995 / 2) * peak, peak, 1e-6], rel=1e-12)
    middle = rate(curve, 10 + 44, 100, 10, 4e-3), rate(curve, 10 + 45, 100, 10, 4e-3)
    assert middle[0] > (4e-3 + 1e-6) / 2 > middle[1]


def test_a_cosine_to_a_rate_may_fall_between_epochs_only():
    curve = CosineToRate(0.005, 1e-6, steps_per_epoch=4)
    rates = [rate(curve, step, 40, 8, 1.0) for step in range(40)]
    assert rates[:9] == sorted(rates[:9]) and rates[4] == pytest.approx(0.005 + 0.995 / 2)
    for epoch in range(2, 10):
        expected = 1e-6 + (1 - 1e-6) * (0.5 + 0.5 * math.cos(math.pi * epoch / 10))
        assert rates[4 * epoch:4 * epoch + 4] == pytest.approx([expected] * 4, rel=1e-12)
    again = [rate(curve.again, step, 40, 8, 1.0) for step in range(40)]
    assert again[0] == 1e-6 and again[4] == pytest.approx(0.5, rel=1e-5) and again[8:] == rates[8:]


def test_a_cosine_has_the_bits_that_it_always_had():
    """floor + peak * share of the curve, against the formula as one expression, by which all earlier runs were trained."""
    for start, end, peak, steps, warmup in ((0.005, 0.001, 3.2e-3, 97, 10), (0.001, 0.001, 0.0071, 31, 0)):
        for step in range(steps):
            done = (step - warmup) / max(steps - 1 - warmup, 1)
            expected = peak * (start + (1 - start) * step / warmup) if step < warmup else \
                peak * (end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * done)))
            share, floor = Cosine(start, end).parts(step, steps, warmup)
            assert floor + peak * share == expected == learning_rate(step, steps, warmup, peak, start, end)
    assert Cosine(0.005, 0.001).again == Cosine(0.001, 0.001)


def test_a_polynomial_has_the_values_of_mmsegmentation_computed_by_hand():
    """Those of ConvNeXt and ConvMAE on ADE20K: 160,000 iterations, 1,500 of warm-up, to 0; and those of ResNet."""
    line = Polynomial(power=1, start=1e-6)
    by_hand = {0: 1e-10,  # a millionth of 1e-4
               750: (1 - 0.5 * (1 - 1e-6)) * 9.953125e-5,  # half of the way up, and 750 / 160,000 of the way down
               1499: (1 - (1 - 1e-6) / 1500) * 9.9063125e-5, 1500: 9.90625e-5, 80_000: 5e-5, 159_999: 6.25e-10}
    for step, lr in by_hand.items():
        assert rate(line, step, 160_000, 1500, 1e-4) == pytest.approx(lr, rel=1e-12), step
    curve = Polynomial(power=0.9, end=1e-4)
    by_hand = {0: 0.01, 80_000: 1e-4 + 0.0099 * 0.5358867312681466, 144_000: 1e-4 + 0.0099 * 0.12589254117941673}
    for step, lr in by_hand.items():  # 0.5 ** 0.9 and 0.1 ** 0.9
        assert rate(curve, step, 160_000, 0, 0.01) == pytest.approx(lr, rel=1e-12), step
    assert 1e-4 < rate(curve, 159_999, 160_000, 0, 0.01) < 1.01e-4


def test_the_warmup_of_a_polynomial_multiplies_its_end_too():
    """As mmcv does it: the whole learning rate of a step is multiplied, also of a group with a tenth of the peak."""
    curve = Polynomial(power=2, end=0.1, start=0.2)
    for peak in (1.0, 0.5):
        falling = 0.1 + (peak - 0.1) * 0.95 ** 2
        assert rate(curve, 5, 100, 10, peak) == pytest.approx(0.6 * falling, rel=1e-12)
        assert rate(curve, 10, 100, 10, peak) == pytest.approx(0.1 + (peak - 0.1) * 0.81, rel=1e-12)
        assert rate(curve, 0, 100, 10, peak) == pytest.approx(0.2 * peak)


@pytest.mark.parametrize('end', [0.0, 1e-3])
def test_a_longer_run_of_a_polynomial_begins_at_its_end(end):
    again = Polynomial(0.9, end, 1e-6).again
    rates = [rate(again, step, 100, 10, 0.01) for step in range(100)]
    assert rates[0] == end and rates[10] == pytest.approx(end + (0.01 - end) * 0.9 ** 0.9)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True) and again.again == again
