"""Annotation files in COCO's format: reading them, and checking what they say of boxes and masks before it is used.

pycocotools' C code takes masks as they come. Run lengths that do not fill their image leave memory unwritten, or are
compared without end; polygons with enormous coordinates ask for gigabytes. So everything is checked here first, with
NumPy, thousands of annotations at a time.
"""
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

CHUNK = 2000  # annotations that are checked at a time
LARGE = 5e7  # bytes of a file whose reading takes seconds
PROGRESS = 10.0  # seconds between two lines about the progress of the check
SIDE, PIXELS = 2 ** 20, 2 ** 29  # the most of an image; six characters of COCO's code hold a run of fewer pixels than that
ENORMOUS = 1e9  # pixels, in a box that is no box
# COCO's polygons lie within a pixel of their boxes. Boxes and masks that were drawn apart, or masks that a network made at
# a low resolution, lie further apart: a twentieth of the box is common, a tenth is not.
ROUNDING, LOOSE = 2.0, 0.1  # pixels, and share of the box's width or height
LONGEST = 100  # a polygon's length in circumferences of its image, at most; drawing it takes memory in proportion
EXPECTED_MASK = ('A segmentation is a list of polygons in pixels, [[x1, y1, x2, y2, x3, y3, ...], ...], or the run lengths of '
                 'the whole image, {"size": [height, width], "counts": ...}. For example: "segmentation": [[10, 10, 50, 10, '
                 '50, 40]]')
EXPECTED_BOX = 'A box is [x, y, width, height] in pixels, x and y of its top left corner'

# What is wrong with a segmentation that was given, as a person reads it after a number.
ABSENT, GOOD = -1, 0
MASK_FAULTS = (
    'good',
    'given as text',
    'neither lists nor run lengths',
    'polygons of fewer than three points',
    'polygons with an odd number of values',
    'polygons with values that are no finite numbers',
    'polygons nested deeper than a list of lists',
    'polygons that reach far outside of their images',
    'polygons whose lines are too long to be drawn',
    'run lengths whose size is not that of the image',
    'run lengths that cannot be decoded',
    'run lengths that do not fill the image exactly',
    'masks without a pixel in the image')
(_, TEXT, OTHER, FEW, ODD, VALUES, DEEP, FAR, LONG, SIZE, CODE, FILL, EMPTY) = range(len(MASK_FAULTS))
FLAT = 'segmentations are flat lists, [x, y, x, y, ...]: each is read as one polygon'
PAIRS = 'segmentations are lists of points, [[x, y], [x, y], ...]: each is read as one polygon'
PARTS = 'objects have polygons that cannot be drawn, and good ones, which are used alone'
AREAS = 'areas are no finite numbers: those of the boxes are taken'


