"""Average precision."""
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from downstream_coco.evaluation import as_results, average_precision, encoded
from tests.downstream_coco.files import files, written


def test_the_truth_has_an_average_precision_of_one_hundred(scenes):
    _, annotations = files(scenes)
    coco = COCO(annotations)
    results = [{'image_id': one['image_id'], 'category_id': one['category_id'], 'score': 0.9, 'bbox': one['bbox'],
                'segmentation': coco.annToRLE(one)} for one in coco.dataset['annotations'] if not one['iscrowd']]
    looked = coco.getImgIds()
    found = average_precision(annotations, results, looked, True)
    assert found['box_AP'] == found['mask_AP'] == pytest.approx(100) and found['images'] == 13
    assert found['box_AP_large'] is None and found['objects_found'] == len(results)
    half = average_precision(annotations, results[:len(results) // 2], looked, True)
    assert 0 < half['box_AP'] < 90
    nothing = average_precision(annotations, [], looked, True)
    assert nothing['box_AP'] == nothing['mask_AP'] == 0 and nothing['objects_found'] == 0
    assert nothing['box_AP_large'] is None  # There is none to find, whatever is found.
    only = [one['image_id'] for one in results][:1]
    assert average_precision(annotations, [one for one in results if one['image_id'] in only], only, True)['box_AP'] == \
        pytest.approx(100)  # images that could not be read do not count


def test_degenerate_truth_does_not_count(tmp_path):
    one = {'image_id': 7, 'category_id': 3, 'bbox': [5, 6, 10, 12], 'segmentation': [[5, 6, 15, 6, 15, 18, 5, 18]]}
    _, file = written(tmp_path, annotations=[one, {**one, 'bbox': [1, 1, 0, 5]},
                                             {**one, 'bbox': [20, 1, 5, 5], 'segmentation': []}])
    results = [{'image_id': 7, 'category_id': 3, 'score': 1.0, 'bbox': [5, 6, 10, 12],
                'segmentation': coco_mask.merge(coco_mask.frPyObjects(one['segmentation'], 30, 40))}]
    found = average_precision(file, results, [7], True)
    assert found['mask_AP'] == pytest.approx(100) and found['box_AP'] == pytest.approx(50, abs=1)


def test_results_are_in_cocos_format():
    found = {'boxes': torch.tensor([[2.0, 3, 30, 20]]), 'labels': torch.tensor([2]), 'scores': torch.tensor([0.5]),
             'masks': torch.ones(1, 1, 28, 28)}
    result, = as_results(found, 7, [{'id': 1}, {'id': 5}], 40, 50)
    assert (result['image_id'], result['category_id'], result['score'], result['bbox']) == (7, 5, 0.5, [2, 3, 28, 17])
    mask = coco_mask.decode({**result['segmentation'], 'counts': result['segmentation']['counts'].encode()})
    assert mask.shape == (40, 50) and mask[5:18, 5:28].all() and not mask[:, 33:].any() and not mask[23:].any()
    del found['masks']
    assert 'segmentation' not in as_results(found, 7, [{'id': 1}, {'id': 5}], 40, 50)[0]


def test_masks_are_drawn_a_few_at_a_time(monkeypatch):
    masks, boxes = torch.rand(5, 1, 28, 28), torch.tensor([[2.0, 3, 30, 20]]).expand(5, 4)
    whole = encoded(masks, boxes, 40, 50)
    monkeypatch.setattr('downstream_coco.evaluation.PIXELS', 1)
    assert encoded(masks, boxes, 40, 50) == whole and whole[0]['size'] == [40, 50]
    assert 0 < coco_mask.decode({**whole[0], 'counts': whole[0]['counts'].encode()})[3:20, 2:30].sum() < 28 * 17
