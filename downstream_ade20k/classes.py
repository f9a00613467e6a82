"""The classes of a segmentation: their values in masks, names and colours. It does not load torch."""
import colorsys
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

IGNORE = -1  # the number of pixels that are of no class: they count neither in the loss nor in the figures
UNKNOWN = -2  # in the table of numbers: a value that is neither a class nor ignored
VALUES = 2 ** 16  # that a pixel of a mask may have
MOST = 2 ** 12  # classes: a table of the pixels of each pair of classes then takes 128 MiB
STRIP = 2 ** 16  # pixels of a coloured mask that are looked up at a time, which caches hold
GOLDEN = 0.618033988749895  # of a circle: multiples of it stay apart however many there are

# A line of a file of classes: an id or none, a name, a colour or none.
LINE = re.compile(r'(?:(?P<id>\d+)[\s,;:]+)?(?P<name>.*?)'
                  r'(?:[\s,;:]+(?P<colour>#[0-9a-fA-F]{6}|\d+[\s,;]+\d+[\s,;]+\d+))?[\s,;:]*')
HEADER = {'id', 'name', 'r', 'g', 'b'}  # the words of a heading, as tables with commas have it
EXPECTED = ('a line is a name, or an id and a name, and may end with a colour, such as "3 tree #00a040" or '
            '"tree, 0, 160, 64"')

# In the order of their ids, 1 to 150, by the first of the names that the data set gives each.
ADE20K_NAMES = '''
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind,
coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer,
swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning,
streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator,
ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce,
vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
glass, clock, flag
'''


class UnknownColour(ValueError):
    """A mask holds a colour that stands for no class."""


