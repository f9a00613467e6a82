"""Kill a run with SIGKILL again and again, start it again with the same command, and compare its end with an undisturbed run's.

    python -m benchmarks.chaos --kills=100 --procs=1
    python -m benchmarks.chaos --kills=100 --procs=2

Three in ten of the kills wait until a checkpoint is being written; the others come at random instants, from the start of the
process on. With several processes a fifth of the kills take one of them alone, and the others must end by themselves.
The weights, the optimiser, the exported file and the lines of the log must be the same, bit for bit; exits with 1 if not.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from common.demo_world import write_world
from common.reliability.checkpoint import earlier, read_run
from common.reliability.watchdog import is_stopped

ROOT = Path(__file__).resolve().parents[1]
NAME = 'your_convnet_still_pretraining.pth'
# Of a line in the log: what a clock or a meter says.
VARYING = ('seconds', 'images_per_second', 'data_wait', 'remaining', 'finish', 'gpu_kwh')
PER_EPOCH = 5


def same(one, other):
    """Equal to the last bit, through dicts and lists."""
    if torch.is_tensor(one):
        return torch.is_tensor(other) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def epochs_of(folder):
    """The lines of the epochs in a run's log, without what the clock says."""
    log, = Path(folder).glob('*_log.txt')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in VARYING} for line in lines if 'epoch' in line]


def differences(folder, other):
    """What is not the same in two finished runs."""
    one, two = (read_run(Path(run, NAME)) for run in (folder, other))
    wrong = [key for key in ('step', 'model', 'optimizer', 'sums', 'skipped', 'unreadable') if not same(one[key], two[key])]
    exported = (torch.load(Path(run, 'your_convnet_1kpretrained.pth'), weights_only=True) for run in (folder, other))
    wrong += [] if same(*exported) else ['exported weights']
    return wrong + ([] if epochs_of(folder) == epochs_of(other) else ['log'])


def starts_of(folder):
    """How often a run has begun to train, by its log."""
    log = folder / 'pretrain_log.txt'
    return log.read_text().count('{"run"') if log.exists() else 0


def command(name, procs, images, epochs):
    return ['bash', str(ROOT / 'pretrain/main.sh'), name, f'--ngpu_per_node={procs}', f'--data_path={images}',
            '--model=your_convnet', '--input_size=32', '--decoder_width=128', '--bs=8', f'--ep={epochs}', '--lr=1e-2',
            '--wp_ep=1', '--workers=1', '--save_every=2', '--save_every_steps=3',
            '--save_every_minutes=0.01', '--val_every=10', '--picture_every=0']


def start(name, procs, images, epochs, folder):
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    output = open(folder / f'{name}_said.txt', 'a')  # noqa: SIM115  (the process's)
    with output:
        return subprocess.Popen(command(name, procs, images, epochs), cwd=folder, env=environment, stdout=output,
                                stderr=subprocess.STDOUT, start_new_session=True)


def descendants(pid):
    """A process and all that came of it, the youngest last; by /proc."""
    parents = {}
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            parents.setdefault(int(path.read_text().rpartition(')')[2].split()[1]), []).append(int(path.parent.name))
        except OSError:  # it ended in between
            continue
    found = [pid]
    for one in found:
        found += parents.get(one, ())
    return found


def kill(pids, number=signal.SIGKILL):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def ranks_of(launcher):
    """The processes that train, of all that the launcher started: those that torchrun started."""
    return [pid for pid in descendants(launcher) if 'common.torchrun' in words_of(parent_of(pid))]


def words_of(pid):
    """The command line of a process; empty if it is dead."""
    try:
        return Path(f'/proc/{pid}/cmdline').read_text().split('\0')[:-1]
    except OSError:
        return []


def is_alive(pid):
    return bool(words_of(pid))


def parent_of(pid):
    try:
        return int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])
    except OSError:
        return 0


