"""Activation checkpointing: the same results to the last bit, with random numbers and running statistics."""
import copy
from collections import deque

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from common import recompute
from common.recompute import KeepRandom, RepeatRandom, checkpointed


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.layers = nn.Sequential(nn.Dropout(0.3), nn.RReLU(), nn.Dropout2d(0.4), nn.FeatureAlphaDropout(0.2))
        self.drop_path = DropPath(0.5)

    def forward(self, x):
        return self.layers(x + self.drop_path(self.norm(self.conv(x)).sin()))


@pytest.mark.parametrize('capturing', [False, True])
def test_random_numbers_are_the_same_the_second_time(monkeypatch, capturing):
    """While a graph is captured the numbers are kept, else the state of the generator."""
    monkeypatch.setattr(recompute, 'is_capturing', lambda: capturing)
    torch.manual_seed(0)
    network, x = Random(), torch.randn(8, 3, 4, 4)
    found = []
    for enabled in (False, True):
        one = copy.deepcopy(network)
        torch.manual_seed(1)
        out = checkpointed(one, x, enabled=enabled)
        torch.manual_seed(2)  # the backward pass comes at another state of the generator
        out.square().sum().backward()
        found.append([out, one.conv.weight.grad, one.norm.weight.grad, *one.norm.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


ATTENTION = {  # {kernel: its arguments between the values and the dropout}
    torch.ops.aten._scaled_dot_product_flash_attention: (),
    torch.ops.aten._scaled_dot_product_cudnn_attention: (None, True),
    torch.ops.aten._scaled_dot_product_efficient_attention: (None, True)}


@pytest.mark.parametrize('kernel', ATTENTION, ids=str)
@pytest.mark.parametrize('dropout', [0.0, 0.1])
def test_the_kernels_of_attention_on_a_gpu_are_kept_only_with_dropout(kernel, dropout):
    """They return numbers and None beside their tensors, and are marked as random with dropout and without."""
    queries, kept = torch.empty(2, 4, 16, 64, dtype=torch.bfloat16, device='meta'), deque()
    arguments = queries, queries, queries, *ATTENTION[kernel], dropout
    with KeepRandom(kept):
        out = kernel(*arguments)
    assert len(kept) == (dropout > 0)
    with RepeatRandom(kept):
        again = kernel(*arguments)
    assert [type(each) for each in again] == [type(each) for each in out] and not kept
