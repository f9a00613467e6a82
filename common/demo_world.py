"""A small picture world, drawn: classes that differ in outline and in texture, in ImageNet's layout.

    python -m common.demo_world DIR --train 3000 --val 200 --size 64 --seed 0

Each class has an outline and a texture of its own, at random places, sizes, colours and rotations on smooth backgrounds.
An image is a function of (seed, split, number). Needs NumPy and Pillow only.
"""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCALE = 3  # drawn larger, then reduced: smooth edges


def star(points, inner):
    angles = np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def polygon(sides):
    return star(sides, np.cos(np.pi / sides))


def petals(number, depth):
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radii = 1 - depth * (0.5 - 0.5 * np.cos(number * angles))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def box(points):
    return np.array(points, float)


# Textures: (u, v) in the object's own frame, -1 to 1 -> 0 or 1, which of the object's two colours.
def stripes(n):
    return lambda u, v: np.sin(n * np.pi * u) > 0


def rings(n):
    return lambda u, v: np.sin(n * np.pi * np.hypot(u, v)) > 0


def checks(n):
    return lambda u, v: (np.sin(n * np.pi * u) > 0) ^ (np.sin(n * np.pi * v) > 0)


def dots(n):
    return lambda u, v: np.cos(n * np.pi * u) + np.cos(n * np.pi * v) > 0.7


def rays(n):
    return lambda u, v: np.sin(n * np.arctan2(v, u)) > 0


def waves(n):
    return lambda u, v: np.sin(n * np.pi * (u + 0.2 * np.sin(2 * np.pi * v))) > 0


CLASSES = {
    'arrow_waves': (box([(1, 0), (0.2, 0.8), (0.2, 0.35), (-1, 0.35), (-1, -0.35), (0.2, -0.35), (0.2, -0.8)]), waves(3)),
    'bar_stripes': (box([(1, 0.4), (-1, 0.4), (-1, -0.4), (1, -0.4)]), stripes(4)),
    'circle_checks': (petals(1, 0.0), checks(3)),
    'cross_dots': (box([(1, .35), (.35, .35), (.35, 1), (-.35, 1), (-.35, .35), (-1, .35), (-1, -.35), (-.35, -.35), (-.35, -1),
                        (.35, -1), (.35, -.35), (1, -.35)]), dots(4)),
    'flower_rings': (petals(5, 0.45), rings(4)),
    'hexagon_rays': (polygon(6), rays(6)),
    'moon_halves': (box([*[(np.cos(a), np.sin(a)) for a in np.linspace(0.6, 2 * np.pi - 0.6, 40)],
                        *[(0.35 + 0.75 * np.cos(a), 0.75 * np.sin(a)) for a in np.linspace(2 * np.pi - 0.8, 0.8, 40)]]),
                   lambda u, v: v > 0),
    'square_rings': (polygon(4), rings(3)),
    'star_stripes': (star(5, 0.45), stripes(3)),
    'triangle_dots': (polygon(3), dots(3)),
    'wheel_rays': (star(12, 0.8), rays(4)),
    'zigzag_checks': (star(8, 0.55), checks(2)),
}


def colour_pair(rng):
    """Two colours that differ in brightness."""
    dark, light = rng.uniform(0, 110, 3), rng.uniform(145, 255, 3)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def background(rng, side):
    """A smooth gradient between three colours, (side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side] / side
    angle, colours = rng.uniform(0, 2 * np.pi), rng.uniform(30, 225, (3, 3))
    t = np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)[..., None]
    return colours[0] * (1 - t) ** 2 + 2 * colours[1] * t * (1 - t) + colours[2] * t ** 2


def draw(name, rng, side):
    """One object of a class on a background: PIL image, side x side."""
    outline, texture = CLASSES[name]
    big = side * SCALE
    radius = rng.uniform(0.28, 0.46) * big
    centre = rng.uniform(radius * 0.8, big - radius * 0.8, 2)
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = (outline * (1, squeeze)) @ turn.T * radius + centre
    inside = Image.new('L', (big, big))
    ImageDraw.Draw(inside).polygon([tuple(c) for c in corners], fill=255)
    y, x = np.mgrid[0:big, 0:big]
    u, v = np.moveaxis((np.stack([x, y], -1) - centre) / radius @ turn, -1, 0)
    one, other = colour_pair(rng)
    painted = np.where(texture(u, v / squeeze)[..., None], one, other)
    picture = np.where(np.array(inside)[..., None] > 0, painted, background(rng, big))
    return Image.fromarray(picture.astype(np.uint8)).resize((side, side), Image.Resampling.BOX)


def write_world(folder, train, val, side, seed):
    """Write train/ and val/ with a folder a class, images dealt evenly among the classes."""
    for split, (name, count) in enumerate((('train', train), ('val', val))):
        for i in range(count):
            label = list(CLASSES)[i % len(CLASSES)]
            path = Path(folder, name, label, f'{i:06}.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(label, np.random.default_rng([seed, split, i]), side).save(path)


def main():
    parser = argparse.ArgumentParser('common.demo_world', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('folder', help='where to write, in ImageNet\'s layout')
    parser.add_argument('--train', type=int, default=3000, help='training images')
    parser.add_argument('--val', type=int, default=200, help='held-out images')
    parser.add_argument('--size', type=int, default=64, help='side of an image in pixels')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.train < 0 or args.val < 0 or args.size < 8:
        parser.error('--train and --val must be 0 or more, --size 8 or more')
    write_world(args.folder, args.train, args.val, args.size, args.seed)
    print(f'{args.train} training and {args.val} held-out images of {len(CLASSES)} classes in {args.folder}')


if __name__ == '__main__':
    main()
