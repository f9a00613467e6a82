"""A part of `benchmarks.gpu`, in a process of its own: measures, and writes its rows as it goes on.

    python -m benchmarks.gpu_parts golden [--device cpu] [--rows FILE]
    python -m benchmarks.gpu_parts steps resnet50
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks import gpu_checks, gpu_compilation, gpu_steps
from benchmarks.gpu_training import sizes_for
from common.demo_world import CLASSES, draw

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEPS = 10
WIDTH, HEIGHT = 500, 375  # of the JPEGs, as ImageNet's mean


class Report:
    """Writes rows, one JSON object a line, so that those of a part that is ended later are kept."""

    def __init__(self, file):
        self.file = file

    def __call__(self, case, text, aim=None, met=None, **numbers):
        """case: what was measured. text: what came of it, for a person. aim: what it should be. met: whether it is."""
        row = {'case': case, 'text': text, 'aim': aim, 'met': met, **numbers}
        print(json.dumps(row), file=self.file, flush=True)

    def failed(self, case, error):
        lines = str(error).strip().splitlines() or ['']
        self(case, f'failed: {type(error).__name__}: {lines[0]}', met=False)


def real_run(report, sizes, device, decode, folder):
    """`pretrain/main.sh` on JPEGs of ImageNet's mean size: what is waited for, and the first steps one by one."""
    write_jpegs(Path(folder, 'jpegs'), sizes)
    run = Path(folder, f'run_{decode}')
    run.mkdir(exist_ok=True)
    batch, network = sizes.batch, ['--model=resnet50']
    if device.type == 'cpu':
        batch, network = 4, ['--model=test_resnet', '--workers=1', f'--decoder_width={sizes.decoder_width}']
    command = ['bash', str(ROOT / 'pretrain/main.sh'), 'bench', f'--data_path={folder}/jpegs', *network,
               f'--bs={batch}', f'--input_size={sizes.input_size}', '--ep=1', '--log_every=1', '--ngpu_per_node=1',
               '--picture_every=0', f'--decode={decode}']
    environment = {**os.environ, 'PYTHON': sys.executable}
    done = subprocess.run(command, cwd=run, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(last_line(done.stderr or done.stdout))
    report_run(report, decode, run / 'output_bench', batch)


def report_run(report, decode, folder, batch):
    """Report what a finished run says of itself, in its log and in TensorBoard's files.

    Seconds are those between the steps, as the host sees them.
    """
    lines = [json.loads(line) for line in (folder / 'pretrain_log.txt').read_text().splitlines()]
    waited = next(line for line in lines if 'epoch' in line)['data_wait']
    events = EventAccumulator(str(folder / 'tensorboard_log'), size_guidance={'scalars': 0}).Reload()
    seconds = [batch / event.value for event in events.Scalars('speed/images_per_second')]
    # On a GPU, the first of all are in the log alone: they do not count in what a run says of its speed.
    seconds = next((line['first_steps'] for line in lines if 'first_steps' in line), []) + seconds
    first = ' '.join(f'{each:.2f}' for each in seconds[:FIRST_STEPS])
    report(f'{decode}: first steps', f'{first} s', seconds=seconds)
    later = median(seconds[FIRST_STEPS:])
    report(f'{decode}: later steps', f'{1000 * later:8.1f} ms {batch / later:8,.0f} images/s; '
           f'{100 * waited:.0f} % of the whole run waited for images', data_wait=waited)


def write_jpegs(folder, sizes):
    """`sizes.pictures` drawn pictures with noise, about 100 kB each, and links to them."""
    if (folder / 'complete').exists():
        return
    (folder / 'train').mkdir(parents=True, exist_ok=True)
    for i in range(sizes.pictures):
        rng = np.random.default_rng(i)
        picture = draw(list(CLASSES)[i % len(CLASSES)], rng, HEIGHT // 3).resize((WIDTH, HEIGHT))
        noisy = np.asarray(picture) + rng.normal(0, 12, (HEIGHT, WIDTH, 3))
        first = folder / 'train' / f'{i}_0.jpg'
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(first, quality=88)
        for copy in range(1, sizes.copies):
            os.link(first, folder / 'train' / f'{i}_{copy}.jpg')
    (folder / 'complete').touch()


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else 'nothing was said'


PARTS = {
    'golden': gpu_checks.golden, 'agreement': gpu_checks.agreement, 'optimisers': gpu_checks.optimisers,
    'fp16': gpu_checks.half_precision, 'fallback': gpu_checks.fallback, 'one_rank': gpu_checks.one_rank,
    'steps': gpu_steps.steps, 'convmae': gpu_steps.convmae, 'compilation': gpu_compilation.compilation, 'real_run': real_run,
}


def main():
    parser = argparse.ArgumentParser('benchmarks.gpu_parts', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('part', choices=PARTS)
    parser.add_argument('arguments', nargs='*', help='what the part is given: a network, ...')
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', default=default, choices=('cuda', 'cpu'))
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--rows', help='file that the rows are added to; the terminal if not given')
    args = parser.parse_args()
    device = torch.device(args.device, 0) if args.device == 'cuda' else torch.device('cpu')
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    with open(args.rows, 'a', encoding='utf-8') if args.rows else os.fdopen(os.dup(1), 'w') as file:
        run = PARTS[args.part]
        run(Report(file), sizes_for(device, args.quick), device, *args.arguments)


if __name__ == '__main__':
    main()
