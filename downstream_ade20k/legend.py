"""Legends of pictures: the colour, the name and the share of each class, in as many columns as fit."""
import math
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw

from common.pictures import INK, PAPER, font_of, shortened, side_by_side

NAME = 14  # width of the longest name, in heights of letters
FAINT = '#6b7280'  # of texts that are not about a class


@dataclass(frozen=True)
class Entry:
    """A line of a legend: a name, its colour (None for none), and its share (0 to 1) of each picture."""
    name: str
    colour: tuple | None
    shares: tuple


@dataclass(frozen=True)
class Legend:
    """A legend, which draws itself into a given space.

    entries: Entry of each class, the first one on top. There is at least one.
    letters: height of the letters, in pixels.
    heads: texts above the shares, one of each picture. Empty for none.
    """
    entries: list
    letters: int
    heads: tuple = ()

    @cached_property
    def font(self):
        return font_of(self.letters)

    @property
    def step(self):
        """Pixels from a line to the next one."""
        return round(1.5 * self.letters)

    @cached_property
    def name_width(self):
        """Pixels of the widest name, at most those of NAME."""
        widest = math.ceil(max(self.font.getlength(entry.name) for entry in self.entries))
        return min(widest, NAME * self.letters)

    @cached_property
    def share_width(self):
        """Pixels of a share, with the space before it."""
        return self.letters + math.ceil(max(self.font.getlength(text) for text in ('100.0 %', *self.heads)))

    @property
    def gap(self):
        """Pixels between columns."""
        return 2 * self.letters

    @property
    def width(self):
        """Pixels of a column."""
        return self.step + self.name_width + self.share_width * len(self.entries[0].shares)

    def layout(self, width, height):
        """Return (the entries of each column, the number of those that are left out) for this space.

        There are as many columns as are needed and fit into the width, at least one. They are as high as the
        space, or three lines if that is more. Where entries are left out, the last line says how many.

        width, height: in pixels.
        """
        most_columns = max(1, (width + self.gap) // (self.width + self.gap))
        most_rows = max(3, height // self.step) - bool(self.heads)
        shown = self.entries
        if len(shown) > most_columns * most_rows:
            shown = shown[:most_columns * most_rows - 1]
        left_out = len(self.entries) - len(shown)
        rows = math.ceil((len(shown) + bool(left_out)) / most_columns)
        return [shown[start:start + rows] for start in range(0, len(shown), rows)], left_out

    def drawn(self, width, height):
        """Return a PIL image of the legend for this space, of no more than is needed of it; see `layout`."""
        columns, left_out = self.layout(width, height)
        images = [self.column(entries) for entries in columns[:-1]]
        return side_by_side([*images, self.column(columns[-1], left_out)], gap=self.gap)

    def column(self, entries, left_out=0):
        """Return a PIL image of entries below each other. left_out: how many the last line counts; 0 for no such line."""
        first = bool(self.heads)  # line of the first entry
        image = Image.new('RGB', (self.width, (first + len(entries) + bool(left_out)) * self.step), PAPER)
        draw = ImageDraw.Draw(image)
        self.write_shares(draw, 0, self.heads, FAINT)
        for line, entry in enumerate(entries, first):
            top = line * self.step
            square = top + (self.step - self.letters) // 2
            draw.rectangle((0, square, self.letters - 1, square + self.letters - 1), entry.colour, INK)
            name = shortened(entry.name, self.name_width, self.font)
            draw.text((self.step, top + self.step // 2), name, INK, self.font, 'lm')
            self.write_shares(draw, top, [percent(share) if share else '-' for share in entry.shares], INK)
        if left_out:
            middle = image.height - self.step // 2
            draw.text((self.step, middle), f'and {left_out:,} more', FAINT, self.font, 'lm')
        return image

    def write_shares(self, draw, top, texts, colour):
        """Write texts at the right of a line."""
        for number, text in enumerate(reversed(texts)):
            place = (self.width - number * self.share_width, top + self.step // 2)
            draw.text(place, text, colour, self.font, 'rm')


def percent(share):
    """Return a share as a text: '41.2 %'."""
    return '< 0.1 %' if 0 < share < 0.0005 else f'{100 * share:.1f} %'
