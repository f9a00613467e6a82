"""A small picture world, drawn: classes that differ in outline and in texture.

    python -m common.demo_world DIR --train 3000 --val 200 --size 64 --seed 0
    python -m common.demo_world --coco DIR --train 200 --val 50 --size 128

The first command draws images of one object each, in ImageNet's layout. The second draws images of several
objects with boxes and masks, in COCO's layout. Each class has an outline and a texture of its own. Objects
have random places, sizes, colours and rotations, on smooth backgrounds. An image is a function of (seed,
split, number). Only NumPy and Pillow are needed.
"""
import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCALE = 3  # Images are drawn so many times larger, and then reduced, so that edges are smooth.


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


# A texture is a function of (u, v), -1 to 1 in the object's own frame, that tells which of its two colours is
# there.
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
    'arrow_waves': (box([(1, 0), (0.2, 0.8), (0.2, 0.35), (-1, 0.35), (-1, -0.35), (0.2, -0.35),
                         (0.2, -0.8)]), waves(3)),
    'bar_stripes': (box([(1, 0.4), (-1, 0.4), (-1, -0.4), (1, -0.4)]), stripes(4)),
    'circle_checks': (petals(1, 0.0), checks(3)),
    'cross_dots': (box([(1, .35), (.35, .35), (.35, 1), (-.35, 1), (-.35, .35), (-1, .35), (-1, -.35),
                        (-.35, -.35), (-.35, -1), (.35, -1), (.35, -.35), (1, -.35)]), dots(4)),
    'flower_rings': (petals(5, 0.45), rings(4)),
    'hexagon_rays': (polygon(6), rays(6)),
    'moon_halves': (box([*[(np.cos(a), np.sin(a)) for a in np.linspace(0.6, 2 * np.pi - 0.6, 40)],
                        *[(0.35 + 0.75 * np.cos(a), 0.75 * np.sin(a))
                          for a in np.linspace(2 * np.pi - 0.8, 0.8, 40)]]),
                   lambda u, v: v > 0),
    'square_rings': (polygon(4), rings(3)),
    'star_stripes': (star(5, 0.45), stripes(3)),
    'triangle_dots': (polygon(3), dots(3)),
    'wheel_rays': (star(12, 0.8), rays(4)),
    'zigzag_checks': (star(8, 0.55), checks(2)),
}


def colour_pair(rng):
    """Two colours that differ in brightness."""
    dark = rng.uniform(0, 110, 3)
    light = rng.uniform(145, 255, 3)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def background(rng, side):
    """A smooth gradient between three colours, (side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side] / side
    angle = rng.uniform(0, 2 * np.pi)
    colours = rng.uniform(30, 225, (3, 3))
    t = np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)[..., None]
    return colours[0] * (1 - t) ** 2 + 2 * colours[1] * t * (1 - t) + colours[2] * t ** 2


def paint(name, rng, side, radius, centre):
    """Draw an object of a class.

    name: of the class. side: of the canvas. radius, centre: of the object; all in pixels.

    Returns where it is, (side, side) bool; its colours, (side, side, 3); and its corners, (n, 2), x y in
    pixels.
    """
    outline, texture = CLASSES[name]
    angle = rng.uniform(0, 2 * np.pi)
    squeeze = rng.uniform(0.8, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = (outline * (1, squeeze)) @ turn.T * radius + centre
    inside = Image.new('L', (side, side))
    ImageDraw.Draw(inside).polygon([tuple(c) for c in corners], fill=255)
    y, x = np.mgrid[0:side, 0:side]
    u, v = np.moveaxis((np.stack([x, y], -1) - centre) / radius @ turn, -1, 0)
    one, other = colour_pair(rng)
    colours = np.where(texture(u, v / squeeze)[..., None], one, other)
    return np.array(inside) > 0, colours, corners


def reduced(picture, side):
    """A picture (h, w, 3) as a PIL image, side x side."""
    return Image.fromarray(picture.astype(np.uint8)).resize((side, side), Image.Resampling.BOX)


def draw(name, rng, side):
    """One object of a class on a background: PIL image, side x side."""
    big = side * SCALE
    radius = rng.uniform(0.28, 0.46) * big
    centre = rng.uniform(radius * 0.8, big - radius * 0.8, 2)
    inside, colours, _ = paint(name, rng, big, radius, centre)
    return reduced(np.where(inside[..., None], colours, background(rng, big)), side)


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


def run_lengths(mask):
    """COCO's uncompressed run lengths of a mask (h, w): column by column, and the first run is of zeros."""
    pixels = np.concatenate([[0], mask.T.reshape(-1).astype(int), [1 - int(mask[-1, -1])]])
    ends = np.flatnonzero(np.diff(pixels))
    return {'size': list(mask.shape), 'counts': np.diff(np.concatenate([[0], ends])).tolist()}


