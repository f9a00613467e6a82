"""Annotation files that say odd or wrong things: each is understood, or counted by kind, or refused with the form expected."""
import contextlib
import itertools
import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from common.demo_world import write_coco
from common.distributed import Ranks
from downstream_coco import masks as mask_checks
from downstream_coco.annotations import read_annotations
from downstream_coco.config import Options
from downstream_coco.data import CocoImages
from downstream_coco.evaluation import as_results, average_precision, evaluate
from downstream_coco.main import main, train_detector
from downstream_coco.masks import check_masks, decode
from downstream_coco.remarks import Remarks
from downstream_coco.scenes import Scenes, WholeView

HEIGHT, WIDTH = 60, 80
BOX = [20, 10, 30, 24]
POLYGON = [20, 10, 50, 10, 50, 34, 20, 34]
PIXELS = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
PIXELS[10:34, 20:50] = 1
CODE = coco_mask.encode(PIXELS)['counts'].decode()
FILLED = mask_checks.MASK_FAULTS[mask_checks.FILL]


def as_list(pixels):
    """The uncompressed run lengths of a mask."""
    flat = np.concatenate([[0], pixels.T.reshape(-1).astype(int)])
    return np.diff([0, *np.flatnonzero(np.diff(flat)), pixels.size]).tolist()


def written(folder, objects, categories=({'id': 3, 'name': 'thing'},), name='a.png', encoding='utf-8', size=(HEIGHT, WIDTH)):
    """A folder of images with one image, and a file with these objects, whose fields are filled in."""
    content = {'images': [{'id': 7, 'file_name': name, 'width': size[1], 'height': size[0]}], 'categories': list(categories),
               'annotations': [{'id': 100 + number, 'image_id': 7, 'category_id': categories[0]['id'], 'bbox': BOX,
                                'segmentation': [POLYGON], **one} for number, one in enumerate(objects)]}
    (folder / 'images').mkdir(exist_ok=True)
    Image.new('RGB', size[::-1]).save(folder / 'images' / 'a.png')
    (folder / 'file.json').write_text(json.dumps(content), encoding=encoding)
    return folder / 'images', folder / 'file.json'


def among_good(folder, *segmentations, masks=None):
    """The data set of objects with these segmentations, and of one more than as many good ones."""
    return CocoImages(*written(folder, [{'segmentation': one} for one in segmentations] + [{}] * (len(segmentations) + 1)),
                      masks=masks)


# -- run lengths ------------------------------------------------------------------------------------------------------

def in_code(runs):
    """COCO's code of run lengths, which need not be those of a mask."""
    text = ''
    for number, run in enumerate(runs):
        rest, more = run - (runs[number - 2] if number > 2 else 0), True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def lengths(counts, size=(HEIGHT, WIDTH)):
    return {'size': list(size), 'counts': counts}


SHORT = coco_mask.encode(np.asfortranarray(PIXELS[::2, ::2]))['counts'].decode()
LIST = as_list(PIXELS)


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


# -- boxes ------------------------------------------------------------------------------------------------------------

