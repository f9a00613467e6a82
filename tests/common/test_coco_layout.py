"""What programs that read COCO's annotation files by themselves ask of them."""
import json

import pytest

from common.coco_layout import read_split
from common.demo_coco import write_coco

OBJECT = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 4, 4], 'area': 16, 'iscrowd': 0,
          'segmentation': [[0, 0, 4, 0, 4, 4]]}


def written(folder, *annotations, text=None, category=None):
    """A data set in COCO's layout with these annotations and this category, or this text as the annotation file."""
    (folder / 'train2017').mkdir()
    (folder / 'annotations').mkdir()
    content = {'images': [{'id': 1, 'file_name': 'a.png', 'height': 8, 'width': 8}], 'annotations': list(annotations),
               'categories': [{'id': 1, 'name': 'thing'} if category is None else category]}
    (folder / 'annotations/instances_train2017.json').write_text(json.dumps(content) if text is None else text)
    return folder


def test_the_drawn_data_set_has_masks(tmp_path):
    write_coco(tmp_path, 3, 2, 64, seed=0)
    for split, number in (('train', 3), ('val', 2)):
        images, annotations, content, has_masks = read_split(tmp_path, split)
        assert len(content['images']) == len(list(images.iterdir())) == number
        assert annotations.is_file() and has_masks


def test_boxes_alone_have_no_masks(tmp_path):
    crowd = {**OBJECT, 'id': 3, 'iscrowd': 1}  # has one, and does not count
    without = [{**OBJECT, 'segmentation': []}, {key: value for key, value in OBJECT.items() if key != 'segmentation'}]
    assert read_split(written(tmp_path, *without, crowd), 'train')[3] is False


@pytest.mark.parametrize(('annotations', 'said'), [
    ([OBJECT, {**OBJECT, 'segmentation': []}], '1 of 2 objects have a segmentation'),
    ([{**OBJECT, 'area': 0}], 'no object with an area above 0'),
    ([{**OBJECT, 'iscrowd': 1}], 'no object with an area above 0'),
    ([{key: value for key, value in OBJECT.items() if key != 'iscrowd'}], "the annotation 1 has no 'iscrowd'"),
    ([{key: value for key, value in OBJECT.items() if key != 'area'}], "the annotation 1 has no 'area'"),
    ([{**OBJECT, 'area': None}], "the annotation 1 has no 'area'"),
    ([{**OBJECT, 'area': '16'}], "the annotation 1 has the area '16', which is no number"),
    ([7], "the annotation 7 has no 'bbox'")])
def test_annotations_that_fail_later_are_refused(tmp_path, annotations, said):
    with pytest.raises(ValueError, match=said):
        read_split(written(tmp_path, *annotations), 'train')


def test_categories_need_a_name(tmp_path):
    with pytest.raises(ValueError, match="the category {'id': 1} has no id or no name"):
        read_split(written(tmp_path, OBJECT, category={'id': 1}), 'train')


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not in COCO's layout"):
        read_split(tmp_path, 'train')
    with pytest.raises(ValueError, match='no JSON file'):
        read_split(written(tmp_path, text='{'), 'train')
    (tmp_path / 'annotations/instances_train2017.json').write_text('{"images": []}')
    with pytest.raises(ValueError, match="no list 'annotations'"):
        read_split(tmp_path, 'train')