def read_annotations(path, say=None):
    """The content of an annotation file in COCO's format, complete and checked. Raises ValueError that says what is wrong.

    Fields that files of one's own often lack are filled in: iscrowd 0, area of the box, ids of annotations. `box` is added to
    each annotation: x1 y1 x2 y2 inside the image, None without area there. A segmentation that is no mask of that image becomes
    None, and a box that reaches beyond it by more than ROUNDING is cut at the border. `contradicts` is True where a mask and
    its box do not belong together. content['checks'] is a Checks.

    say: called with a text every ten seconds of the check.
    """
    content = load(path, say)
    images, categories = ({one['id']: one for one in content[name]} for name in ('images', 'categories'))
    annotations = content['annotations']
    boxes, sizes = [], []
    remarks = Remarks(path, {key: one['file_name'] for key, one in images.items()})
    for number, one in enumerate(annotations):
        one['id'] = number + 1 if one.get('id') is None else one['id']
        what = f'{path}: annotation {one["id"]}'
        for key, there in (('image_id', images), ('category_id', categories)):
            if not is_id(one[key]) or one[key] not in there:
                raise ValueError(unknown_id(what, one, key, there))
        box = one['bbox']
        if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
            raise ValueError(f'{what} has the box {box}, not four numbers, x, y, width, height')
        image = images[one['image_id']]
        sizes.append((image['height'], image['width']))
        is_sound = all(-ENORMOUS < value < ENORMOUS for value in box)  # false for NaN too
        boxes.append(box if is_sound else [math.nan] * 4)
        one['box'] = inside_image(box, image) if is_sound else None
        one['iscrowd'] = crowd(what, one.get('iscrowd'))
        area = one.get('area')
        if type(area) not in (int, float) or not -math.inf < area < math.inf:
            if area is not None:
                remarks.add(AREAS, one)
            one['area'] = box[2] * box[3] if is_sound else 0
    boxes, sizes = np.array(boxes, float).reshape(-1, 4), np.array(sizes, np.int64).reshape(-1, 2)
    faults, extents = check_masks(annotations, sizes, remarks, say)
    has_area = np.array([one['box'] is not None for one in annotations], bool)
    checks = Checks(annotations, boxes, sizes, faults, extents, has_area, remarks)
    for number in np.flatnonzero(checks.contradicts):
        annotations[number]['contradicts'] = True
    for number in np.flatnonzero(checks.beyond(ROUNDING)):
        x1, y1, x2, y2 = annotations[number]['box']
        annotations[number]['bbox'] = [x1, y1, x2 - x1, y2 - y1]
    content['checks'] = checks
    return content


