"""BatchNorm shared between processes equals torch's BatchNorm on the whole batch; between two whole runs, test_run shows."""
import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import multiprocessing, nn

from common import sync_batchnorm
from common.recompute import checkpointed
from common.sync_batchnorm import (
    CPUSyncBatchNorm,
    CPUSyncBatchNormAct,
    EqualSyncBatchNorm,
    EqualSyncBatchNormAct,
    is_synchronised,
    shared_statistics,
    synchronise_batchnorm,
    synchronise_on_cpus,
    synchronise_on_gpus,
)
from pretrain.masking import draw_visible
from pretrain.spark import build_spark
from tests.host_reads import NoHostReads

CHANNELS = 4
NORMS = {
    'plain': partial(nn.BatchNorm2d, CHANNELS),
    'activated': partial(BatchNormAct2d, CHANNELS, act_layer=nn.SiLU),
    'activated in place': partial(BatchNormAct2d, CHANNELS, act_layer=nn.ReLU, inplace=True),
    'not affine': partial(nn.BatchNorm2d, CHANNELS, affine=False),
    'cumulative': partial(nn.BatchNorm2d, CHANNELS, momentum=None),
    'without running statistics': partial(nn.BatchNorm2d, CHANNELS, track_running_stats=False),
}


def batches(kind='plain'):
    """Three of 6 images each, whose halves differ in mean and deviation, and the weights of a loss.

    Two where evaluation takes statistics from the batch: each rank then has its own.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 6, CHANNELS, 5, 7, dtype=torch.float64, generator=generator)
    images[:, 3:] = 3 * images[:, 3:] + 2
    number = 2 if kind == 'without running statistics' else 3
    return images[:number], torch.randn(6, CHANNELS, 5, 7, dtype=torch.float64, generator=generator)


def built(kind, dtype=torch.float64):
    norm = NORMS[kind]()
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=generator)
    return norm.to(dtype)


def trained(norm, images, weights, run=None):
    """{name: what two training batches and one in evaluation mode come to}: outputs, gradients, running statistics."""
    found = {}
    for i, x in enumerate(images):
        x = x.clone().requires_grad_()
        norm.train(i < 2)
        out = (run or norm)(x)
        (out * weights).sum().backward()
        found.update({f'output {i}': out.detach(), f'gradient {i}': x.grad})
    found.update({f'gradient of {name}': parameter.grad for name, parameter in norm.named_parameters()})
    return found | {key: value.clone() for key, value in norm.state_dict().items()}


def on_rank(rank, folder):
    """What a rank finds with its half of the batches, saved in the folder."""
    dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/store', 2), rank=rank, world_size=2)
    torch.set_num_threads(1)

    def half(images, weights):
        mine = slice(3 * rank, 3 * rank + 3)
        return images[:, mine], weights[mine]

    found = {**normalised(half), **compiled(half), **pretraining(half)}
    own = torch.arange(8.0).view(2, 4) + 100 * rank
    found['gathered'] = sync_batchnorm.gathered_in_one(own), sync_batchnorm.gathered_one_by_one(own)
    torch.save(found, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def normalised(half):
    found = {}
    for kind in NORMS:
        images, weights = half(*batches(kind))
        equal = synchronise_on_gpus(built(kind), equal_counts=True)
        with NoHostReads():
            found[kind, 'equal'] = trained(equal, images, weights)
        found[kind, 'cpu'] = trained(synchronise_on_cpus(built(kind)), images, weights)
    images, weights = half(*batches())
    norm = synchronise_on_gpus(built('plain'), equal_counts=True)
    found['plain', 'recomputed'] = trained(norm, images, weights, partial(checkpointed, norm, enabled=True))
    found['plain', 'bf16'] = trained(synchronise_on_gpus(built('plain', torch.float32), equal_counts=True),
                                     images.bfloat16(), weights.bfloat16())
    with_kernels(found, images[0], weights)
    return found


def compiled(half):
    """Between other operations, which are traced; the norm is left alone."""
    norm = synchronise_on_gpus(built('plain'), equal_counts=True)
    run = torch.compile(lambda x: norm(x * 2) / 2, backend='eager')
    return {('plain', 'compiled'): trained(norm, *half(*batches()), run)}


def pretrained(spark, images, visible, accelerated):
    """{name: what a training step of pretraining comes to}."""
    spark.accelerated = accelerated
    loss = spark.train()(images, visible)
    loss.backward()
    gradients = {f'gradient of {name}': p.grad for name, p in spark.named_parameters() if p.grad is not None}
    return {'loss': loss.detach(), **gradients} | {name: buffer.clone() for name, buffer in spark.named_buffers()}


def small_spark():
    torch.manual_seed(0)
    return build_spark('test_resnet', 64, decoder_width=32).double()


def spark_batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 64, 64, dtype=torch.float64, generator=generator)
    return images, draw_visible(6, 4, 2, generator)


def pretraining(half):
    images, visible = spark_batch()
    (images,), visible = half(images[None], visible)
    found = {}
    for accelerated in (False, True):
        equal, cpu = synchronise_on_gpus(small_spark(), equal_counts=True), synchronise_on_cpus(small_spark())
        found['equal', accelerated] = pretrained(equal, images, visible, accelerated)
        found['cpu', accelerated] = pretrained(cpu, images, visible, accelerated)
    return found


def with_kernels(found, x, grad):
    """The gradients by the GPU's kernels, for which what torch documents of them stands in."""
    def reduced(grad, x, mean, invstd, weight, *_):
        sum_grad = grad.sum((0, 2, 3))
        sum_product = (grad * (x - mean.view(1, -1, 1, 1))).sum((0, 2, 3))
        return sum_grad, sum_product, sum_product * invstd, sum_grad

    def elementwise(grad, x, mean, invstd, weight, sum_grad, sum_product, count):
        mean, invstd, weight, sum_grad, sum_product = (
            each.view(1, -1, 1, 1) for each in (mean, invstd, weight, sum_grad, sum_product))
        total = count.sum()
        return (grad - sum_grad / total - (x - mean) * invstd ** 2 * sum_product / total) * invstd * weight

    library = torch.library.Library('aten', 'IMPL')
    library.impl('batch_norm_backward_reduce', reduced, 'CPU')
    library.impl('batch_norm_backward_elemt', elementwise, 'CPU')
    norm = built('plain')
    mean, invstd = shared_statistics(x, norm)
    weight = norm.weight.detach()
    for name, gradients in (('formulas', sync_batchnorm.shared_gradients), ('kernels', sync_batchnorm.gradients_by_kernels)):
        values = gradients(grad, x.contiguous(memory_format=torch.channels_last), weight, mean, invstd)
        found['plain', name] = dict(zip(('gradient', 'gradient of weight', 'gradient of bias'), values))


