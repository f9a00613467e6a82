"""A part of `benchmarks.gpu`, in a process of its own: measures, and writes its rows as it goes on.

    python -m benchmarks.gpu_parts golden [--device cpu] [--rows FILE]
    python -m benchmarks.gpu_parts steps resnet50

A part that is ended by SIGTERM says first where it was.
"""
import argparse
import os
import time

import torch

from benchmarks import gpu_checks, gpu_compilation, gpu_run, gpu_steps
from benchmarks.gpu_report import Report, say_where_it_ends
from benchmarks.gpu_sizes import sizes_for

PARTS = {  # {name: function(report, sizes, device, *arguments)}
    'golden': gpu_checks.golden, 'agreement': gpu_checks.agreement, 'optimisers': gpu_checks.optimisers,
    'fp16': gpu_checks.half_precision, 'fallback': gpu_checks.fallback, 'one_rank': gpu_checks.one_rank,
    'steps': gpu_steps.steps, 'recomputed': gpu_steps.recomputed, 'accelerated': gpu_steps.accelerated,
    'convmae': gpu_steps.convmae, 'segmentation': gpu_steps.segmentation,
    'compilation': gpu_compilation.compilation, 'real_run': gpu_run.real_run,
    'resumed_run': gpu_run.resumed_run,
}


def main():
    parser = argparse.ArgumentParser('benchmarks.gpu_parts', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('part', choices=PARTS)
    parser.add_argument('arguments', nargs='*', help='what the part is given: a network, ...')
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', default=default, choices=('cuda', 'cpu'))
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--rows', help='file that the rows are added to; the terminal if not given')
    parser.add_argument('--began', type=float, default=time.monotonic(),
                        help='when this process was started, by time.monotonic(); now if not given')
    args = parser.parse_args()
    say_where_it_ends()
    device = torch.device(args.device, 0) if args.device == 'cuda' else torch.device('cpu')
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    run = PARTS[args.part]
    with open(args.rows, 'a', encoding='utf-8') if args.rows else os.fdopen(os.dup(1), 'w') as file:
        run(Report(file, args.began), sizes_for(args.device, args.quick), device, *args.arguments)


if __name__ == '__main__':
    main()