@dataclass(frozen=True)
class Classes:
    """The K classes of a segmentation, numbered from 0 on. Its length is K.

    ids: the value of each class in a mask. names: of each class.
    colours: of each class, (red, green, blue) from 0 to 255.
    ignored: the values of pixels that are of no class, ascending.
    mask_colours: ((id, colour), ...), what masks hold that have colours instead of ids, also for ignored ids.
    It is empty where this is not known.
    source: the file that they were read from, for messages; a checkpoint does not hold it.

    Raises ValueError for fewer than two classes, and for classes that cannot be told from each other.
    """
    ids: tuple
    names: tuple
    colours: tuple
    ignored: tuple = (255,)
    mask_colours: tuple = ()
    source: str | None = field(default=None, compare=False)

    def __post_init__(self):
        assert len(self.ids) == len(self.names) == len(self.colours)
        if not 2 <= len(self.ids) <= MOST:
            given = f': {self.names[0]} alone' if len(self.ids) == 1 else ''
            raise ValueError(f'a segmentation has 2 to {MOST:,} classes, not {len(self.ids):,}{given}')
        for what, values in (('the id', self.ids), ('the name', self.names),
                             ('the colour', [colour for _, colour in self.mask_colours])):
            repeated = first_repeated(values)
            if repeated is not None:
                raise ValueError(f'{what} {repeated} is given to two classes')
        for value in (*self.ids, *self.ignored):
            if not 0 <= value < VALUES:
                raise ValueError(f'the id {value} is not among the values of a mask, 0 to {VALUES - 1}')
        both = sorted(set(self.ids) & set(self.ignored))
        if both:
            raise ValueError(f'the id {both[0]} is both a class, {self.names[self.ids.index(both[0])]}, and '
                             'ignored')

    def __len__(self):
        return len(self.ids)

    @classmethod
    def of_ids(cls, ids, ignored):
        """The classes of ids, ascending, that nothing else is known of."""
        ids = tuple(sorted(int(value) for value in ids))
        names = tuple(f'class {value}' for value in ids)
        return cls(ids, names, tuple(map(colour_of, ids)), in_order(ignored))

    @cached_property
    def table(self):
        """The number of each value that a mask may have, (VALUES,) int16: 0 to K - 1, IGNORE or UNKNOWN."""
        table = np.full(VALUES, UNKNOWN, np.int16)
        table[list(self.ids)] = np.arange(len(self))
        table[list(self.ignored)] = IGNORE
        return table

    def numbers(self, values):
        """The class numbers of the values of a mask, (h, w) int16, with IGNORE for those that are ignored.

        values: (h, w), whole numbers from 0 to VALUES - 1. Raises ValueError for one that is neither a class nor ignored.
        """
        numbers = self.table[values]
        is_unknown = numbers == UNKNOWN
        if is_unknown.any():
            raise ValueError(f'it has the value {values[is_unknown][0]}, which is neither a class nor '
                             'ignored')
        return numbers

    @cached_property
    def tables_of_colours(self):
        """Two tables by which `ids_of` finds the value of a colour in two steps.

        rows: (65536,) int32, by 256 * red + green: a row of `values`. Row 0 is that of unknown pairs.
        values: (rows, 256) int32, by row and blue: the value, or UNKNOWN.
        """
        pairs = sorted({(red, green) for _, (red, green, _) in self.mask_colours})
        rows = np.zeros(256 * 256, np.int32)
        values = np.full((len(pairs) + 1, 256), UNKNOWN, np.int32)
        for row, (red, green) in enumerate(pairs, 1):
            rows[256 * red + green] = row
        for value, (red, green, blue) in self.mask_colours:
            values[rows[256 * red + green], blue] = value
        return rows, values

    def ids_of(self, pixels):
        """The values of a mask that holds colours, (h, w) uint16.

        pixels: (h, w, 3) uint8. Raises UnknownColour for one that is not among the mask_colours.
        """
        rows, values = self.tables_of_colours
        colours = pixels.reshape(-1, 3)
        ids = np.empty(len(colours), np.uint16)
        for first in range(0, len(colours), STRIP):
            strip = colours[first:first + STRIP]
            red, green, blue = strip.T
            found = values.take(256 * rows.take(256 * red.astype(np.int32) + green) + blue)
            if found.min() == UNKNOWN:
                red, green, blue = strip[found == UNKNOWN][0]
                said = 'which stands for no class'
                if self.source:
                    said = (f'which is not in {self.source}: add #{red:02x}{green:02x}{blue:02x} there, as that of a '
                            'class or of an id that is ignored')
                raise UnknownColour(f'it has the colour {red}, {green}, {blue}, {said}')
            ids[first:first + STRIP] = found
        return ids.reshape(pixels.shape[:2])

    def as_data(self):
        """What a checkpoint holds of it, in plain lists."""
        return {'ids': list(self.ids), 'names': list(self.names),
                'colours': [list(colour) for colour in self.colours],
                'ignored': list(self.ignored),
                'mask_colours': [[value, list(colour)] for value, colour in self.mask_colours]}

    @classmethod
    def from_data(cls, data):
        """The Classes of what as_data returned."""
        return cls(tuple(data['ids']), tuple(data['names']), tuple(map(tuple, data['colours'])),
                   tuple(data['ignored']),
                   tuple((value, tuple(colour)) for value, colour in data['mask_colours']))


def colour_of(value):
    """The colour of an id, (red, green, blue), the same in every picture.

    0, which is the background in most data sets, is black. From an id to the next, the hue goes on by a
    golden section of the circle. Saturation and brightness repeat after 5 and after 3 ids, so that many
    classes stay apart as well.
    """
    if value == 0:
        return 0, 0, 0
    saturation = (0.95, 0.5, 0.75, 0.4, 0.85)[value % 5]
    brightness = (1.0, 0.6, 0.8)[value % 3]
    parts = colorsys.hsv_to_rgb(value * GOLDEN % 1, saturation, brightness)
    return tuple(round(255 * part) for part in parts)


def in_order(values):
    """Values without repetitions, ascending, as a tuple."""
    return tuple(sorted({int(value) for value in values}))


