"""The mode that the tests use to find host reads: what it must find, and what it must let through."""
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from tests.host_reads import NoHostReads

X = torch.arange(6.).view(2, 3)
COUNTS = torch.tensor([1, 2])

READS = {
    'item': lambda: X.sum().item(),
    'condition': lambda: 1 if X.any() else 0,
    'float': lambda: float(X[0, 0]),
    'integer': lambda: int(X[0, 0]),
    'index': lambda: [0, 1][COUNTS[0]],
    'tolist': X.tolist,
    'cpu': X.cpu,
    'numpy': X.numpy,
    'nonzero': X.nonzero,
    'where': lambda: torch.where(X > 2),
    'unique': lambda: torch.unique(X),
    'unique rows': lambda: torch.unique(X, dim=0),
    'unique neighbours': lambda: torch.unique_consecutive(X),
    'masked_select': lambda: X.masked_select(X > 2),
    'boolean index': lambda: X[X > 2],
    'assigned boolean index': lambda: X.clone().__setitem__(X > 2, X[0, :1]),
    'equal': lambda: torch.equal(X, X),
    'allclose': lambda: torch.allclose(X, X),
    'repeat_interleave': lambda: X.repeat_interleave(COUNTS, 0),
    'bincount': COUNTS.bincount,
}


@pytest.mark.parametrize('name', READS)
def test_host_reads_are_found(name):
    READS[name]()  # it is well formed
    with pytest.raises(AssertionError, match='reads from the device'), NoHostReads():
        READS[name]()
    READS[name]()  # the mode has ended


def test_copies_from_a_gpu_are_found():
    """Fake tensors have shapes and devices alone, so that this needs no GPU."""
    with FakeTensorMode():
        there, here = torch.empty(3, device='cuda'), torch.empty(3)
        with NoHostReads():
            there.copy_(here)
            here.to('cuda')
            here.to(torch.float64)
        for read in (lambda: there.to('cpu'), lambda: there.to('cpu', torch.float64), lambda: here.copy_(there)):
            with pytest.raises(AssertionError, match='to the CPU'), NoHostReads():
                read()


def test_reads_of_the_backward_pass_are_found():
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item()

    x = X.clone().requires_grad_()
    with pytest.raises(AssertionError, match='_local_scalar_dense'), NoHostReads():
        Reading.apply(x).sum().backward()


def test_a_training_step_reads_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    images, labels = torch.randn(5, 3, 6, 6), torch.randint(2, (5,))
    before = network[0].weight.detach().clone()
    with NoHostReads():
        with torch.autocast('cpu', torch.bfloat16):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        X.gather(1, COUNTS[None]).repeat_interleave(2, 0)
        torch.where(X > 2, X, 0)[COUNTS[:1]]
    assert not torch.equal(network[0].weight, before)
