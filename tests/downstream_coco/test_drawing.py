"""Pictures of found objects: of any size, with labels that stand in the picture and do not cover one another."""
import itertools

import numpy as np
import pytest
import torch

from downstream_coco.drawing import colour_of, drawn, place_of_label, to_draw

CATEGORIES = [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}]


def found(*boxes, labels=None, scores=None, masks=None):
    one = {'boxes': torch.tensor(boxes, dtype=torch.float).view(-1, 4),
           'labels': torch.tensor(labels or [1] * len(boxes), dtype=torch.long),
           'scores': torch.tensor(scores or [0.9] * len(boxes))}
    return one if masks is None else {**one, 'masks': masks}


def has_colour(picture, category):
    return (np.asarray(picture) == colour_of(category)).all(2)


@pytest.mark.parametrize(('size', 'shown'), [((1, 1), (800, 800)), ((30, 60), (800, 400)), ((800, 600), (600, 800)),
                                             ((1000, 1500), (1500, 1000))])
def test_small_images_are_enlarged_with_their_boxes(size, shown):
    height, width = size
    picture = drawn(torch.zeros(3, height, width, dtype=torch.uint8),
                    found([width / 2, height / 2, width, height], labels=[2]), CATEGORIES)
    assert picture.size == shown
    places = np.argwhere(has_colour(picture, 7))
    assert places[:, 1].max() >= shown[0] - 2 and places[:, 0].max() >= shown[1] - 2
    lines = has_colour(picture, 7)[shown[1] * 9 // 10]
    assert 4 <= lines.sum() <= max(shown) / 50  # two sides of the box, as wide as the picture asks


def test_a_picture_without_objects_is_the_image():
    image = torch.randint(0, 256, (3, 900, 700), dtype=torch.uint8)
    assert np.array_equal(np.asarray(drawn(image, found(), CATEGORIES)), image.permute(1, 2, 0).numpy())
    assert drawn(torch.zeros(1, 20, 30), found(masks=torch.zeros(0, 1, 28, 28)), CATEGORIES).size == (800, 533)


def test_masks_are_drawn_in_their_boxes():
    masks = torch.zeros(2, 1, 28, 28)
    masks[0] = 1
    masks[1, :, :14] = 1
    picture = drawn(torch.zeros(3, 800, 800, dtype=torch.uint8),
                    found([100, 100, 300, 300], [500, 500, 799, 799], labels=[1, 2], masks=masks), CATEGORIES)
    pixels = np.asarray(picture)
    assert pixels[200, 200].tolist() == pytest.approx([0.4 * value for value in colour_of(3)], abs=1)
    assert pixels[590, 600].tolist() == pytest.approx([0.4 * value for value in colour_of(7)], abs=1)
    assert not pixels[700, 600].any() and not pixels[400, 400].any() and not pixels[200, 400].any()


def test_a_mask_at_the_border_of_the_image():
    picture = drawn(torch.zeros(3, 800, 800, dtype=torch.uint8),
                    found([0, 0, 799.5, 799.5], [0, 790, 800, 800], masks=torch.ones(2, 1, 28, 28)), CATEGORIES)
    assert np.asarray(picture)[400, 400].any()


def test_of_boxes_that_overlap_the_most_certain_one_is_drawn_whatever_its_class():
    objects = found([0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 5], labels=[1, 2, 1, 1],
                    scores=[0.6, 0.9, 0.5, 0.4])
    assert to_draw(objects, 0.6).tolist() == [1, 2, 3]
    assert to_draw(objects, 1.0).tolist() == [1, 0, 2, 3]
    assert to_draw(objects, 0.3).tolist() == [1, 2]
    assert to_draw(found(), 0.5).tolist() == []


def test_the_colour_of_a_category_is_that_of_its_id():
    assert len({colour_of(number) for number in range(91)}) == 91
    assert len({colour_of(name) for name in ('cat', 'dog', 1.5, 'a' * 200)}) == 4  # ids may be texts or other numbers
    assert colour_of('cat') == colour_of('cat') and all(0 <= part <= 255 for part in colour_of('cat'))
    first = drawn(torch.zeros(3, 800, 800), found([9, 99, 500, 500]), CATEGORIES)
    second = drawn(torch.zeros(3, 800, 800), found([9, 99, 500, 500], labels=[2]), CATEGORIES[::-1])
    assert first.tobytes() == second.tobytes() and has_colour(first, 3).any()


def area_of_overlap(one, other):
    return max(0, min(one[2], other[2]) - max(one[0], other[0])) * max(0, min(one[3], other[3]) - max(one[1], other[1]))


@pytest.mark.parametrize('box', [(0, 0, 100, 100), (0, 0, 800, 600), (790, 590, 800, 600), (-20, -20, 900, 700),
                                 (400, 0, 401, 600), (0, 599, 800, 600)])
def test_labels_stand_in_the_picture_and_not_on_one_another(box):
    labels = []
    for width in (60, 120, 200):
        left, top = place_of_label((width, 20), box, labels, (800, 600))
        assert 0 <= left <= 800 - width and 0 <= top <= 580
        labels.append((left, top, left + width - 1, top + 19))
    assert not any(area_of_overlap(*pair) for pair in itertools.combinations(labels, 2))


def test_a_label_without_a_free_place_stands_where_it_covers_least():
    full = [(0, 0, 800, 590)]
    assert place_of_label((100, 20), (300, 570, 350, 590), full, (800, 600))[1] == 580
    assert place_of_label((900, 700), (0, 0, 10, 10), [], (800, 600)) == (0, 0)


def test_a_name_of_any_length_and_any_letters():
    for name in ('', 'x' * 500, 'a\nb', '\udcff漢'):
        drawn(torch.zeros(3, 10, 900), found([0, 0, 5, 5]), [{'id': 1, 'name': name}])
