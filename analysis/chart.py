"""Line charts drawn with Pillow: dark lines on a light background, with labels that can be read on a page.

A figure is made of panels (`figure`). Everything is drawn SCALE times larger and then reduced, since Pillow
does not smooth lines.
"""
import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from common.pictures import INK, PAPER, font_of, shortened

SCALE = 2
WIDTH, HEIGHT = 560, 400  # pixels of a panel, without its legend
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 62, 56  # pixels around its axes
LETTERS = 15  # pixels, the height of letters
LINE = 21  # pixels, from one line of a legend to the next
GRID, BAND = '#dfe3e8', '#eef2f7'
# Of networks; they can be told apart by colour-blind people (Okabe and Ito), on white.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#8c6d00', '#56b4e9', '#4b5563', '#7c3aed')


@dataclass(frozen=True)
class Curve:
    """points: [(x, y)]. name: in the legend; None for no entry. errors: of each y, drawn as a bar; None for none."""
    points: list
    colour: str
    name: str | None = None
    errors: list | None = None
    marked: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes; x goes from 0 to 1.

    about: what the y axis shows, written above it. bands: [(x from, x to)] with a shaded ground. span: (colour
    of the first, colour of the last, text of the first, text of the last) of a scale of colours, or None.
    room_for: curves of other panels for which the y axis has room, too, so that panels can be compared.
    """
    title: str
    about: str
    x_about: str
    curves: list
    bands: tuple = ()
    span: tuple | None = None
    room_for: tuple = ()


def figure(panels, columns=2, note=''):
    """Return a PIL image of some panels, so many in a row, with a note in small lines below."""
    rows = [panels[start:start + columns] for start in range(0, len(panels), columns)]
    heights = [HEIGHT + LINE * max(lines_below(panel) for panel in row) + LINE // 2 for row in rows]
    lines = note.splitlines()
    width = WIDTH * max(map(len, rows))
    sheet = Image.new('RGB', (width * SCALE, (sum(heights) + LINE * len(lines) + 8) * SCALE), PAPER)
    pen = Pen(ImageDraw.Draw(sheet))
    top = 0
    for row, height in zip(rows, heights):
        for column, panel in enumerate(row):
            draw_panel(pen, panel, column * WIDTH, top)
        top += height
    for line in lines:
        pen.text(LEFT // 2, top, line, letters=LETTERS - 2, room=width - LEFT)
        top += LINE
    return sheet.resize((sheet.width // SCALE, sheet.height // SCALE), Image.Resampling.LANCZOS)


def legend_of(panel):
    """The curves that have an entry in the legend."""
    return [curve for curve in panel.curves if curve.name is not None]


def lines_below(panel):
    """How many lines the legend takes, or the scale of colours in its place."""
    return 1 if panel.span else len(legend_of(panel))


class Pen:
    """Draws on an image that is SCALE times as large as the coordinates say."""

    def __init__(self, draw):
        self.draw = draw

    def line(self, points, colour, width):
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        if len(scaled) > 1:
            self.draw.line(scaled, fill=colour, width=round(width * SCALE), joint='curve')

    def dot(self, x, y, colour, radius=3.2):
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse([SCALE * side for side in box], fill=colour)

    def box(self, left, top, right, bottom, colour):
        self.draw.rectangle([left * SCALE, top * SCALE, right * SCALE, bottom * SCALE], fill=colour)

    def text(self, x, y, text, anchor='la', letters=LETTERS, room=None):
        """Write a text at a place. anchor: Pillow's. room: pixels; of a longer text the middle is left out."""
        font = font_of(letters * SCALE)
        text = text if room is None else shortened(text, room * SCALE, font)
        self.draw.text((x * SCALE, y * SCALE), text, fill=INK, font=font, anchor=anchor)


