"""Do two commits compute the same, to the last bit? The proof that a refactoring changed nothing.

    python -m benchmarks.same main~5 main [--folder DIR]        # `.` is the working tree

Each commit pretrains four networks for 20 steps from main.sh, fine-tunes one of them and trains a detector on it, on the drawn
picture world. Compared are the losses of all steps, the lines of the log, the weights at the end and the exported file. Then
the second commit goes on from a checkpoint in the middle of the first one's run, and must end where that ended.

Exits with 1 if anything differs. With --folder, what a commit computed stays there and is not computed again. One thread a
process; the commits run side by side. A few minutes on two cores.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.chaos import epochs_of, same
from benchmarks.compare import ROOT, copy_of
from common.demo_coco import write_coco
from common.demo_world import write_world

MODELS = ('your_convnet', 'resnet18', 'convnext_atto', 'regnetz_b16')
RESUMED = ('resnet18', 'convnext_atto')  # one with BatchNorm, one with LayerNorm
SHORT = ('--ep=4', '--bs=16', '--workers=0', '--log_every=1', '--ngpu_per_node=1', '--keep=9')
PRETRAINING = (*SHORT, '--input_size=64', '--decoder_width=64', '--lr=1e-2', '--val_every=2', '--picture_every=0')
FINE_TUNING = (*SHORT, '--img_size=64', '--lr=1e-3', '--ema=0.9', '--wp_ep=1')
DETECTION = ('--ep=2', '--bs=4', '--workers=0', '--log_every=1', '--ngpu_per_node=1', '--input_size=64', '--long_side=96',
             '--fpn_channels=32', '--head_channels=64', '--mask_layers=1', '--rois=32', '--lr=1e-3')


def write_images(folder):
    """The images of all runs: 80 of the drawn world and 16 held out, and 20 scenes with objects and 4 held out."""
    if not (folder / 'complete').exists():
        write_world(folder / 'world', 80, 16, 64, seed=1)
        write_coco(folder / 'coco', 20, 4, 96, seed=1)
        (folder / 'complete').touch()


def start(code, script, name, *arguments, cwd):
    """Run one of the code's shell scripts to its end. Raises RuntimeError with what it said."""
    command = ['bash', str(code / script), name, *map(str, arguments)]
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}')


def compute(code, images, out):
    """All runs of a commit whose code is in a folder; each into out/output_NAME."""
    if (out / 'complete').exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    world, weights = f'--data_path={images / "world"}', out / 'output_resnet18/resnet18_1kpretrained.pth'
    for model in MODELS:
        start(code, 'pretrain/main.sh', model, f'--model={model}', world, *PRETRAINING, cwd=out)
    start(code, 'downstream_imagenet/main.sh', 'tuned', '--model=resnet18', f'--finetune_from={weights}', world, *FINE_TUNING,
          cwd=out)
    start(code, 'downstream_coco/main.sh', 'detector', '--model=resnet18', f'--finetune_from={weights}',
          f'--data_path={images / "coco"}', *DETECTION, cwd=out)
    (out / 'complete').touch()


def go_on(code, images, before, out):
    """Go on from the checkpoints of step 10 that another commit wrote."""
    for model in RESUMED:
        checkpoint = before / f'output_{model}/{model}_still_pretraining_step10.pth'
        start(code, 'pretrain/main.sh', f'{model}_resumed', f'--model={model}', f'--data_path={images / "world"}',
              *PRETRAINING, f'--resume={checkpoint}', cwd=out)


def losses_of(folder):
    """[(step, loss)] of each step, from TensorBoard's files."""
    events = EventAccumulator(str(folder / 'tensorboard_log'), size_guidance={'scalars': 0}).Reload()
    tag = 'loss/train' if 'loss/train' in events.Tags()['scalars'] else 'loss'  # as commits before this tag have it
    return [(event.step, event.value) for event in events.Scalars(tag)]


def differences(one, other, resumed=False):
    """What is not the same in two run folders. resumed: the second run began in the middle of the first."""
    found = []
    for path in sorted(one.glob('*.pth')):
        if '_step' in path.name:
            continue
        a, b = (torch.load(folder / path.name, weights_only=True) for folder in (one, other))
        keys = [key for key in ('model', 'ema', 'optimizer', 'best', 'sums') if key in a] if 'config' in a else None
        parts = {f'{path.name}: {key}': (a[key], b[key]) for key in keys} if keys else {path.name: (a, b)}
        found += [name for name, (mine, theirs) in parts.items() if not same(mine, theirs)]
    steps, lines = ([of(folder) for folder in (one, other)] for of in (losses_of, epochs_of))
    if resumed:
        steps[0] = [pair for pair in steps[0] if pair[0] > 10]
        lines[0] = [line for line in lines[0] if line['step'] > 10]
    found += ['losses of the steps'] if steps[0] != steps[1] or not steps[0] else []
    return found + (['lines of the log'] if lines[0] != lines[1] or not lines[0] else [])


def commit_of(name):
    """The hash of a commit; `.` for the working tree, whose code changes."""
    if name == '.':
        return name
    return subprocess.run(['git', 'rev-parse', name], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.same', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('before', help='a commit, or . for the working tree')
    parser.add_argument('after', help='another')
    parser.add_argument('--folder', type=Path, help='where the runs go and stay; a temporary folder if not given')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = args.folder.resolve() if args.folder else scratch
        write_images(folder / 'images')
        codes = [copy_of(name, scratch / f'code{i}') for i, name in enumerate((args.before, args.after))]
        outs = [scratch / f'tree{i}' if name == '.' else folder / commit_of(name)
                for i, name in enumerate((args.before, args.after))]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda code, out: compute(code, folder / 'images', out), codes, outs))
        resumed = scratch / 'resumed'
        resumed.mkdir()
        go_on(codes[1], folder / 'images', outs[0], resumed)
        wrong = 0
        pairs = [(path, outs[1] / path.name, False) for path in sorted(outs[0].glob('output_*'))]
        pairs += [(outs[0] / f'output_{model}', resumed / f'output_{model}_resumed', True) for model in RESUMED]
        for one, other, is_resumed in pairs:
            found = differences(one, other, is_resumed)
            wrong += bool(found)
            print(f'{other.name:32} ' + (f'DIFFERS: {", ".join(found)}' if found else
                                         f'the same; last loss {losses_of(one)[-1][1]:.9g}'))
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
