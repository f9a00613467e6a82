"""Ids, categories and names of annotation files that are odd or wrong, and what runs say of such files."""
import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from common.demo_coco import write_coco
from common.distributed import Ranks
from common.live_facts import Count
from common.live_line import LiveLine
from downstream_coco import masks as mask_checks
from downstream_coco.annotations import read_annotations
from downstream_coco.config import Options
from downstream_coco.data import CocoImages
from downstream_coco.evaluation import as_results, average_precision, evaluate
from downstream_coco.main import main, train_detector
from downstream_coco.scenes import Scenes, WholeView
from tests.downstream_coco.odd_files import BOX, FILLED, HEIGHT, POLYGON, WIDTH, polygon, written

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

    assert evaluate(Finds(), seen, 1, alone, contextlib.nullcontext, go_on=lambda: False) is None
    file.write_text('{}')  # changed while the run goes on
    with pytest.raises(ValueError, match=r'file\.json') as changed:
        evaluate(Finds(), seen, 1, alone, contextlib.nullcontext)
    assert changed.value.on_all_ranks


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
    monkeypatch.setattr('downstream_coco.annotations.LARGE', 10)
    said, counted = [], []
    add = Count.add
    monkeypatch.setattr(Count, 'add', lambda count, number: add(count, number) or counted.append(count.done))
    content = read_annotations(file, LiveLine(said.append))
    assert 'MB are read' in said[0]
    assert counted == [3, 6, 7]
    assert [one['segmentation'] for one in content['annotations']] == [[POLYGON]] * 7
