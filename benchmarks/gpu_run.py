"""The parts of `benchmarks.gpu` that start a run as a user does, and tell when it said what."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from common.demo_objects import CLASSES, draw
from common.reliability.stopping import STOPPED

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 500, 375  # of the JPEGs, as ImageNet's mean
# What a run says about its progress, line by line. `folder` ends the message with which it starts.
TOLD = ('Starting', 'folder', 'First', 'The first', 'The next', 'Images:', 'epoch', 'Finished', 'warning:', 'error:')
MESSAGE = 150  # characters of a line that are shown at most


def real_run(report, sizes, device, decode, folder):
    """`pretrain/main.sh` on JPEGs of ImageNet's mean size: when it said what, and what it waited for.

    Raises RuntimeError, with the end of what the run said, if it fails.
    """
    write_jpegs(Path(folder, 'jpegs'), sizes)
    report(f'{decode}: the JPEGs', f'drawn after {report.seconds():.1f} s')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # at the limit of the part: tell what there is
    process, output = started(sizes, device, decode, folder, f'run_{decode}')
    try:
        follow(report, decode, process.stdout)
    except SystemExit:
        report(f'{decode}: when it was ended', last_sign(output), met=False)
        raise
    if process.wait():
        raise RuntimeError('the run failed')
    report_speed(report, decode, output)


def resumed_run(report, sizes, device, folder):
    """`pretrain/main.sh`, asked to stop by SIGTERM in its first steps, and started again: it has to go on to its end.

    Raises RuntimeError, with the end of what the run said, if it does not.
    """
    write_jpegs(Path(folder, 'jpegs'), sizes)
    process, output = started(sizes, device, 'pillow', folder, 'run_resumed')
    for line in process.stdout:
        print(line, end='', flush=True)
        if line.startswith(('The first', 'The next')):  # Steps are under way, whose speed is told.
            process.send_signal(signal.SIGTERM)
    code = process.wait()
    report('stopped', f'with code {code} after {report.seconds():.1f} s', aim=f'code {STOPPED}', met=code == STOPPED)
    process, output = started(sizes, device, 'pillow', folder, 'run_resumed')
    follow(report, 'goes on', process.stdout)
    if process.wait():
        raise RuntimeError('the run that goes on failed')
    epochs = [line['epoch'] for line in logged(output) if line.get('epoch')]
    report('the log', f'has the epochs {epochs}', aim='[1]', met=epochs == [1])


def started(sizes, device, decode, folder, name):
    """A run in a folder of this name: its process, whose stdout is to be read, and its run folder."""
    run = Path(folder, name)
    run.mkdir(exist_ok=True)
    process = subprocess.Popen(command_of(sizes, device, decode, folder), cwd=run, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, env={**os.environ, 'PYTHON': sys.executable})
    return process, run / 'output_bench'


def command_of(sizes, device, decode, folder):
    """The command line of the run. On a CPU it trains a tiny network."""
    batch, network = sizes.batch, ['--model=resnet50']
    if device.type == 'cpu':
        batch, network = 4, ['--model=test_resnet', '--workers=1', f'--decoder_width={sizes.decoder_width}']
    return ['bash', str(ROOT / 'pretrain/main.sh'), 'bench', f'--data_path={folder}/jpegs', *network, f'--bs={batch}',
            f'--input_size={sizes.input_size}', '--ep=1', '--log_every=1', '--ngpu_per_node=1', '--picture_every=0',
            f'--decode={decode}']


def follow(report, decode, lines):
    """Report what the run says of its progress, until it ends. All that it says is printed too."""
    told = 0
    for line in map(str.rstrip, lines):
        print(line, flush=True)
        if line.startswith(TOLD):
            told += 1
            text = 'the start message' if line.startswith('folder') else line[:MESSAGE]
            report(f'{decode}: said ({told})', f'after {report.seconds():.1f} s: {text}')


def last_sign(output):
    """What a run that was ended did last, by the files in its folder."""
    signs = []
    for path in (output / 'heartbeat' / 'rank_00000.json', output / 'stdout_backup.txt'):
        if path.exists():
            signs.append(last_line(path.read_text(encoding='utf-8')))
    return ' / '.join(signs)[:2 * MESSAGE] or 'it had not opened its folder'


def logged(output):
    """The lines of a run's log, as dicts."""
    return [json.loads(line) for line in (output / 'pretrain_log.txt').read_text().splitlines()]


def report_speed(report, decode, output):
    """Report what a finished run wrote of its speed: after the first steps, the capture and the first images."""
    lines = logged(output)
    epoch = next(line for line in lines if 'epoch' in line)
    first = next((line['first_steps'] for line in lines if 'first_steps' in line), [])
    report(f'{decode}: speed', f'{epoch["images_per_second"]:8,.0f} images/s; '
           f'{100 * epoch["data_wait"]:.0f} % of the time waited for images',
           images_per_s=epoch['images_per_second'], data_wait=epoch['data_wait'], first_steps=first)


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
            (folder / 'train' / f'{i}_{copy}.jpg').unlink(missing_ok=True)  # of a part that was ended
            os.link(first, folder / 'train' / f'{i}_{copy}.jpg')
    (folder / 'complete').touch()


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else 'nothing was said'
