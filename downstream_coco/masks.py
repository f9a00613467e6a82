"""Checks of the masks in annotation files: polygons and run lengths, with NumPy, thousands of annotations at a time.

pycocotools' C code does not check masks. Run lengths that do not fill their image leave memory unwritten, or
are compared without end, and polygons with enormous coordinates ask for gigabytes. So every mask is checked here first.
"""
import math
from itertools import chain
from pathlib import Path

import numpy as np

from common.live_line import LiveLine

CHUNK = 2000  # annotations that are checked at a time
# The largest side and number of pixels of an image. A run of fewer pixels takes at most six characters of COCO's code.
SIDE, PIXELS = 2 ** 20, 2 ** 29
# The longest outline of an object, in circumferences of its image. Drawing it takes memory in proportion to its length.
LONGEST = 100

# What is wrong with a segmentation, as it reads after a number. check_masks returns places in this list, or ABSENT.
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
# Remarks on masks that are used all the same.
FLAT = 'segmentations are flat lists, [x, y, x, y, ...]: each is read as one polygon'
PAIRS = 'segmentations are lists of points, [[x, y], [x, y], ...]: each is read as one polygon'
PARTS = 'objects have polygons that cannot be drawn, and good ones, which are used alone'


def check_masks(annotations, sizes, remarks, line=None):
    """Check the segmentation of each annotation, and replace it by None if it is no mask of its image.

    annotations: N dicts; their 'segmentation' is changed. sizes: (N, 2), height and width of their images.
    remarks: a Remarks, for masks that are used but are not as COCO's format has them.
    line: a LiveLine that shows how far this has come, if given.

    Returns faults and extents. faults: (N,) int8, places in MASK_FAULTS, or ABSENT where no segmentation is given.
    extents: (N, 4), x1 y1 x2 y2 of the masks in pixels, NaN without one.
    """
    faults = np.full(len(annotations), ABSENT, np.int8)
    extents = np.full((len(annotations), 4), np.nan)
    line = line or LiveLine(None)
    with line.counting(f'checking {Path(remarks.path).name}', len(annotations), 'annotation') as count:
        for start in range(0, len(annotations), CHUNK):
            part = slice(start, start + CHUNK)
            faults[part], extents[part] = check_chunk(annotations[part], sizes[part], remarks)
            count.add(len(annotations[part]))
    return faults, extents


def check_chunk(annotations, sizes, remarks):
    """check_masks for so few annotations that all their values are held in arrays."""
    faults = np.full(len(annotations), ABSENT, np.int8)
    extents = np.full((len(annotations), 4), np.nan)
    polygons, run_lengths, forms = sorted_by_kind(annotations, faults)
    if polygons:
        check_polygons(polygons, annotations, sizes, faults, extents, remarks)
    if run_lengths:
        check_run_lengths(run_lengths, annotations, sizes, faults, extents)
    outside = (extents[:, 2:] <= 0).any(1) | (extents[:, :2] >= sizes[:, ::-1]).any(1)
    faults[outside] = EMPTY
    for number, form in forms.items():
        if faults[number] == GOOD:
            remarks.add(form, annotations[number])
    for number in np.flatnonzero(faults != GOOD):
        annotations[number]['segmentation'] = None
    return faults, extents


def sorted_by_kind(annotations, faults):
    """The segmentations of some annotations as polygons and run lengths; writes the faults of those that are neither.

    Returns [(number of the annotation, polygon)], [(number of the annotation, run lengths)], and {number of the
    annotation: FLAT or PAIRS} of those that give one polygon in another form. The latter are brought into COCO's form.
    """
    polygons = []
    run_lengths = []
    forms = {}
    for number, annotation in enumerate(annotations):
        given = annotation.get('segmentation')
        if isinstance(given, list) and given:
            if is_list_of_points(given):
                forms[number] = PAIRS
                annotation['segmentation'] = [list(chain.from_iterable(given))]
            elif all(type(value) in (int, float) for value in given):
                forms[number] = FLAT
                annotation['segmentation'] = [given]
            given = annotation['segmentation']
            if any(given) or not isinstance(given[0], list):  # [[]] is no segmentation
                polygons += [(number, polygon) for polygon in given]
        elif isinstance(given, dict) and given:
            run_lengths.append((number, given))
        elif given not in (None, '', [], {}):
            faults[number] = TEXT if isinstance(given, str) else OTHER
    return polygons, run_lengths, forms


def is_list_of_points(given):
    """Whether a list is [[x, y], [x, y], [x, y], ...]."""
    return len(given) > 2 and all(isinstance(point, list) and len(point) == 2 for point in given)


def polygon_fault(polygon):
    """What is wrong with the values of one polygon, GOOD if nothing is. They are not compared with the image."""
    if not isinstance(polygon, list):
        return OTHER if isinstance(polygon, dict) else VALUES
    if any(isinstance(value, (list, dict)) for value in polygon):
        return DEEP
    if not all(type(value) in (int, float) and -math.inf < value < math.inf for value in polygon):
        return VALUES
    if any(abs(value) > 4 * SIDE for value in polygon):
        return FAR
    if len(polygon) % 2:
        return ODD
    return FEW if len(polygon) < 6 else GOOD