class Scene:
    """A picture of several objects, some of them behind others, drawn SCALE times larger than its side in
    pixels.
    """

    def __init__(self, rng, side):
        self.rng = rng
        self.side = side
        self.big = side * SCALE
        self.picture = background(rng, self.big)
        # [name of the class, where it is visible (big, big), corners or None if something hides a part, is it
        # a crowd]
        self.objects = []

    def place(self, name, low, high, near=None):
        """Draw an object of a class where it hides at most half of every other. Returns where it is, and its
        corners.

        low, high: bounds of its radius, as shares of the side. near: a point that it is drawn near to, in
        pixels.

        Returns (None, None) if no such place was found in 20 tries.
        """
        for _ in range(20):
            radius = self.rng.uniform(low, high) * self.big
            if near is None:
                centre = self.rng.uniform(radius, self.big - radius, 2)
            else:
                centre = np.clip(near + self.rng.normal(0, 0.1 * self.big, 2), radius, self.big - radius)
            inside, colours, corners = paint(name, self.rng, self.big, radius, centre)
            if all((other & inside).sum() < 0.5 * other.sum() for _, other, _, _ in self.objects):
                self.picture[inside] = colours[inside]
                for entry in self.objects:
                    if (entry[1] & inside).any():
                        entry[1] = entry[1] & ~inside
                        entry[2] = None
                return inside, corners
        return None, None

    def add_crowd(self):
        """Draw six small objects of one class, close to each other."""
        name = self.rng.choice(list(CLASSES))
        near = self.rng.uniform(0.2 * self.big, 0.8 * self.big, 2)
        parts = [self.place(name, 0.05, 0.08, near)[0] for _ in range(6)]
        visible = np.logical_or.reduce([part for part in parts if part is not None])
        self.objects.append([name, visible, None, True])

    def add_object(self):
        """Draw an object, if there is room for it."""
        name = self.rng.choice(list(CLASSES))
        inside, corners = self.place(name, 0.12, 0.25)
        if inside is not None:
            self.objects.append([name, inside, corners, False])

    def annotations(self):
        """The objects in COCO's format, without ids. Those in full view have polygons, the others run
        lengths.
        """
        found = []
        for name, visible, corners, is_crowd in self.objects:
            mask = visible.reshape(self.side, SCALE, self.side, SCALE).mean((1, 3)) > 0.5
            if not mask.any():  # It is behind others.
                continue
            if corners is None:
                y, x = np.nonzero(mask)
                low = (x.min(), y.min())
                high = (x.max() + 1, y.max() + 1)
                segmentation = run_lengths(mask)
            else:
                corners = corners / SCALE
                low = corners.min(0)
                high = corners.max(0)
                segmentation = [corners.flatten().round(2).tolist()]
            box = [round(float(value), 2) for value in (*low, *np.subtract(high, low))]
            found.append({'category_id': category_id(list(CLASSES).index(name)), 'iscrowd': int(is_crowd),
                          'area': int(mask.sum()), 'bbox': box, 'segmentation': segmentation})
        return found


def draw_scene(rng, side, objects, crowd):
    """(PIL image, annotations without ids) of a Scene. objects: how many. crowd: whether there is a crowd
    besides.
    """
    scene = Scene(rng, side)
    if crowd:
        scene.add_crowd()
    for _ in range(objects):
        scene.add_object()
    annotations = scene.annotations()
    return reduced(scene.picture, side), annotations


def category_id(number):
    """As COCO's, the ids have gaps: 1, 2, 3, 5, 6, 7, 9, ..."""
    return 1 + number + number // 3


def write_coco(folder, train, val, side, seed):
    """Write train2017/, val2017/ and annotations/: images of up to five objects, some of them with a crowd.

    train, val: how many images. side: in pixels.
    """
    folder = Path(folder)
    (folder / 'annotations').mkdir(parents=True, exist_ok=True)
    categories = [{'id': category_id(number), 'name': name, 'supercategory': 'object'}
                  for number, name in enumerate(CLASSES)]
    for split, (name, count) in enumerate((('train2017', train), ('val2017', val))):
        (folder / name).mkdir(exist_ok=True)
        images = []
        annotations = []
        for number in range(count):
            rng = np.random.default_rng([seed, 2 + split, number])
            objects = 0 if number % 12 == 11 else rng.integers(1, 6)
            image, found = draw_scene(rng, side, objects, crowd=number % 8 == 5)
            image_id = 1000 + 7 * number
            file_name = f'{image_id:012}.png'
            image.save(folder / name / file_name)
            images.append({'id': image_id, 'file_name': file_name, 'height': side, 'width': side})
            for annotation in found:
                annotations.append({'id': len(annotations) + 1, 'image_id': image_id, **annotation})
        content = {'info': {'description': 'drawn by common.demo_world'}, 'licenses': [], 'images': images,
                   'annotations': annotations, 'categories': categories}
        (folder / 'annotations' / f'instances_{name}.json').write_text(json.dumps(content))


def main():
    parser = argparse.ArgumentParser('common.demo_world', description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    parser.add_argument('folder', help="where to write, in ImageNet's layout")
    parser.add_argument('--coco', action='store_true',
                        help="several objects an image with boxes and masks, in COCO's layout")
    parser.add_argument('--train', type=int, help='training images (3000; with --coco 200)')
    parser.add_argument('--val', type=int, help='held-out images (200; with --coco 50)')
    parser.add_argument('--size', type=int, help='side of an image in pixels (64; with --coco 128)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    train, val, size = (200, 50, 128) if args.coco else (3000, 200, 64)
    train = train if args.train is None else args.train
    val = val if args.val is None else args.val
    size = size if args.size is None else args.size
    if train < 0 or val < 0 or size < 8:
        parser.error('--train and --val must be 0 or more, --size 8 or more')
    write = write_coco if args.coco else write_world
    write(args.folder, train, val, size, args.seed)
    print(f'{train} training and {val} held-out images of {len(CLASSES)} classes in {args.folder}')


if __name__ == '__main__':
    main()