@pytest.fixture(scope='module')
def of_ranks(tmp_path_factory):
    """What each of two ranks found. They are not forked: that is not possible once CUDA was looked for."""
    folder = str(tmp_path_factory.mktemp('ranks'))
    multiprocessing.spawn(on_rank, (folder,), nprocs=2)
    return [torch.load(f'{folder}/{rank}.pth') for rank in range(2)]


def joined(name, values):
    """What the whole batch has, from what its halves have."""
    if name.startswith('gradient of'):
        return sum(values)
    return torch.cat(values) if name[-1].isdigit() else values[0]


CASES = [(kind, way) for kind in NORMS for way in ('equal', 'cpu')] + [('plain', 'recomputed')]


@pytest.mark.parametrize(('kind', 'way'), CASES)
def test_two_ranks_equal_the_whole_batch(of_ranks, kind, way):
    compare([found[kind, way] for found in of_ranks], trained(built(kind), *batches(kind)))


def test_compilation_leaves_it_alone(of_ranks):
    norm = built('plain')
    whole = trained(norm, *batches(), lambda x: norm(x * 2) / 2)
    compare([found['plain', 'compiled'] for found in of_ranks], whole)


@pytest.mark.parametrize('way', ['equal', 'cpu'])
@pytest.mark.parametrize('accelerated', [False, True])
def test_pretraining_on_two_ranks_equals_the_whole_batch(of_ranks, way, accelerated):
    whole = pretrained(small_spark(), *spark_batch(), accelerated)
    for name, expected in whole.items():
        one, other = (found[way, accelerated][name] for found in of_ranks)
        own = (one + other) / 2 if name == 'loss' or name.startswith('gradient') else one
        torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-10, msg=name)


