"""What of a network is compiled, when, and what happens to one that does not compile."""
import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import DropPath
from torch import multiprocessing, nn
from torch._dynamo.testing import CompileCounterWithBackend

from common.distributed import Ranks, data_parallel
from common.training import compilation
from common.training.compilation import (
    WORTH_IMAGES,
    Compiled,
    SharedDropPath,
    compile_network,
    compiled_at_first_call,
    is_wanted,
    repeated_blocks,
    try_step,
    uncompiled,
)

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


def counting(backend='aot_eager'):
    """A backend that counts its graphs, and the context in which it is used whatever was asked for."""
    counter = CompileCounterWithBackend(backend)
    return counter, torch.compiler.set_stance(force_backend=counter)


class Block(nn.Module):
    def __init__(self, channels, drop_prob):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_prob)

    def forward(self, x):
        return x + self.drop_path(self.norm(self.conv(x)).relu())


class Net(nn.Module):
    """Two stages of two blocks; forward(images) is a loss."""

    def __init__(self, drop_prob=0.3):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.one = nn.Sequential(Block(8, drop_prob), Block(8, drop_prob / 2))
        self.down = nn.Conv2d(8, 16, 2, 2)
        self.two = nn.Sequential(Block(16, drop_prob / 3), Block(16, drop_prob / 4))

    def forward(self, images):
        return self.two(self.down(self.one(self.stem(images)))).square().mean()


def run_of(compile=None, shares=False, images=8):
    """What `compile_network` asks of a Run."""
    return SimpleNamespace(options=SimpleNamespace(compile=compile), ranks=Ranks(0, 1, CPU), steps=10, images_per_rank=images,
                           autocast=nullcontext, shares=lambda module: shares and isinstance(module, nn.BatchNorm2d))


def compiled(net, run, saved=None):
    return compile_network(net, lambda: repeated_blocks(net), lambda images: (torch.randn(images, 3, 16, 16),), run, saved, 1)


@pytest.mark.parametrize(('model', 'kind', 'number'), [
    ('resnet50', 'Bottleneck', 16), ('resnet18', 'BasicBlock', 8), ('convnext_base', 'ConvNeXtBlock', 36),
    ('resnet26', 'Bottleneck', 8),  # no two of the same shapes
    ('regnety_016', 'Bottleneck', 27),  # not its stages, nor the layers of its blocks
    ('efficientnet_b0', 'InvertedResidual', 15),  # not the norms elsewhere, of which several are the same
    ('vgg11', None, 0),
])
def test_blocks_are_what_a_network_repeats(model, kind, number):
    blocks = repeated_blocks(timm.create_model(model))
    assert {type(block).__name__ for block in blocks} == ({kind} if kind else set()) and len(blocks) == number


def test_no_block_stands_inside_another():
    with torch.device('meta'):
        blocks = repeated_blocks(timm.create_model('hrnet_w18_small'))
    modules = [id(module) for block in blocks for module in block.modules()]
    assert len(blocks) > 2 and len(modules) == len(set(modules))


@pytest.mark.parametrize(('given', 'saved', 'device', 'images', 'fixed', 'wanted'), [
    (None, None, CUDA, WORTH_IMAGES, True, True), (None, None, CUDA, WORTH_IMAGES - 1, True, False),
    (None, None, CPU, WORTH_IMAGES, True, False), (None, None, CUDA, WORTH_IMAGES, False, False),
    (True, None, CPU, 1, False, True), (False, None, CUDA, WORTH_IMAGES, True, False),
    (None, {'compiled': True}, CUDA, 1, True, True), (None, {'compiled': True}, CPU, 1, True, False),
    (None, {'compiled': False}, CUDA, WORTH_IMAGES, True, False),
    (False, {'compiled': True}, CUDA, WORTH_IMAGES, True, False), (None, {}, CUDA, WORTH_IMAGES, True, True),
])
def test_when_compilation_is_wanted(given, saved, device, images, fixed, wanted):
    assert is_wanted(given, saved, device, images, fixed) is wanted


def test_blocks_of_one_shape_share_a_graph_whatever_their_drop_path():
    net, (counter, stance) = Net(), counting()
    keys = list(net.state_dict())
    with stance:
        found = compiled(net, run_of(compile=True))
        assert found.is_on and found.parts == 4 and counter.frame_count == 2
        twin = copy.deepcopy(net)  # which is not compiled
        for images in torch.randn(3, 8, 3, 16, 16):
            torch.manual_seed(1)
            net(images).backward()
            torch.manual_seed(1)
            twin(images).backward()
        assert counter.frame_count == 2
    assert list(net.state_dict()) == keys
    for one, other in zip([*net.parameters(), *net.buffers()], [*twin.parameters(), *twin.buffers()]):
        assert torch.equal(one, other) and (one.grad is None or torch.equal(one.grad, other.grad))


def test_evaluation_runs_uncompiled():
    net, (counter, stance) = Net(), counting()
    with stance:
        compiled(net, run_of(compile=True))
        before = counter.frame_count
        with uncompiled(), torch.no_grad():
            for images in (8, 3, 1):
                net.eval()(torch.randn(images, 3, 16, 16))
        net.train()(torch.randn(8, 3, 16, 16))
        assert counter.frame_count == before
        net(torch.randn(3, 3, 16, 16))
        assert counter.frame_count > before