def boxes_of(count=40, seed=0):
    """Boxes (count, 4) x, y, width, height of 8 to 20 px, anywhere in an image of 60 x 80."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(8, 21, (count, 2))
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners.round(1), sides], 1)


def polygon(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


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


# -- ids, categories, names -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('key', 'value', 'words'), [
    ('category_id', '3', "annotation 100 has the category_id '3', which is text; the category has the id 3, which is a number"),
    ('image_id', '7', r"image_id '7', which is text; the image has the id 7, which is a number"),
    ('image_id', ' 7 ', r"image_id ' 7 ', which is text"),
    ('category_id', [3], r'is of image 7 and category \[3\], which the file does not list'),
    ('category_id', None, 'category None, which the file does not list'),
    ('image_id', 7.5, r'is of image 7\.5 and category 3, which the file does not list'),
    ('iscrowd', 'maybe', "iscrowd 'maybe'"), ('iscrowd', float('nan'), 'iscrowd nan'), ('iscrowd', 2, 'iscrowd 2'),
    ('iscrowd', [0], r'iscrowd \[0\]'),
    ('bbox', [True, 1, 2, 3], 'not four numbers')])
def test_fields_that_are_wrong_are_named_with_their_type(tmp_path, key, value, words):
    with pytest.raises(ValueError, match=words):
        CocoImages(*written(tmp_path, [{key: value}]))


def test_numbers_among_text_are_named_too(tmp_path):
    with pytest.raises(ValueError, match="category_id 3.0, which is a number; the category has the id '3', which is text"):
        CocoImages(*written(tmp_path, [{'category_id': 3.0}], categories=[{'id': '3', 'name': 'x'}]))
    images = CocoImages(*written(tmp_path, [{'category_id': 3, 'iscrowd': '0', 'area': 'large'}], [{'id': 3.0, 'name': 'x'}]))
    assert images[0][1]['labels'] == [1] and '1 areas are no finite numbers' in images.remarks[0]
    assert average_precision(images.annotations, [], [7], True, dry=True)['images'] == 1


@pytest.mark.parametrize(('changes', 'words'), [
    ({'images': [3]}, "an entry of images has no 'id': 3"), ({'categories': [{'id': None}]}, 'neither a number nor text'),
    ({'categories': [{'id': [1]}]}, 'neither a number nor text'), ({'annotations': ['x']}, "no 'image_id': x"),
    ({'images': [{'id': 7, 'file_name': 'a.png', 'width': 2 ** 21, 'height': 1}]}, 'more than can be read'),
    ({'images': [{'id': 7, 'file_name': 'a.png', 'width': 10 ** 9, 'height': 10 ** 9}]}, 'more than can be read')])
def test_entries_that_are_wrong_are_named(tmp_path, changes, words):
    folder, file = written(tmp_path, [{}])
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=words):
        CocoImages(folder, file)
    file.write_text('[' * 100_000)
    with pytest.raises(ValueError, match='is no JSON file'):
        CocoImages(folder, file)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
def test_a_byte_order_mark_is_no_fault(tmp_path, encoding):
    folder, file = written(tmp_path, [{}], [{'id': 3, 'name': 'größe'}], encoding=encoding)
    file.write_text(file.read_text(encoding).replace('gr\\u00f6\\u00dfe', 'größe'), encoding)
    assert CocoImages(folder, file).categories[0]['name'] == 'größe'


def test_backslashes_between_folders(tmp_path):
    folder, file = written(tmp_path, [{}], name='x\\y\\a.png')
    with pytest.raises(ValueError, match=r'a\.png itself is there: give the folder in which x/y/a\.png lies'):
        CocoImages(folder, file)
    (folder / 'x' / 'y').mkdir(parents=True)
    shutil.copy(folder / 'a.png', folder / 'x' / 'y')
    images = CocoImages(folder, file)
    assert images.name(0) == str(folder / 'x' / 'y' / 'a.png') and images[0][0].size == (WIDTH, HEIGHT)
    shutil.copy(folder / 'a.png', folder / 'x\\y\\a.png')  # a name may have them
    assert CocoImages(folder, file).name(0) == str(folder / 'x\\y\\a.png')
    for name in ('..\\a.png', 'x\\..\\..\\a.png'):
        with pytest.raises(ValueError, match='does not lie below'):
            CocoImages(*written(tmp_path, [{}], name=name))


TRAINED = [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}, {'id': 3, 'name': 'bird'}]


def test_categories_are_told_by_their_names(tmp_path):
    other = [{'id': 3, 'name': 'cat'}, {'id': 1, 'name': 'dog'}]
    folder, file = written(tmp_path, [{'category_id': 3}, {'category_id': 1, 'bbox': [1, 1, 9, 9], 'segmentation': polygon(
        [1, 1, 9, 9])}], other)
    images = CocoImages(folder, file, categories=TRAINED)
    assert images[0][1]['labels'] == [1, 2] and images.categories == TRAINED
    assert '2 categories have other ids than in the training images' in images.remarks[0] and 'cat, 3 here and 1 there' in \
        images.remarks[0]
    assert [one['id'] for one in images.own_categories] == [3, 1, None]  # what is found is written with the file's ids
    found = {'boxes': torch.tensor([[20.0, 10, 50, 34], [1, 1, 10, 10], [1, 1, 10, 10]]), 'labels': torch.tensor([1, 2, 3]),
             'scores': torch.tensor([0.9, 0.8, 0.95])}
    results = as_results(found, 7, images.own_categories, HEIGHT, WIDTH)
    assert [one['category_id'] for one in results] == [3, 1, None]
    measured = average_precision(file, results, [7], False)
    assert measured['box_AP'] == pytest.approx(100) and measured['objects_found'] == 3
    wrong = as_results({**found, 'labels': torch.tensor([2, 1, 3])}, 7, images.own_categories, HEIGHT, WIDTH)
    assert average_precision(file, wrong, [7], False)['box_AP'] == 0
    class Finds(torch.nn.Module):
        stride = 32

        def detect(self, x, sizes, originals):
            return [found]

    seen = Scenes(CocoImages(folder, file, categories=TRAINED, masks=False), WholeView(HEIGHT, WIDTH), ((0.5,) * 3, (0.5,) * 3))
    alone = Ranks(0, 1, torch.device('cpu'))
    assert evaluate(Finds(), seen, 1, alone, contextlib.nullcontext)['box_AP'] == pytest.approx(100)
    only = as_results({**found, 'labels': torch.tensor([3, 3, 3])}, 7, images.own_categories, HEIGHT, WIDTH)
    assert average_precision(file, only, [7], False)['box_AP'] == 0


@pytest.mark.parametrize(('categories', 'words'), [
    ([{'id': 1, 'name': 'fish'}], r'category 1 \(fish\), which the training images do not have; theirs are cat, dog, bird'),
    ([{'id': 1, 'name': 'Cat'}], r'category 1 \(Cat\), which the training images do not have'),
    ([{'id': 1, 'name': 'cat'}, {'id': 5, 'name': 'cat'}], 'cannot be told by its name')])
def test_categories_that_were_not_trained_are_refused_by_name(tmp_path, categories, words):
    with pytest.raises(ValueError, match=words):
        CocoImages(*written(tmp_path, [{'category_id': 1}], categories), categories=TRAINED)


def test_categories_of_one_name_are_told_by_their_ids(tmp_path):
    twice = [{'id': 1, 'name': 'screw'}, {'id': 2, 'name': 'screw'}]
    folder, file = written(tmp_path, [{'category_id': 2}], twice)
    images = CocoImages(folder, file)
    again = CocoImages(folder, file, categories=images.categories)
    assert images[0][1]['labels'] == again[0][1]['labels'] == [2] and not again.remarks


def test_ids_of_text_are_evaluated(tmp_path):
    folder, file = written(tmp_path, [{'category_id': 'b'}], [{'id': 'b', 'name': 'x'}, {'id': 0, 'name': 'y'}])
    result = {'image_id': 7, 'category_id': 'b', 'score': 1.0, 'bbox': BOX}
    assert average_precision(file, [result], [7], False)['box_AP'] == pytest.approx(100)


# -- runs -------------------------------------------------------------------------------------------------------------

@pytest.fixture
def drawn(tmp_path):
    """A drawn data set with 4 training and 3 validation images, and edit(split, change), which changes its annotations."""
    write_coco(tmp_path, 4, 3, 64, seed=2)

    def edit(split, change):
        file = tmp_path / 'annotations' / f'instances_{split}2017.json'
        content = json.loads(file.read_text())
        for number, one in enumerate(content['annotations']):
            change(number, one)
        file.write_text(json.dumps(content))
        return len(content['annotations'])
    return tmp_path, edit


def halved(one):
    code = coco_mask.encode(np.ones((32, 32), np.uint8, order='F'))['counts'].decode()
    one['segmentation'] = {'size': [64, 64], 'counts': code}


SMALL = {'name': 'n', 'model': 'your_convnet', 'input_size': 64, 'long_side': 64, 'fpn_channels': 16, 'head_channels': 16,
         'mask_layers': 1, 'rois': 8, 'batch_size': 2, 'epochs': 1, 'workers': 0, 'lr': 1e-3}


def test_validation_masks_are_checked_before_the_start(drawn):
    folder, edit = drawn
    edit('val', lambda number, one: halved(one) if number else None)
    with pytest.raises(ValueError, match=f'instances_val2017.json: .* {FILLED}'):
        train_detector(Options(**SMALL, run_dir=str(folder / 'run'), data_path=str(folder)))
    assert not (folder / 'run').exists()


def test_a_few_bad_masks_are_warned_of_and_left_out(drawn, capsys):
    folder, edit = drawn
    last = [edit(split, lambda number, one: None) - 1 for split in ('train', 'val')]
    for split, place in zip(('train', 'val'), last):
        edit(split, lambda number, one, place=place: halved(one) if number == place else None)
    run = train_detector(Options(**SMALL, run_dir=str(folder / 'run'), data_path=str(folder)))
    seen = capsys.readouterr()
    assert seen.err.count(f'1 {FILLED}') == 2 and seen.out.count('1 objects without a mask that fits the image') == 2
    assert 'Mask R-CNN' in seen.out
    edit('val', lambda number, one: one.update(bbox=[value / 64 for value in one['bbox']]))
    with pytest.raises(SystemExit, match="^error: .*instances_val2017.json: .* boxes have no number above 1"):
        main([f'--eval={run / "your_convnet_coco_last.pth"}', f'--data_path={folder}', '--workers=0'])


def test_progress_is_told_of(tmp_path, monkeypatch):
    _, file = written(tmp_path, [{}] * 7)
    monkeypatch.setattr(mask_checks, 'CHUNK', 3)
    monkeypatch.setattr(mask_checks, 'PROGRESS', -1.0)
    monkeypatch.setattr('downstream_coco.annotations.LARGE', 10)
    said = []
    content = read_annotations(file, said.append)
    assert [line.removeprefix(f'{file}: ') for line in said][1:] == [
        f'{count} of 7 annotations are checked' for count in (3, 6, 7)] and 'MB are read' in said[0]
    assert [one['segmentation'] for one in content['annotations']] == [[POLYGON]] * 7
