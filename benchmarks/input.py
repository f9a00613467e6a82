"""Images a second on one core: ours, whole, beside what libjpeg-turbo takes for their decoding alone; and from processes.

    python -m benchmarks.input [--images 48 --input_size 224 --rounds 7 --batch 32 --workers 2]

Two kinds of JPEGs, drawn and with noise, quality 90: as large as ImageNet's on the average, 500 x 375 and 100 kB, and photos of
1600 x 1200, which --decode=fast takes at a quarter of their sides. An item of ours is found, read, decoded, cropped at random,
resized and mirrored; libjpeg-turbo only decodes what lies in memory, by simplejpeg where that is installed (pip install
simplejpeg), else by Pillow. Ratios are of medians of one run, in which all take turns. Of --decode=gpu only what a loading
process does is measured: it reads, and draws the crop.
"""
import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import alternate, machine
from common.demo_objects import CLASSES, draw
from common.images.augmented import Augmented, RandomCrop, collate, seeded
from common.images.fast_decode import FastDecode, reduction
from common.images.files import ImageFiles
from common.images.gpu_decode import EncodedImages, collate_encoded
from common.images.loading import loader
from common.images.shards import TarShards
from common.seeds import seed_for

try:
    from simplejpeg import decode_jpeg
except ImportError:
    decode_jpeg = None

CPU = torch.device('cpu')


def write_photos(folder, width, height, number):
    """JPEGs with shapes, patches and grain, in about as many bytes a pixel as photos."""
    folder.mkdir()
    for i in range(number):
        rng = np.random.default_rng(i)
        shapes = draw(list(CLASSES)[i % len(CLASSES)], rng, 200).resize((width, height), Image.Resampling.BICUBIC)
        patches = rng.normal(128, 40, (height // 4, width // 4, 3)).clip(0, 255).astype(np.uint8)
        patches = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(shapes, float) + np.asarray(patches, float) - 128 + rng.normal(0, 9, (height, width, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f'{i:03}.jpg', quality=90)


def decode(content, factor, width, height):
    """A JPEG at 1 / factor of its size, by libjpeg-turbo alone."""
    if decode_jpeg is not None:
        decode_jpeg(content, 'RGB', min_height=height // factor, min_width=width // factor, min_factor=1)
        return
    with Image.open(io.BytesIO(content), formats=['JPEG']) as image:
        image.draft('RGB', (width // factor, height // factor))
        image.load()


def loaded(augmented, batch, workers):
    """Images a second from loading processes, once these have started."""
    batches = [[(epoch, i % len(augmented)) for i in range(batch)] for epoch in range(12)]
    together = collate_encoded if isinstance(augmented, EncodedImages) else collate
    ready = iter(loader(augmented, batches, workers, CPU, together))
    for _ in range(2 * workers):  # those were on their way while the processes started
        next(ready)
    began, count = time.perf_counter(), batch * sum(1 for _ in ready)
    return count / (time.perf_counter() - began)


def measure(folder, width, height, args):
    write_photos(folder / 'files', width, height, args.images)
    with tarfile.open(folder / 'photos.tar', 'w') as tar:
        tar.add(folder / 'files', '.')
    files, crop = ImageFiles(folder / 'files'), RandomCrop((args.input_size,) * 2)
    contents, number, factors = [Path(files.name(i)).read_bytes() for i in range(len(files))], len(files), []
    for index in range(number):
        with seeded(seed_for('augmentation', 0, 0, index)):  # the crop that item (0, index) has
            factors.append(reduction(crop.draw(height, width)))
    shards = TarShards(folder / 'photos.tar')
    kinds = {'ours': Augmented, '--decode=fast': FastDecode, '--decode=gpu': EncodedImages}
    places = {'files': files, 'a tar': shards}
    ours = {f'{name} from {where}': kind(images, crop, None) for name, kind in kinds.items()
            for where, images in places.items()}

    def decoding(scales):
        return lambda: [decode(content, factor, width, height) for content, factor in zip(contents, scales)]

    def items(augmented):
        return lambda: [augmented[0, index] for index in range(number)]

    medians = alternate({'whole': decoding([1] * number), 'reduced': decoding(factors), **{
        name: items(augmented) for name, augmented in ours.items()}}, args.rounds, CPU)
    rates = {name: number / seconds for name, seconds in medians.items()}
    print(f'{width} x {height}, {sum(map(len, contents)) / number / 1000:.0f} kB each: libjpeg-turbo decodes '
          f'{rates["whole"]:.0f} images/s, {rates["reduced"]:.0f} as --decode=fast reduces them ('
          + ', '.join(f'{factors.count(factor)} of them by {factor}' for factor in sorted(set(factors))) + ')')
    for name in ours:
        alone = rates['reduced' if name.startswith('--decode=fast') else 'whole']
        print(f'    {name:26} {rates[name]:6.0f} images/s, {rates[name] / alone:.2f} of libjpeg-turbo alone', flush=True)
    for name in (name for name in ours if name.endswith('files')):
        rate = loaded(ours[name], args.batch, args.workers)
        print(f'    {name:26} {rate:6.0f} images/s from {args.workers} processes', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--images', type=int, default=48)
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoder = 'Pillow' if decode_jpeg is None else 'simplejpeg'
    print(f'{machine(CPU)}; decoding alone by {decoder}; {args.input_size} px', flush=True)
    for width, height in ((500, 375), (1600, 1200)):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), width, height, args)


if __name__ == '__main__':
    main()
