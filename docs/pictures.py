"""Draws the pictures of docs/method.md: python docs/pictures.py (needs matplotlib)."""
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from common.demo_objects import draw  # noqa: E402
from pretrain.sparse.geometry import Geometry  # noqa: E402

GRID, CELL = (4, 4), 32
VISIBLE = torch.tensor([[1, 2, 6, 8, 11, 13]])
SEEN, HIDDEN, TOKEN, INK = '#60a5fa', '#e5e7eb', '#fbbf24', '#1f2937'


def figure(width, height):
    made = Figure(figsize=(width, height))
    FigureCanvasAgg(made)
    axes = made.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis('off')
    return made, axes


def arrow(axes, start, end, text='', above=0.12):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=14, color=INK, lw=1.2))
    axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above, text, ha='center', va='bottom', fontsize=8, color=INK)


def picture(axes, image, x, y, width, height):
    axes.imshow(image, extent=(x, x + width, y, y + height), interpolation='nearest', aspect='auto', zorder=2)


def lines(axes, x, y, width, height, rows, columns):
    for i in range(rows + 1):
        axes.plot((x, x + width), (y + i * height / rows,) * 2, color='white', lw=1, zorder=3)
    for i in range(columns + 1):
        axes.plot((x + i * width / columns,) * 2, (y, y + height), color='white', lw=1, zorder=3)


def strip_and_canvas():
    """An image, its visible cells as a strip, and the strip on a canvas and back around a layer that looks at neighbours."""
    image = torch.from_numpy(np.array(draw('star_stripes', np.random.default_rng(9), 128))).permute(2, 0, 1)[None] / 255
    geometry = Geometry(VISIBLE, GRID)
    strip = geometry.to_strip(image)
    canvas = geometry.to_canvas(strip, fill=0.9)
    made, axes = figure(10, 3.9)

    def numpy(x):
        return x[0].permute(1, 2, 0).numpy()
    for at, x, title in ((0.2, image, 'image: 4 x 4 cells'), (5.0, canvas, 'canvas (B, C, H, W)')):
        picture(axes, numpy(x), at, 1.0, 2, 2)
        lines(axes, at, 1.0, 2, 2, 4, 4)
        axes.text(at + 1, 3.1, title, ha='center', fontsize=9, color=INK)
    for at in (3.3, 8.6):
        picture(axes, numpy(strip), at, 0.5, 0.5, 3)
        lines(axes, at, 0.5, 0.5, 3, 6, 1)
        axes.text(at + 0.25, 3.6, 'strip (B, C, k·p, p)', ha='center', fontsize=9, color=INK)
    arrow(axes, (2.3, 2), (3.2, 2), 'gather')
    arrow(axes, (3.9, 2), (4.9, 2), 'scatter')
    arrow(axes, (7.1, 2), (8.5, 2), 'the layer itself,\nthen gather')
    axes.text(3.55, 0.15, '1x1 convolutions, norms, activations,\nsqueeze-and-excite: run here, unchanged', ha='center',
              fontsize=8, color=INK)
    axes.text(6.0, 0.3, '3x3, 7x7, depthwise convolutions, max\npools: a window overlaps a neighbour', ha='center', fontsize=8,
              color=INK)
    return made


def level(axes, x, y, side, cells, colour):
    """A feature map: visible cells, and the others in the colour of what is in them."""
    for i in range(cells * cells):
        row, column = divmod(i, cells)
        cell = row * GRID[0] // cells * GRID[1] + column * GRID[1] // cells
        one = side / cells
        axes.add_patch(Rectangle((x + column * one, y + side - (row + 1) * one), one, one, edgecolor='white', lw=1.6 / cells,
                                 facecolor=SEEN if cell in VISIBLE[0].tolist() else colour))


def densify_and_decode():
    """The pyramid, its hidden positions filled with a mask token a level, and the decoder that takes each level in."""
    made, axes = figure(10, 7.2)
    for i, (cells, side, stride) in enumerate(((4, 0.75, 'R'), (8, 0.95, 'R/2'), (16, 1.15, 'R/4'), (32, 1.35, 'R/8'))):
        x, top = 0.9 + 2.35 * i, 6.7
        level(axes, x, top - side, side, cells, HIDDEN)
        axes.text(x + side / 2, top + 0.1, f'encoder, stride {stride}', ha='center', fontsize=9, color=INK)
        level(axes, x, 3.9 - side / 2, side, cells, TOKEN)
        arrow(axes, (x + side / 2, top - side - 0.03), (x + side / 2, 3.93 + side / 2))
        axes.text(x + side / 2 + 0.08, (top - side / 2 + 3.9) / 2, 'norm,\nmask token', fontsize=7, color=INK, va='center')
        arrow(axes, (x + side / 2, 3.87 - side / 2), (x + side / 2, 2.35))
        axes.text(x + side / 2 + 0.08, 2.75, 'identity or 1x1' if i == 0 else '3x3 convolution', fontsize=7, color=INK)
        axes.add_patch(Rectangle((x - 0.25, 1.55), side + 0.5, 0.75, facecolor='#d1fae5', edgecolor=INK, lw=0.8))
        axes.text(x + side / 2, 1.925, 'add, double the size\n(decoder block)', ha='center', va='center', fontsize=7, color=INK)
        if i:
            before = 0.9 + 2.35 * (i - 1) + (0.75 + 0.2 * (i - 1)) + 0.25
            arrow(axes, (before, 1.925), (x - 0.27, 1.925))
    x = 0.9 + 2.35 * 3 + 1.35 / 2
    arrow(axes, (x, 1.53), (x, 0.95))
    axes.text(x, 0.75, 'more blocks up to the size of the image, 1x1 convolution:\nthe reconstruction. Loss: squared error on '
              'hidden cells, each normalised', ha='right', va='center', fontsize=8, color=INK)
    for at, colour, text in ((0.3, SEEN, 'visible: features'), (2.3, HIDDEN, 'hidden: nothing is computed'),
                             (5.1, TOKEN, 'hidden: the mask token')):
        axes.add_patch(Rectangle((at, 0.1), 0.2, 0.2, facecolor=colour))
        axes.text(at + 0.28, 0.2, text, va='center', fontsize=8, color=INK)
    return made


if __name__ == '__main__':
    for draw_it in (strip_and_canvas, densify_and_decode):
        draw_it().savefig(DOCS / f'{draw_it.__name__}.png', dpi=110, facecolor='white')