def load(path, say=None):
    """The content of an annotation file whose lists have entries with the fields that are needed. Raises ValueError."""
    try:
        text = Path(path).read_bytes()
        if say and len(text) > LARGE:
            say(f'{path}: {len(text) / 1e6:,.0f} MB are read')
        content = json.loads(text)  # bytes: in UTF-8, 16 or 32, with a byte order mark or without
    except OSError as error:
        raise ValueError(f'there is no annotation file {path} ({error.strerror})') from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no JSON file ({error})') from error
    lists = ('images', 'annotations', 'categories')
    lacking = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if lacking:
        raise ValueError(f'{path} is not in COCO\'s format: it has no list {", ".join(map(repr, lacking))}')
    needed = {'images': ('id', 'file_name', 'width', 'height'), 'annotations': ('image_id', 'category_id', 'bbox'),
              'categories': ('id',)}
    for name in lists:
        for entry in content[name]:
            missing = [key for key in needed[name] if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise ValueError(f'{path}: an entry of {name} has no {missing[0]!r}: {str(entry)[:80]}')
            if name != 'annotations' and not is_id(entry['id']):
                raise ValueError(f'{path}: an entry of {name} has an id that is neither a number nor text: {str(entry)[:80]}')
    for name, what in (('images', 'an image'), ('categories', 'a category')):
        again = [key for key, count in Counter(one['id'] for one in content[name]).items() if count > 1]
        if again:
            raise ValueError(f'{path} uses an id twice, {again[0]!r} of {what}')
    for name in ('images', 'categories'):
        if not content[name]:
            raise ValueError(f'{path} names no {name}')
    for one in content['images']:
        if not isinstance(one['file_name'], str) or not all(type(one[side]) is int and one[side] > 0
                                                            for side in ('width', 'height')):
            raise ValueError(f'{path}: an image has no file_name that is text, or no width and height that are whole numbers: '
                             f'{str(one)[:120]}')
        if max(one['width'], one['height']) > SIDE or one['width'] * one['height'] > PIXELS:
            raise ValueError(f'{path} says that {one["file_name"]} has {one["width"]} x {one["height"]} pixels, more than can '
                             'be read: correct its width and height')
    return content


def is_id(value):
    return type(value) in (int, str) or type(value) is float and math.isfinite(value)


def plain_id(value):
    """An id as text, the same for 1, 1.0 and '1'."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def unknown_id(what, one, key, there):
    """What to say of an annotation with an id that is not among those of the images or categories."""
    known = {plain_id(key): key for key in there}.get(plain_id(one[key]))
    if known is not None:
        kinds = ['text' if isinstance(each, str) else 'a number' for each in (one[key], known)]
        listed = 'image' if key == 'image_id' else 'category'
        return (f'{what} has the {key} {one[key]!r}, which is {kinds[0]}; the {listed} has the id {known!r}, which is '
                f'{kinds[1]}: write the ids alike in both places, as numbers')
    return (f'{what} is of image {one["image_id"]!r} and category {one["category_id"]!r}, which the file does not '
            'list: is it whole, and of these images?')


def inside_image(box, image):
    """x1 y1 x2 y2 of the part of a box x, y, width, height that lies in its image; None without area there."""
    x, y, width, height = box
    cut = [max(x, 0), max(y, 0), min(x + width, image['width']), min(y + height, image['height'])]
    return cut if cut[2] > cut[0] and cut[3] > cut[1] else None


def crowd(what, given):
    """iscrowd as 0 or 1. Raises ValueError for what is neither."""
    values = {None: 0, '': 0, '0': 0, 'false': 0, '1': 1, 'true': 1}
    known = given.lower() if isinstance(given, str) else given
    if isinstance(known, (bool, int, float)) and known in (0, 1):
        return int(known)
    if not isinstance(known, (str, type(None))) or known not in values:
        raise ValueError(f'{what} has iscrowd {given!r}: it is 0 for one object and 1 for a crowd')
    return values[known]


class Remarks:
    """Counts, by kind, what is said of the annotations of a file, with the first one of each kind as an example.

    names: {image id: file name}.
    """

    def __init__(self, path, names):
        self.path, self.names = path, names
        self.counts, self.examples = Counter(), {}

    def add(self, kind, annotation):
        self.counts[kind] += 1
        self.examples.setdefault(kind, self.example(annotation))

    def example(self, annotation):
        return f'annotation {annotation["id"]} of {self.names[annotation["image_id"]]}'

    def sentences(self):
        return [f'{self.path}: {count:,} {kind}; for example {self.examples[kind]}' for kind, count in self.counts.items()]

    def __str__(self):
        return ', '.join(f'{count:,} {kind} ({self.examples[kind]})' for kind, count in self.counts.items())


# -- masks ------------------------------------------------------------------------------------------------------------

def check_masks(annotations, sizes, remarks, say=None):
    """Put each annotation's mask in place of its segmentation, None where it is none.

    sizes: (annotations, 2), height and width of the images. remarks: what was read otherwise than COCO's format has it.
    Returns the places in MASK_FAULTS, or ABSENT, (annotations,), and the extents of the masks, x1 y1 x2 y2 (annotations, 4) in
    pixels, NaN without a mask.
    """
    faults, extents = np.full(len(annotations), ABSENT, np.int8), np.full((len(annotations), 4), np.nan)
    said = time.monotonic()
    for start in range(0, len(annotations), CHUNK):
        part = slice(start, start + CHUNK)
        faults[part], extents[part] = check_some(annotations[part], sizes[part], remarks)
        if say and time.monotonic() - said > PROGRESS:
            said = time.monotonic()
            say(f'{remarks.path}: {min(start + CHUNK, len(annotations)):,} of {len(annotations):,} annotations are checked')
    return faults, extents


def check_some(annotations, sizes, remarks):
    """check_masks for a few annotations, whose values it holds in arrays."""
    faults, extents = np.full(len(annotations), ABSENT, np.int8), np.full((len(annotations), 4), np.nan)
    polygons, lengths = [], []  # (annotation, polygon), (annotation, run lengths)
    other = {}  # annotation: the form in which its polygon is given
    for number, one in enumerate(annotations):
        given = one.get('segmentation')
        if isinstance(given, list) and given and isinstance(given[0], list):
            points = len(given[0]) == 2 and len(given) > 2 and all(isinstance(each, list) and len(each) == 2 for each in given)
            if points:
                other[number] = PAIRS
                given = one['segmentation'] = [list(chain.from_iterable(given))]
            if any(given):
                polygons += [(number, each) for each in given]
        elif isinstance(given, list) and given:
            if all(type(each) in (int, float) for each in given):
                other[number] = FLAT
                one['segmentation'] = [given]
            polygons += [(number, each) for each in one['segmentation']]
        elif isinstance(given, dict) and given:
            lengths.append((number, given))
        elif given not in (None, '', [], {}):
            faults[number] = TEXT if isinstance(given, str) else OTHER
    for check, parts in ((check_polygons, polygons), (check_lengths, lengths)):
        if parts:
            check(parts, annotations, sizes, faults, extents, remarks)
    outside = (extents[:, 2:] <= 0).any(1) | (extents[:, :2] >= sizes[:, ::-1]).any(1)
    faults[outside] = EMPTY
    for number, form in other.items():
        if faults[number] == GOOD:
            remarks.add(form, annotations[number])
    for number in np.flatnonzero(faults != GOOD):
        annotations[number]['segmentation'] = None
    return faults, extents


def polygon_fault(polygon):
    """What is wrong with the values of one polygon, GOOD if nothing is. Places outside of an image are not looked at."""
    if not isinstance(polygon, list):
        return OTHER if isinstance(polygon, dict) else VALUES
    if any(isinstance(value, (list, dict)) for value in polygon):
        return DEEP
    if not all(type(value) in (int, float) and -math.inf < value < math.inf for value in polygon):
        return VALUES
    return FAR if any(abs(value) > 4 * SIDE for value in polygon) else ODD if len(polygon) % 2 else \
        FEW if len(polygon) < 6 else GOOD


def check_polygons(parts, annotations, sizes, faults, extents, remarks):
    """Write what is found into faults and extents; objects keep their good polygons. parts: [(annotation, polygon)]."""
    owners, found = np.array([number for number, _ in parts]), np.zeros(len(parts), np.int8)
    values = [value for _, value in parts]
    try:
        plain = all(isinstance(each, list) and len(each) >= 6 and not len(each) % 2 for each in values) \
            and set(map(type, chain.from_iterable(values))) <= {int, float}
        points = np.fromiter(chain.from_iterable(values), float) if plain else None
    except OverflowError:  # a whole number that no float can hold
        points = None
    if points is None or not np.isfinite(points).all():
        found[:] = [polygon_fault(each) for each in values]
        values = [each for each, fault in zip(values, found) if fault == GOOD]
        points = np.fromiter(chain.from_iterable(values), float)
    good = np.flatnonzero(found == GOOD)
    if len(good):
        points, counts = points.reshape(-1, 2), np.array([len(each) // 2 for each in values])
        ends = np.cumsum(counts)
        starts = ends - counts
        low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
        steps = np.diff(points, axis=0, append=points[:1])
        steps[ends - 1] = points[starts] - points[ends - 1]
        paths = np.add.reduceat(np.abs(steps).max(1), starts)
        shapes = sizes[owners[good]]
        together = np.bincount(owners[good], paths, len(annotations))[owners[good]]  # of all polygons of an object
        found[good[together > LONGEST * 2 * shapes.sum(1)]] = LONG
        reach = shapes.max(1, keepdims=True)
        found[good[(low < -reach).any(1) | (high > shapes[:, ::-1] + reach).any(1)]] = FAR
        keep = found[good] == GOOD
        numbers, low, high = owners[good][keep], low[keep], high[keep]
        if len(numbers):
            first = np.flatnonzero(np.diff(numbers, prepend=-1))
            extents[numbers[first]] = np.concatenate([np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)], 1)
    faults[owners[::-1]] = found[::-1]  # the first of an object's faults, unless a polygon is good
    faults[owners[found == GOOD]] = GOOD
    for number in dict.fromkeys(owners[(found != GOOD) & (faults[owners] == GOOD)].tolist()):
        remarks.add(PARTS, annotations[number])
        annotations[number]['segmentation'] = [parts[k][1] for k in np.flatnonzero((owners == number) & (found == GOOD))]


def check_lengths(parts, annotations, sizes, faults, extents, remarks):
    """Write what is found into faults and extents. parts: [(annotation, run lengths as in the file)]."""
    texts, lists = [], []
    for number, given in parts:
        counts, size = given.get('counts'), given.get('size')
        if not isinstance(size, list) or not {*map(type, size)} <= {int, float} or size != sizes[number].tolist():
            faults[number] = SIZE
            continue
        faults[number] = GOOD
        annotations[number]['segmentation'] = {**given, 'size': [int(side) for side in size]}
        if isinstance(counts, str) and counts and counts.isascii():
            texts.append((number, counts.encode()))
        elif not isinstance(counts, list) or not counts or {*map(type, counts)} != {int}:
            faults[number] = CODE
        elif min(counts) < 0 or sum(counts) != math.prod(size):
            faults[number] = FILL
        else:
            lists.append((number, counts))
    runs, owners, broken = decode([code for _, code in texts])
    text_owners = np.array([number for number, _ in texts], np.int64)
    faults[text_owners[broken]] = CODE
    owners = np.concatenate([text_owners[owners], np.repeat(np.array([number for number, _ in lists], np.int64),
                                                            [len(counts) for _, counts in lists])])
    runs = np.concatenate([runs, np.fromiter(chain.from_iterable(counts for _, counts in lists), np.int64)])
    if not len(runs):
        return
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    numbers, many = owners[first], np.diff(first, append=len(owners))
    pixels = sizes[numbers].prod(1)
    whole = (np.minimum.reduceat(runs, first) >= 0) & (np.maximum.reduceat(runs, first) <= pixels) \
        & (np.add.reduceat(runs, first) == pixels)
    faults[numbers] = np.where(whole, EMPTY, FILL)
    place = np.arange(len(runs)) - np.repeat(first, many)
    ends = np.cumsum(runs)
    ends -= np.repeat(ends[first] - runs[first], many)
    seen = np.repeat(whole, many) & (place % 2 == 1) & (runs > 0)
    numbers, starts, ends = owners[seen], (ends - runs)[seen], ends[seen] - 1
    high = sizes[numbers, 0]
    left, right = starts // high, ends // high
    one_column = left == right
    low = np.stack([left, np.where(one_column, starts % high, 0)], 1)
    high = np.stack([right + 1, np.where(one_column, ends % high + 1, high)], 1)
    if len(numbers):
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        faults[numbers[first]] = GOOD
        extents[numbers[first]] = np.concatenate([np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)], 1)


def decode(codes):
    """The run lengths of masks in COCO's code, texts of ASCII characters as bytes, none of them empty.

    A number is written in groups of five bits, the lowest first, each as a character from '0' on; the sixth bit says that
    another follows, the fifth of the last one is the sign. From the fourth run on it is the difference to the one before the
    last. Returns (runs of all of them, to which code each belongs, the places of codes that are no such text).
    """
    sizes = np.array([len(code) for code in codes], np.int64)
    characters = np.frombuffer(b''.join(codes), np.uint8).astype(np.int64) - 48
    owners = np.repeat(np.arange(len(codes)), sizes)
    broken = np.zeros(len(codes), bool)
    broken[owners[(characters < 0) | (characters > 63)]] = True
    broken[characters[np.cumsum(sizes) - 1] & 32 > 0] = True  # cut off in a number
    characters, owners = (each[~broken[owners]] for each in (characters, owners))
    if not len(characters):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.flatnonzero(broken)
    ends = np.flatnonzero(characters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    groups = ends - starts + 1
    broken[owners[ends[groups > 6]]] = True  # no run of an image is as long, and C code may read it as another
    groups = groups.clip(max=6)
    place = np.arange(len(characters)) - np.repeat(starts, ends - starts + 1)
    runs = np.add.reduceat((characters & 31) << 5 * place.clip(max=6), starts)
    runs -= np.where(characters[ends] & 16 > 0, 1 << 5 * groups, 0)
    owners = owners[ends]
    runs, owners = (each[~broken[owners]] for each in (runs, owners))
    place = np.arange(len(runs)) - np.searchsorted(owners, owners)
    for parity in (1, 0):
        chosen = np.flatnonzero((place % 2 == parity) & (place > 0))
        if len(chosen):
            first = np.flatnonzero(np.diff(owners[chosen], prepend=-1))
            sums = np.cumsum(runs[chosen])
            before = sums[first] - runs[chosen[first]]
            runs[chosen] = sums - np.repeat(before, np.diff(first, append=len(chosen)))
    return runs, owners, np.flatnonzero(broken)


# -- boxes ------------------------------------------------------------------------------------------------------------

def corners(boxes, sizes):
    """x1 y1 x2 y2 of boxes x, y, width, height (N, 4), cut at the borders of images of these heights and widths (N, 2)."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).clip(0, np.tile(sizes[:, ::-1], 2))


def fill(boxes, extents, sizes):
    """Which masks with these extents (N, 4) fill these boxes, but for ROUNDING and LOOSE, (N,). False without a mask."""
    inside = corners(boxes, sizes)
    apart = np.abs(inside - extents.clip(0, np.tile(sizes[:, ::-1], 2)))
    allowed = np.maximum(ROUNDING, LOOSE * (inside[:, 2:] - inside[:, :2]))
    return (apart <= np.tile(allowed, 2)).all(1) & (boxes[:, 2:] > 0).all(1)


def lie_inside(boxes, sizes):
    """Which boxes (N, 4) have area and lie in their images, but for ROUNDING, (N,)."""
    return (boxes[:, 2:] > 0).all(1) & (boxes[:, :2] >= -ROUNDING).all(1) \
        & (boxes[:, :2] + boxes[:, 2:] <= sizes[:, ::-1] + ROUNDING).all(1)


def other_form(boxes, least, fits):
    """What boxes (N, 4) look like that are no x, y, width, height, as text; None if like nothing else.

    fits(boxes) -> (N,) bool, which of them are right, to be so for at least this share.
    """
    first, second = boxes[:, :2], boxes[:, 2:]
    forms = {'corners, x1, y1, x2, y2': np.concatenate([first, second - first], 1),
             'x and y of the centre, width, height': np.concatenate([first - second / 2, second], 1)}
    shares = {name: fits(meant).mean() for name, meant in forms.items()}
    name = max(shares, key=shares.get)
    return name if shares[name] >= least else None


@dataclass(frozen=True)
class Checks:
    """What is found of the annotations of a file, arrays with a value for each.

    boxes (N, 4): x, y, width, height as in the file, all NaN where one is enormous or NaN; sizes (N, 2): height and width of
    the image; faults (N,): places in MASK_FAULTS, or ABSENT; extents (N, 4): x1 y1 x2 y2 of the masks, NaN without one;
    has_area (N,): whether the box has area in its image. remarks: what was read otherwise than COCO's format has it.
    """
    annotations: list
    boxes: np.ndarray
    sizes: np.ndarray
    faults: np.ndarray
    extents: np.ndarray
    has_area: np.ndarray
    remarks: Remarks

    @property
    def given(self):
        """For which annotations a segmentation is given, good or bad, (N,)."""
        return self.faults != ABSENT

    @property
    def both(self):
        """Which annotations have a box with area and a mask, (N,)."""
        return self.has_area & (self.faults == GOOD)

    @property
    def contradicts(self):
        """Which masks do not fill their boxes, (N,)."""
        return self.both & ~fill(self.boxes, self.extents, self.sizes)

    def beyond(self, by):
        """Which boxes with area reach beyond their images by more than so many pixels, a number or (N, 2) for x and y."""
        ends = self.boxes[:, :2] + self.boxes[:, 2:]
        return self.has_area & (np.maximum(-self.boxes[:, :2], ends - self.sizes[:, ::-1]) > by).any(1)

    def judge(self, masks):
        """Sentences that count, by kind, what is wrong with some annotations, or was read otherwise than COCO has it.

        masks: whether masks are used; None if that is not decided. Raises ValueError where most masks or boxes are wrong: they
        have another form then, and what is left by chance is not what is meant.
        """
        bad, given = self.faults > GOOD, self.given
        broken = Remarks(self.remarks.path, self.remarks.names)
        for number in np.flatnonzero(bad):
            broken.add(MASK_FAULTS[self.faults[number]], self.annotations[number])
        lost = f'{self.remarks.path}: {bad.sum():,} of {given.sum():,} segmentations are no masks of their images: {broken}'
        if masks is not False and 2 * bad.sum() > given.sum():
            raise ValueError(f'{lost}. {EXPECTED_MASK}. --heads=box trains on the boxes alone')
        self.refuse_boxes(masks)
        sentences = [] if masks is False else self.remarks.sentences() + [lost] * bool(bad.any())
        for which, what in ((self.contradicts, f'masks reach elsewhere than their boxes, by more than {ROUNDING:g} pixels and '
                                               f'{100 * LOOSE:g} % of the box'),
                            (self.beyond(ROUNDING), 'boxes reach beyond their images: they are cut at the border')):
            if which.any():
                sentences.append(f'{self.remarks.path}: {which.sum():,} {what}; for example {self.example(which)}')
        return sentences

    def refuse_boxes(self, masks):
        """Raise ValueError where most boxes are wrong. masks: as of judge."""
        finite = np.isfinite(self.boxes).all(1)
        boxes, sizes = self.boxes[finite], self.sizes[finite]

        def form(least):
            return other_form(boxes, least, lambda meant: lie_inside(meant, sizes)) if len(boxes) else None

        shares = (self.boxes >= 0).all(1) & (self.boxes <= 1).all(1) & (self.boxes[:, 2:] > 0).all(1)
        if 2 * shares.sum() > len(shares):
            self.refuse(shares, len(shares), 'have no number above 1', "shares of the image's width and height")
        both, wrong = self.both, self.contradicts
        if 2 * wrong.sum() > both.sum():
            known = other_form(self.boxes[both], 0.5, lambda meant: fill(meant, self.extents[both], self.sizes[both]))
            if known or masks is not False:
                self.refuse(wrong, both.sum(), 'lie elsewhere than the masks of their objects', known,
                            '. Correct the masks or the boxes; --heads=box trains on the boxes alone')
        beyond = self.beyond(ROUNDING)
        if 2 * beyond.sum() > len(beyond):
            self.refuse(beyond, len(beyond), 'reach beyond their images', form(0.9),
                        '. Give those in the images, cut at the border')
        # Of objects in the left upper quarter corners do not show; one tenth far outside, and corners that all fit, do.
        far = self.beyond(0.1 * self.sizes[:, ::-1])
        if 10 * far.sum() > len(far) and form(0.99):
            self.refuse(far, len(far), 'reach far beyond their images', form(0.99))
        if 0 < 2 * self.has_area.sum() < len(self.has_area):
            self.refuse(~self.has_area, len(self.has_area), 'have no area in their images')

    def refuse(self, which, total, what, form=None, remedy=''):
        remedy = f'; these look like {form}. Convert them' if form else remedy
        raise ValueError(f'{self.remarks.path}: {which.sum():,} of {total:,} boxes {what}; for example {self.example(which)}. '
                         f'{EXPECTED_BOX}{remedy}')

    def example(self, which):
        """The first of these annotations, (N,) bool, and its box, for a person."""
        number = int(np.flatnonzero(which)[0])
        high, wide = self.sizes[number]
        box = ', '.join(f'{value:g}' for value in self.boxes[number])
        return f'{self.remarks.example(self.annotations[number])}, with the box [{box}] in {wide} x {high} pixels'