def first_repeated(values):
    """The first of some values that has come before; None if none has."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def ade20k(ignored=()):
    """The 150 classes of ADE20K's benchmark. Its masks have 0 where there is another object: it is ignored.

    ignored: more values that are. Those of them that are classes are left out.
    """
    names = [name.strip() for name in ADE20K_NAMES.split(',')]
    found = [(value, name, None) for value, name in enumerate(names, 1)]
    return classes_of(found, in_order((0, 255, *ignored)))


def read_classes(path, ignored):
    """The Classes of a text file in UTF-8 with one class a line, as EXPECTED says it.

    Without ids, the lines are numbered from 0 on. If the lines have colours, masks may hold these instead of
    ids. Lines that begin with # and a heading such as "name,r,g,b" are passed over. The format takes in the
    tables of several data sets (name,r,g,b) and the labelmap.txt of annotation programs (name:r,g,b::).

    ignored: values that are of no class. A line with such an id says what colour these pixels have.

    Raises ValueError for a file that is no such list.
    """
    try:
        text = Path(path).read_text('utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'the file of classes {path} cannot be read ({error})') from error
    stripped = [line.strip() for line in text.splitlines()]
    lines = [line for line in stripped if line and not line.startswith('#')]
    if lines and is_heading(lines[0]):
        lines = lines[1:]
    found = [parsed(path, line) for line in lines]
    for place, what in ((0, 'an id'), (2, 'a colour')):
        with_it = [entry[place] is not None for entry in found]
        if any(with_it) and not all(with_it):
            line = lines[with_it.index(False)]
            raise ValueError(f'{path}: {line!r} has no {what.split()[1]}, and other lines have: give {what} '
                             'in all lines or in none')
    try:
        return replace(classes_of(found, in_order(ignored)), source=str(path))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def classes_of(found, ignored):
    """The Classes of [(id, name, colour)], without those that are ignored. Raises ValueError.

    An id that is None is the number of the entry. A colour that is None is chosen by colour_of.
    """
    numbered = [(number if value is None else value, name, colour)
                for number, (value, name, colour) in enumerate(found)]
    repeated = first_repeated([value for value, _, _ in numbered])
    if repeated is not None:
        raise ValueError(f'the id {repeated} is given to two classes')
    kept = [entry for entry in numbered if entry[0] not in ignored]
    dropped = [f'{value} ({name})' for value, name, _ in numbered if value in ignored]
    if dropped and len(kept) < 2:
        unused = next(value for value in range(254, VALUES) if value not in {value for value, _, _ in numbered})
        raise ValueError(f'there is {kept[0][1] if kept else "nothing"} alone beside {", ".join(dropped)}, which '
                         f'{"is" if len(dropped) == 1 else "are"} ignored. If that is a class, ignore a value that '
                         f'the masks do not hold, --ignore={unused}')
    return Classes(tuple(value for value, _, _ in kept), tuple(name for _, name, _ in kept),
                   tuple(colour or colour_of(value) for value, _, colour in kept), ignored,
                   tuple((value, colour) for value, _, colour in numbered if colour))


def is_heading(line):
    """Whether a line is the heading of a table."""
    words = set(re.split(r'[\s,;:]+', line.lower()))
    return 'name' in words and words <= HEADER


def parsed(path, line):
    """(id or None, name, colour or None) of a line of the file `path`. Raises ValueError."""
    match = LINE.fullmatch(line)
    name = match['name'].strip() if match else ''
    colour = match['colour'] if match else None
    broken = re.search(r'(?:^|[\s,;:])(#\S*)$', name)
    if broken:
        raise ValueError(f'{path}: {line!r} ends with {broken[1]}, which is no colour: these are six of the digits 0 to '
                         '9 and a to f after a #')
    if not name or '\t' in name:
        raise ValueError(f'{path}: {line!r} is no class: {EXPECTED}')
    if colour is not None:
        is_hexadecimal = colour.startswith('#')
        parts = re.findall('..', colour[1:]) if is_hexadecimal else re.split(r'[\s,;]+', colour)
        colour = tuple(int(part, 16 if is_hexadecimal else 10) for part in parts)
        if max(colour) > 255:
            raise ValueError(f'{path}: {line!r} has a colour with a value above 255')
    return None if match['id'] is None else int(match['id']), name, colour


ADE20K = ade20k()
