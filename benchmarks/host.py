"""What every rank does for the whole data set and the whole batch, which more GPUs do not divide: seconds and memory.

    python -m benchmarks.host [--images 1281167,14000000,100000000 --batches 4096,65536]

The order of an epoch, drawn once an epoch; a rank's masks, whose random numbers are those of the global batch, in every step;
the list of files, read at the start (a text file's; a folder has to be walked besides).
"""
import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.timing import machine
from common.cli import numbers
from common.images.augmented import Steps
from common.images.files import ImageFiles
from pretrain.spark import build_spark


def seconds(run, rounds=5):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return median(times)


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.host', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--images', type=lambda text: numbers(text, int), default=(1281167, 14000000, 100000000))
    parser.add_argument('--batches', type=lambda text: numbers(text, int), default=(4096, 65536))
    parser.add_argument('--listed', type=int, default=1281167, help='lines of the list that is read')
    args = parser.parse_args(argv)
    print(machine(torch.device('cpu')))
    for images in args.images:
        steps = Steps(images, 4096, 1, 0)
        print(f'order of {images:,} images: {seconds(lambda s=steps: s.order(0), 1):.2f} s, {8 * images / 1e6:,.0f} MB',
              flush=True)
    spark = build_spark('resnet18', decoder_width=32)
    for batch in args.batches:
        own = torch.arange(min(64, batch))
        print(f'batch of {batch:,}: the masks of {len(own)} images of {spark.cells} cells '
              f'{1e3 * seconds(lambda b=batch, o=own: spark.draw_visible(b, rows=o)):.1f} ms', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        names = [f'n{i % 1000:08}/n{i % 1000:08}_{i}.JPEG' for i in range(args.listed)]
        Path(folder, 'n00000000').mkdir()
        Path(folder, names[0]).touch()
        Path(folder, 'list.txt').write_text('\n'.join(names))
        began = time.perf_counter()
        listed = ImageFiles(Path(folder, 'list.txt'))
        read = time.perf_counter() - began
        print(f'list of {args.listed:,} files: {read:.1f} s to read, {listed.paths.nbytes / 1e6:.0f} MB, fingerprint '
              f'{seconds(listed.fingerprint, 1):.1f} s', flush=True)


if __name__ == '__main__':
    main()
