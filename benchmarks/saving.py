"""How long a checkpoint holds the training up: written by the training thread, and beside it, in one run.

    python -m benchmarks.saving --model=resnet50

Training steps alternate with saves, at batch 2 and 64 px so that they are short; what counts is what a save adds.
"""
import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.timing import machine
from common.reliability.checkpoint import copied, plain_state, save_checkpoint
from common.reliability.writer import Writer
from common.training.optim import build_optimizer, parameter_groups
from pretrain.spark import build_spark
from pretrain.spark_method import SparKMethod

STEPS = 8  # between saves


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.saving', description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--folder', help='on the disk that is to be measured; a temporary folder if not given')
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args(argv)
    spark = build_spark(args.model, input_size=64)
    optimizer, images = build_optimizer('lamb', parameter_groups(spark, 0.04, SparKMethod.no_decay)), torch.randn(2, 3, 64, 64)

    def steps():
        began = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            spark(images).backward()
            optimizer.step()
        return time.perf_counter() - began

    def content():
        return {'step': 0, 'model': plain_state(spark), 'optimizer': copied(optimizer.state_dict())}

    held, around = {'in the training thread': [], 'beside it': []}, {'in the training thread': [], 'beside it': []}
    steps()
    alone = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder, 'checkpoint.pth')
        writer = Writer(lambda: None, print)

        def put():
            writer.wait()
            state = content()
            writer.put(path, lambda: save_checkpoint(path, state))

        for _ in range(args.rounds):
            alone.append(steps())
            for name, act in (('in the training thread', lambda: save_checkpoint(path, content())), ('beside it', put)):
                began = time.perf_counter()
                act()
                held[name].append(time.perf_counter() - began)
                steps()
                around[name].append(time.perf_counter() - began)
                writer.wait()
        writer.close()
        size = path.stat().st_size
    print(machine(torch.device('cpu')))
    print(f'{args.model}: {size / 1e6:.0f} MB a checkpoint; {STEPS} steps alone take {median(alone):.2f} s')
    for name, seconds in held.items():
        print(f'written {name}: the training waits {median(seconds):.2f} s, and {STEPS} steps with a save take '
              f'{median(around[name]):.2f} s')


if __name__ == '__main__':
    main()