def test_a_tried_step_leaves_nothing_behind():
    net, images = Net().eval(), torch.randn(4, 3, 16, 16)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    try_step(net, (images,), nullcontext, CPU)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize('when', ['forward', 'backward'])
def test_a_network_that_does_not_compile_runs_as_it_is(when):
    def backend(graph, inputs):
        if when == 'forward':
            raise RuntimeError('no kernel for this\nand more\nand yet more')
        return torch._dynamo.lookup_backend('aot_eager')(graph, inputs)

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if not done:
                raise RuntimeError('no kernel for this')
            return grad

    class Odd(Net):
        def forward(self, images):
            return Fails.apply(super().forward(images)) if when == 'backward' else super().forward(images)

    net, done = Odd(), []
    before = copy.deepcopy(net.state_dict())
    with torch.compiler.set_stance(force_backend=backend):
        found = compiled(net, run_of(compile=True))
        done.append(True)
        (_, text), = found.described()
        warning, = found.warnings()
        assert not found.is_on and text.startswith('no: this network does not compile (') and text[4:] in warning
        assert 'no kernel for this' in text and '\n' not in text and 'yet more' not in text
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert not any(isinstance(module, SharedDropPath) for module in net.modules())
        assert all(parameter.grad is None for parameter in net.parameters())
        net(torch.randn(2, 3, 16, 16)).backward()


def test_lack_of_memory_is_no_failure_to_compile():
    def forward(images):
        raise torch.OutOfMemoryError('CUDA out of memory')

    net = Net()
    net.forward = forward
    with pytest.raises(torch.OutOfMemoryError):
        compiled(net, run_of(compile=True))


@pytest.mark.parametrize('given', [True, None])
def test_parts_whose_norms_share_their_statistics_are_left_out(given, monkeypatch):
    """Which by itself is no reason for a warning."""
    monkeypatch.setattr(compilation, 'is_wanted', lambda *arguments: True)
    found = compiled(Net(), run_of(compile=given, shares=True))
    assert not found.is_on and len(list(found.warnings())) == (given is True)
    assert found.described() == [('compiled', 'no: its BatchNorms share their statistics between ranks, which is not compiled')]
    net, (_, stance) = Net(), counting()
    net.two[1].norm = nn.GroupNorm(1, 16)
    with stance:
        found = compiled(net, run_of(compile=given, shares=True))
    assert found.parts == 1 and found.shared == 3 and 'but not 3 whose BatchNorms' in found.described()[0][1]


def test_nothing_is_said_where_nothing_was_wanted():
    found = compiled(Net(), run_of())
    assert found == Compiled() and not found.described() and not list(found.warnings())


def test_drop_path_with_its_probability_in_a_tensor():
    torch.manual_seed(0)
    x, given, shared = torch.ones(20000, 2, 1, 1), DropPath(0.3), SharedDropPath(0.3, True, CPU)
    for layer in (given, shared):
        out = layer(x)[:, :, 0, 0]
        assert torch.equal(out[:, 0], out[:, 1]) and out.unique().tolist() == pytest.approx([0, 1 / 0.7])
        assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(shared.eval()(x), x) and not shared.state_dict() and shared.drop_prob == 0.3
    assert shared.train()(x.bfloat16()).dtype == torch.bfloat16
    assert SharedDropPath(0.3, False, CPU)(x).unique().tolist() == [0, 1]


def test_undone_it_is_as_before():
    net, (counter, stance) = Net(), counting()
    kinds = [type(module) for module in net.modules()]
    with stance, compiled_at_first_call(repeated_blocks(net)) as undo:
        undo()
        net(torch.randn(2, 3, 16, 16))
    assert counter.frame_count == 0 and [type(module) for module in net.modules()] == kinds


def on_rank(rank, folder, failing):
    """Compile on one of two ranks, and save what comes of it and of a step. failing: the rank that cannot, or None."""
    def backend(graph, inputs):
        if rank == failing:
            raise RuntimeError('no compiler on this machine')
        return torch._dynamo.lookup_backend('aot_eager')(graph, inputs)

    torch.manual_seed(0)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    net, run = Net(), run_of(compile=True if rank == 0 else None)  # the main rank decides
    run.ranks = Ranks(rank, 2, CPU)
    with torch.compiler.set_stance(force_backend=backend):
        found = compiled(net, run)
        torch.manual_seed(rank)
        parallel = data_parallel(net.eval(), run.ranks, True)  # eval: without drop path
        parallel(torch.randn(8, 3, 16, 16)).backward()
    torch.save([found.parts, found.reason, [p.grad for p in net.parameters()]], f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_do_the_same(tmp_path):
    found = {}
    for failing in (None, 1):
        folder = tmp_path / str(failing)
        folder.mkdir()
        multiprocessing.start_processes(on_rank, (str(folder), failing), nprocs=2, start_method='spawn')
        found[failing] = [torch.load(folder / f'{rank}.pth') for rank in range(2)]
    assert [parts for parts, _, _ in found[None]] == [4, 4] and [parts for parts, _, _ in found[1]] == [0, 0]
    assert all('no compiler on this machine' in reason for _, reason, _ in found[1])
    for _, _, gradients in (*found[None], found[1][1]):
        for one, other in zip(gradients, found[1][0][2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
