"""Is the model of data parallelism right? A training step of 2 and 4 processes of gloo here, predicted and measured.

    python -m benchmarks.scale [resnet26] [--batch 8 --input_size 96 --decoder_width 256 --ranks 2,4 --rounds 7]

One thread a process, which stays on its core; where there are more processes than cores they take turns, which the time of
computing has in it: as many measure it at once, each by itself. The all-reduce is fitted (least squares of relative errors) to
its own times at several sizes. Nothing travels beside the computing here (overlap 0), since on a CPU both take the same cores.
Kinds of a step, in turn: alone, data parallel, and data parallel with shared statistics of BatchNorm, whose computing is scaled
by what a single process takes for it.
"""
import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import distributed as dist
from torch import multiprocessing

from benchmarks.timing import machine
from common.cli import numbers
from common.distributed import Ranks, data_parallel
from common.sync_batchnorm import synchronise_batchnorm
from common.training.trainer import train_step
from pretrain.plan import plan_options
from pretrain.planning.counts import Step
from pretrain.planning.scaling import all_reduce_seconds, step_seconds
from pretrain.spark import build_spark

SIZES = [2 ** power for power in range(10, 27, 2)]  # bytes, 1 kB to 64 MB
IN_A_LAYER = 5  # all-reduces of a CPUSyncBatchNorm: three forward, two backward; torch's on GPUs has one each way


def slowest(run, ranks, rounds):
    """Median seconds of a function, of the last rank to end each time."""
    times = []
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        run()
        times.append(ranks.all_reduce(torch.tensor(time.perf_counter() - began), dist.ReduceOp.MAX).item())
    return median(times)


def steps(args, ranks):
    """{kind: a function that takes a training step, of ranks that share gradients, statistics, or nothing}, and counts."""
    made = {}
    for kind in ('alone', 'parallel', 'shared'):
        torch.manual_seed(0)
        options = plan_options(model=args.model, input_size=args.input_size, precision='fp32', gpus=1)
        step = Step(build_spark(args.model, args.input_size, decoder_width=args.decoder_width), options, ranks.device)
        if kind == 'shared':
            synchronise_batchnorm(step.network)
        made[kind] = step
    gradients = sum(4 * p.numel() for p in step.network.parameters() if p.requires_grad)
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in step.network.modules())
    lone = Ranks(0, 1, ranks.device)

    def runs(kind, step):
        together = lone if kind == 'alone' else ranks
        model, inputs = data_parallel(step.network, together, same_buffers=True), [step.inputs(args.batch)]
        return partial(train_step, model, inputs, 1, step.optimizer, step.guard, together, step.autocast, 5.0,
                       lambda: torch.zeros(2))

    return {kind: runs(kind, step) for kind, step in made.items()}, gradients, norms


def process(rank, size, args, store, results):
    """One of the processes; the main one hands on what was measured."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=size)
    ranks = Ranks(rank, size, torch.device('cpu'))
    runs, gradients, norms = steps(args, ranks)
    found = {kind: [] for kind in runs}
    for _ in range(args.rounds + 1):
        for kind, run in runs.items():
            found[kind].append(slowest(run, ranks, 1))
    found = {kind: median(times[1:]) for kind, times in found.items()}  # the first one warms up
    found |= {'gradients': gradients, 'norms': norms, 'travel': []}
    for bytes_ in SIZES if size > 1 else ():
        tensor = torch.zeros(bytes_ // 4)
        found['travel'].append(slowest(lambda t=tensor: dist.all_reduce(t), ranks, 7 if bytes_ > 2 ** 22 else 51))
    dist.destroy_process_group()
    if rank == 0:
        results.put(found)


def measure(size, args):
    """What `process` found, on so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        results = multiprocessing.get_context('spawn').SimpleQueue()
        context = multiprocessing.spawn(process, (size, args, Path(folder, 'store'), results), size, join=False)
        found = results.get()
        while not context.join():
            pass
    return found


def fit(ranks, times):
    """(bandwidth, latency) of an all-reduce from its seconds at SIZES."""
    scale = 1 / np.array(times)
    terms = np.array([[all_reduce_seconds(0, ranks, 1, 1), all_reduce_seconds(size, ranks, 1, 0)] for size in SIZES])
    (latency, pace), *_ = np.linalg.lstsq(terms * scale[:, None], np.ones(len(times)), rcond=None)
    return 1 / pace, latency


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.scale', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('model', nargs='?', default='resnet26', help='a timm name')
    parser.add_argument('--batch', type=int, default=8, help='images of a process')
    parser.add_argument('--input_size', type=int, default=96)
    parser.add_argument('--decoder_width', type=int, default=256)
    parser.add_argument('--ranks', type=lambda text: numbers(text, int), default=(2, 4))
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args(argv)
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)
    cores, one = len(os.sched_getaffinity(0)), measure(1, args)
    print(f'{machine(torch.device("cpu"))}, {cores} cores; {args.model}, batch {args.batch} a process, {args.input_size} px, '
          f'{one["gradients"] / 1e6:.0f} MB of gradients, {one["norms"]} BatchNorms\n1 process: {one["alone"]:.3f} s a step; '
          f'with BatchNorms that ask the others, of whom there are none, {one["shared"]:.3f} s', flush=True)
    for size in args.ranks:
        found = measure(size, args)
        bandwidth, latency = fit(size, found['travel'])
        turns, alone = max(size / cores, 1), found['alone']
        print(f'{size} processes: {alone:.3f} s a step each by itself ({one["alone"] * turns:.3f} = {turns:g} x 1 process); '
              f'all-reduce {bandwidth / 1e9:.2f} GB/s, {latency * 1e6:.0f} us a round')
        for kind, what, compute, collectives in (
                ('parallel', 'data parallel', alone, 0),
                ('shared', 'and shared BatchNorm', alone * one['shared'] / one['alone'], IN_A_LAYER * found['norms'])):
            predicted = step_seconds(compute, found['gradients'], size, bandwidth, latency, 0, collectives)
            print(f'  {what:22}predicted {predicted:.3f} s, measured {found[kind]:.3f} s, error '
                  f'{predicted / found[kind] - 1:+.1%}; computing is {compute / found[kind]:.0%} of it', flush=True)


if __name__ == '__main__':
    main()