def check_polygons(parts, annotations, sizes, faults, extents, remarks):
    """Write what is found of polygons into faults and extents. An object keeps those of its polygons that are good.

    parts: [(number of the annotation, polygon)]. The other arguments are those of check_masks and what it returns.
    """
    owners = np.array([number for number, _ in parts])  # (polygons,)
    found, points, counts = points_of([polygon for _, polygon in parts])
    good = np.flatnonzero(found == GOOD)
    if len(good):
        owners_of_good = owners[good]
        shapes = sizes[owners_of_good]
        low, high, lengths = measured(points, counts)
        object_lengths = np.bincount(owners_of_good, lengths, len(annotations))[owners_of_good]
        found[good[object_lengths > LONGEST * 2 * shapes.sum(1)]] = LONG
        reach = shapes.max(1, keepdims=True)
        is_far = (low < -reach).any(1) | (high > shapes[:, ::-1] + reach).any(1)
        found[good[is_far]] = FAR
        keep = found[good] == GOOD
        write_extents(extents, owners_of_good[keep], low[keep], high[keep])
    faults[owners[::-1]] = found[::-1]  # the fault of an object's first polygon
    faults[owners[found == GOOD]] = GOOD  # but none if one of its polygons is good
    partly_good = owners[(found != GOOD) & (faults[owners] == GOOD)]
    for number in dict.fromkeys(partly_good.tolist()):
        remarks.add(PARTS, annotations[number])
        places = np.flatnonzero((owners == number) & (found == GOOD))
        annotations[number]['segmentation'] = [parts[place][1] for place in places]


