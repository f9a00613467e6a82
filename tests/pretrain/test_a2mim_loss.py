"""The losses of A2MIM: the authors' numbers, identities, and what a wrong reading would give."""
import json
import math

import pytest
import torch

from pretrain.a2mim_loss import composite, error, focal_frequency_loss, spatial_loss, spectral_loss
from tests.pretrain.official import GOLDEN, fill

PARTS = json.loads((GOLDEN / 'a2mim_parts.json').read_text())['losses']


def losses_of(head, y, x, hidden):
    """(spatial, frequency, loss) of a variant in the golden files."""
    spatial = spatial_loss(y, x, hidden, head['spatial'], head['unmask_weight'])
    if head['fft'] is None:
        return spatial, None, spatial
    z = composite(y, x, hidden, head['fft_unmask_weight'], head['fill'] or 'mixed')
    if head['fft'] == 'focal':
        frequency = focal_frequency_loss(z, x)
    else:
        frequency = spectral_loss(z, x, head['fft'], head['fft_reweight'])
    return spatial, frequency, spatial + head['fft_weight'] * frequency


def check_heads(heads, y, x, hidden):
    """Compare all variants of the loss, and their gradients, with those of the authors' program."""
    assert len(heads) == 13
    for name, head in heads.items():
        y = y.detach().requires_grad_()
        spatial, frequency, loss = losses_of(head, y, x, hidden)
        if 'loss_spatial' in head:
            assert spatial.item() == pytest.approx(head['loss_spatial'], rel=1e-9), name
        if frequency is not None and 'loss_frequency' in head:
            assert frequency.item() == pytest.approx(head['loss_frequency'], rel=1e-9), name
        assert loss.item() == pytest.approx(head['loss'], rel=1e-9), name
        loss.backward()
        assert (y.grad.abs() * hidden).sum().item() == pytest.approx(head['grad_abs_sum_hidden'], rel=1e-9), name
        assert (y.grad.abs() * (1 - hidden)).sum().item() == pytest.approx(head['grad_abs_sum_visible'], rel=1e-9), name
        if 'grad_sum' in head:
            assert y.grad.sum().item() == pytest.approx(head['grad_sum'], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize('case', PARTS['heads'])
def test_variants(case):
    side, cell, batch = case['size'], case['cell_size'], case['batch']
    x = fill('a.image', (batch, 3, side, side))
    y = 0.5 * x + 0.5 * fill('a.reconstruction', x.shape)
    grid = side // cell
    hidden = torch.ones(batch, grid * grid, dtype=torch.float64).scatter(1, torch.tensor(case['visible']), 0.0)
    hidden = hidden.view(batch, 1, grid, grid).repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    check_heads(case['heads'], y, x, hidden)


@pytest.mark.parametrize('case', PARTS['ffl'])
def test_focal_frequency_loss(case):
    x = fill(case['target'], case['shape'])
    y = (x + case['error_scale'] * fill(case['error'], case['shape'])).requires_grad_()
    loss = focal_frequency_loss(y, x)
    assert loss.item() == pytest.approx(case['loss'], rel=1e-9)
    loss.backward()
    # Sums of gradients cancel; they are compared relative to that of their absolute values.
    assert y.grad.sum().item() == pytest.approx(case['grad']['sum'], abs=1e-9 * case['grad']['abs_sum'])
    assert y.grad.abs().sum().item() == pytest.approx(case['grad']['abs_sum'], rel=1e-9)
    assert y.grad.square().sum().item() == pytest.approx(case['grad']['sq_sum'], rel=1e-9)
    # The authors' loss without the average has one largest weight for the whole batch.
    alone = focal_frequency_loss(y, x, mean=lambda values: values.flatten(0, 1)[None]).item()
    assert alone == pytest.approx(case['loss_without_batch_average'], rel=1e-9)


def test_regression_errors():
    assert len(PARTS['regression']) >= 4
    for case in PARTS['regression']:
        x = fill('a.target', case['shape'])
        d = case['error_scale'] * fill('a.error', case['shape'])
        for phi in ('l1', 'mse', 'focal_l1'):
            assert error(d.abs(), phi).mean().item() == pytest.approx(case[phi], rel=1e-9)
            if f'spectral {phi}' in case:
                assert spectral_loss(x + d, x, phi).item() == pytest.approx(case[f'spectral {phi}'], rel=1e-9)


def all_hidden(x):
    return torch.ones_like(x[:, :1])


def test_constant_residuals():
    x = fill('x', (2, 3, 64, 64))
    assert spatial_loss(x + 1, x, all_hidden(x), 'l1').item() == pytest.approx(1, rel=1e-8)
    assert spatial_loss(x + 1, x, all_hidden(x), 'focal_l1').item() == pytest.approx(math.tanh(0.1), rel=1e-8)
    assert focal_frequency_loss(x + 1, x).item() == pytest.approx(1, rel=1e-9)
    by_channel = x + torch.tensor([1, 1 / 2, 1 / 4]).double().view(1, 3, 1, 1)
    assert focal_frequency_loss(by_channel, x).item() == pytest.approx(0.4172740138, rel=1e-9)  # one maximum for all channels


def test_opposite_residuals_cancel_in_the_mean():
    x, d = fill('x', (2, 3, 8, 8)), fill('d', (1, 3, 8, 8))
    y = (x + torch.cat([d, -d])).requires_grad_()
    loss = focal_frequency_loss(y, x)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-25) and y.grad.abs().max() < 1e-12
    assert focal_frequency_loss(y[:1], x[:1]).item() > 0.1


