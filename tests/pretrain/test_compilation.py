"""Compiled by parts, a network gives the numbers that it gives uncompiled, whatever the mask."""
import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from common import recompute
from common.training.compilation import compiled_at_first_call, try_step, uncompiled
from pretrain.decoder import UNetBlock
from pretrain.main import pretrain
from pretrain.spark import build_spark
from pretrain.spark_method import SparKMethod
from pretrain.sparse.custom import on_plane
from tests.conftest import Stop, log_of, randomise, saved, stop_after

CPU = torch.device('cpu')
parts_of = SparKMethod().parts_to_compile


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


def plain(model, recompute='none', drop_path=None):
    """SparK in its plain form, which is what runs on CUDA, with a random weight everywhere."""
    torch.manual_seed(0)
    spark = randomise(build_spark(model, input_size=64, decoder_width=32, drop_path=drop_path)).placed(CPU).train()
    spark.accelerated = False
    spark.recompute(recompute)
    return spark


def batch_of(spark):
    return torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last), spark.draw_visible(2)


def graphs_and_twins(spark, backend):
    """Compile the parts of SparK, and take three steps with other masks. Returns the numbers of graphs after each of
    them, and the results, gradients and buffers of the compiled network and of its twin, which is not.
    """
    counter, counts, results = CompileCounterWithBackend(backend), [], []
    with torch.compiler.set_stance(force_backend=counter):
        with compiled_at_first_call(parts_of(spark)):
            twin = copy.deepcopy(spark)
            try_step(spark, batch_of(spark), nullcontext, CPU)
            spark.zero_grad()
            counts.append(counter.frame_count)
        batches = [batch_of(spark) for _ in range(3)]
        for network in (spark, twin):
            losses = []
            for seed, batch in enumerate(batches):
                torch.manual_seed(seed)
                losses.append(network(*batch))
                losses[-1].backward()
                counts.append(counter.frame_count)
            results.append([*losses, *(p.grad for p in network.parameters() if p.grad is not None), *network.buffers()])
    return counts, results


def assert_close(some, others, tolerance):
    """tolerance: of an error, as a share of the tensor's largest value; compilers change the order of sums."""
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item() + 1e-5)


@pytest.mark.parametrize(('model', 'recompute', 'drop_path', 'graphs'), [
    ('test_convnext', 'all', 0.3, 9),
    pytest.param('test_convnext', 'none', None, 9, marks=pytest.mark.slow),
    pytest.param('resnet26', 'decoder', None, 13, marks=pytest.mark.slow),
    pytest.param('resnet26', 'all', 0.2, 13, marks=pytest.mark.slow),
    pytest.param('efficientnet_b0', 'none', 0.2, 16, marks=pytest.mark.slow),
    pytest.param('vgg11_bn', 'all', None, 6, marks=pytest.mark.slow),  # it repeats nothing, and is one part
])
def test_it_agrees_whatever_the_mask(model, recompute, drop_path, graphs):
    counts, (one, other) = graphs_and_twins(plain(model, recompute, drop_path), 'aot_eager')
    assert set(counts) == {graphs}
    assert len(one) > 50
    assert_close(one, other, 1e-4)


@pytest.mark.slow
def test_random_numbers_that_are_kept_are_those_that_are_drawn_again(monkeypatch):
    """While a CUDA graph is captured, drop path in what is computed again is kept: see common/recompute.py."""
    spark, results = plain('test_convnext', 'all', 0.3), []
    with torch.compiler.set_stance(force_backend='aot_eager'):
        with compiled_at_first_call(parts_of(spark)):
            try_step(spark, batch_of(spark), nullcontext, CPU)
        batch = batch_of(spark)
        for is_capturing in (False, True):
            monkeypatch.setattr(recompute, 'is_capturing', lambda is_capturing=is_capturing: is_capturing)
            spark.zero_grad()
            torch.manual_seed(5)
            loss = spark(*batch)
            loss.backward()
            results.append([loss, *(p.grad for p in spark.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(('model', 'recompute'), [('test_convnext', 'none'), ('resnet26', 'all')])
def test_inductor_agrees(model, recompute):
    counts, (one, other) = graphs_and_twins(plain(model, recompute), 'inductor')
    assert len(set(counts)) == 1
    assert_close(one, other, 2e-3)


class Shift(nn.Module):
    """A column to the right, with a rule of its own."""

    @on_plane
    def forward(self, x):
        return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], 3)


class Pools(nn.Module):
    def forward(self, x):
        x = nn.functional.max_pool2d(x, 3, 1, 1) + torch.max_pool2d(x, 3, 1, 1)
        return nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Shrinks(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels, 2, 2), nn.ConvTranspose2d(channels, channels, 4, 2, 1)

    def forward(self, x):
        return self.up(self.down(x))


class Pads(nn.Module):
    def forward(self, x):
        return nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 3, 1)


