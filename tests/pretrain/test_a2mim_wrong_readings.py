"""Wrong readings of A2MIM change the numbers of the golden files: each is tried on the ResNet-26."""
import copy

import pytest
import torch
import torch.nn.functional as F

from pretrain import a2mim as page
from pretrain.a2mim import A2MIM
from pretrain.a2mim_loss import mean_over_batch
from pretrain.dense import encoder as dense
from tests.pretrain.official_a2mim import loaded, our_state


@pytest.fixture(scope='module')
def case():
    return loaded('resnet26')


def numbers(a2mim, images, visible):
    """(loss, norm of the whole gradient) of a step in training mode."""
    a2mim = copy.deepcopy(a2mim).train()
    loss = a2mim(images, visible)
    loss.backward()
    norms = torch.stack([p.grad.norm() for p in a2mim.parameters() if p.grad is not None])
    return loss.item(), norms.norm().item()


def visible_mean(self, images, hidden):
    pixels = self.hidden_pixels(hidden)
    mean = (images * (1 - pixels)).sum((2, 3), keepdim=True) / (1 - pixels).sum((2, 3), keepdim=True)
    return torch.where(pixels > 0, mean, images)


def focal(normalised=True, averaged=True, logarithm=True, detached=True, by_channel=False):
    """The focal frequency loss in another reading."""
    def loss(y, x, mean=mean_over_batch):
        spectrum = torch.fft.fft2(mean(y - x) if averaged else y - x, norm='ortho' if normalised else None)
        amplitude = spectrum.abs()
        weight = torch.log1p(amplitude) if logarithm else amplitude
        weight = weight / weight.amax((2, 3) if by_channel else (1, 2, 3), keepdim=True)
        return ((weight.detach() if detached else weight) * amplitude.square()).mean()
    return loss


def open_composite(y, x, hidden, visible=1e-3, fill='mixed'):
    weight = hidden + (1 - hidden) * visible
    return y * weight + (0.5 * y + 0.5 * x) * (1 - weight)


def with_gained_token(output, hidden, token, gain, mode, layout):
    hidden = layout.spread(hidden)
    return output * (1 - hidden) + (output + layout.of_channels(token)) * hidden * layout.of_channels(gain)


def without_gain(output, hidden, token, gain, mode, layout):
    return output + layout.of_channels(token) * layout.spread(hidden) + 0 * gain.sum()


def transposed(self, images, visible, original=A2MIM.hidden):
    return original(self, images, visible).transpose(2, 3)


def other_shuffle(self, features):
    side = self.encoder.stride
    pixels = self.decoder(features).unflatten(1, (side * side, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(pixels, side)


def trained_focal_error(d, phi):
    return d * torch.tanh(0.1 * d).detach()


# What is read wrongly: (where, name, what stands there then).
WRONG = {
    'fill by zeros': (A2MIM, 'fill', lambda self, images, hidden: images * (1 - self.hidden_pixels(hidden))),
    'fill by the mean of visible pixels': (A2MIM, 'fill', visible_mean),
    'transposed mask': (A2MIM, 'hidden', transposed),
    'another pixel shuffle': (A2MIM, 'decode', other_shuffle),
    'no gain': (dense, 'with_token', without_gain),
    'gain on the token': (dense, 'with_token', with_gained_token),
    'weight by channel': (page, 'focal_frequency_loss', focal(by_channel=True)),
    'weight with a gradient': (page, 'focal_frequency_loss', focal(detached=False)),
    'weight without logarithm': (page, 'focal_frequency_loss', focal(logarithm=False)),
    'no average over the batch': (page, 'focal_frequency_loss', focal(averaged=False)),
    'transform not orthonormal': (page, 'focal_frequency_loss', focal(normalised=False)),
    'gradients through the fill': (page, 'composite', open_composite),
    'visible pixels without weight': (page, 'composite', lambda y, x, hidden, *rest: page_composite(y, x, hidden, 0.0)),
}
page_composite = page.composite


def test_the_right_reading_gives_the_golden_numbers(case):
    want, a2mim, images, visible = case
    loss, norm = numbers(a2mim, images, visible)
    assert loss == pytest.approx(want['train']['loss'], rel=1e-9) and norm == pytest.approx(want['grad_norm_total'], rel=1e-9)
    assert focal()(images, 0 * images).item() == pytest.approx(page.focal_frequency_loss(images, 0 * images).item(), rel=1e-12)


@pytest.mark.parametrize('reading', WRONG)
def test_a_wrong_reading_is_seen(case, monkeypatch, reading):
    want, a2mim, images, visible = case
    monkeypatch.setattr(*WRONG[reading])
    loss, norm = numbers(a2mim, images, visible)
    right = want['train']['loss'], want['grad_norm_total']
    assert max(abs(loss / right[0] - 1), abs(norm / right[1] - 1)) > 1e-6


def test_a_focal_error_whose_weight_has_no_gradient_is_seen(case, monkeypatch):
    want, a2mim, images, visible = case
    monkeypatch.setattr('pretrain.a2mim_loss.error', trained_focal_error)
    loss, norm = numbers(a2mim, images, visible)
    assert loss == pytest.approx(want['train']['loss'], rel=1e-9) and abs(norm / want['grad_norm_total'] - 1) > 1e-6


def test_a_token_one_block_early_is_seen(case):
    want, _, images, visible = case
    early = page.build_a2mim('resnet26', input_size=96, token_at='layer3.0').double()
    early.load_state_dict(our_state(want), strict=False)
    loss, _ = numbers(early, images, visible)
    assert abs(loss / want['train']['loss'] - 1) > 1e-6
