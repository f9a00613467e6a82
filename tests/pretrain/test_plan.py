"""The plan of a run: what a step holds, what it costs on many GPUs, and what the command line says."""
import dataclasses
import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scale import SIZES, fit
from common.training.memory import kept_for_backward
from pretrain.plan import GIB, MEMORY_ERROR, Plan, Speed, build, main, plan, plan_options, speed_of, training_images
from pretrain.planning.counts import Counts, Step
from pretrain.planning.memory import AsCUDA, Line, Live, ShapesOnly
from pretrain.planning.operations import OPERATIONS
from pretrain.planning.scaling import BUCKET, all_reduce_seconds, step_seconds

SMALL = ['--model=your_convnet', '--input_size=32', '--decoder_width=16', '--bs=64']


def small(**changes):
    return plan_options(**{'model': 'your_convnet', 'input_size': 32, 'decoder_width': 16, 'batch_size': 64, 'epochs': 2,
                          'gpus': 2, 'images': 640, **changes})


@pytest.fixture(scope='module')
def counts():
    return Counts.of(small(), build(small()))


# -- what a step holds ------------------------------------------------------------------------------------------------

def test_kept_for_backward_by_hand():
    linear, x = nn.Linear(4, 8), torch.randn(2, 4)
    own = [*linear.parameters(), x]
    assert kept_for_backward(lambda: linear(x).relu().sum(), own) == 2 * 8 * 4  # what the ReLU gave
    assert kept_for_backward(lambda: linear(x).relu().square().sum(), own) == 2 * 8 * 4  # ... kept by both
    assert kept_for_backward(lambda: linear(x).exp().exp().sum(), own) == 2 * (2 * 8 * 4)
    assert kept_for_backward(lambda: linear(x).exp().sum(), []) == 2 * 8 * 4 + 2 * 4 * 4  # and what it was given: no weight


def test_views_count_once_and_the_whole_of_their_storage():
    x = torch.randn(2, 8, requires_grad=True)

    def halves():
        y = x * 2
        return (y[:, :4] * y[:, 4:]).sum()

    assert kept_for_backward(halves) == 2 * 8 * 4


def test_what_is_gone_again_is_not_kept():
    x = torch.randn(2, 8, requires_grad=True)

    def run():
        x.exp().exp().sum()
        return x.exp().sum()

    assert kept_for_backward(run) == 2 * 8 * 4


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.double())
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_own_functions_are_seen():
    x = torch.randn(2, 8, requires_grad=True)
    assert kept_for_backward(lambda: Twice.apply(x)) == 2 * 8 * 8


def test_live_bytes_follow_what_is_made_and_dropped():
    x = torch.zeros(10)
    with Live() as live:
        a = x + 1
        b = a.view(2, 5) + x.view(2, 5)
        del a
        c = x.view(5, 2)  # a view of what was there before
        d = b * 2
    assert live.bytes.tolist() == [40, 40, 40, 80, 40, 80] and c.numel() == d.numel() == 10
    assert live.made_at(d) == 5