def wait_until(condition, process, seconds):
    """Whether it came true before the process ended, within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def caught(file, processes):
    """Stop processes while a file is there; whether it still was once they stood, else they go on."""
    kill(processes, signal.SIGSTOP)
    while any(is_alive(pid) and not is_stopped(pid) for pid in processes):
        time.sleep(0.001)
    if file.exists():
        return True
    kill(processes, signal.SIGCONT)
    return False


def one_life(rng, number, start_it, folder, alone):
    """Start the run and kill it; what was done to it. 'finished' if it came to its end before."""
    temporary, before = folder / f'.{NAME}.writing', starts_of(folder)
    process = start_it()
    in_a_save, early = number % 10 in (1, 4, 7), number % 10 == 9
    if early:  # while it loads its packages, its checkpoint, its images
        time.sleep(rng.uniform(0, 6))
    else:
        wait_until(lambda: starts_of(folder) > before, process, 300)
        time.sleep(rng.uniform(0, 0.4))
        if in_a_save:
            for _ in range(rng.randrange(4)):  # not always the first
                wait_until(temporary.exists, process, 60)
                wait_until(lambda: not temporary.exists(), process, 60)
            while wait_until(temporary.exists, process, 60) and not caught(temporary, descendants(process.pid)):
                pass
    if process.poll() is not None:
        return 'finished'
    one_rank = alone and not in_a_save and not early and number % 3 == 0
    everyone = descendants(process.pid)
    if one_rank:
        kill([rng.choice(ranks_of(process.pid) or [process.pid])])
        process.wait(120)  # the others end, and torchrun with them
    kill(everyone)
    process.wait()
    while any(map(is_alive, everyone)):
        time.sleep(0.01)
    if temporary.exists():
        return 'inside a save'
    newest = folder / NAME
    if newest.exists() and newest.stat().st_nlink > 1:
        return 'between two names of a checkpoint'
    return 'while it started' if early else 'one process of several' if one_rank else 'in training'


def chaos(kills, procs, seed, folder, say=print):
    """Returns {what was done: how often} and the list of what differs in the end."""
    rng, counts, furthest = random.Random(seed), Counter(), -1
    images, epochs = folder / 'images', max(24, kills * 2)
    write_world(images, PER_EPOCH * 8, 10, 40, seed=3)
    say(f'{epochs * PER_EPOCH} steps, {procs} process{"es" * (procs > 1)}: first undisturbed')
    if start('whole', procs, images, epochs, folder).wait():
        raise RuntimeError((folder / 'whole_said.txt').read_text()[-2000:])
    run = folder / 'output_chaos'
    while sum(counts.values()) < kills:
        number = sum(counts.values())
        done = one_life(rng, number, lambda: start('chaos', procs, images, epochs, folder), run, procs > 1)
        if done == 'finished':
            say(f'it came to its end after {number} kills')
            break
        counts[done] += 1
        there = [path for path in (run / NAME, *earlier(run / NAME).values()) if path.exists()]
        step = max((read_run(path)['step'] for path in there), default=-1)  # each of them is whole
        if step < furthest:
            raise RuntimeError(f'after kill {number} the furthest checkpoint is of step {step}; it was {furthest}')
        furthest = step
        say(f'kill {number + 1}: {done}; the last checkpoint is of step {step}')
    if start('chaos', procs, images, epochs, folder).wait():
        raise RuntimeError((folder / 'chaos_said.txt').read_text()[-2000:])
    return counts, differences(run, folder / 'output_whole')


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.chaos', description=__doc__.split('\n')[0])
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--procs', type=int, default=1, help='processes of the run')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, help='where the runs go; a temporary folder if not given')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        counts, wrong = chaos(args.kills, args.procs, args.seed, folder)
    for what, count in counts.most_common():
        print(f'{count:4} {what}')
    print(f'{sum(counts.values())} kills; in the end ' + (f'not the same: {", ".join(wrong)}' if wrong else
                                                         'weights, optimiser, export and log are the same, bit for bit'))
    sys.exit(bool(wrong) or sum(counts.values()) < args.kills)


if __name__ == '__main__':
    main()
