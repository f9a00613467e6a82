"""BatchNorm shared between CPU processes: what it is on one process is torch's BatchNorm; between two, test_run shows."""
import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from common.distributed import CPUSyncBatchNorm, CPUSyncBatchNormAct, synchronise_batchnorm


@pytest.fixture
def group():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs torch's own SyncBatchNorm is used")
@pytest.mark.usefixtures('group')
def test_shared_batch_norm_equals_batch_norm():
    plain = nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4, act_layer=nn.SiLU)).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    shared = synchronise_batchnorm(copy.deepcopy(plain))
    assert [type(layer) for layer in shared] == [CPUSyncBatchNorm, CPUSyncBatchNormAct]
    assert list(shared.state_dict()) == list(plain.state_dict())
    for mode in (True, True, False):
        images = [torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)]
        images.append(images[0].detach().clone().requires_grad_())
        outputs = [net.train(mode)(x) for net, x in zip((plain, shared), images)]
        weight = torch.randn_like(outputs[0])
        for output in outputs:
            (output * weight).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(images[1].grad, images[0].grad, rtol=1e-10, atol=1e-12)
    for a, b in zip(shared.state_dict().values(), plain.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(shared.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