def draw_panel(pen, panel, left, top):
    """Draw a panel whose upper left corner is at (left, top)."""
    low, high, ticks = y_axis([*panel.curves, *panel.room_for])
    inner_left, inner_right = left + LEFT, left + WIDTH - RIGHT
    inner_top, inner_bottom = top + TOP, top + HEIGHT - BOTTOM

    def at(x, y):
        return (inner_left + x * (inner_right - inner_left),
                inner_bottom - (y - low) / (high - low) * (inner_bottom - inner_top))

    for start, end in panel.bands:
        pen.box(at(start, low)[0], inner_top, at(end, low)[0], inner_bottom, BAND)
    for tick in ticks:
        y = at(0, tick)[1]
        pen.line([(inner_left, y), (inner_right, y)], GRID, 1)
        pen.text(inner_left - 8, y, number(tick, ticks), 'rm')
    for x in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        pen.text(at(x, low)[0], inner_bottom + 7, f'{x:.1f}', 'ma')
    pen.line([(inner_left, inner_bottom), (inner_right, inner_bottom)], INK, 1)
    pen.text(left + 14, top + 12, panel.title, letters=LETTERS + 2, room=WIDTH - 24)
    pen.text(left + 14, top + 37, panel.about, letters=LETTERS - 1, room=WIDTH - 24)
    pen.text((inner_left + inner_right) / 2, inner_bottom + 29, panel.x_about, 'ma')
    for curve in panel.curves:
        draw_curve(pen, curve, at)
    if panel.span:
        draw_span(pen, panel.span, inner_left, top + HEIGHT)
    for place, curve in enumerate(legend_of(panel)):
        y = top + HEIGHT + LINE * place + LINE / 2 - 4
        pen.line([(inner_left, y), (inner_left + 28, y)], curve.colour, 3)
        pen.dot(inner_left + 14, y, curve.colour)
        pen.text(inner_left + 38, y, curve.name, 'lm', room=WIDTH - LEFT - 60)


def draw_curve(pen, curve, at):
    places = [at(x, y) for x, y in curve.points]
    for (x, y), error in zip(curve.points, curve.errors or ()):
        ends = [at(x, y - error), at(x, y + error)]
        pen.line(ends, curve.colour, 1.5)
        for end_x, end_y in ends:
            pen.line([(end_x - 4, end_y), (end_x + 4, end_y)], curve.colour, 1.5)
    pen.line(places, curve.colour, 2.2)
    for place in places if curve.marked else ():
        pen.dot(*place, curve.colour)


def draw_span(pen, span, x, y):
    """Draw a scale of colours, with a text at each of its ends."""
    first, last, first_text, last_text = span
    width = font_of(LETTERS - 2).getlength(first_text)
    pen.text(x, y + 6, first_text, 'lm', LETTERS - 2)
    start = x + width + 8
    for step in range(60):
        pen.box(start + step * 1.5, y, start + step * 1.5 + 1.5, y + 12, between(first, last, step / 59))
    pen.text(start + 98, y + 6, last_text, 'lm', LETTERS - 2)


def between(first, last, share):
    """A colour between two, '#rrggbb'. share: 0 for the first, 1 for the last."""
    def parts(colour):
        return [int(colour[place:place + 2], 16) for place in (1, 3, 5)]
    return '#' + ''.join(f'{round(a + share * (b - a)):02x}' for a, b in zip(parts(first), parts(last)))


def y_axis(curves):
    """Return (lowest value, highest value, ticks) of an axis on which all of some curves have room."""
    values = []
    for curve in curves:
        for (_, y), error in zip(curve.points, curve.errors or [0] * len(curve.points)):
            values += [y - error, y + error]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    low, high = low - margin, high + margin
    step = tick_step(high - low)
    first = math.ceil(low / step)
    return low, high, [place * step for place in range(first, math.floor(high / step) + 1)]


def tick_step(length, most=7):
    """The smallest of 1, 2 and 5 times a power of ten of which a length has at most so many."""
    power = 10.0 ** math.floor(math.log10(length / most))
    return next(power * factor for factor in (1, 2, 5, 10) if length / (power * factor) <= most)


def number(value, ticks):
    """A tick as a text, with as many digits as the distance between ticks needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f'{value:.{digits}f}' if digits < 5 else f'{value:.1e}'
