"""Packs labelled images into two small tars, for a machine that is reached by small transfers.

    python -m benchmarks.evidence_pack --data_path=DIR --out=OUT [--side=128] [--megabytes=40]

DIR holds train/ and val/ with a folder for each class, or tars of such. Each image is made smaller until its short side has
`--side` pixels; images that are smaller already keep their size. OUT/train/000.tar and OUT/val/000.tar then hold them as
CLASS/NAME.webp, in Pillow's lossy WebP. All have one quality: the highest of 1 to 100 with which both tars together take at
most `--megabytes`, as bisection on a sample of the images finds it. If all images take more than the sample promised, the
quality is lowered by one until they fit. The same images, options and version of Pillow give the same bytes.

What was lost is said at the end: the peak signal-to-noise ratio (PSNR) of the sample, against its resized images.
"""
import argparse
import io
import os
import random
import sys
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from common.words import printable
from downstream_imagenet.class_folders import find_labelled

SPLITS = 'train', 'val'
SAMPLE = 500  # images on which the quality is chosen
SAMPLE_SEED = 0
QUALITIES = range(1, 101)  # of Pillow's WebP
# How long the encoder tries, 0 to 6. Against Pillow's 4, photographs take 3 to 4 % fewer bytes at the same PSNR.
METHOD = 6
MEGABYTE = 10 ** 6


def arguments(argv=None):
    parser = argparse.ArgumentParser('benchmarks.evidence_pack', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--data_path', required=True, help='images: train/ and val/, with a folder for each class, or tars')
    parser.add_argument('--out', required=True, help='a new or empty folder, which will hold train/000.tar and val/000.tar')
    parser.add_argument('--side', type=int, default=128, help='the most pixels of the short side of an image')
    parser.add_argument('--megabytes', type=float, default=40, help='the most millions of bytes of both tars together')
    args = parser.parse_args(argv)
    if args.side < 1:
        parser.error(f'--side must be 1 or more, not {args.side}')
    if not args.megabytes > 0:
        parser.error(f'--megabytes must be more than 0, not {args.megabytes:g}')
    return args


def resized(images, index, side):
    """An image of a data set as an RGB image of 8 bits whose short side has at most `side` pixels. Raises ValueError."""
    try:
        image = images[index][0]
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise ValueError(f'{printable(images.name(index))} cannot be read ({error}): replace it or take it away') from error
    if not isinstance(image, Image.Image):  # a float tensor, of a file of more than 8 bits
        image = to_pil_image(image)
    scale = min(1.0, side / min(image.size))
    return image.resize([round(length * scale) for length in image.size], Image.Resampling.BICUBIC)


def encoded(image, quality):
    """The bytes of an image as WebP."""
    file = io.BytesIO()
    image.save(file, 'WEBP', quality=quality, method=METHOD)
    return file.getvalue()


def psnr(image, quality):
    """The peak signal-to-noise ratio of an image as WebP, in dB; infinite if nothing is lost."""
    with Image.open(io.BytesIO(encoded(image, quality))) as decoded:
        error = np.asarray(decoded.convert('RGB'), float) - np.asarray(image)
    with np.errstate(divide='ignore'):
        return float(10 * np.log10(255 ** 2 / np.mean(error ** 2)))


def tar(files):
    """The bytes of a tar. files: pairs of (name, content), in order. Times, owners and rights are the same for all."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=tarfile.GNU_FORMAT) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def bytes_in_tar(content):
    """The bytes that a file takes in a tar: a header, and whole blocks."""
    blocks = 1 + -(-len(content) // tarfile.BLOCKSIZE)
    return blocks * tarfile.BLOCKSIZE


def names_in_tar(images):
    """The names CLASS/NAME.webp of the images of a data set. Raises ValueError if two would have the same."""
    found = {}
    for index, path in enumerate(map(os.fsdecode, images.paths)):
        name = str(PurePosixPath(path).with_suffix('.webp'))
        if name in found:
            raise ValueError(f'{printable(images.name(found[name]))} and {printable(images.name(index))} would have the same '
                             'name in the tar: rename one of them')
        found[name] = index
    return list(found)


def sample_of(splits, side):
    """At most SAMPLE of the images of several data sets, resized, a list. Which they are depends on SAMPLE_SEED alone."""
    places = [(images, index) for images in splits for index in range(len(images))]
    chosen = random.Random(SAMPLE_SEED).sample(places, min(SAMPLE, len(places)))
    return [resized(images, index, side) for images, index in chosen]


def highest_quality(sample, most):
    """The highest quality with which an image of the sample takes `most` bytes of a tar in the mean.

    It is 0 if the lowest quality takes more. Sizes are taken to grow with the quality.
    """
    fitting, too_high = 0, QUALITIES[-1] + 1
    while too_high - fitting > 1:
        quality = (fitting + too_high) // 2
        if np.mean([bytes_in_tar(encoded(image, quality)) for image in sample]) <= most:
            fitting = quality
        else:
            too_high = quality
    return fitting


def packed(splits, side, quality):
    """The tars of several data sets, a list of bytes. Raises ValueError."""
    return [tar((name, encoded(resized(images, index, side), quality)) for index, name in enumerate(names_in_tar(images)))
            for images in splits]


def check_out(out, data_path):
    """Raises ValueError if the folder for the tars is no new or empty one, or lies among the images."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'{out} exists and is no empty folder: give a new one with --out')
    if Path(data_path).resolve() in out.resolve().parents:
        raise ValueError(f'{out} lies in {data_path}, whose images are read: give a folder elsewhere with --out')


def pack(data_path, out, side, megabytes):
    """Write the tars, and print what they hold and what was lost. Raises ValueError."""
    check_out(out, data_path)
    splits = find_labelled(data_path)
    sample = sample_of(splits, side)
    number = sum(map(len, splits))
    most = megabytes * MEGABYTE
    for quality in range(highest_quality(sample, most / number), 0, -1):
        print(f'packing {number:,} images with quality {quality} of 100', flush=True)
        tars = packed(splits, side, quality)
        total = sum(map(len, tars))
        if total <= most:
            break
    else:
        raise ValueError(f'{number:,} images do not fit into {megabytes:g} MB even with quality 1: give a larger --megabytes, '
                         'or a smaller --side')
    for split, content in zip(SPLITS, tars):
        (out / split).mkdir(parents=True)
        (out / split / '000.tar').write_bytes(content)
    errors = [psnr(image, quality) for image in sample]
    print(f'{len(splits[0]):,} training and {len(splits[1]):,} validation images in {out}: {total / MEGABYTE:.2f} MB, '
          f'WebP of quality {quality} of 100')
    print(f'PSNR against the resized images, of {len(sample):,} of them: {np.mean(errors):.1f} dB in the mean, '
          f'{min(errors):.1f} dB at least')


def main(argv=None):
    args = arguments(argv)
    try:
        pack(args.data_path, Path(args.out), args.side, args.megabytes)
    except ValueError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