def test_layer_norm_computes_in_fp32_as_on_cuda():
    x, norm = torch.randn(2, 8), nn.LayerNorm(8)
    with torch.autocast('cpu', torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.bfloat16
        with AsCUDA():
            assert norm(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('model', ['your_convnet', 'convnext_atto'])
def test_two_batches_tell_of_a_third(model, precision):
    options = small(model=model, precision=precision, **({} if model == 'your_convnet' else {'input_size': 64,
                                                                                            'decoder_width': 32}))
    counts = Counts.of(options, spark := build(options))
    step = Step(spark, options, torch.device('cpu'))
    images, visible = step.inputs(7)
    step(images, visible)  # makes the state of this optimiser
    step.optimizer.zero_grad()
    own = [*spark.parameters(), *spark.buffers(), images, visible]
    with AsCUDA() if precision == 'bf16' else nullcontext():
        assert kept_for_backward(lambda: step.loss(images, visible), own) == counts.kept.at(7)
        with Live() as live:
            step(images, visible)
    assert np.array_equal(live.bytes, counts.live.at(7))
    assert counts.kept.an_image > 0


LAYERS = {'grouped': nn.Conv2d(8, 16, 3, stride=2, groups=8), 'pointwise': nn.Conv2d(8, 4, 1),
          'one-dimensional': nn.Conv1d(8, 4, 3), 'transposed': nn.ConvTranspose2d(8, 4, 4, stride=2, bias=False),
          'linear': nn.Linear(8, 4), 'linear without bias': nn.Linear(8, 4, bias=False)}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', LAYERS)
def test_zeros_have_the_shape_and_the_layout_of_what_is_left_out(name, layout, dtype):
    layer = LAYERS[name].to(memory_format=layout, dtype=dtype)
    x = torch.randn({'one-dimensional': (2, 8, 9), 'linear': (2, 8), 'linear without bias': (2, 8)}.get(name, (2, 8, 9, 9)))
    x = (x.to(memory_format=layout) if x.dim() == 4 else x).to(dtype).requires_grad_()
    results = []
    for shapes_only in (False, True):
        with ShapesOnly() if shapes_only else nullcontext():
            out = layer(x)
            gradients = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
        results.append((out, *gradients))
    for computed, left_out in zip(*results, strict=True):
        assert (left_out.shape, left_out.stride(), left_out.dtype) == (computed.shape, computed.stride(), computed.dtype)
        assert computed.any() and not left_out.any()


@pytest.mark.parametrize('changes', [
    {}, {'precision': 'fp32'}, {'model': 'convnext_atto', 'input_size': 64},
    {'model': 'nfnet_l0', 'input_size': 64, 'precision': 'fp32'},
    {'method': 'a2mim', 'model': 'resnet18', 'input_size': 64},
    {'method': 'mae', 'model': 'test_vit', 'input_size': 64, 'decoder_depth': 1, 'decoder_heads': 4}],
    ids=lambda changes: '-'.join(map(str, changes.values())))
def test_nothing_is_counted_otherwise_where_values_are_left_out(changes):
    given = {'model': 'your_convnet', 'input_size': 32, 'batch_size': 64, 'epochs': 2, 'images': 640, **changes}
    if given.get('method') != 'a2mim':
        given['decoder_width'] = 32
    options = plan_options(**given)
    fast, plain = (tree_leaves(dataclasses.asdict(Counts.of(options, build(options), shapes_only)))
                   for shapes_only in (True, False))
    assert [*map(np.array_equal, fast, plain)] == [True] * len(plain)


def test_figures_add_up(counts):
    spark = build(small())
    trained = sum(p.numel() for name, p in spark.named_parameters() if 'head' not in name)
    assert counts.gradients == 4 * trained and counts.reached[-1] == counts.gradients
    assert counts.state == 2 * counts.gradients and counts.image == 3 * 32 * 32 * 4
    assert counts.weights == sum(t.numel() * t.element_size() for t in spark.state_dict().values())
    assert counts.checkpoint == counts.weights + counts.state
    assert sorted(counts.norms) == sorted(m.num_features for m in spark.modules() if isinstance(m, nn.BatchNorm2d))
    fullest = counts.weights + counts.gradients + counts.state + (counts.image + counts.kept.an_image) * 64
    assert fullest < counts.held(64, alone=False) < 2 * fullest
    assert 0 < counts.held(64, alone=False) - counts.held(64, alone=True) <= counts.gradients
    stands, comes = (counts.temporary(alone).at(64) for alone in (False, True))
    assert stands[0] - comes[0] == counts.gradients and stands[-1] == comes[-1]


def test_state_of_the_optimisers(counts):
    options = small(opt='sgd')
    assert Counts.of(options, build(options)).state == counts.gradients
    options = small(opt='adamw')
    assert counts.gradients * 2 <= Counts.of(options, build(options)).state < counts.gradients * 2.1  # and counts of steps


@pytest.mark.parametrize('inputs', [0, 64])
@pytest.mark.parametrize('alone', [False, True])
def test_the_largest_batch_fits_and_the_next_does_not(counts, alone, inputs):
    given = alone, inputs
    for room in (counts.held(1, *given), 30 * 2 ** 20, 10 ** 9, 10 ** 9 + 12345):
        largest = counts.largest(room, *given)
        assert counts.held(largest, *given) <= room < counts.held(largest + 1, *given)
    assert counts.largest(counts.held(1, *given) - 1, *given) == 0 == counts.largest(1000, *given)


def test_a_graph_keeps_its_inputs_and_leaves_room_for_a_forward_pass(counts):
    step = Step(build(small()), small(), torch.device('cpu'))
    images, visible = step.inputs(5)
    with AsCUDA(), torch.no_grad(), Live() as live:
        step.loss(images, visible)
    beside = counts.held(5, alone=False, inputs=64) - counts.held(5, alone=False)
    assert beside == 64 * counts.image + live.bytes.max()
    assert live.bytes.max() < counts.kept.at(5)


@pytest.mark.parametrize('graph', [None, False])
def test_parts_are_as_few_as_fit(counts, graph):
    def planned(batch, gpus=2, **changes):
        share = 64 // gpus
        needed = counts.held(batch, alone=False, inputs=0 if graph is False else share)
        memory = (needed * (1 + MEMORY_ERROR) + 1) / GIB
        return Plan(small(memory=memory, reserve=0.0, gpus=gpus, graph=graph, **changes), counts, None)

    assert planned(32).parts == 1 and planned(31).parts == 2 and planned(15).parts == 4
    assert planned(32, accum=4).parts == 4
    assert planned(32, gpus=1).parts == 2 and planned(64, gpus=1).parts == 1
    with pytest.raises(ValueError, match='--memory says .*--input_size or --decoder_width'):
        Plan(small(memory=0.001, reserve=0.0), counts, None)


# -- speed ------------------------------------------------------------------------------------------------------------

def test_an_all_reduce_at_its_limits():
    assert all_reduce_seconds(1e9, 1, 1e9, 1) == 0
    assert all_reduce_seconds(1e9, 2, 1e9, 0) == 1  # half of it each way, twice
    assert all_reduce_seconds(1e9, 10 ** 6, 1e9, 0) == pytest.approx(2, rel=1e-5)
    assert all_reduce_seconds(0, 8, 1e9, 1) == 6 and all_reduce_seconds(1e9, 8, float('inf'), 1) == 6


def test_the_images_of_a_data_set_are_counted(monkeypatch):
    monkeypatch.setattr('pretrain.plan.find_images', lambda path, dataset, *_: range({'hfds/some': 500}[dataset]))
    assert training_images(small(images=None, dataset='hfds/some')) == 500
    assert training_images(small(images=None)) == 1_281_167


def test_a_step_at_its_limits():
    assert step_seconds(1, 1e9, 1, 1, 1, 0, 100) == 1
    assert step_seconds(1, 1e9, 8, float('inf'), 0, 0, 100) == 1
    assert step_seconds(1, 1e9, 2, 1e9, 0, overlap=0) == 2
    assert step_seconds(1, 1e9, 2, 1e9, 0, overlap=0.5) == 1.5
    assert step_seconds(1, 1e9, 2, 1e10, 0, overlap=0.5) == 1  # hidden
    assert step_seconds(1, 3 * BUCKET, 2, float('inf'), 1, overlap=0, collectives=5) == 1 + (3 + 5) * 2
    assert step_seconds(1, 0, 5, 10, 0, overlap=0, gathered=20) == 1 + 4 * 2


def test_the_fit_finds_what_made_the_times():
    times = [all_reduce_seconds(size, 4, 2e9, 3e-4) for size in SIZES]
    assert fit(4, times) == pytest.approx((2e9, 3e-4))


def test_speed_and_cost(counts):
    plan = Plan(small(gpus=4, images_per_second=100.0, cost_per_gpu_hour=3.0), counts, Speed(Line(0, 0.01), 'given'))
    assert plan.rate == pytest.approx(400) and plan.run.steps == 20 and plan.seconds == pytest.approx(0.16)
    slow = Plan(small(gpus=4, bandwidth=1e-3, overlap=0.0, latency=0.0, sync_bn=False), counts, Speed(Line(0, 0.01), 'given'))
    assert slow.seconds == pytest.approx(0.16 + 1.5 * counts.gradients / 1e6)
    waits = Plan(small(gpus=4, bandwidth=1e9, latency=1000.0), counts, Speed(Line(0, 0.01), 'given'))
    assert waits.seconds == pytest.approx(0.16 + 2 * len(counts.norms) * 4e-3)
    same = Plan(small(gpus=4, bandwidth=1e-3), counts, Speed(Line(0, 0.01), 'measured', ranks=4))
    assert same.seconds == pytest.approx(0.16)


@pytest.mark.parametrize('groups', [1, 8])
def test_a_backward_pass_is_twice_the_forward_pass(groups):
    layer, x = nn.Conv2d(8, 8, 3, padding=1, groups=groups), torch.randn(2, 8, 5, 5, requires_grad=True)
    counts = []
    for both in (False, True):
        with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
            out = layer(x)
            if both:
                out.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == 2 * 2 * 5 * 5 * 9 * 8 * 8 // groups and counts[1] == 3 * counts[0]


@pytest.mark.parametrize('is_backward', [False, True])
def test_attention_is_counted(is_backward):
    """Scores and values, a multiply-accumulate is two; the backward pass computes the scores again, and four gradients."""
    query = torch.randn(2, 4, 50, 32, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
        out = nn.functional.scaled_dot_product_attention(query, query, query)
        if is_backward:
            out.sum().backward()
    assert counter.get_total_flops() == 2 * 4 * 50 * 50 * 32 * 2 * (2 + 5 * is_backward)


def test_operations(counts):
    """A 1 x 1 convolution of 16 / 8 channels at full size, to take one layer: forward and both gradients of it are there."""
    options = small(decoder_width=32)
    more = Counts.of(options, build(options)).operations - counts.operations
    assert more > 3 * 2 * 32 * 32 * (4 - 2) * 3
    assert speed_of(small(tflops=1.0, utilisation=0.5), counts, None).seconds.at(10) == pytest.approx(
        10 * counts.operations / 0.5e12)


def test_speed_of_a_log(counts, finished):
    log = [json.loads(line) for line in (finished / 'pretrain_log.txt').read_text().splitlines()]
    rates = [entry['images_per_second'] for entry in log if entry.get('epoch')]
    speed = speed_of(small(log=str(finished / 'pretrain_log.txt')), counts, None)
    assert speed.ranks == 1 and speed.seconds.at(1) == pytest.approx(2 / sum(sorted(rates)[-2:]))
    assert speed_of(small(log=str(finished)), counts, None).seconds == speed.seconds
    with pytest.raises(ValueError, match='--input_size=32, and this plan has 64'):
        speed_of(small(log=str(finished), input_size=64), counts, None)


@pytest.mark.parametrize('changes', [{'model': 'resnet18'}, {'input_size': 64}, {'decoder_width': 32}])
def test_a_log_of_another_run_is_refused_before_anything_is_measured(changes, finished, monkeypatch):
    monkeypatch.setattr('pretrain.plan.build', lambda options: pytest.fail('it was built'))
    with pytest.raises(ValueError, match=f'is of a run with --{next(iter(changes))}='):
        plan(small(log=str(finished / 'pretrain_log.txt'), **changes))


def test_an_image_costs_as_much_as_its_masks():
    def counted_of(masks):
        options = plan_options(method='mae', model='test_vit', input_size=64, decoder_width=32, decoder_depth=1,
                               decoder_heads=4, masks_per_image=masks, precision='fp32', batch_size=64, epochs=2)
        return Counts.of(options, build(options))

    one, four = counted_of(1), counted_of(4)
    assert four.kept.an_image == 4 * one.kept.an_image and four.image == one.image
    assert four.operations == 4 * one.operations


# -- the command line -------------------------------------------------------------------------------------------------

def test_every_figure_says_where_it_is_from(capsys):
    main([*SMALL, '--gpus=2', '--measure', '--precision=fp32', '--bandwidth=10', '--cost_per_gpu_hour=2', '--images=1000'])
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith('  ')]
    assert len(rows) > 20
    for row in rows:
        assert re.search(r'  (measured|predicted|given|assumed)', row), row
    assert '64 images a step on 2 GPUs of 80 GiB' in said and 'cost' in said


@pytest.mark.parametrize(('given', 'precision'), [({}, 'fp32'), ({'precision': 'bf16'}, 'bf16')])
def test_steps_are_timed_in_the_precision_of_a_run_on_this_machine(given, precision, monkeypatch):
    timed = []
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('pretrain.plan.measured', lambda step: timed.append(step.options.precision))
    options = small(measure=True, **given)
    speed_of(options, None, build(options))
    assert timed == [precision]


def test_without_a_speed_nothing_is_made_up(capsys):
    main(SMALL)
    said = capsys.readouterr().out
    assert 'not predicted   give --log or' in said and 'images/s' not in said


@pytest.mark.parametrize('flags, sentence', [
    (['--gpus=0'], 'gpus must be 1 or more, not 0'),
    (['--gpus=3'], '--bs=63 or --bs=66'),
    (['--memory=-1'], 'memory must be more than 0, not -1.0'),
    (['--memory=2'], 'less than the 2 GiB of --memory'),
    (['--memory=0.005', '--reserve=0'], 'give a smaller --input_size'),
    (['--tflops=300', '--images_per_second=5'], '--images_per_second and --tflops each say how fast'),
    (['--utilisation=1.5'], 'utilisation must be more than 0 and at most 1'),
    (['--overlap=2'], 'overlap must lie between 0 and 1'),
    (['--bandwidth=0'], 'bandwidth must be more than 0'),
    (['--cost_per_gpu_hour=-1'], 'cost_per_gpu_hour must be 0 or more'),
    (['--log=nowhere/pretrain_log.txt'], 'nowhere is no folder of a pretraining run'),
    (['--gpu=8'], 'did you mean --gpus')])
def test_what_is_wrong_is_said_in_a_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main([*SMALL, *flags])
    said = f'{end.value} {capsys.readouterr().err}'
    assert sentence in said and 'Traceback' not in said
