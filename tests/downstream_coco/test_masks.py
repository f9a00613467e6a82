"""Run lengths and polygons that are no masks are found, counted and left out."""
import json
import random

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from downstream_coco import masks as mask_checks
from downstream_coco.data import CocoImages
from downstream_coco.evaluation import average_precision
from downstream_coco.masks import check_masks, decode
from downstream_coco.remarks import Remarks
from downstream_coco.scenes import Scenes, WholeView
from tests.downstream_coco.odd_files import (
    BOX,
    CODE,
    FILLED,
    HEIGHT,
    LIST,
    PIXELS,
    POLYGON,
    SHORT,
    WIDTH,
    among_good,
    as_list,
    in_code,
    lengths,
    written,
)

# -- run lengths ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('wrong', 'kind'), [
    (lengths(SHORT), FILLED), (lengths(CODE + '5'), FILLED), (lengths([*LIST, 1]), FILLED),
    (lengths(in_code([1300, 3600, -100])), FILLED), (lengths(in_code([*LIST[:-1], 9, 9, LIST[-1] - 17])), FILLED),
    (lengths(CODE[:-2]), 'cannot be decoded'),
    (lengths([*LIST[:-1], LIST[-1] - 1]), FILLED), (lengths([HEIGHT * WIDTH + 5, -5]), FILLED),
    (lengths([2 ** 32 + HEIGHT * WIDTH]), FILLED), (lengths([10 ** 400]), FILLED), (lengths('oooooo3'), 'cannot be decoded'),
    (lengths(''), 'cannot be decoded'), (lengths([]), 'cannot be decoded'), (lengths(CODE + 'o'), 'cannot be decoded'),
    (lengths(CODE + '\0'), 'cannot be decoded'), (lengths(CODE + ' '), 'cannot be decoded'),
    (lengths(CODE + 'é'), 'cannot be decoded'), (lengths([0.5, 4799.5]), 'cannot be decoded'),
    (lengths([True, 4799]), 'cannot be decoded'), (lengths(None), 'cannot be decoded'),
    (lengths(CODE, (WIDTH, HEIGHT)), 'size is not that of the image'), (lengths(CODE, ('60', '80')), 'size is not that'),
    (lengths(CODE, (HEIGHT,)), 'size is not that'), ({'counts': LIST}, 'size is not that'),
    (json.dumps(lengths(CODE)), 'given as text'), (lengths(as_list(0 * PIXELS)), 'without a pixel')])
def test_run_lengths_that_are_no_masks_are_found(tmp_path, wrong, kind):
    images = among_good(tmp_path, wrong)
    assert images.has_masks and images.left_out == {'objects without a mask that fits the image': 1}
    remark, = images.remarks
    assert '1 of 3 segmentations are no masks of their images: 1 ' in remark and kind in remark and '100 of a.png' in remark
    assert average_precision(images.annotations, [], [7], True, dry=True)['images'] == 1
    result = {'image_id': 7, 'category_id': 3, 'score': 1.0, 'bbox': BOX, 'segmentation': coco_mask.encode(PIXELS)}
    assert average_precision(images.annotations, [result, result], [7], True)['mask_AP'] == pytest.approx(100)


@pytest.mark.parametrize('good', [lengths(CODE), lengths(LIST), lengths(LIST, (60.0, 80.0)), lengths([0, 0, *LIST]),
                                  lengths([*LIST, 0, 0])])
def test_good_run_lengths_are_read(tmp_path, good):
    images = CocoImages(*written(tmp_path, [{'segmentation': good}]))
    assert not images.remarks and not images.left_out
    masks = Scenes(images, WholeView(HEIGHT, WIDTH), ((0.5,) * 3, (0.5,) * 3))[0, 0][1]['masks']
    assert (masks[0].numpy() == PIXELS).all()


def test_extents_are_those_of_the_pixels():
    """Of masks of every kind, in a code and as lists, and broken at random: what passes is what pycocotools decodes."""
    rng, draw, entries, wanted = np.random.default_rng(0), random.Random(0), [], []
    for number in range(600):
        height, width = map(int, rng.integers(1, 40, 2))
        pixels = np.asfortranarray(rng.random((height, width)) < (0.5, 0.02, 1.0, 0.97)[number % 4]).astype(np.uint8)
        code = coco_mask.encode(pixels)['counts'].decode()
        if number % 3 == 2:  # one character is another
            place = draw.randrange(len(code))
            code = code[:place] + chr(draw.randrange(48, 112)) + code[place + 1:]
        entries.append({'id': number, 'image_id': 7, 'size': (height, width), 'segmentation': lengths(
            as_list(pixels) if number % 3 == 1 else code, (height, width))})
        wanted.append(pixels if number % 3 < 2 else None)
    given = [one['segmentation'] for one in entries]
    faults, extents = check_masks(entries, np.array([one['size'] for one in entries]), Remarks('file', {7: 'a.png'}))
    for pixels, fault, extent, segmentation in zip(wanted, faults, extents, given):
        if fault == mask_checks.GOOD:
            if pixels is None:
                pixels = coco_mask.decode(segmentation)
                assert pixels.max() == 1
            y, x = np.nonzero(pixels)
            assert extent.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        else:
            assert np.isnan(extent).all() and (pixels is None or fault == mask_checks.EMPTY and not pixels.any())
    assert {mask_checks.GOOD, mask_checks.FILL, mask_checks.CODE, mask_checks.EMPTY} == set(faults.tolist())