class Block(nn.Module):
    def __init__(self, channels, middle):
        super().__init__()
        self.conv, self.middle = nn.Conv2d(channels, channels, 3, padding=1), middle

    def forward(self, x):
        return x + self.middle(self.conv(x))


class Own(nn.Module):
    """A network whose blocks hold a layer that it is given."""

    def __init__(self, middle):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Block(8, middle(8)), Block(8, middle(8)))
        self.two = nn.Sequential(nn.Conv2d(8, 16, 4, 4), Block(16, middle(16)), Block(16, middle(16)))

    def forward(self, x):
        maps = [self.one(x)]
        return [*maps, self.two(maps[0])]


@pytest.mark.parametrize(('middle', 'is_compiled'), [
    (lambda channels: Pools(), True), (Shrinks, True), (lambda channels: Pads(), False), (lambda channels: Shift(), False)])
def test_what_torch_compile_hides_from_the_rules_is_not_compiled(middle, is_compiled):
    spark = plain(Own(middle))
    kinds = {type(part) for part in parts_of(spark)}
    assert kinds == ({Block, UNetBlock} if is_compiled else {UNetBlock}) and spark.uncompiled == (not is_compiled)
    _, (one, other) = graphs_and_twins(spark, 'aot_eager')
    assert_close(one, other, 1e-4)


def test_other_batches_are_not_compiled_in_evaluation():
    spark, counter = plain('test_convnext').eval(), CompileCounterWithBackend('aot_eager')
    with torch.compiler.set_stance(force_backend=counter), compiled_at_first_call(parts_of(spark)), uncompiled():
        for images in (2, 1):
            spark(torch.randn(images, 3, 64, 64))
            spark.reconstruct(torch.randn(images, 3, 64, 64), spark.draw_visible(images))
    assert counter.frame_count == 0


def test_the_accelerated_form_is_one_part():
    spark = build_spark('test_convnext', input_size=64, decoder_width=32)
    assert parts_of(spark) == [spark]
    spark.recompute('decoder')
    assert parts_of(spark) == []


@pytest.fixture
def counter():
    """Counts the graphs of a run, which are made by a backend that is quick."""
    counter = CompileCounterWithBackend('aot_eager')
    with torch.compiler.set_stance(force_backend=counter):
        yield counter


@pytest.mark.slow
def test_a_compiled_run_goes_on_compiled(tiny, whole, counter, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Stop):
            pretrain(tiny(compile=True))
    assert counter.frame_count == 1 and 'compiled    1 part of the network' in capsys.readouterr().out
    torch._dynamo.reset()
    folder = pretrain(tiny(compile=True))  # told so again: elsewhere than on CUDA nothing is compiled by itself
    assert counter.frame_count == 2 and saved(folder)['compiled'] is True
    epochs, starts = log_of(folder)
    assert [start['compiled'] for start in starts] == [True, True]
    assert [entry['loss'] for entry in epochs[1:]] == pytest.approx([entry['loss'] for entry in log_of(whole)[0][1:]], rel=1e-3)


@pytest.mark.slow
def test_told_otherwise_it_goes_on_uncompiled(tiny, counter, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Stop):
            pretrain(tiny(compile=True))
    torch._dynamo.reset()
    folder = pretrain(tiny(compile=False))
    assert counter.frame_count == 1 and saved(folder)['compiled'] is False


@pytest.mark.slow
def test_what_is_computed_again_on_the_cpu_is_not_compiled(tiny, counter, capsys):
    folder = pretrain(tiny(compile=True, recompute='decoder', epochs=1))
    assert counter.frame_count == 0 and saved(folder)['compiled'] is True  # It was wanted.
    assert log_of(folder)[1][-1]['compiled'] is False
    words = '(on a CPU, none beside --recompute): the run goes on uncompiled'
    assert words in capsys.readouterr().err
