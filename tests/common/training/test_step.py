"""One training step: clipping, the loss scale of fp16, and the precision of the forward pass."""
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from common.training.optim import BufferGuard, build_optimizer, parameter_groups, set_schedule
from common.training.scaling import LossScaler
from common.training.trainer import train_step
from pretrain.pretraining import Run
from tests.common.runs import ALONE

LR = 0.1
NO_CLIPPING = float('inf')


class Steep(nn.Module):
    """A loss with a large gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, images):
        return 100 * (images @ self.weight).square().mean()


def one_step(clip, scaler=None, factor=1.0):
    """(result of a step of SGD, length of the step in the space of weights). factor: of the images."""
    network, images = Steep(), factor * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer('sgd', parameter_groups(network, 0.0))
    set_schedule(optimizer, LR, 0.0)
    result = train_step(network, iter([(images,)]), 1, optimizer, BufferGuard(network), ALONE, nullcontext, clip,
                        lambda: torch.zeros(2), scaler)
    return result, (1 - network.weight.detach()).norm().item()


def test_the_gradient_is_clipped_and_its_norm_told_before():
    (_, norm, *_), free = one_step(NO_CLIPPING)
    (_, same, *_), clipped = one_step(0.5)
    assert norm == same > 0.5
    assert free == pytest.approx(LR * norm.item(), rel=1e-5) and clipped == pytest.approx(LR * 0.5, rel=1e-5)


def test_the_scale_of_fp16_changes_nothing_and_halves_when_a_step_is_not_finite():
    scaler = LossScaler(torch.device('cpu'))
    (scaled, step), (plain, other) = one_step(5.0, scaler), one_step(5.0)
    assert torch.equal(scaled, plain) and step == other
    assert scaler.scale == 2.0 ** 16 and scaler.growth == 1
    (_, _, finite, *_), step = one_step(5.0, scaler, factor=float('inf'))
    assert finite == 0 and step == 0
    assert scaler.scale == 2.0 ** 15 and scaler.growth == 0


@pytest.mark.parametrize(('precision', 'dtype'), [('bf16', torch.bfloat16), ('fp16', torch.float16), ('fp32', torch.float32)])
def test_the_forward_pass_has_the_precision_that_was_given(tiny, precision, dtype):
    with Run(tiny(precision=precision), ALONE, 40).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
