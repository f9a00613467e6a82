"""What is asked of masks before a training: are their values classes, and is there something to learn?"""
import filecmp
import os

import numpy as np

from common.words import counted, first_of
from downstream_ade20k.classes import VALUES, Classes
from downstream_ade20k.survey import survey

MANY = 1000  # values: more are numbers of objects rather than classes
FEW = 5  # values that may be meant to be ignored; of more, the file of classes is rather the wrong one
RARE = 0.01  # share of the pixels
SELDOM = 2  # masks: a value that so few hold may be a slip, where values are usually in SELDOM_BY times as many
SELDOM_BY = 10
COMPARED = 1000  # images with the same name in training and validation, whose contents are compared


def check_masks(train, val, classes, ignored, is_divided, line):
    """Read and check all masks. Returns (classes, shapes, remarks).

    train, val: SegmentationImages. line: a LiveLine.
    classes: the Classes. If None, each value that the training masks hold is a class, except those `ignored`.
    is_divided: whether the validation images were held out of the training images. Then the values of both are classes.

    Returned are the Classes; height and width of the masks, ((N, 2) of train, (M, 2) of val); and sentences
    on what is odd.

    Raises ValueError for what cannot be trained on.
    """
    of_train = survey(train, classes, line, 'training masks')
    if classes is not None:
        refuse_unknown(of_train, classes)
    of_val = survey(val, classes, line, 'validation masks')
    if classes is None:
        pixels = of_train.pixels + of_val.pixels * is_divided
        classes = found_classes(pixels, ignored, train.mask_root)
        remarks = remarks_on_rare(pixels, classes, train.mask_root)
        remarks += remarks_on_seldom([of_train, of_val] if is_divided else [of_train], classes)
    else:
        remarks = []
    refuse_unknown(of_val, classes)
    for each, what in ((of_train, 'training'), (of_val, 'validation')):
        remarks += remarks_on_ignored(each, classes, what)
        remarks += remarks_on_turned(each)
    remarks += remarks_on_absent(of_train, of_val, classes)
    remarks += remarks_on_same(train, val)
    return classes, (of_train.shapes, of_val.shapes), remarks


def check_validation_masks(val, classes, line):
    """(shapes, remarks) of validation masks alone, as of check_masks, which says what the arguments are."""
    of_val = survey(val, classes, line, 'validation masks')
    refuse_unknown(of_val, classes)
    return of_val.shapes, remarks_on_ignored(of_val, classes, 'validation') + remarks_on_turned(of_val)


def found_classes(pixels, ignored, folder):
    """The Classes of all values that masks hold, without those that are ignored.

    pixels: of each value, (VALUES,). folder: of the masks. Raises ValueError if these can be no classes.
    """
    found = [value for value in np.flatnonzero(pixels).tolist() if value not in ignored]
    if len(found) > MANY:
        raise ValueError(f'the masks in {folder} hold {len(found):,} different values, as numbers of '
                         'objects would be: the values of masks are classes. If these are, name them in a '
                         'file, --classes=FILE')
    if len(found) < 2:
        held = f'nothing but the value {found[0]}' if found else 'no class'
        dropped = [value for value in sorted(ignored) if pixels[value]]
        advice = ': there is nothing to tell apart'
        if dropped:
            unheld = next(value for value in range(254, -1, -1) if not pixels[value])
            advice = (f', and {first_of(dropped)}, which is ignored. If that is a class, ignore a value '
                      f'that they do not hold, --ignore={unheld}')
        raise ValueError(f'the masks in {folder} hold {held}{advice}')
    return Classes.of_ids(found, ignored)


def refuse_unknown(found, classes):
    """Raises ValueError if masks hold values that are neither classes nor ignored. found: a Survey."""
    known = {*classes.ids, *classes.ignored}
    unknown = [value for value in found.found.tolist() if value not in known]
    if not unknown:
        return
    places = found.masks_with(unknown)
    first = [value for value in found.values[places[0]].tolist() if value not in known][0]
    others = ','.join(map(str, (*classes.ignored, *unknown)))
    advice = f', or ignore the others, --ignore={others}' if len(unknown) <= FEW else ''
    raise ValueError(f'{len(places):,} of {counted(len(found.values), "mask")} in {found.images.mask_root} '
                     f'hold values that are no classes, {first_of(unknown)}; '
                     f'{found.images.mask_path(places[0])}: {first}. The classes have the values '
                     f'{ranges(classes.ids)}. Name all of them in a file, --classes=FILE{advice}')


def remarks_on_rare(pixels, classes, folder):
    """Sentences, none or one, on values that are so rare that they may come from smoothed edges."""
    shares = np.sort(pixels[list(classes.ids)] / pixels[list(classes.ids)].sum())
    rare = int((np.cumsum(shares) < RARE).sum())
    if rare < 4 or 2 * rare < len(classes):
        return []
    return [f'{folder}: {rare} of the {len(classes)} values of the masks have less than {100 * RARE:g} % of '
            'the pixels together; if they come from edges that were smoothed as the masks were resized or '
            'saved, draw the masks again, or name the classes, --classes=FILE']


