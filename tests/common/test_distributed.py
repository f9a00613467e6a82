"""Gradients that this PyTorch cannot exchange."""
import pytest
import torch

from common import distributed


def test_gradients_in_bf16_that_torch_does_not_have_are_refused_in_a_sentence(monkeypatch):
    class Parallel:
        """Stands in for the DistributedDataParallel of a build for CPUs alone."""

        def __init__(self, module, **options):
            pass

        def register_comm_hook(self, state, hook):
            raise TypeError('BF16 all reduce communication hook required CUDA 11+ and NCCL 2.10+')

    monkeypatch.setattr(distributed, 'DistributedDataParallel', Parallel)
    with pytest.raises(ValueError, match='leave out --bf16_gradients'):
        distributed.in_ddp(None, torch.device('cpu'), True, in_bf16=True)
