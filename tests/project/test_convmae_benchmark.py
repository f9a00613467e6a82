"""The benchmark of ConvMAE: its check can fail, and its exit code says what its lines say. Times are for people to look at."""
import pytest
import torch

import tests.small_convvit  # noqa: F401  (registers tiny_convvit)
from benchmarks import convmae as benchmark
from benchmarks.convmae import BARS, TOLERANCE, Original, are_met, check, compare, largest_difference, main
from pretrain.convmae import build_convmae

SIZE = 64, 96
run_stage = benchmark.run_stage  # tests put others in its place


@pytest.fixture(scope='module')
def convmae():
    torch.manual_seed(0)
    net = build_convmae('tiny_convvit', SIZE, decoder_width=16, decoder_depth=1, decoder_heads=2)
    return net.placed(torch.device('cpu')).train()


def batch(convmae):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *SIZE, generator=generator), convmae.draw_visible(2, generator)


def test_both_ways_compute_the_same(convmae):
    assert check(convmae, Original(convmae), *batch(convmae)) <= TOLERANCE


def unmasked(blocks, x, visible, grid):
    return blocks(x)


def without_gradient(blocks, x, visible, grid):
    return run_stage(blocks, x, visible, grid).detach()


def not_a_number(blocks, x, visible, grid):
    return run_stage(blocks, x, visible, grid) * float('nan')


@pytest.mark.parametrize('wrong', [unmasked, without_gradient, not_a_number])
def test_another_network_is_not_timed(convmae, monkeypatch, wrong):
    monkeypatch.setattr(benchmark, 'run_stage', wrong)
    assert not largest_difference(convmae, Original(convmae), *batch(convmae)) <= 1e-3
    lines = []
    with pytest.raises(SystemExit, match='do not compute the same'):
        compare(convmae, batch(convmae)[0], 1, lines.append)
    assert not lines


def test_strips_keep_less_for_the_backward_pass(convmae):
    lines = []
    found = compare(convmae, batch(convmae)[0], 1, lines.append)
    assert set(found) == {'encoder', 'step', 'memory, encoder', 'memory, step'} and min(found.values()) > 0
    assert found['memory, encoder'] < found['memory, step'] < 1
    assert all(gradient is None for gradient in (parameter.grad for parameter in convmae.parameters()))


def test_every_ratio_has_its_bar():
    at_the_bar = {'encoder': BARS['encoder'], 'step': BARS['step'], 'memory, step': BARS['memory']}
    assert are_met(at_the_bar)
    for name, ratio in at_the_bar.items():
        assert not are_met({**at_the_bar, name: ratio + 0.01})


def test_the_exit_code_says_whether_the_bars_are_met(capsys):
    code = main(['tiny_convvit', '--batch=2', '--input_size=64', '--rounds=1'])
    said = capsys.readouterr().out
    assert said.count('at most 0.60') == 3 and said.count('at most 0.70') == 1
    assert code == ('MISSED' in said)