def test_codes_are_decoded_together():
    assert in_code(LIST) == CODE
    rng = np.random.default_rng(1)
    masks = [np.asfortranarray(rng.random((20, 30)) < share).astype(np.uint8) for share in (0.5, 0.0, 1.0, 0.9)]
    codes = [coco_mask.encode(one)['counts'] for one in masks]
    runs, owners, broken = decode([codes[0], b'o', codes[1], codes[2], b'\x7f', codes[3]])
    assert broken.tolist() == [1, 4]
    for owner, mask in zip((0, 2, 3, 5), masks):
        assert runs[owners == owner].tolist() == as_list(mask)
    assert [len(each) for each in decode([])] == [0, 0, 0]


# -- polygons ---------------------------------------------------------------------------------------------------------

FAR = 10.0 ** 7


@pytest.mark.parametrize(('wrong', 'kind'), [
    ([20, 10, 50, 10], 'fewer than three points'), ([[20, 10], [50, 34]], 'fewer than three points'),
    ([[20, 10, 50, 34]], 'fewer than three points'), ([*POLYGON, 3], 'odd number'), ([[*POLYGON, 3]], 'odd number'),
    ([[float('nan'), *POLYGON[1:]]], 'no finite numbers'), ([[float('inf'), *POLYGON[1:]]], 'no finite numbers'),
    ([[*map(str, POLYGON)]], 'no finite numbers'), ([None, 3], 'no finite numbers'),
    ([[True, *POLYGON[1:]]], 'no finite numbers'),
    ([[FAR, 10, 50, 10, 50, 34]], 'far outside'), ([[10 ** 400, 10, 50, 10, 50, 34]], 'far outside'),
    ([[200, 10, 230, 10, 230, 34]], 'far outside'), ([[90, 10, 99, 10, 99, 34]], 'without a pixel'),
    ([[0, 0, 80, 60] * 500], 'too long'), ([[POLYGON]], 'nested deeper'), ([[[20, 10], [50, 10], [50, 34]]], 'nested deeper'),
    ([{'x': 1, 'y': 2}], 'neither lists nor'),
    ('polygon', 'given as text'), (5, 'neither lists nor'), (float('nan'), 'neither lists')])
def test_segmentations_that_are_no_polygons_are_found(tmp_path, wrong, kind):
    images = among_good(tmp_path, wrong)
    assert images.has_masks and images.left_out == {'objects without a mask that fits the image': 1}
    remark, = images.remarks
    assert '1 of 3 segmentations are no masks of their images: 1 ' in remark and kind in remark and '100 of a.png' in remark


@pytest.mark.parametrize(('form', 'words'), [
    (POLYGON, 'flat lists'), ([20, 10, 50, 10, 50, 34], 'flat lists'), ([*map(float, POLYGON)], 'flat lists'),
    (np.reshape(POLYGON, (-1, 2)).tolist(), 'lists of points'), ([[20, 10], [50, 10], [50, 34]], 'lists of points')])
def test_a_polygon_in_another_form_is_read_and_said(tmp_path, form, words):
    images = CocoImages(*written(tmp_path, [{'segmentation': form}] * 3))
    remark, = images.remarks
    assert images.has_masks and not images.left_out
    assert f'3 segmentations are {words}' in remark and 'annotation 100 of a.png' in remark
    assert images[0][1]['segmentations'] == [[np.ravel(form).tolist()]] * 3


def test_objects_keep_their_good_polygons(tmp_path):
    images = CocoImages(*written(tmp_path, [{'segmentation': [[1, 2], POLYGON, [1, 2, 3, 4, 5]]}, {}]))
    assert images[0][1]['segmentations'] == [[POLYGON]] * 2
    remark, = images.remarks
    assert '1 objects have polygons that cannot be drawn' in remark


def test_every_kind_is_counted(tmp_path):
    images = among_good(tmp_path, 'text', [1, 2, 3, 4], [[5, 6]], lengths(SHORT), lengths(CODE + 'o'))
    remark, = images.remarks
    for words in ('5 of 11 segmentations', '1 given as text (annotation 100 of a.png)',
                  '2 polygons of fewer than three points (annotation 101',
                  f'1 {FILLED} (annotation 103', '1 run lengths that cannot be decoded (annotation 104'):
        assert words in remark, words
    assert images.left_out['objects without a mask that fits the image'] == 5


@pytest.mark.parametrize('wrong', ['text', [1, 2, 3], lengths(SHORT), lengths(CODE, (WIDTH, HEIGHT)), [[POLYGON]]])
def test_a_file_of_broken_masks_does_not_become_one_of_boxes(tmp_path, wrong):
    folder, file = written(tmp_path, [{'segmentation': wrong}] * 3 + [{}] * 2 + [{'segmentation': None}] * 4)
    for masks in (None, True):
        with pytest.raises(ValueError, match=r'3 of 5 segmentations are no masks .*\[\[10, 10, 50, 10.*--heads=box'):
            CocoImages(folder, file, masks=masks)
    boxes = CocoImages(folder, file, masks=False)
    assert len(boxes[0][1]['labels']) == 9 and not boxes.remarks


@pytest.mark.parametrize('nothing', [None, [], [[]], {}, ''])
def test_boxes_alone_are_no_fault(tmp_path, nothing):
    images = CocoImages(*written(tmp_path, [{'segmentation': nothing}] * 3))
    assert not images.has_masks and not images.remarks and not images.left_out
    images = CocoImages(*written(tmp_path, [{'segmentation': nothing}] * 3 + [{}]))
    assert not images.has_masks and 'the masks of 1 objects are not used, since the other 3 have none' in images.remarks[0]


def test_bad_masks_do_not_vote_for_boxes(tmp_path):
    """Most objects are given a mask, fewer than half a good one."""
    images = CocoImages(*written(tmp_path, [{}] * 4 + [{'segmentation': 'x'}] * 3 + [{'segmentation': None}] * 3))
    assert images.has_masks and images.left_out['objects without a mask that fits the image'] == 6
