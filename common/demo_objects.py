"""Drawn objects of classes that differ in outline and in texture, alone on an image or several in a scene.

Objects have random places, sizes, colours and rotations, on smooth backgrounds.
"""
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


# A texture is a function of (u, v), -1 to 1 in the object's own frame, that tells which of its two colours is there.
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

    Returns where it is, (side, side) bool; its colours, (side, side, 3); and its corners, (n, 2), x y in pixels.
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


class Scene:
    """A picture of several objects, some of them behind others, drawn SCALE times larger than its side in pixels.

    rng: a generator of NumPy. side: of the image. names: of the classes that its objects are drawn of.

    picture: its pixels so far, (big, big, 3). objects: a list for each, [name of its class, where it is visible,
    (big, big) bool, its corners, (n, 2), or None if another one hides a part of it, whether it is a crowd].
    """

    def __init__(self, rng, side, names=tuple(CLASSES)):
        self.rng = rng
        self.names = list(names)
        self.side = side
        self.big = side * SCALE
        self.picture = background(rng, self.big)
        self.objects = []

    def place(self, name, low, high, near=None):
        """Draw an object of a class where it hides at most half of every other. Returns where it is, and its corners.

        low, high: bounds of its radius, as shares of the side. near: a point that it is drawn near to, in pixels.

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
        name = self.rng.choice(self.names)
        near = self.rng.uniform(0.2 * self.big, 0.8 * self.big, 2)
        parts = [self.place(name, 0.05, 0.08, near)[0] for _ in range(6)]
        visible = np.logical_or.reduce([part for part in parts if part is not None])
        self.objects.append([name, visible, None, True])

    def add_object(self):
        """Draw an object, if there is room for it."""
        name = self.rng.choice(self.names)
        inside, corners = self.place(name, 0.12, 0.25)
        if inside is not None:
            self.objects.append([name, inside, corners, False])
