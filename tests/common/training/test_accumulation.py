"""Batches in parts."""
from contextlib import nullcontext

import pytest
import torch

from common.distributed import Ranks
from common.training import accumulation, memory, trainer
from common.training.accumulation import fit_accumulation
from common.training.optim import BufferGuard
from pretrain.main import pretrain
from pretrain.spark import build_spark
from tests.conftest import Stop, log_of, same, saved, stop_after


def test_accumulation_is_the_same_batch_in_parts(whole, tiny, tmp_path, monkeypatch):
    folder = pretrain(tiny(run_dir=str(tmp_path / 'parts'), accum=2))
    one, other = log_of(whole)[0][1]['loss'], log_of(folder)[0][1]['loss']
    assert one != other and one == pytest.approx(other, rel=0.05)  # BatchNorm sees the parts one by one
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(tiny(run_dir=str(tmp_path / 'auto'), accum='auto'))
    auto = pretrain(tiny(run_dir=str(tmp_path / 'auto'), accum='auto'))
    assert saved(auto)['accum'] == 1 and same(saved(auto)['model'], saved(whole)['model'])


def test_accumulated_gradients_are_those_of_the_whole_batch():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(5))

        def forward(self, images, visible):
            return (images @ self.weight - visible).square().mean()

    images, visible, results = torch.randn(12, 5), torch.randn(12), []
    for accum in (1, 2, 4):
        net = Linear()
        optimizer = torch.optim.SGD([{'params': net.parameters(), 'decays': False}], lr=0.1, fused=True)
        result = trainer.train_step(net, zip(images.chunk(accum), visible.chunk(accum)), accum, optimizer, BufferGuard(net),
                                   Ranks(0, 1, torch.device('cpu')), nullcontext, float('inf'), lambda: torch.zeros(2))
        results.append(torch.cat([result, net.weight.detach()]))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_auto_accumulation_doubles_until_it_fits(monkeypatch):
    spark = build_spark('your_convnet', input_size=32, decoder_width=16)
    count, sizes = accumulation.needed_on_host, []

    def needed(network, example, images, autocast):
        sizes.append(images)
        return count(network, example, images, autocast)

    monkeypatch.setattr(accumulation, 'needed_on_host', needed)
    ranks = Ranks(0, 1, torch.device('cpu'))

    def example(n):
        return (torch.randn(n, 3, 32, 32),)

    three = count(spark, example, 3, nullcontext)
    assert count(spark, example, 2, nullcontext) < three < count(spark, example, 4, nullcontext)
    monkeypatch.setattr(accumulation, 'free_memory', lambda: three)
    before = {k: v.clone() for k, v in spark.state_dict().items()}
    assert fit_accumulation(spark, example, 8, ranks, nullcontext) == 4 and sizes == [8, 4, 2]
    assert same(dict(spark.state_dict()), before) and all(p.grad is None for p in spark.parameters())
    with pytest.raises(ValueError, match="5 images at a time do not fit .*, and a rank's batch of 5 cannot be halved"):
        fit_accumulation(spark, example, 5, ranks, nullcontext)


def test_auto_accumulation_tries_only_parts_that_are_allowed(monkeypatch):
    spark, sizes = build_spark('your_convnet', input_size=32, decoder_width=16), []

    def needed(network, example, images, autocast):
        sizes.append(images)
        return images

    def fit(free, allowed):
        sizes.clear()
        monkeypatch.setattr(accumulation, 'free_memory', lambda: free)
        return fit_accumulation(spark, None, 16, Ranks(0, 1, torch.device('cpu')), nullcontext,
                                reason_against_parts=lambda parts: None if parts in allowed else f'{parts} parts are wrong',
                                remedy='5')

    monkeypatch.setattr(accumulation, 'needed_on_host', needed)
    assert fit(4, (1, 2, 4)) == 4 and sizes == [16, 8, 4]
    assert fit(4, (2, 4)) == 4 and sizes == [8, 4]
    with pytest.raises(ValueError, match="8 images .* do not allow that a rank's batch of 16 is cut further: give 5"):
        fit(4, (1, 2))
    with pytest.raises(ValueError, match='^1 parts are wrong$'):
        fit(4, ())
    with pytest.raises(ValueError, match="^1 image at a time does not fit .*, and a rank's batch of 16 cannot be halved"):
        fit(0, (1, 2, 4, 8, 16))


def test_free_memory_is_the_least_of_what_the_system_and_the_container_leave(monkeypatch, tmp_path):
    whole = memory.free_memory()
    assert whole is None or 2 ** 20 < whole < 2 ** 50
    (tmp_path / 'max').write_text('3000000\n')
    (tmp_path / 'used').write_text('1000000\n')
    (tmp_path / 'statistics').write_text('anon 600000\ninactive_file 30000\nactive_file 5000\n')
    (tmp_path / 'none').write_text('max\n')
    limits = 'none', 'max', 'there is no such file'
    monkeypatch.setattr(memory, 'CGROUPS', [(tmp_path / limit, tmp_path / 'used', tmp_path / 'statistics') for limit in limits])
    assert memory.free_memory() == 2_035_000  # files that were read are given up when memory is asked for
    (tmp_path / 'used').write_text('9000000\n')
    assert memory.free_memory() == 0


def test_all_ranks_of_a_computer_share_its_memory(monkeypatch):
    network, ranks = torch.nn.Linear(4, 4), Ranks(0, 1, torch.device('cpu'))

    def fits(free, ranks_here):
        monkeypatch.setattr(accumulation, 'free_memory', lambda: free)
        monkeypatch.setenv('LOCAL_WORLD_SIZE', str(ranks_here))
        return accumulation.reason_against_step(Loss(network), lambda n: (torch.randn(n, 4),), 8, ranks, nullcontext) is None

    # 1.25 times 8 outputs of 4 numbers, 3 times the images, 6 times the 20 weights; of 4 bytes
    needed = (1.25 * 8 * 4 + 3 * 8 * 4 + 6 * 20) * 4
    assert fits(needed, 1) and not fits(needed - 1, 1) and not fits(needed, 2) and fits(2 * needed, 2)


class Loss(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).exp().sum()