def remarks_on_seldom(surveys, classes):
    """Sentences, none or one, on values in so few masks, compared with others, that they may be slips."""
    masks = [(found, place, held) for found in surveys for place, held in enumerate(found.values)]
    counts = np.zeros(VALUES, np.int64)
    for _, _, held in masks:
        counts[held] += 1
    usual = np.median(counts[list(classes.ids)])
    most = min(SELDOM, usual / SELDOM_BY)
    seldom = [value for value in classes.ids if counts[value] <= most]
    if not seldom:
        return []
    found, place, _ = next(mask for mask in masks if np.isin(mask[2], seldom).any())
    one, few = len(seldom) == 1, f'{SELDOM if max(counts[seldom]) > 1 else 1} of {len(masks):,} masks'
    said = f'value {seldom[0]} is' if one else f'values {first_of(seldom)} are each'
    ignored = ','.join(map(str, (*classes.ignored, *seldom)))
    advice = f', or ignore {"it" if one else "them"}, --ignore={ignored}' if len(seldom) <= FEW else ''
    return [f'{found.images.mask_root}: the {said} in {"" if one else "at most "}{few}, such as '
            f'{found.images.mask_path(place)}. If {"that is no class" if one else "they are no classes"}, mend the '
            f'masks{advice}']


def remarks_on_same(train, val):
    """Sentences, none or one, on validation images that are training images too, with the same name."""
    def is_same(path):
        try:
            return filecmp.cmp(train.root / path, val.root / path, shallow=False)
        except OSError:  # It is named when it is read.
            return False

    names = sorted({*train.paths.tolist()} & {*val.paths.tolist()})[:COMPARED]
    same = [name for name in map(os.fsdecode, names) if is_same(name)]
    if not same:
        return []
    return [f'validation images are training images too, such as {first_of(same, 2)}: what is measured on them is '
            'too good']


def remarks_on_ignored(found, classes, what):
    """Sentences on pixels that are ignored. found: a Survey. what: 'training' or 'validation'.

    Raises ValueError if all pixels of all masks are ignored.
    """
    ignored = list(classes.ignored)
    share = found.pixels[ignored].sum() / found.pixels.sum()
    values = first_of([value for value in ignored if found.pixels[value]])
    if share == 1:
        raise ValueError(f'all pixels of all {what} masks in {found.images.mask_root} are ignored, with the '
                         f'values {values}: give masks with other values, or another --ignore')
    remarks = []
    if share > 0.5:
        remarks.append(f'{100 * share:.0f} % of the pixels of the {what} masks are ignored, with the values '
                       f'{values}')
    wholly = [place for place, held in enumerate(found.values) if np.isin(held, ignored).all()]
    if wholly:
        remarks.append(f'{counted(len(wholly), f"{what} mask")} ignore{"s" * (len(wholly) == 1)} all '
                       f'pixels, such as {found.images.mask_path(wholly[0])}')
    return remarks


def remarks_on_turned(found):
    """Sentences, none or one, on images that fit their masks as they are stored, and turned by EXIF as well.

    found: a Survey.
    """
    if not found.ambiguous:
        return []
    name = found.images.name(found.ambiguous[0])
    return [f'{counted(len(found.ambiguous), "image")} with an EXIF orientation, such as {name}: the mask has the size of '
            'the image whether that is turned or not. It is not turned, but read as it is stored']


def remarks_on_absent(of_train, of_val, classes):
    """Sentences on classes that the training masks lack. of_train, of_val: each a Survey."""
    absent = [number for number, value in enumerate(classes.ids) if not of_train.pixels[value]]
    measured = [number for number in absent if of_val.pixels[classes.ids[number]]]
    only_in_val = 'in validation masks, but in no training mask: they count as not found'
    remarks = []
    for numbers, said in ((absent, 'in no training mask'), (measured, only_in_val)):
        if numbers:
            names = first_of([f'{classes.names[number]} ({classes.ids[number]})' for number in numbers])
            remarks.append(f'{len(numbers)} of {len(classes)} classes are {said}: {names}')
    return remarks


def ranges(values):
    """Ascending or other whole numbers as text, with runs of them in short: '1 to 150', '0, 2 to 5, 9'."""
    values = sorted(values)
    starts = [place for place, value in enumerate(values) if not place or value != values[place - 1] + 1]
    runs = [(values[start], values[stop - 1]) for start, stop in zip(starts, [*starts[1:], len(values)])]
    return first_of([f'{first} to {last}' if first < last else str(first) for first, last in runs])
