"""Schedules, parameter groups, LAMB, and steps that are called off."""
import copy
import math

import pytest
import timm.optim
import torch
from torch import nn

from common.seeds import seed_for
from common.training.optim import BufferGuard, Lamb, build_optimizer, load_state, parameter_groups, set_schedule
from common.training.schedule import learning_rate, weight_decay
from pretrain.spark import build_spark
from pretrain.spark_method import SparKMethod


@pytest.mark.parametrize(('name', 'theirs'), [
    ('sgd', lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3)),
    ('adamw', lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3))])
def test_sgd_and_adamw_are_torchs(name, theirs):
    nets = [nn.Linear(5, 3, bias=False, dtype=torch.float64) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    one, other = build_optimizer(name, parameter_groups(nets[0], 0.3)), theirs(nets[1].parameters())
    set_schedule(one, 0.1, 0.3)
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        for net, optimizer in zip(nets, (one, other)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(nets[0].weight, nets[1].weight, rtol=1e-10, atol=0)


def test_learning_rate():
    lr = [learning_rate(t, 100, 10, 2.0, 0.005, 0.001) for t in range(100)]
    assert lr[0] == pytest.approx(0.01) and lr[5] == pytest.approx(2 * (0.005 + 0.995 / 2)) and lr[10] == pytest.approx(2.0)
    assert lr[99] == pytest.approx(0.002)
    assert lr[54] == pytest.approx(2 * (0.001 + 0.999 * (0.5 + 0.5 * math.cos(math.pi * 44 / 89))))
    assert sorted(lr[:11]) == lr[:11] and sorted(lr[10:], reverse=True) == lr[10:]
    assert learning_rate(0, 1, 0, 1.0, 0.005, 0.001) == 1.0


def test_weight_decay():
    assert [weight_decay(t, 11, 0.04, 0.2) for t in (0, 5, 10)] == pytest.approx([0.04, 0.12, 0.2])
    assert weight_decay(0, 1, 0.04, 0.2) == pytest.approx(0.04)


def test_seeds_are_functions_of_their_purpose():
    seeds = [seed_for(*words) for words in (('mask', 0, 1), ('mask', 1, 0), ('order', 0, 1), ('mask', 0, 2), ('mask', 0))]
    assert len(set(seeds)) == 5 and seeds[0] == seed_for('mask', 0, 1)
    assert all(0 <= seed < 2 ** 63 for seed in seeds)


def test_groups_hold_each_trained_parameter_once_and_decay_what_the_paper_decays():
    spark = build_spark('test_convnext2', input_size=64, decoder_width=64)
    for name in spark.encoder.unused:
        spark.encoder.cnn.get_parameter(name).requires_grad_(False)
    names = {id(p): name for name, p in spark.named_parameters()}
    decays, free = ([names[id(p)] for p in group['params']] for group in parameter_groups(spark, 0.1, SparKMethod.no_decay))
    assert sorted(decays + free) == sorted(n for n, p in spark.named_parameters() if p.requires_grad)
    assert all(n.endswith('.weight') and spark.get_parameter(n).ndim > 1 for n in decays)
    assert all(f'mask_tokens.{i}' in free for i in range(4))
    assert [n for n in names.values() if n.endswith('.gamma') and n in free]
    assert any('dense_decoder.dec.0.conv.0.weight' == n for n in decays)
    four_dimensional = torch.nn.Module()
    four_dimensional.gamma = torch.nn.Parameter(torch.ones(1, 3, 1, 1))
    assert not parameter_groups(four_dimensional, 0.1)[0]['params']


def test_parameters_with_another_rate_have_groups_of_their_own():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    net.token = torch.nn.Parameter(torch.ones(1, 4, 1, 1))
    net.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    plain = parameter_groups(net, 0.1, ('bias', 'token'))
    decay, free, slow = parameter_groups(net, 0.1, ('bias', 'token'), {'token': 0.1, 'frozen': 0.1})
    assert [len(group['params']) for group in plain] == [1, 4] and 'lr_scale' not in plain[1]
    assert decay['params'] == plain[0]['params'] and len(free['params']) == 3
    assert slow['params'][0] is net.token and (slow['lr_scale'], slow['decays'], slow['weight_decay']) == (0.1, False, 0.0)
    assert parameter_groups(net, 0.1, (), {'token': 0.1})[2]['weight_decay'] == 0.1
    assert len(parameter_groups(net, 0.1, (), {'token': 1.0})) == 2


def test_a_share_of_the_rate_is_one_of_what_lies_above_the_floor():
    net = torch.nn.Linear(2, 2)
    groups = [{'params': [net.weight], 'decays': True, 'weight_decay': 0.1},
              {'params': [net.bias], 'decays': False, 'weight_decay': 0.0, 'lr_scale': 0.1}]
    optimizer = build_optimizer('adamw', groups)
    for floor, expected in ((0.0, [1e-3, 1e-4]), (1e-5, [1e-3, 1e-5 + 0.1 * 99e-5]), (1e-3, [1e-3, 1e-3])):
        set_schedule(optimizer, 1e-3, 0.05, floor=floor)
        assert [group['lr'] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-14)
        assert optimizer.rates[:, 0].tolist() == [group['lr'] for group in optimizer.param_groups]
        assert optimizer.rates[:, 1].tolist() == [0.05, 0.0]
    set_schedule(optimizer, 0.3, 0.05)
    assert optimizer.param_groups[1]['lr'] == 0.1 * 0.3 and optimizer.param_groups[0]['lr'] == 0.3  # to the last bit


def problem():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 2)).double()
    torch.nn.init.zeros_(net[2].weight)  # a weight norm of zero: trust ratio 1
    return net, torch.randn(16, 5, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)


