"""Are the plan's predictions right? Memory of a training step against its measured peak, and a step's time against small ones.

    python -m benchmarks.plan [resnet50 convnext_small ...] [--batches 8,16 --precision fp32 --input_size 224]

Memory: on the CPU what a fresh process grows by in a step, as the kernel counts it; on a GPU what its allocator gave out at
most. Time: a batch of 8 from batches of 2 and 4 (on a GPU of 128 from 32 and 64). Each network runs in a process of its own.
"""
import argparse
import ctypes
import multiprocessing
import sys
from functools import partial

import torch

from benchmarks.timing import alternate, machine
from common.cli import numbers
from pretrain.plan import SMALL, build, plan_options
from pretrain.planning.counts import Counts, Step
from pretrain.planning.memory import Line

NETWORKS = ['resnet50', 'convnext_small', 'efficientnet_b0', 'regnety_032']


def resident(what='VmRSS'):
    """Bytes of this process in memory (VmRSS), or the most since `forget_peak` (VmHWM). Linux only."""
    with open('/proc/self/status', encoding='utf-8') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))


def forget_peak():
    with open('/proc/self/clear_refs', 'w', encoding='utf-8') as file:
        file.write('5')


def growth(step, batch):
    """Bytes that a step takes at its fullest, beyond weights, optimiser and images."""
    inputs = step.inputs(batch)
    step.optimizer.zero_grad(set_to_none=True)
    if step.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(*inputs)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    forget_peak()
    before = resident()
    step(*inputs)
    return resident('VmHWM') - before


def check(name, args):
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    options = plan_options(model=name, input_size=args.input_size, precision=args.precision, gpus=1)
    spark = build(options)
    counts = Counts.of(options, spark)
    step = Step(spark, options, device)
    step(*step.inputs(2))  # the optimiser's state, and what libraries keep
    for batch in args.batches:
        predicted, found = int(counts.temporary(alone=True).at(batch).max()), growth(step, batch)
        print(f'{name:18} memory of a step of {batch:4}: predicted {predicted / 2 ** 20:8.0f} MiB, measured '
              f'{found / 2 ** 20:8.0f} MiB, error {predicted / found - 1:+.1%}', flush=True)
    small = SMALL[device.type]
    few, many, batch = *small, 2 * small[1]
    inputs = {size: step.inputs(size) for size in (few, many, batch)}
    times = alternate({size: partial(step, *inputs[size]) for size in inputs}, args.rounds, device)
    predicted, found = Line.through(small, [times[few], times[many]]).at(batch), times[batch]
    print(f'{name:18} seconds of a step of {batch:3}: predicted {predicted:.3f} from {few} and {many}, measured {found:.3f}, '
          f'error {predicted / found - 1:+.1%}', flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.plan', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('models', nargs='*', default=NETWORKS, help='timm names')
    parser.add_argument('--batches', type=lambda text: numbers(text, int), default=(8, 16))
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args(argv)
    print(f'{machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))}; {args.precision}, {args.input_size} px',
          flush=True)
    for name in args.models:
        process = multiprocessing.get_context('spawn').Process(target=check, args=(name, args))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)


if __name__ == '__main__':
    main()
