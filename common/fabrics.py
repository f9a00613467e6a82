"""A second drawn picture world: fabrics, twelve patterns, each in any two colours.

A fabric fills its image. What makes its class is the pattern alone: colours, scale, place, a turn of up to 20 degrees and the
light are random. So the mean colour of an image says nothing of its class, and what is hidden of a fabric can be
told from the rest. The images that demo_world draws itself are other: one object each, on a smooth background.
"""
import numpy as np
from PIL import Image

from common.demo_objects import colour_pair
from common.demo_world import write_world

SCALE = 2  # Images are drawn so many times larger, and then reduced, so that edges are smooth.
TURN = 0.35  # radians, at most, either way
PERIOD = (10, 18)  # pixels of a 64-pixel image after which a pattern repeats itself, from, to


def triangle_wave(t):
    """1 at whole numbers, 0 halfway between them."""
    return 2 * np.abs(t % 1 - 0.5)


def from_middle(u, v):
    """The distances from the middle of each period, -0.5 to 0.5, along both axes."""
    return u % 1 - 0.5, v % 1 - 0.5


def shifted(u, v):
    """u, moved by half a period in every other row of v."""
    return u + 0.5 * (np.floor(v) % 2)


# A pattern is a function of (u, v), in periods, that tells which of the two colours is there.
def stripes(u, v):
    return u % 1 < 0.5


def checks(u, v):
    return (u % 1 < 0.5) ^ (v % 1 < 0.5)


def dots(u, v):
    return np.hypot(*from_middle(u, v)) < 0.32


def rings(u, v):
    return np.abs(np.hypot(*from_middle(u, v)) - 0.3) < 0.11


def waves(u, v):
    return (u + 0.25 * np.sin(2 * np.pi * v / 1.5)) % 1 < 0.5


def chevrons(u, v):
    return (u + 0.8 * triangle_wave(v / 1.2)) % 1 < 0.5


def bricks(u, v):
    v = 1.4 * v
    return (v % 1 < 0.2) | (shifted(u, v) % 1 < 0.14)


def scales(u, v):
    v = 2 * v
    return np.abs(np.hypot(shifted(u, v) % 1 - 0.5, v % 1 / 2) - 0.38) < 0.1


def grid(u, v):
    return (u % 1 < 0.22) | (v % 1 < 0.22)


def crosses(u, v):
    along, across = np.abs(from_middle(u, v))
    return (np.maximum(along, across) < 0.4) & (np.minimum(along, across) < 0.13)


def diamonds(u, v):
    along, across = np.abs(from_middle(u, v))
    return along + across < 0.36


def triangles(u, v):
    return v % 1 > 2 * np.abs(shifted(u, v) % 1 - 0.5)


PATTERNS = {pattern.__name__: pattern for pattern in (
    stripes, checks, dots, rings, waves, chevrons, bricks, scales, grid, crosses, diamonds, triangles)}


def draw_fabric(name, rng, side):
    """A fabric of a pattern: PIL image, side x side."""
    big = side * SCALE
    y, x = np.mgrid[0:big, 0:big] / big
    angle = rng.uniform(-TURN, TURN)
    period = rng.uniform(*PERIOD) / 64
    u = (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 8)
    v = (y * np.cos(angle) - x * np.sin(angle)) / period + rng.uniform(0, 8)
    one, other = colour_pair(rng)
    colours = np.where(PATTERNS[name](u, v)[..., None], one, other)
    direction = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.6) * ((x - 0.5) * np.cos(direction) + (y - 0.5) * np.sin(direction))
    picture = np.clip(colours * light[..., None], 0, 255).astype(np.uint8)
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)


def write_fabrics(folder, train, val, side, seed):
    """Write train/ and val/ with a folder for each pattern, images dealt evenly among them."""
    write_world(folder, train, val, side, seed, PATTERNS, draw_fabric)
