"""Drawn images of several objects with a mask of their pixels, for semantic segmentation (common/demo_world.py)."""
import colorsys
from pathlib import Path

import numpy as np
from PIL import Image

from common.demo_objects import CLASSES, SCALE, Scene, reduced

IGNORED = 255  # The value of a mask's pixels that belong to no class.
MASK_CLASSES = tuple(CLASSES)[:6]  # so few that a small network learns them in a minute


def mask_of(scene):
    """The mask of a Scene: (side, side) uint8.

    It is 0 on the background and 1, 2, ... on objects of the first class, the second, ... of its names. A
    pixel that an outline passes through holds two classes, and is IGNORED.
    """
    values = np.zeros((scene.big, scene.big), np.uint8)
    for name, visible, _, _ in scene.objects:
        values[visible] = 1 + scene.names.index(name)
    pixels = values.reshape(scene.side, SCALE, scene.side, SCALE)
    lowest = pixels.min((1, 3))
    return np.where(lowest == pixels.max((1, 3)), lowest, np.uint8(IGNORED))


def mask_colours():
    """{value of a mask: (red, green, blue)}: black for the background, and white for IGNORED."""
    colours = {0: (0, 0, 0), IGNORED: (255, 255, 255)}
    for number in range(len(MASK_CLASSES)):
        share = colorsys.hsv_to_rgb(number / len(MASK_CLASSES), 0.9, 1 - 0.35 * (number % 2))
        colours[1 + number] = tuple(round(255 * part) for part in share)
    return colours


def palette_image(mask):
    """A mask (h, w) uint8 as a PIL image with a palette."""
    image = Image.fromarray(mask)
    colours = mask_colours()
    image.putpalette([part for value in range(256) for part in colours.get(value, (0, 0, 0))])
    return image


def write_masks(folder, train, val, side, seed):
    """Write images/ and annotations/, each with train/ and val/, and classes.txt: images of up to five
    objects, and a mask of each under the same name.

    train, val: how many images; every twelfth one has no object. side: in pixels.

    A mask is a PNG file with a palette. Its values are 0 for the background, 1, 2, ... for MASK_CLASSES, and
    IGNORED where an outline passes. classes.txt has a line for each class: value, name, and colour as #rrggbb.
    """
    folder = Path(folder)
    for split, name in enumerate(('train', 'val')):
        for kind in ('images', 'annotations'):
            (folder / kind / name).mkdir(parents=True, exist_ok=True)
        for number in range((train, val)[split]):
            rng = np.random.default_rng([seed, 4 + split, number])
            scene = Scene(rng, side, MASK_CLASSES)
            for _ in range(0 if number % 12 == 11 else rng.integers(1, 6)):
                scene.add_object()
            file_name = f'{number:06}.png'
            reduced(scene.picture, side).save(folder / 'images' / name / file_name)
            palette_image(mask_of(scene)).save(folder / 'annotations' / name / file_name)
    lines = [f'{value} {name} #{bytes(mask_colours()[value]).hex()}\n'
             for value, name in enumerate(['background', *MASK_CLASSES])]
    (folder / 'classes.txt').write_text(''.join(lines))