def compare(halves, whole):
    """Compare what two ranks found with what one process did."""
    for name, expected in whole.items():
        values = [found[name] for found in halves]
        torch.testing.assert_close(joined(name, values), expected, rtol=1e-10, atol=1e-10, msg=name)
        if not name[-1].isdigit() and not name.startswith('gradient'):
            assert torch.equal(*values), name  # running statistics are the same on all ranks


def test_bf16_keeps_statistics_in_fp32(of_ranks):
    images, weights = batches()
    whole = trained(built('plain'), images.bfloat16().double(), weights.bfloat16().double())
    for name, expected in whole.items():
        values = [found['plain', 'bf16'][name] for found in of_ranks]
        own = joined(name, values)
        if name[-1].isdigit():
            assert own.dtype == torch.bfloat16, name
        else:
            assert own.dtype == (torch.int64 if name == 'num_batches_tracked' else torch.float32), name
        tolerance = 1e-5 if name.startswith('running') else 0.02
        torch.testing.assert_close(own.double(), expected.double(), rtol=tolerance, atol=tolerance, msg=name)


def test_the_kernels_of_gpus_are_given_what_they_ask_for(of_ranks):
    """The kernels themselves need a GPU: python -m benchmarks.gpu compares them with BatchNorm."""
    for found in of_ranks:
        for name, expected in found['plain', 'formulas'].items():
            torch.testing.assert_close(found['plain', 'kernels'][name], expected, rtol=1e-10, atol=1e-10, msg=name)


def test_statistics_are_gathered_in_the_same_order_in_both_ways(of_ranks):
    expected = torch.stack([torch.arange(8.0).view(2, 4), torch.arange(8.0).view(2, 4) + 100], 1)
    assert all(torch.equal(gathered, expected) for found in of_ranks for gathered in found['gathered'])


def test_the_positions_of_all_ranks_need_not_fit_into_32_bits(monkeypatch):
    """256 ranks with 256 images of 224 px each have 3.3e9 of them in the decoder."""
    given = []
    x = torch.empty(256, 4, 224, 224, device='meta')
    vector = torch.empty(4, device='meta')
    monkeypatch.setattr(sync_batchnorm.dist, 'get_world_size', lambda: 256)
    monkeypatch.setattr(sync_batchnorm.dist, 'all_reduce', lambda tensor: None)
    monkeypatch.setattr(torch, 'batch_norm_backward_reduce', lambda *arguments: [vector] * 4)
    monkeypatch.setattr(torch, 'batch_norm_backward_elemt', lambda *arguments: given.append(arguments[-1]))
    full = torch.full
    monkeypatch.setattr(torch, 'full', lambda *size, device, **rest: full(*size, **rest))
    sync_batchnorm.gradients_by_kernels(x, x, vector, vector, vector)
    assert given[0].dtype == torch.int32 and given[0].sum() == 256 * 256 * 224 * 224 > 2 ** 31


def test_each_layer_gets_the_kind_that_fits():
    net = nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4), nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm3d(4)))
    keys, parameters = list(net.state_dict()), list(net.parameters())
    assert synchronise_on_gpus(net, equal_counts=True) is net
    kinds = [type(layer) for layer in (net[0], net[1], *net[2])]
    assert kinds == [EqualSyncBatchNorm, EqualSyncBatchNormAct, nn.SyncBatchNorm, nn.SyncBatchNorm]
    assert list(net.state_dict()) == keys and all(map(is_synchronised, (net[0], net[1], *net[2])))
    assert all(new is old for new, old in zip(net.parameters(), parameters))
    synchronise_on_gpus(net, equal_counts=True)  # once more: nothing is left to do
    assert [type(layer) for layer in (net[0], net[1], *net[2])] == kinds
    unequal = synchronise_on_gpus(nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4)), equal_counts=False)
    assert [type(layer) for layer in unequal] == [nn.SyncBatchNorm, SyncBatchNormAct]
    assert type(synchronise_on_gpus(nn.BatchNorm2d(4), equal_counts=False)) is nn.SyncBatchNorm


def test_without_a_process_group_it_is_batch_norm():
    images, weights = batches()
    for kind in NORMS:
        found = trained(synchronise_on_gpus(built(kind), equal_counts=True), images, weights)
        for name, expected in trained(built(kind), images, weights).items():
            assert torch.equal(found[name], expected), (kind, name)


@pytest.fixture
def group():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='CPUSyncBatchNorm is for machines without a GPU')
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
