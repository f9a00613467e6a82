"""A small picture world, drawn: classes that differ in outline and in texture.

    python -m common.demo_world DIR --train 3000 --val 200 --size 64 --seed 0
    python -m common.demo_world --coco DIR --train 200 --val 50 --size 128
    python -m common.demo_world --masks DIR --train 300 --val 50 --size 64

The first command draws images of one object each, in ImageNet's layout. The second draws images of several
objects with boxes and masks, in COCO's layout. The third draws such images of half of the classes, with one
mask each, which gives every pixel a class, for semantic segmentation. Each class has an outline and a texture
of its own. Objects have random places, sizes, colours and rotations, on smooth backgrounds. An image is a
function of (seed, split, number). Only NumPy and Pillow are needed.
"""
import argparse
from pathlib import Path

import numpy as np

from common.cli import errors_in_one_sentence
from common.demo_coco import write_coco
from common.demo_masks import MASK_CLASSES, write_masks
from common.demo_objects import CLASSES, draw


def write_world(folder, train, val, side, seed, classes=CLASSES, draw=draw):
    """Write train/ and val/ with a folder a class, images dealt evenly among the classes.

    classes: their names. draw: function of (name, generator, side) that returns a PIL image.
    """
    for split, (name, count) in enumerate((('train', train), ('val', val))):
        for i in range(count):
            label = list(classes)[i % len(classes)]
            path = Path(folder, name, label, f'{i:06}.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(label, np.random.default_rng([seed, split, i]), side).save(path)


def main():
    parser = argparse.ArgumentParser('common.demo_world', description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    parser.add_argument('folder', help="where to write, in ImageNet's layout if no other is asked for")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument('--coco', action='store_true',
                        help="several objects an image with boxes and masks, in COCO's layout")
    layout.add_argument('--masks', action='store_true',
                        help='several objects an image with a mask of its pixels, for semantic segmentation')
    parser.add_argument('--train', type=int, help='training images (3000; with --coco 200, with --masks 300)')
    parser.add_argument('--val', type=int, help='held-out images (200; with --coco or --masks 50)')
    parser.add_argument('--size', type=int, help='side of an image in pixels (64; with --coco 128)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    write, train, val, size = write_world, 3000, 200, 64
    if args.coco:
        write, train, val, size = write_coco, 200, 50, 128
    elif args.masks:
        write, train, val, size = write_masks, 300, 50, 64
    train = train if args.train is None else args.train
    val = val if args.val is None else args.val
    size = size if args.size is None else args.size
    if train < 0 or val < 0 or size < 8:
        parser.error('--train and --val must be 0 or more, --size 8 or more')
    with errors_in_one_sentence():
        write(args.folder, train, val, size, args.seed)
    classes = f'{len(MASK_CLASSES)} classes and a background' if args.masks else f'{len(CLASSES)} classes'
    print(f'{train} training and {val} held-out images of {classes} in {args.folder}')


if __name__ == '__main__':
    main()
