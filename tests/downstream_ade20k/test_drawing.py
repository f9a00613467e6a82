"""Pictures of segmented images: colours, lines, names and legends of any size of image; and masks as files."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from downstream_ade20k.classes import IGNORE, Classes
from downstream_ade20k.drawing import (
    OPACITY,
    accuracy,
    as_ids,
    drawn,
    entries_of,
    lines_between,
    place_inside,
    resized,
    shares_of,
    with_classes,
)

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
CLASSES = Classes((4, 7, 9), ('cat', 'dog', 'meadow'), COLOURS, (255,))
MARGIN = 8  # pixels around a sheet


def mask_of(*rows):
    return np.array(rows, np.int16)


def halves(height, width):
    """A mask with class 0 on the left and class 2 on the right."""
    mask = np.zeros((height, width), np.int16)
    mask[:, width // 2:] = 2
    return mask


def mixed(value, number):
    return [round((1 - OPACITY) * value + OPACITY * part) for part in COLOURS[number]]


@pytest.mark.parametrize('size', [(1, 1), (30, 60), (60, 30), (900, 700)])
def test_colours_lie_over_the_image_where_the_mask_has_them(size):
    height, width = size
    image = torch.full((3, height, width), 100, dtype=torch.uint8)
    picture = np.asarray(drawn(image, halves(height, width), CLASSES))
    scale = max(1, 800 / max(size))
    rows, columns = round(scale * height), round(scale * width)
    inside = picture[MARGIN:MARGIN + rows, MARGIN:MARGIN + columns]
    if width > 1:
        assert inside[rows // 4, 5].tolist() == mixed(100, 0)
    assert inside[rows // 4, -5].tolist() == mixed(100, 2)
    line = (inside == 255).all(2)[rows // 4]
    assert np.flatnonzero(line).tolist() == ([columns // 2 - 1, columns // 2] if width > 1 else [])
    assert (picture[:, :MARGIN] == 255).all() and (picture[:, MARGIN + columns:MARGIN + columns + MARGIN] == 255).all()


def test_ignored_pixels_stay_as_they_are():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8))
    mask = np.full((100, 100), IGNORE, np.int16)
    assert np.array_equal(np.asarray(with_classes(noise, mask, CLASSES, 14)), np.asarray(noise))
    mask[50:] = 1
    shown = np.asarray(with_classes(noise, mask, CLASSES, 14))
    assert np.array_equal(shown[:49], np.asarray(noise)[:49]) and (shown[49:51] == 255).all()
    assert not np.array_equal(shown[51:], np.asarray(noise)[51:])


def test_lines_stand_on_both_sides_and_are_wider_in_large_pictures():
    mask = mask_of([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1])
    assert np.flatnonzero(lines_between(mask)[0]).tolist() == [2, 3]
    assert np.flatnonzero(lines_between(mask.T)[:, 1]).tolist() == [2, 3]
    assert np.flatnonzero(lines_between(halves(3, 2400))[1]).tolist() == [*range(1197, 1203)]
    assert not lines_between(np.zeros((5, 2400), np.int16)).any()


@pytest.mark.parametrize(('old', 'new'), [((3, 5), (800, 480)), ((7, 4), (13, 29)), ((50, 60), (7, 9)), ((1, 1), (3, 2))])
def test_masks_are_resized_to_the_nearest_pixel(old, new):
    mask = np.random.default_rng(1).integers(-1, 30_000, old).astype(np.int16)
    nearest = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].double(), new[::-1], mode='nearest-exact')
    assert np.array_equal(resized(mask, new), nearest[0, 0].numpy())


def test_a_name_stands_inside_of_its_class():
    inside = np.zeros((40, 60), bool)
    inside[10:20, 5:50] = True
    inside[25:28, :] = True
    left, top = place_inside(inside, 20, 6)
    assert 5 <= left - 10 and left + 10 <= 50 and 10 <= top - 3 and top + 3 <= 20
    assert place_inside(inside, 21, 3) == (27.5, 14.5)  # in the middle of the higher region
    assert place_inside(inside, 60, 3) == (30, 26.5)  # as long as the flat one
    assert place_inside(inside, 61, 1) is None and place_inside(inside, 46, 4) is None and place_inside(inside, 5, 41) is None


def test_a_class_without_room_for_its_name_has_none():
    mask = halves(800, 800)
    mask[:, 760:] = 1
    shown = np.asarray(with_classes(Image.new('RGB', (800, 800)), mask, CLASSES, 20))
    dark = (shown == 0).all(2)  # around the letters
    assert dark[:, :400].any() and dark[:, 400:760].any() and not dark[:, 760:].any()


def test_shares_count_all_pixels_and_entries_begin_with_the_largest():
    mask = mask_of([1, 1, 2, IGNORE])
    assert shares_of(mask, 3).tolist() == [0, 0.5, 0.25]
    entries = entries_of([mask], CLASSES)
    assert [(entry.name, entry.colour, entry.shares) for entry in entries] == [
        ('dog', COLOURS[1], (0.5,)), ('meadow', COLOURS[2], (0.25,)), ('ignored', None, (0.25,))]
    entries = entries_of([mask_of([1, 1, 2, 2]), mask_of([0, 2, 2, 2])], CLASSES)
    assert [(entry.name, entry.shares) for entry in entries] == [
        ('meadow', (0.5, 0.75)), ('dog', (0.5, 0)), ('cat', (0, 0.25))]


def test_accuracy_passes_over_ignored_pixels():
    assert accuracy(mask_of([0, 1, 1, 2]), mask_of([0, 1, 2, IGNORE])) == pytest.approx(2 / 3)
    assert accuracy(mask_of([0]), mask_of([IGNORE])) is None


def places_of(picture, colour):
    return np.argwhere((np.asarray(picture) == colour).all(2))


def test_the_truth_stands_beside_the_prediction():
    image = torch.zeros(3, 600, 800)
    alone = drawn(image, halves(600, 800), CLASSES)
    truth = np.full((600, 800), 1, np.int16)
    truth[:, 600:] = IGNORE
    both = drawn(image, halves(600, 800), CLASSES, truth)
    assert alone.width == 800 + 2 * MARGIN and both.width == 2 * 800 + 3 * MARGIN
    columns = places_of(both, tuple(mixed(0, 1)))[:, 1]
    assert MARGIN + 800 + MARGIN <= columns.min() and columns.max() < MARGIN + 800 + MARGIN + 600
    assert places_of(both, tuple(mixed(0, 0)))[:, 1].max() < MARGIN + 400
    for colour in COLOURS:  # the squares of the legend, below both
        assert places_of(both, colour)[:, 0].min() > 600
    drawn(image, halves(600, 800), CLASSES, np.full((600, 800), IGNORE, np.int16))


def test_the_legend_is_beside_high_pictures_and_below_wide_ones():
    wide = drawn(torch.zeros(3, 300, 400), halves(300, 400), CLASSES)
    assert wide.width == 800 + 2 * MARGIN and places_of(wide, COLOURS[0])[:, 0].min() > MARGIN + 600
    high = drawn(torch.zeros(1, 400, 300), halves(400, 300), CLASSES)
    assert high.height == 800 + 2 * MARGIN and places_of(high, COLOURS[0])[:, 1].min() > MARGIN + 600


@pytest.mark.parametrize('size', [(1, 900), (900, 1), (8, 1200), (1200, 8)])
@pytest.mark.parametrize('with_truth', [False, True])
def test_images_and_names_of_any_shape(size, with_truth):
    classes = Classes((0, 1), ('x' * 500, 'a\nb\udcff漢'), COLOURS[:2])
    mask = np.zeros(size, np.int16)
    mask.flat[::2] = 1
    drawn(torch.zeros(3, *size), mask, classes, mask if with_truth else None)


def read_back(image):
    file = io.BytesIO()
    image.save(file, 'PNG')
    return Image.open(file)


def test_a_mask_file_has_the_ids_of_the_data_set_and_their_colours():
    mask = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.int16)
    image = read_back(as_ids(mask, CLASSES))
    assert image.mode == 'P' and np.array_equal(np.asarray(image), np.array(CLASSES.ids)[mask])
    assert np.array_equal(np.asarray(image.convert('RGB')), np.array(COLOURS)[mask])
    assert np.array_equal(CLASSES.numbers(np.asarray(image)), mask)


def test_a_mask_file_has_16_bits_where_an_id_needs_them():
    classes = Classes((1, 255, 60_000), CLASSES.names, COLOURS, (0,))
    mask = mask_of([0, 1, 2], [2, 1, 0])
    image = read_back(as_ids(mask, classes))
    assert image.mode.startswith('I') and np.array_equal(np.asarray(image), [[1, 255, 60_000], [60_000, 255, 1]])
    assert read_back(as_ids(mask, Classes((1, 2, 255), CLASSES.names, COLOURS, (0,)))).mode == 'P'
