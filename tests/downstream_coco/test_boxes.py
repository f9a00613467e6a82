"""Boxes in another form, and boxes that their masks contradict."""
import itertools

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from downstream_coco.data import CocoImages
from downstream_coco.evaluation import average_precision
from tests.downstream_coco.odd_files import BOX, CODE, HEIGHT, LIST, PIXELS, POLYGON, WIDTH, lengths, polygon, written


def boxes_of(count=40, seed=0):
    """Boxes (count, 4) x, y, width, height of 8 to 20 px, anywhere in an image of 60 x 80."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(8, 21, (count, 2))
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners.round(1), sides], 1)


FORMS = {'corners': lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1),
         'x and y of the centre': lambda b: np.concatenate([b[:, :2] + b[:, 2:] / 2, b[:, 2:]], 1),
         "shares of the image's": lambda b: b / (WIDTH, HEIGHT, WIDTH, HEIGHT)}


@pytest.mark.parametrize(('form', 'masks'), [  # small objects by their centres lie in their images
    pair for pair in itertools.product(FORMS, (True, False)) if pair != ('x and y of the centre', False)])
def test_boxes_of_another_form_are_refused(tmp_path, form, masks):
    right = boxes_of()
    objects = [{'bbox': box, 'segmentation': polygon(true) if masks else None}
               for box, true in zip(FORMS[form](right).tolist(), right.tolist())]
    for heads in (None, False):  # boxes of another form are wrong with masks or without
        with pytest.raises(ValueError, match=rf'look like {form}.*Convert') as error:
            CocoImages(*written(tmp_path, objects), masks=heads)
        assert '[x, y, width, height] in pixels' in str(error.value) and 'annotation 10' in str(error.value)


def test_centres_of_large_objects_are_found_without_masks(tmp_path):
    objects = [{'bbox': [x, y, 2 * min(x, WIDTH - x), 2 * min(y, HEIGHT - y)], 'segmentation': None}
               for x in (20, 30, 40, 50, 60) for y in (20, 30, 40)]
    with pytest.raises(ValueError, match='reach beyond their images.* look like x and y of the centre'):
        CocoImages(*written(tmp_path, objects))


def test_corners_of_a_few_objects_far_outside(tmp_path):
    """Fewer than half reach beyond the image, for most lie in its left upper quarter; but all fit as corners."""
    objects = [{'bbox': box, 'segmentation': None} for box in [[5, 5, 20, 20], [10, 12, 30, 25], [8, 4, 25, 30]] * 3
               + [[50, 20, 70, 40], [10, 45, 30, 58]]]
    with pytest.raises(ValueError, match='2 of 11 boxes reach far beyond their images.*look like corners'):
        CocoImages(*written(tmp_path, objects))
    objects[0]['bbox'] = [40, 5, 20, 20]  # one that is no corners
    images = CocoImages(*written(tmp_path, objects))
    assert '2 boxes reach beyond their images: they are cut at the border; for example annotation 109' in images.remarks[0]
    assert images[0][1]['boxes'][9].tolist() == [50, 20, 80, 60] and len(images[0][1]['labels']) == 11


@pytest.mark.parametrize(('shift', 'good'), [([0, 0, 0, 0], True), ([1, -1, 1, 1], True), ([2, 2, 0, 0], True),
                                             ([3, 0, 0, 0], True), ([4, 0, 0, 0], False), ([0, 3, 0, 0], False),
                                             ([0, 0, 12, 0], False), ([30, 20, 0, 0], False), ([-20, -10, 20, 10], False)])
def test_masks_that_contradict_their_boxes_are_left_out(tmp_path, shift, good):
    """Of a box of 30 x 24 px the side may be 3 px off, and 2.4 px."""
    for segmentation in ([POLYGON], lengths(CODE), lengths(LIST)):
        moved = {'bbox': np.add(BOX, shift).tolist(), 'segmentation': segmentation}
        folder, file = written(tmp_path, [moved, {}, {}])
        images = CocoImages(folder, file)
        assert len(images[0][1]['labels']) == (3 if good else 2)
        assert images.left_out == ({} if good else {'objects whose mask does not fit their box': 1})
        assert not good or not images.remarks
        assert good or '1 masks reach elsewhere than their boxes' in images.remarks[0] and 'annotation 100' in images.remarks[0]
        assert len(CocoImages(folder, file, masks=False)[0][1]['labels']) == 3  # the boxes may be right
        results = [{'image_id': 7, 'category_id': 3, 'score': 1.0, 'bbox': BOX, 'segmentation': coco_mask.encode(PIXELS)}] * 2
        if not good:
            assert average_precision(file, results, [7], True)['box_AP'] == pytest.approx(100)  # the truth is two objects


def test_a_crowd_counts_neither_way_although_its_mask_contradicts_its_box(tmp_path):
    folder, file = written(tmp_path, [{}, {}, {'iscrowd': 1, 'bbox': [0, 0, 10, 10], 'segmentation': lengths(CODE)}])
    assert '1 masks reach elsewhere than their boxes' in CocoImages(folder, file).remarks[0]
    results = [{'image_id': 7, 'category_id': 3, 'score': 0.5, 'bbox': BOX}] * 2
    within = {'image_id': 7, 'category_id': 3, 'score': 1.0, 'bbox': [1, 1, 8, 8]}
    results = [{**one, 'segmentation': coco_mask.encode(PIXELS)} for one in (within, *results)]
    assert average_precision(file, results, [7], True)['box_AP'] == pytest.approx(100)


def test_masks_of_other_objects_are_refused_but_for_boxes_alone(tmp_path):
    folder, file = written(tmp_path, [{'bbox': [1, 1, 10, 10]}] * 3 + [{}])
    with pytest.raises(ValueError, match=r'3 of 4 boxes lie elsewhere than the masks.*--heads=box'):
        CocoImages(folder, file)
    assert len(CocoImages(folder, file, masks=False)[0][1]['labels']) == 4


@pytest.mark.parametrize('box', [[1, 1, float('inf'), 5], [float('nan')] * 4, [1, 1, -5, 5], [10 ** 400, 1, 5, 5],
                                 [1e308, 1, 1e308, 5], [90, 1, 5, 5], [1, 1, 10 ** 400, 0.5]])
def test_boxes_without_area_are_left_out(tmp_path, box):
    folder, file = written(tmp_path, [{'bbox': box, 'segmentation': None}, {'segmentation': None}])
    images = CocoImages(folder, file)
    assert images.left_out == {'boxes without area in the image': 1} and images[0][1]['boxes'].tolist() == [[20, 10, 50, 34]]
    assert average_precision(file, [], [7], False, dry=True)['images'] == 1
    with pytest.raises(ValueError, match='2 of 3 boxes have no area'):
        CocoImages(*written(tmp_path, [{'bbox': box, 'segmentation': None}] * 2 + [{}]))
