"""Pictures of segmented images: the colours of the classes over the image, and a legend; and masks as files.

A mask is an array (h, w) of class numbers, 0 to K - 1, with IGNORE where pixels are ignored.
"""
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from common.pictures import (
    GAP,
    PAPER,
    SMALLEST_LETTERS,
    as_image,
    enlarged,
    font_of,
    framed,
    side_by_side,
    stacked,
    written,
)
from common.words import printable
from downstream_ade20k.classes import IGNORE
from downstream_ade20k.legend import Entry, Legend, percent

OPACITY = 0.5  # of the colours over the image
LETTERS = 1 / 42  # height of letters, as a share of the long side of the image
LINE = 1 / 400  # width of the lines between classes, as a share of it
BELOW = 1 / 3  # height of a legend below pictures, at most, as a share of theirs
BESIDE = 1 / 2  # width of a legend beside pictures, at most, as a share of their height


def drawn(image, prediction, classes, truth=None):
    """Draw the classes of an image over it, with a legend of those that are there.

    Args:
        image: (C, h, w), integers or floats in [0, 1].
        prediction: a mask (h, w).
        classes: a Classes, which has their names and colours.
        truth: a mask (h, w), which is drawn beside the prediction. None for none.

    Returns a PIL image. Small images are enlarged. The legend is below pictures that are wider than high, and
    beside others.
    """
    picture = enlarged(as_image(image))
    letters = max(SMALLEST_LETTERS, round(max(picture.size) * LETTERS))
    masks = [prediction] if truth is None else [prediction, truth]
    row = side_by_side([with_classes(picture, mask, classes, letters) for mask in masks])
    if truth is not None:
        captions = [written(text, picture.width, letters) for text in (caption(prediction, truth), 'truth')]
        row = stacked([side_by_side(captions), row])
    legend = Legend(entries_of(masks, classes), letters, () if truth is None else ('predicted', 'true'))
    if row.height > row.width:
        return framed(beside(row, legend.drawn(round(row.height * BESIDE), row.height)))
    return framed(stacked([row, legend.drawn(row.width, round(row.height * BELOW))], GAP))


def beside(picture, legend):
    """Return two PIL images of any sizes side by side."""
    left = picture.width + 2 * GAP
    both = Image.new('RGB', (left + legend.width, max(picture.height, legend.height)), PAPER)
    both.paste(picture, (0, 0))
    both.paste(legend, (left, 0))
    return both


def caption(prediction, truth):
    """Return what stands above a prediction beside the truth."""
    share = accuracy(prediction, truth)
    return 'prediction' if share is None else f'prediction, {percent(share)} right'


def accuracy(prediction, truth):
    """Return the share of the pixels, without ignored ones, that are right; None if all are ignored."""
    valid = truth != IGNORE
    return float((prediction == truth)[valid].mean()) if valid.any() else None


def with_classes(picture, mask, classes, letters):
    """Return a PIL image with the classes of a mask: their colours over it, white lines where two of them meet,
    and names where they have room.

    mask: of any size; it is resized to that of the picture. Ignored pixels stay as they are.
    letters: height of the letters, in pixels.
    """
    mask = resized(mask, picture.size)
    pixels = np.asarray(picture)
    colours = np.array(classes.colours, np.float32)[mask]  # IGNORE takes the last colour, which is not used
    mixed = (1 - OPACITY) * pixels + OPACITY * colours
    shown = np.where((mask == IGNORE)[..., None], pixels, mixed + 0.5).astype(np.uint8)
    shown[lines_between(mask)] = 255
    shown = Image.fromarray(shown)
    write_names(shown, mask, classes, letters)
    return shown


def resized(mask, size):
    """Return a mask at another size (width, height), by the nearest pixels."""
    height, width = mask.shape
    columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
    return mask[rows[:, None], columns]


def lines_between(mask):
    """Return where lines between classes are drawn, bool (h, w): on both sides of where they meet."""
    line = np.zeros(mask.shape, bool)
    down = mask[1:] != mask[:-1]
    across = mask[:, 1:] != mask[:, :-1]
    line[1:] |= down
    line[:-1] |= down
    line[:, 1:] |= across
    line[:, :-1] |= across
    more = round(max(mask.shape) * LINE / 2) - 1  # pixels by which each side is wider than one
    if more > 0:
        line = np.asarray(Image.fromarray(line).convert('L').filter(ImageFilter.MaxFilter(2 * more + 1))) > 0
    return line


def write_names(picture, mask, classes, letters):
    """Write the name of each class into a PIL image, at a place that is all of that class, if there is one.

    mask: (h, w) of the picture's size.
    """
    draw = ImageDraw.Draw(picture)
    font = font_of(letters)
    step = max(1, letters // 4)  # places are looked for in every so many pixels
    small = mask[::step, ::step]
    for number in np.unique(mask[mask != IGNORE]).tolist():
        name = printable(classes.names[number])
        size = [round((length + letters) / step) for length in (font.getlength(name), letters)]
        place = place_inside(small == number, *size)
        if place is not None:
            draw.text([step * side for side in place], name, 'white', font, 'mm',
                      stroke_width=max(1, letters // 9), stroke_fill='black')


def place_inside(inside, width, height):
    """Return the middle (x, y) of a box that lies inside of a region, None if there is none.

    Of several heights of the box, from three times the one that is asked for, the first is taken that has a
    place; of its places, the one nearest to the middle of all of them.

    inside: bool (h, w), the region. width, height: of the box, in its pixels.
    """
    sums = np.pad(inside, ((1, 0), (1, 0))).cumsum(0, np.int64).cumsum(1)
    for tall in (3 * height, 2 * height, height):
        if tall > inside.shape[0] or width > inside.shape[1]:
            continue
        counts = sums[tall:, width:] - sums[:-tall, width:] - sums[tall:, :-width] + sums[:-tall, :-width]
        places = np.argwhere(counts == tall * width)
        if len(places):
            top, left = places[((places - places.mean(0)) ** 2).sum(1).argmin()].tolist()
            return left + width / 2, top + tall / 2
    return None


def shares_of(mask, count):
    """Return the share of the pixels that each of `count` classes has in a mask, float64 (count,).

    Ignored pixels belong to no class: where there are some, the sum is less than 1.
    """
    return np.bincount(mask[mask != IGNORE].ravel(), minlength=count) / mask.size


def largest_first(shares):
    """Return the numbers of the classes whose share is not 0, the one with the largest share first."""
    return [number for number in np.argsort(-shares, kind='stable').tolist() if shares[number]]


def entries_of(masks, classes):
    """Return the Entry of each class that is in one of the masks, the largest first, and at last of what is
    ignored, if something is.
    """
    shares = np.stack([shares_of(mask, len(classes)) for mask in masks], 1)
    entries = []
    for number in largest_first(shares.sum(1)):
        name = printable(classes.names[number])
        entries.append(Entry(name, classes.colours[number], tuple(shares[number].tolist())))
    ignored = tuple(float((mask == IGNORE).mean()) for mask in masks)
    if any(ignored):
        entries.append(Entry('ignored', None, ignored))
    return entries


def as_ids(mask, classes):
    """Return a mask without ignored pixels as a PIL image of the data set's ids, as a file of it holds them.

    It has 8 bits, and the colours of the classes as its palette; or 16 bits, if there are ids above 255.
    """
    ids = np.array(classes.ids)[mask]
    if max(classes.ids) > 255:
        return Image.fromarray(ids.astype(np.uint16))
    palette = np.zeros((256, 3), np.uint8)
    palette[list(classes.ids)] = classes.colours
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(palette.tobytes())
    return image
