"""Processes without a GPU, and gradients that this PyTorch cannot exchange."""
import pytest
import torch

from common import distributed
from common.cli import errors_in_one_sentence


def test_a_process_without_a_gpu_says_so_though_it_is_not_the_first_of_its_node(monkeypatch):
    """The others are well, and would say nothing of it."""
    monkeypatch.setenv('LOCAL_RANK', '2')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(SystemExit, match='error: process 2 of this node has no GPU of its own: there are 2'), \
            errors_in_one_sentence(resumes=True):
        distributed.joined(2, 4, 30)


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
