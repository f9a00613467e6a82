"""How long does a start take? Seconds of `build_spark`, and from the command to the first step.

    python -m benchmarks.start [resnet50 convnext_small ...] [--trees main~5 .] [--input_size 224 --rounds 3]

Each measurement is a process of its own with one thread, since a second network in one process is made faster
than the first. Given are the medians over the rounds of

* network: seconds in which timm makes the network alone;
* build: seconds of `build_spark`, the network included;
* resume: seconds of `build_spark` with the record of an earlier one, where the code has records;
* first step: seconds from `bash pretrain/main.sh` to the line that tells the first step, on a few drawn
  images, two at a time.

--trees: commits, folders with a checkout, or `.` for the working tree; they take turns. In brackets stand
seconds of the processor, which other programs on the machine change little.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.compare import copy_of
from benchmarks.timing import machine
from common.demo_world import write_world

KINDS = ('network', 'build', 'resume', 'first step')
FIRST_STEP = 'The first step took'  # begins the line that a run prints after its first step
DRIVER = """
import inspect, json, sys, time
import torch
import timm
from pretrain.spark import build_spark
name, size = sys.argv[1], int(sys.argv[2])

def seconds(make):
    began = time.perf_counter(), time.process_time()
    made = make()
    return made, (time.perf_counter() - began[0], time.process_time() - began[1])

# The first network pays for what torch and timm load when they are first used.
_, first = seconds(lambda: timm.create_model(name))
_, network = seconds(lambda: timm.create_model(name))
spark, build = seconds(lambda: build_spark(name, size))
found = {'network': network, 'build': build}
if 'record' in inspect.signature(build_spark).parameters:
    _, found['resume'] = seconds(lambda: build_spark(name, size, record=spark.encoder.record))
print(json.dumps(found))
"""


def environment():
    """That of a process with one thread, which imports from the folder that it is started in."""
    changed = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, 'PYTHONUNBUFFERED': '1'}
    changed.pop('PYTHONPATH', None)
    return changed


def build_seconds(code, name, size):
    """{kind: (seconds, seconds of the processor)} of making a network and a SparK around it, in a new
    process.
    """
    done = subprocess.run([sys.executable, '-c', DRIVER, name, str(size)], cwd=code, env=environment(),
                          text=True, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f'{name} cannot be built by {code}, see above')
    return json.loads(done.stdout.splitlines()[-1])


def first_step_seconds(code, name, size, world, folder):
    """(seconds, seconds of the processor) from the command to the end of the first step of a run, which then
    is ended.
    """
    command = ['bash', str(code / 'pretrain/main.sh'), 'start', f'--model={name}', f'--input_size={size}',
               f'--data_path={world}', '--ep=2', '--bs=2', '--workers=0', '--ngpu_per_node=1',
               '--log_every=1']
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith(FIRST_STEP):
                break
        seconds = time.perf_counter() - began
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        _, _, used = os.wait4(process.pid, 0)
    if not lines or not lines[-1].startswith(FIRST_STEP):
        raise SystemExit(f'a run of {name} by {code} ended before its first step:\n{"".join(lines[-20:])}')
    return seconds, used.ru_utime + used.ru_stime


def measure(code, name, size, world):
    """{kind: (seconds, seconds of the processor)} of one round."""
    found = build_seconds(code, name, size)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found['first step'] = first_step_seconds(code, name, size, world, folder)
    return found


def tree(name, folder):
    """The folder of a tree's code: a folder as it is, a commit's in a copy."""
    if name != '.' and Path(name).is_dir():
        return Path(name).resolve()
    return copy_of(name, folder)


def medians(rounds):
    """'kind seconds (seconds of the processor)' of each kind that was measured, the medians over the
    rounds.
    """
    for kind in KINDS:
        if kind in rounds[0]:
            wall, processor = (median(found[kind][i] for found in rounds) for i in (0, 1))
            yield f'{kind} {wall:.2f} ({processor:.2f})'


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.start', description=__doc__.split('\n')[0],
                                     allow_abbrev=False)
    parser.add_argument('models', nargs='*', default=['resnet50', 'convnext_small'], help='timm names')
    parser.add_argument('--trees', nargs='+', default=['.'], help='commits or folders, which take turns; . '
                                                                  'is the working tree')
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f'{machine(torch.device("cpu"))}, {os.cpu_count()} cores; {args.input_size} px; median seconds of '
          f'{args.rounds}')
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        write_world(scratch / 'world', 8, 2, 64, seed=1)
        codes = {name: tree(name, scratch / f'code{i}') for i, name in enumerate(args.trees)}
        for model in args.models:
            rounds = {name: [] for name in codes}
            for _ in range(args.rounds):
                for name, code in codes.items():
                    rounds[name].append(measure(code, model, args.input_size, scratch / 'world'))
            for name, found in rounds.items():
                print(f'{model:20} {name:12} {", ".join(medians(found))}', flush=True)


if __name__ == '__main__':
    main()