def test_no_residual_is_no_loss_and_no_gradient():
    x = fill('x', (2, 3, 8, 8))
    for loss_of in (focal_frequency_loss, lambda y, x: spectral_loss(y, x, 'focal_l1'), lambda y, x: spectral_loss(y, x, 'l1')):
        y = x.clone().requires_grad_()
        loss = loss_of(y, x)
        loss.backward()
        assert loss.item() == 0 and torch.equal(y.grad, torch.zeros_like(y))


def test_the_focal_weight_makes_it_grow_faster_than_its_square():
    d = fill('d', (1, 3, 64, 64))
    x = torch.zeros_like(d)
    assert focal_frequency_loss(d, x).item() == pytest.approx(0.5784375191, rel=1e-9)
    assert focal_frequency_loss(2 * d, x).item() == pytest.approx(2.5372628446, rel=1e-9)


def test_parseval():
    x = fill('x', (2, 3, 16, 24))
    y = fill('y', x.shape)
    assert spectral_loss(y, x, 'mse').item() == pytest.approx((y - x).square().mean().item(), rel=1e-12)


def gradient(visible, fill_with='mixed', weight=0.0):
    x, y = fill('x', (2, 3, 8, 8)), fill('y', (2, 3, 8, 8)).requires_grad_()
    hidden = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    hidden[:, :, :4] = 1
    loss = spatial_loss(y, x, hidden, 'focal_l1', weight) + focal_frequency_loss(composite(y, x, hidden, visible, fill_with), x)
    loss.backward()
    return y.grad[:, :, 4:]


@pytest.mark.parametrize('filling', ['mixed', 'target', 'prediction', 'mean'])
def test_visible_pixels_learn_as_much_as_they_weigh(filling):
    assert torch.equal(gradient(0.0, filling), torch.zeros(2, 3, 4, 8, dtype=torch.float64))
    if filling == 'prediction':  # The value is that of y itself, whatever the weight.
        torch.testing.assert_close(gradient(2e-3, filling), 2 * gradient(1e-3, filling))
    else:
        torch.testing.assert_close(gradient(2e-9, filling), 2 * gradient(1e-9, filling), rtol=1e-6, atol=0)
    assert gradient(0.0, filling, weight=0.1).abs().max() > 0


def test_wrong_names():
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match='the error is one of l1, mse, focal_l1'):
        spatial_loss(x, x, all_hidden(x), 'l2')
    with pytest.raises(ValueError, match='the fill is one of mixed'):
        composite(x, x, all_hidden(x), fill='zero')