def test_lamb_equals_timm():
    (ours, x, y), (theirs, _, _) = problem(), problem()
    one = Lamb(parameter_groups(ours, 0.1), lr=0.0, betas=(0.9, 0.95))
    other = timm.optim.Lamb(parameter_groups(theirs, 0.1), lr=0.0, betas=(0.9, 0.95), eps=1e-6, max_grad_norm=1e12)
    for step in range(5):
        for net, optimizer in ((ours, one), (theirs, other)):
            set_schedule(optimizer, 0.01 * (step + 1), 0.1 + step / 10)
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
        for a, b in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize('name', ['lamb', 'adamw', 'sgd'])
@pytest.mark.parametrize('first', [True, False])
def test_a_step_that_is_called_off_changes_nothing(name, first):
    net, x, y = problem()
    optimizer, guard = build_optimizer(name, parameter_groups(net, 0.1), (0.9, 0.95)), BufferGuard(net)

    def step(x, off):
        before = guard.snapshot()
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(float(off)), None
        set_schedule(optimizer, 0.1, 0.1)
        optimizer.step()
        guard.restore(before, torch.tensor(off))

    reference = copy.deepcopy(net), build_optimizer(name, parameter_groups(net, 0.1), (0.9, 0.95))
    if not first:
        step(x, False)
    weights = copy.deepcopy(net.state_dict())
    step(x * math.nan, True)
    for key, value in net.state_dict().items():
        assert torch.equal(value, weights[key]), key
    step(x, False)
    got = copy.deepcopy(net.state_dict())
    net, optimizer = reference
    optimizer = build_optimizer(name, parameter_groups(net, 0.1), (0.9, 0.95))
    guard = BufferGuard(net)
    for _ in range(1 if first else 2):
        step(x, False)
    for key, value in net.state_dict().items():
        assert torch.equal(value, got[key]), key


@pytest.mark.parametrize('name', ['lamb', 'adamw'])
def test_a_loaded_state_is_laid_out_as_the_parameters_are(name):
    """torch's fused kernels run over the memory of all of them alike, whatever their strides."""
    def trained(layout, state=None):
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3, dtype=torch.float64).to(memory_format=layout)
        optimizer = build_optimizer(name, parameter_groups(net, 0.1))
        if state:
            load_state(optimizer, state)
        for _ in range(2):
            set_schedule(optimizer, 0.1, 0.1)
            optimizer.zero_grad()
            net(torch.randn(1, 3, 4, 4, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        return net.weight, optimizer.state_dict()

    _, state = trained(torch.contiguous_format)
    one, other = (trained(layout, copy.deepcopy(state))[0] for layout in (torch.contiguous_format, torch.channels_last))
    assert one.stride() != other.stride()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
