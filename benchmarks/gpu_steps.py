"""The parts of `benchmarks.gpu` that time steps: SparK's beside the supervised one, ConvMAE's and UperNet's."""
from dataclasses import replace
from functools import partial

import torch

from benchmarks.gpu_training import convmae_of, pretraining_of, segmentation_of, supervised_of, synchronise
from benchmarks.timing import alternate
from common.training.graph import EAGER_STEPS, GraphedStep

MIB = 2 ** 20
# Cases that take turns: {case: what the training is made with}.
PLAIN = {'graph': {'is_graphed': True}, 'eager': {}}
SUPERVISED = {'supervised, graph': {'is_graphed': True}, 'supervised, eager': {}}
RECOMPUTED = {'graph, decoder recomputed': {'is_graphed': True, 'recompute': 'decoder'},
              'graph, all recomputed': {'is_graphed': True, 'recompute': 'all'}}
ACCELERATED = {'accelerated, graph': {'is_graphed': True, 'accelerated': True},
               'accelerated, eager': {'accelerated': True}}


def steps(report, sizes, device, model):
    """Step times and peak memory of the uncompiled plain form, and of the network's own supervised step."""
    torch.backends.cudnn.benchmark = True
    makers = {case: partial(supervised_of, model, sizes, device, **options) for case, options in SUPERVISED.items()}
    time_in_turns(report, pretrainings(PLAIN, model, sizes, device) | makers, sizes, device)


def recomputed(report, sizes, device, model):
    """The same of steps with --recompute."""
    torch.backends.cudnn.benchmark = True
    time_in_turns(report, pretrainings(RECOMPUTED, model, sizes, device), sizes, device)


def accelerated(report, sizes, device, model):
    """The same of the form that CPUs run."""
    torch.backends.cudnn.benchmark = True
    time_in_turns(report, pretrainings(ACCELERATED, model, sizes, device), sizes, device)


def segmentation(report, sizes, device, model):
    """Step times and peak memory of UperNet on a network: crops of 512 px, batches of 16, AdamW."""
    torch.backends.cudnn.benchmark = True
    makers = {f'{model}, {case}': partial(segmentation_of, model, sizes, device, **options)
              for case, options in PLAIN.items()}
    time_in_turns(report, makers, replace(sizes, batch=sizes.segmentation[0]), device)


def pretrainings(cases, model, sizes, device):
    """{case: function that makes its Training}."""
    return {case: partial(pretraining_of, model, sizes, device, **options) for case, options in cases.items()}


def convmae(report, sizes, device):
    """Step times and peak memory of ConvMAE on strips, with --recompute too, and in the original's way
    (benchmarks/convmae.py).
    """
    torch.backends.cudnn.benchmark = True
    strips, original = 'strips, graph', "the original's way, graph"
    makers = {strips: partial(convmae_of, sizes, device, is_graphed=True),
              'strips, graph, all recomputed': partial(convmae_of, sizes, device, recompute='all', is_graphed=True),
              original: partial(convmae_of, sizes, device, is_original=True, is_graphed=True)}
    times = time_in_turns(report, makers, replace(sizes, batch=sizes.convmae_batch), device)
    if len(times) == len(makers):
        report("strips, over the original's way", f'{times.ratio(strips, original):.2f} times')


def time_in_turns(report, makers, sizes, device):
    """Report time and memory of each case. makers: {case: function that makes its Training}. Returns Times of turns."""
    trainings, memory = {}, {}
    for case, make in makers.items():
        try:
            trainings[case] = make()
            memory[case] = memory_of_first_steps(trainings[case], sizes.batch, device)
        except (RuntimeError, ValueError) as error:
            trainings.pop(case, None)
            report.failed(case, error)
    turns = {case: partial(take_turn, training, sizes.turn) for case, training in trainings.items()}
    times = alternate(turns, sizes.rounds, device)
    for case, training in trainings.items():
        report_step(report, case, training, times[case] / sizes.turn, sizes.batch, memory[case])
    return times


def take_turn(training, steps):
    for number in range(steps):
        training.train(number)


def memory_of_first_steps(training, batch, device):
    """Take the steps up to the capture and one more. {name: MiB an image} of what they take beside the weights."""
    eager_steps = training.step.eager_steps if isinstance(training.step, GraphedStep) else EAGER_STEPS
    if device.type != 'cuda':
        take_turn(training, eager_steps + 2)
        return {}
    synchronise(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before, pools_before = torch.cuda.memory_allocated(device), graph_pools()
    take_turn(training, eager_steps + 2)
    synchronise(device)
    found = {'mib': (torch.cuda.max_memory_allocated(device) - before) / MIB / batch}
    if training.is_captured:
        found['pool_mib'] = (graph_pools() - pools_before) / MIB / batch
    return found


def graph_pools():
    """Bytes of the memory that CUDA graphs have reserved for themselves."""
    return sum(segment['total_size'] for segment in torch.cuda.memory_snapshot()
               if tuple(segment.get('segment_pool_id', (0, 0))) != (0, 0))


def report_step(report, case, training, seconds, batch, memory):
    """Report the step time, a rate and the memory of a case."""
    numbers = {'ms': 1000 * seconds, 'images_per_s': batch / seconds, **memory}
    text = f'{1000 * seconds:8.1f} ms {batch / seconds:8,.0f} images/s'
    if 'mib' in memory:
        text += f' {memory["mib"]:6.0f} MiB an image'
    if 'pool_mib' in memory:
        text += f', graph\'s pool {memory["pool_mib"]:.0f}'
    if training.warnings:
        text += f'; not captured: {training.warnings[0]}'
    report(case, text, met=False if training.warnings else None, **numbers)
