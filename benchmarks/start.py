"""How long does a start take? Seconds from the command to the first word, the first step, the first picture.

    python -m benchmarks.start [resnet50 convnext_small ...] [--trees main~5 .] [--input_size 224 --rounds 3]
                               [--kinds typo help 'first word']

Each measurement is a process of its own with one thread, since a second network in one process is made faster
than the first. Given are the medians over the rounds of

* typo: seconds from `bash pretrain/main.sh` with a flag that is misspelt to its end;
* help: seconds of `bash pretrain/main.sh --help`;
* network: seconds in which timm makes the network alone;
* build: seconds of `build_spark`, the network included;
* resume: seconds of `build_spark` with the record of an earlier one, where the code has records;
* first word: seconds from `bash pretrain/main.sh` to its first byte of output, on a few drawn images, two at a
  time;
* first step: to the line that tells the first step;
* first picture: to the first file of reconstructions, after an epoch of two steps.

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

KINDS = ('typo', 'help', 'network', 'build', 'resume', 'first word', 'first step', 'first picture')
BUILD = ('network', 'build', 'resume')  # of KINDS, what one process measures
PAUSE = 0.005  # seconds between two looks at what a command has come to
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
    """That of a process on the CPU with one thread, which imports from the folder that it is started in."""
    changed = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHON': sys.executable,
               'PYTHONUNBUFFERED': '1'}
    changed.pop('PYTHONPATH', None)
    return changed


def build_seconds(code, name, size):
    """{kind: (seconds, seconds of the processor)} of making a network and a SparK around it, in a new process."""
    done = subprocess.run([sys.executable, '-c', DRIVER, name, str(size)], cwd=code, env=environment(),
                          text=True, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f'{name} cannot be built by {code}, see above')
    return json.loads(done.stdout.splitlines()[-1])


def seconds_until(is_reached, command, folder, to_end=False):
    """(seconds, seconds of the processor) from a command to the moment at which is_reached(output) holds.

    The command is ended then. is_reached: a function of the file that the command's output goes into.
    to_end: whether the command is left to end by itself instead, and is_reached only has to hold then.
    """
    output = Path(folder, 'output.txt')
    began = time.perf_counter()
    with output.open('w') as file:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=file, stderr=subprocess.STDOUT,
                                   start_new_session=True)
    has_ended = False
    try:
        while not has_ended and (to_end or not is_reached(output)):
            time.sleep(PAUSE)
            has_ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        seconds = time.perf_counter() - began
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        _, _, used = os.wait4(process.pid, 0)
    if not is_reached(output):
        raise SystemExit(f'{" ".join(command)} ended before that:\n{output.read_text()[-3000:]}')
    return seconds, used.ru_utime + used.ru_stime


def has_word(output):
    return output.stat().st_size > 0


def has_step(output):
    return FIRST_STEP in output.read_text()


def has_picture(output):
    return any(output.parent.glob('output_start/reconstructions/*.png'))


def has_typo(output):
    return 'unknown flag --modle' in output.read_text()


def has_help(output):
    return '--mask_ratio' in output.read_text()


def measure(code, name, size, world, kinds):
    """{kind: (seconds, seconds of the processor)} of one round."""
    main = ['bash', str(code / 'pretrain/main.sh')]
    run = [*main, 'start', f'--model={name}', f'--input_size={size}', f'--data_path={world}', '--ep=2', '--bs=2',
           '--workers=0', '--ngpu_per_node=1', '--log_every=1', '--picture_every=1']
    commands = {'typo': (has_typo, [*main, 'start', f'--modle={name}', f'--data_path={world}']),
                'help': (has_help, [*main, '--help']),
                'first word': (has_word, run), 'first step': (has_step, run), 'first picture': (has_picture, run)}
    found = build_seconds(code, name, size) if set(kinds) & set(BUILD) else {}
    for kind in kinds:
        if kind in commands:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                found[kind] = seconds_until(*commands[kind], folder, to_end=kind in ('typo', 'help'))
    return found


def tree(name, folder):
    """The folder of a tree's code: a folder as it is, a commit's in a copy."""
    if name != '.' and Path(name).is_dir():
        return Path(name).resolve()
    return copy_of(name, folder)


def medians(rounds, kinds):
    """'kind seconds (seconds of the processor)' of each kind that was measured, the medians over the rounds."""
    for kind in KINDS:
        if kind in rounds[0] and kind in kinds:
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
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS, help='what is measured')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f'{machine(torch.device("cpu"))}, {os.cpu_count()} cores; {args.input_size} px; median seconds of '
          f'{args.rounds}')
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        write_world(scratch / 'world', 4, 2, 64, seed=1)
        codes = {name: tree(name, scratch / f'code{i}') for i, name in enumerate(args.trees)}
        for model in args.models:
            rounds = {name: [] for name in codes}
            for _ in range(args.rounds):
                for name, code in codes.items():
                    rounds[name].append(measure(code, model, args.input_size, scratch / 'world', args.kinds))
            for name, found in rounds.items():
                print(f'{model:20} {name:12} {", ".join(medians(found, args.kinds))}', flush=True)


if __name__ == '__main__':
    main()