def points_of(polygons):
    """The points of polygons as one array, and what is wrong with the polygons.

    Returns found, (polygons,) int8, as polygon_fault has it; the points of the good ones, (points, 2); and
    how many points each of the good ones has.
    """
    found = np.zeros(len(polygons), np.int8)
    values = None
    try:
        # Nearly always all polygons are good, and that is soon seen of all of them together.
        if all(isinstance(polygon, list) and len(polygon) >= 6 and not len(polygon) % 2
               for polygon in polygons) and set(map(type, chain.from_iterable(polygons))) <= {int, float}:
            values = np.fromiter(chain.from_iterable(polygons), float)
    except OverflowError:  # An integer is so large that no float can hold it.
        values = None
    if values is None or not np.isfinite(values).all():
        found[:] = [polygon_fault(polygon) for polygon in polygons]
        polygons = [polygon for polygon, fault in zip(polygons, found) if fault == GOOD]
        values = np.fromiter(chain.from_iterable(polygons), float)
    counts = np.array([len(polygon) // 2 for polygon in polygons])
    return found, values.reshape(-1, 2), counts


def measured(points, counts):
    """Lowest and highest x and y of polygons, (polygons, 2) each, and the lengths of their outlines, (polygons,).

    points: (points, 2), those of one polygon after those of the other. counts: (polygons,), how many each
    has. The length of a line is the larger of its extents in x and y.
    """
    ends = np.cumsum(counts)
    starts = ends - counts
    low = np.minimum.reduceat(points, starts)
    high = np.maximum.reduceat(points, starts)
    lines = np.diff(points, axis=0, append=points[:1])
    lines[ends - 1] = points[starts] - points[ends - 1]  # from the last point of a polygon back to its first
    lengths = np.add.reduceat(np.abs(lines).max(1), starts)
    return low, high, lengths


def write_extents(extents, owners, low, high):
    """Write the common extents of the parts of each object. Returns the numbers of these objects.

    owners: (parts,), the object of each part; the parts of one object stand together. low, high: (parts, 2).
    """
    if not len(owners):
        return owners
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    extents[owners[first], :2] = np.minimum.reduceat(low, first)
    extents[owners[first], 2:] = np.maximum.reduceat(high, first)
    return owners[first]


def check_run_lengths(parts, annotations, sizes, faults, extents):
    """Write what is found of run lengths into faults and extents.

    parts: [(number of the annotation, run lengths as in the file)]. The other arguments are those of
    check_masks and what it returns.
    """
    runs, owners = all_runs(parts, annotations, sizes, faults)
    if not len(runs):
        return
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    numbers = owners[first]
    num_runs = np.diff(first, append=len(owners))
    pixels = sizes[numbers].prod(1)
    is_whole = ((np.minimum.reduceat(runs, first) >= 0) & (np.maximum.reduceat(runs, first) <= pixels)
                & (np.add.reduceat(runs, first) == pixels))
    faults[numbers] = np.where(is_whole, EMPTY, FILL)
    place = np.arange(len(runs)) - np.repeat(first, num_runs)
    ends = np.cumsum(runs)
    ends -= np.repeat(ends[first] - runs[first], num_runs)  # after each run, counted in pixels of its image
    is_object = np.repeat(is_whole, num_runs) & (place % 2 == 1) & (runs > 0)  # every other run is background
    owners = owners[is_object]
    low, high = rectangles(ends[is_object] - runs[is_object], ends[is_object] - 1, sizes[owners, 0])
    faults[write_extents(extents, owners, low, high)] = GOOD


def all_runs(parts, annotations, sizes, faults):
    """The run lengths of masks as one array, and the number of the annotation of each; writes faults that are
    seen at once.

    parts: as of check_run_lengths. Sizes in the annotations become integers.
    """
    codes = []  # [(number, bytes)]
    lists = []  # [(number, list of run lengths)]
    for number, given in parts:
        counts = given.get('counts')
        size = given.get('size')
        is_list_of_numbers = isinstance(size, list) and {*map(type, size)} <= {int, float}
        if not is_list_of_numbers or size != sizes[number].tolist():
            faults[number] = SIZE
            continue
        faults[number] = GOOD
        annotations[number]['segmentation'] = {**given, 'size': [int(side) for side in size]}
        if isinstance(counts, str) and counts and counts.isascii():
            codes.append((number, counts.encode()))
        elif not isinstance(counts, list) or not counts or {*map(type, counts)} != {int}:
            faults[number] = CODE
        elif min(counts) < 0 or sum(counts) != math.prod(size):
            faults[number] = FILL
        else:
            lists.append((number, counts))
    runs_of_codes, which, broken = decode([code for _, code in codes])
    code_owners = np.array([number for number, _ in codes], np.int64)
    faults[code_owners[broken]] = CODE
    list_owners = np.array([number for number, _ in lists], np.int64)
    owners_of_lists = np.repeat(list_owners, [len(counts) for _, counts in lists])
    runs_of_lists = np.fromiter(chain.from_iterable(counts for _, counts in lists), np.int64)
    owners = np.concatenate([code_owners[which], owners_of_lists])
    return np.concatenate([runs_of_codes, runs_of_lists]), owners


def rectangles(first, last, height):
    """x1 y1 and x2 y2, (runs, 2) each, of the smallest rectangles around runs of pixels, which go down column by column.

    first, last: (runs,), the first and the last pixel of each run. height: (runs,), that of its image.
    """
    left = first // height
    right = last // height
    is_one_column = left == right
    low = np.stack([left, np.where(is_one_column, first % height, 0)], 1)
    high = np.stack([right + 1, np.where(is_one_column, last % height + 1, height)], 1)
    return low, high


def decode(codes):
    """Decode the run lengths of masks from COCO's code.

    A number is written in groups of five bits, the lowest first, each as one character from '0' on. The sixth
    bit of a character says that another group follows; the fifth bit of the last group is the sign. From the
    fourth run on, a number is the difference to the run before the last.

    codes: a list of ASCII texts as bytes, none of them empty.

    Returns the runs of all codes as one int64 array, the place of the code that each run is of, and the
    places of the codes that are broken, of which no runs are returned.
    """
    sizes = np.array([len(code) for code in codes], np.int64)
    characters = np.frombuffer(b''.join(codes), np.uint8).astype(np.int64) - 48
    owners = np.repeat(np.arange(len(codes)), sizes)
    broken = np.zeros(len(codes), bool)
    broken[owners[(characters < 0) | (characters > 63)]] = True
    broken[characters[np.cumsum(sizes) - 1] & 32 > 0] = True  # The last number is cut off.
    is_good = ~broken[owners]
    characters = characters[is_good]
    owners = owners[is_good]
    if not len(characters):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.flatnonzero(broken)
    numbers, ends, num_groups = numbers_of(characters)
    owners = owners[ends]
    # No run of an image is so long, and C code may read it as another number.
    broken[owners[num_groups > 6]] = True
    is_good = ~broken[owners]
    owners = owners[is_good]
    return add_differences(numbers[is_good], owners), owners, np.flatnonzero(broken)


def numbers_of(characters):
    """The numbers that characters of COCO's code hold; the places of their last characters; how many
    characters each has.

    Numbers of more than six characters are wrong.
    """
    ends = np.flatnonzero(characters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    num_groups = ends - starts + 1
    place = np.arange(len(characters)) - np.repeat(starts, num_groups)
    numbers = np.add.reduceat((characters & 31) << 5 * place.clip(max=6), starts)
    is_negative = characters[ends] & 16 > 0
    numbers -= np.where(is_negative, 1 << 5 * num_groups.clip(max=6), 0)
    return numbers, ends, num_groups


def add_differences(runs, owners):
    """Run lengths from the numbers in COCO's code: from the fourth on, these are differences to the run
    before the last.

    runs: (runs,), which is overwritten. owners: (runs,), the code of each.
    """
    place = np.arange(len(runs)) - np.searchsorted(owners, owners)
    # The odd runs of a code are one series of differences, and its even ones from the third on another.
    for parity in (1, 0):
        chosen = np.flatnonzero((place % 2 == parity) & (place > 0))
        if len(chosen):
            first = np.flatnonzero(np.diff(owners[chosen], prepend=-1))
            sums = np.cumsum(runs[chosen])
            sums_before = sums[first] - runs[chosen[first]]
            runs[chosen] = sums - np.repeat(sums_before, np.diff(first, append=len(chosen)))
    return runs
