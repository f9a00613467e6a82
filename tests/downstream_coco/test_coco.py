"""Detection: what is read and left out, views of images, the pyramid, average precision, and that a run resumes."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import nn

from common.demo_world import CLASSES, write_coco
from common.images.datasets import fingerprint
from common.networks.create import create_cnn
from downstream_coco.annotations import read_annotations
from downstream_coco.checkpoints import build_detector as build
from downstream_coco.config import Options, parse_options
from downstream_coco.data import CocoImages
from downstream_coco.detector import Detector, Pyramid, measure
from downstream_coco.evaluation import as_results, average_precision, encoded
from downstream_coco.main import main as coco_main
from downstream_coco.main import train_detector
from downstream_coco.predict import predict
from downstream_coco.scenes import Collate, Scenes, SimilarShapes, View, WholeView, resized
from downstream_coco.training import DetectorTraining
from tests.conftest import ROOT
from tests.pretrain.test_run import Stop, same, stop_after

SMALL = {'model': 'your_convnet', 'input_size': 64, 'long_side': 64, 'fpn_channels': 16, 'head_channels': 32, 'mask_layers': 1,
         'rois': 16, 'batch_size': 4, 'epochs': 2, 'workers': 0, 'lr': 1e-3, 'log_every': 2}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """13 training and 5 validation images of 64 px; the 12th is empty, the 6th has a crowd."""
    folder = tmp_path_factory.mktemp('coco')
    write_coco(folder, 13, 5, 64, seed=1)
    return folder


@pytest.fixture
def small(scenes, tmp_path):
    def make(**changes):
        return Options(**{**SMALL, 'name': 'small', 'run_dir': str(tmp_path / 'run'), 'data_path': str(scenes), **changes})
    return make


def files(folder, split='train'):
    return folder / f'{split}2017', folder / 'annotations' / f'instances_{split}2017.json'


def written(folder, **changes):
    """An annotation file with one image of 40x30 px and one object, but for the changes."""
    content = {'images': [{'id': 7, 'file_name': 'a.png', 'width': 40, 'height': 30}],
               'annotations': [{'image_id': 7, 'category_id': 3, 'bbox': [5, 6, 10, 12],
                                'segmentation': [[5, 6, 15, 6, 15, 18, 5, 18]]}],
               'categories': [{'id': 3, 'name': 'thing'}], **changes}
    (folder / 'images').mkdir(exist_ok=True)
    Image.new('RGB', (40, 30)).save(folder / 'images' / 'a.png')
    (folder / 'file.json').write_text(json.dumps(content))
    return folder / 'images', folder / 'file.json'


# -- the drawn data set -----------------------------------------------------------------------------------------------

def test_the_drawn_data_set_is_coco(scenes, capsys):
    coco = COCO(files(scenes)[1])
    content, annotations = coco.dataset, coco.dataset['annotations']
    assert len(content['images']) == 13 and [one['name'] for one in content['categories']] == list(CLASSES)
    ids = [one['id'] for one in content['categories']]
    assert ids == [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15]
    assert not [one for one in annotations if one['image_id'] == content['images'][11]['id']]
    kinds = {(type(one['segmentation']), one['iscrowd']) for one in annotations}
    assert kinds == {(list, 0), (dict, 0), (dict, 1)}
    for one in annotations:
        mask = coco.annToMask(one)
        x, y, w, h = one['bbox']
        rows, columns = np.nonzero(mask)
        assert abs(int(mask.sum()) - one['area']) <= max(6, 0.2 * one['area']) and mask.shape == (64, 64)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.subtract(seen, [x, y, x + w, y + h])).max() < 4
    for one in content['images']:
        assert Image.open(files(scenes)[0] / one['file_name']).size == (64, 64)


# -- reading ----------------------------------------------------------------------------------------------------------

def test_what_is_left_out_is_counted(scenes):
    images = CocoImages(*files(scenes))
    assert len(images) == 12 and images.has_masks
    assert images.left_out['images without objects'] == 1 and sum('crowd' in what for what in images.left_out) == 1
    assert len(CocoImages(*files(scenes), keep_empty=True)) == 13
    content = read_annotations(files(scenes)[1])
    assert sum(len(images[i][1]['labels']) for i in range(12)) == sum(not one['iscrowd'] for one in content['annotations'])
    first = [one for one in content['annotations'] if one['image_id'] == images.ids[0]]
    by_id = {one['id']: i for i, one in enumerate(images.categories, 1)}
    assert images[0][1]['labels'] == [by_id[one['category_id']] for one in first]  # ids with gaps -> 1, 2, 3, ...


def test_degenerate_objects_are_left_out(tmp_path):
    def box(x, y, w, h, **more):
        return {'image_id': 7, 'category_id': 3, 'bbox': [x, y, w, h],
                'segmentation': [[x, y, x + w, y, x + w, y + h]], **more}
    images = CocoImages(*written(tmp_path, annotations=[
        box(5, 6, 10, 12), box(5, 6, 0, 12), box(50, 6, 10, 12), box(-5, -5, 10, 10), box(1, 1, 5, 5, iscrowd=1),
        box(float('nan'), 1, 5, 5)]))
    assert images[0][1]['boxes'].tolist() == [[5, 6, 15, 18], [0, 0, 5, 5]]
    assert images.left_out['boxes without area in the image'] == 3 and '3 boxes without area' in images.notes
    assert images.most == 2


@pytest.mark.parametrize('wrong', [
    [], None, 'text', [[1, 1, 2, 2]], [[1, 1, 9, 1, 9, 9, 3]], [[1, 1, 9, 1, None, 9]], {'counts': 'abc'},
    {'size': [40, 30], 'counts': [1200]}, {'size': [30, 40], 'counts': [7]}, {'size': [30, 40], 'counts': ['a']}])
def test_segmentations_that_are_no_masks(tmp_path, wrong):
    corners = [5, 6, 15, 6, 15, 18]
    good = {'image_id': 7, 'category_id': 3, 'bbox': [5, 6, 10, 12], 'segmentation': [[1, 1, 2, 2], corners]}
    bad = {**good, 'segmentation': wrong, 'iscrowd': None, 'area': None}
    images, annotations = written(tmp_path, annotations=[good, bad])
    assert CocoImages(images, annotations).has_masks == bool(wrong)
    read = CocoImages(images, annotations, masks=True)
    assert read.left_out['objects without a mask that fits the image'] == 1 and len(read[0][1]['labels']) == 1
    assert read[0][1]['segmentations'] == [[corners]]
    for kind, ap in (('box', 50), ('mask', 100)):  # evaluation takes the file as well
        results = [{'image_id': 7, 'category_id': 3, 'score': 1.0, 'bbox': [5, 6, 10, 12], 'segmentation': coco_mask.merge(
            coco_mask.frPyObjects([corners], 30, 40))}]
        assert average_precision(annotations, results, [7], True)[f'{kind}_AP'] == pytest.approx(ap, abs=1)
    assert average_precision(annotations, [], [7], True, dry=True)['images'] == 1


def test_ids_of_any_kind(tmp_path):
    folder, annotations = written(
        tmp_path, images=[{'id': 0, 'file_name': 'a.png', 'width': 40, 'height': 30}],
        categories=[{'id': 'b', 'name': 'x'}, {'id': 0, 'name': 'y'}],
        annotations=[{'image_id': 0, 'category_id': category, 'bbox': [1, 1, 9, 9]} for category in ('b', 0)])
    images = CocoImages(folder, annotations)
    assert images.categories == [{'id': 0, 'name': 'y'}, {'id': 'b', 'name': 'x'}] and images[0][1]['labels'] == [2, 1]


@pytest.mark.parametrize(('orientation', 'size', 'good'), [(6, (40, 30), True), (8, (40, 30), True), (3, (30, 40), True),
                                                          (6, (30, 40), True), (1, (40, 30), False)])
def test_images_are_turned_where_the_annotations_say_so(tmp_path, orientation, size, good):
    """A file of 30x40 that says it is to be turned: right if the annotations are of 40x30; else left as it lies."""
    folder, annotations = written(tmp_path, images=[{'id': 7, 'file_name': 'a.jpg', 'width': size[0], 'height': size[1]}])
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.new('RGB', (30, 40)).save(folder / 'a.jpg', exif=exif)
    images = CocoImages(folder, annotations)
    if good:
        assert images[0][0].size == size
    else:
        with pytest.raises(ValueError, match='the annotations say 40x30'):
            images[0]


@pytest.mark.parametrize('name', ['../images2/a.png', '{folder}/a.png', 'x/../../a.png', '/'])
def test_annotations_name_nothing_outside_of_their_folder(tmp_path, name):
    Image.new('RGB', (40, 30)).save(tmp_path / 'a.png')
    name = name.format(folder=tmp_path)
    sizes = {'width': 40, 'height': 30}
    folder, file = written(tmp_path, images=[{'id': 7, 'file_name': 'a.png', **sizes}, {'id': 8, 'file_name': name, **sizes}])
    with pytest.raises(ValueError, match='does not lie below') as error:
        CocoImages(folder, file)
    assert f'names {name!r}' in str(error.value)
    written(tmp_path, images=[{'id': 7, 'file_name': 'x/../a.png', **sizes}])
    assert CocoImages(folder, file).name(0) == str(folder / 'a.png')
    assert fingerprint(CocoImages(folder, file)) == CocoImages(folder, file).digest


@pytest.mark.parametrize(('changes', 'words'), [
    ({'categories': None}, "no list 'categories'"),
    ({'images': []}, 'names no images'),
    ({'images': [{'id': 7, 'file_name': 'b.png', 'width': 40, 'height': 30}]}, 'none of the 1 images'),
    ({'images': [{'id': 7, 'file_name': 'a.png'}]}, "no 'width'"),
    ({'images': [{'id': 7, 'file_name': 'a.png', 'width': 40, 'height': 30}] * 2}, 'an id twice'),
    ({'annotations': [{'image_id': 8, 'category_id': 3, 'bbox': [0, 0, 1, 1]}]}, 'image 8 and category 3'),
    ({'annotations': [{'image_id': 7, 'category_id': 4, 'bbox': [0, 0, 1, 1]}]}, 'image 7 and category 4'),
    ({'annotations': [{'image_id': 7, 'category_id': 3, 'bbox': [0, 0, 1]}]}, 'not four numbers'),
    ({'annotations': [{'image_id': 7, 'category_id': 3, 'bbox': None}]}, 'not four numbers'),
    ({'annotations': [{'image_id': 7, 'category_id': 3, 'bbox': [0, 0, '1', 1]}]}, 'not four numbers'),
    ({'images': [{'id': 7, 'file_name': 'a.png', 'width': '40', 'height': 30}]}, 'whole numbers'),
    ({'images': [{'id': 7, 'file_name': None, 'width': 40, 'height': 30}]}, 'no file_name that is text'),
    ({'annotations': []}, 'no object that can be used'),
    ({'annotations': [{'image_id': 7, 'category_id': 3, 'bbox': [0, 0, 0, 1]}]}, 'no object that can be used: left out'),
])
def test_annotations_that_do_not_fit_are_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        CocoImages(*written(tmp_path, **changes))


def test_files_that_do_not_fit_are_refused(tmp_path, scenes):
    images, annotations = written(tmp_path)
    (tmp_path / 'text.json').write_text('no JSON')
    with pytest.raises(ValueError, match='is no JSON file'):
        CocoImages(images, tmp_path / 'text.json')
    with pytest.raises(ValueError, match='no annotation file'):
        CocoImages(images, tmp_path / 'none.json')
    with pytest.raises(ValueError, match='no folder of images'):
        CocoImages(tmp_path / 'none', annotations)
    with pytest.raises(ValueError, match=r'category 3 \(thing\), which the training images do not have'):
        CocoImages(images, annotations, categories=CocoImages(*files(scenes)).categories)


def test_a_file_of_another_size_is_unreadable(tmp_path):
    folder, file = written(tmp_path, images=[{'id': i, 'file_name': f'{name}.png', 'width': 40, 'height': 30}
                                             for i, name in ((7, 'a'), (8, 'b'))],
                           annotations=[{'image_id': i, 'category_id': 3, 'bbox': [5, 6, 10, 12]} for i in (7, 8)])
    Image.new('RGB', (30, 40)).save(folder / 'b.png')  # as a camera turns it
    images = CocoImages(folder, file)
    _, targets, failed = Scenes(images, WholeView(30, 40), ((0.5,) * 3, (0.5,) * 3))[0, 1]
    assert failed == [(1, 'ValueError: it is 30x40, the annotations say 40x30')] and targets['number'] == 0


# -- views and batches ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('mirrored', [False, True])
def test_boxes_masks_and_images_are_seen_alike(mirrored):
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 30:70] = 255
    view = View((10, 20, 40, 60), (80, 90), mirrored)
    seen = np.asarray(view.image(Image.fromarray(image)))
    assert seen.shape == (80, 90, 3)
    box = view.boxes(np.array([[30.0, 20, 70, 40]]))[0]
    assert box.tolist() == [15, 20, 75, 60]  # mirrored too: it lies in the middle of the view
    polygon = view.mask([[30, 20, 70, 20, 70, 40, 30, 40]])
    run_lengths = coco_mask.encode(np.asfortranarray((image[..., 0] > 0).astype(np.uint8)))
    uncompressed = {'size': [60, 80], 'counts': [int(n) for n in np.diff(np.flatnonzero(np.diff(np.concatenate(
        [[-1], (image[..., 0] > 0).T.reshape(-1).astype(int), [-1]]))))]}
    for mask in (polygon, view.mask(run_lengths), view.mask(uncompressed)):
        assert mask.shape == (80, 90) and ((mask > 0) != (seen[..., 0] > 127)).mean() < 0.02
    off = View((0, 0, 60, 40), (60, 40), mirrored)  # the left half: 10 of 40 columns of the object
    assert off.boxes(np.array([[30.0, 20, 70, 40]]))[0].tolist() == ([30, 20, 40, 40] if not mirrored else [0, 20, 10, 40])
    assert (off.mask([[30, 20, 70, 20, 70, 40, 30, 40]]) > 0).sum() == (off.mask(run_lengths) > 0).sum() == 200


def test_objects_whose_centre_is_cropped_off_are_left_out(tmp_path):
    images = CocoImages(*written(tmp_path, annotations=[
        {'image_id': 7, 'category_id': 3, 'bbox': [x, y, side, side], 'segmentation': [[x, y, x + side, y, x + side, y + side]]}
        for x, y, side in ((0, 0, 10), (16, 0, 10), (30, 20, 8))]))
    _, targets, _ = Scenes(images, lambda height, width: View((0, 0, 30, 20), (30, 20), False), ((0.5,) * 3, (0.5,) * 3))[0, 0]
    assert targets['boxes'].tolist() == [[0, 0, 10, 10]] and targets['masks'].shape == (1, 30, 20)
    _, targets, _ = Scenes(images, lambda height, width: View((10, 0, 5, 5), (30, 30), False), ((0.5,) * 3, (0.5,) * 3))[0, 0]
    assert targets['boxes'].shape == (0, 4) and targets['masks'].shape == (0, 30, 30) and targets['labels'].shape == (0,)


def test_sizes():
    assert resized(480, 640, 800, 1333) == (800, 1067) and resized(300, 900, 800, 1333) == (444, 1333)
    assert resized(1, 1000, 100, 200) == (1, 200)


def test_batches_hold_images_of_one_orientation():
    upright = np.arange(23) % 3 == 0  # 8 of 23
    rest = (4, 3, 0)
    steps = [a + b for a, b in zip(*(SimilarShapes(upright, *rest, rank=rank, ranks=2) for rank in (0, 1)))]
    assert len(steps) == 3 * 6 and steps == list(SimilarShapes(upright, *rest))
    orders = []
    for epoch in range(3):
        batches = [[index for _, index in items] for items in steps[epoch * 6:(epoch + 1) * 6]]
        assert sorted(sum(batches, [])[:23]) == list(range(23))
        assert sum(len({bool(upright[i]) for i in batch}) > 1 for batch in batches[:5]) <= 1
        orders.append(batches)
    assert orders[0] != orders[1] and list(SimilarShapes(upright, *rest, start=7)) == steps[7:]
    few = [index for items in SimilarShapes(upright[:3], 8, 1, 0) for _, index in items]
    assert len(few) == 8 and set(few) == {0, 1, 2}  # fewer images than a batch has


def test_images_are_padded_to_a_stride():
    items = [(torch.ones(3, 30, 50), {'size': (30, 50)}, []), (torch.ones(3, 40, 33), {'size': (40, 33)}, [(3, 'bad')])]
    images, targets, failures = Collate(32)(items)
    assert images.shape == (2, 3, 64, 64) and failures == [(3, 'bad')]
    assert [one['size'] for one in targets] == [(30, 50), (40, 33)]
    assert images[0].sum() == 3 * 30 * 50 and images[1, :, :40, :33].sum() == 3 * 40 * 33


# -- the detector -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto', 'efficientnet_b0', 'regnety_002', 'densenet121'])
def test_strides_and_channels_are_measured(name):
    cnn = create_cnn(name)
    if not hasattr(cnn, 'forward_intermediates'):
        pytest.skip(f'timm {timm.__version__} does not give the maps of {name}')
    info = {one['reduction']: one['num_chs'] for one in cnn.feature_info}
    found = {stride: channels for stride, (_, channels) in measure(cnn).items()}
    assert {stride: found[stride] for stride in (4, 8, 16, 32)} == {stride: info[stride] for stride in (4, 8, 16, 32)}
    pyramid = Pyramid(cnn, channels=8)
    assert pyramid.strides == (4, 8, 16, 32)
    assert [tuple(one.shape) for one in pyramid(torch.zeros(2, 3, 64, 96)).values()] == [
        (2, 8, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32)] + [(2, 8, 1, 2)]


@pytest.mark.parametrize('size', [(64, 64), (40, 40), (20, 1333), (66, 66)])
def test_objects_are_pooled_at_the_strides_of_the_maps(size):
    """torchvision would guess them from the first batch, from sizes without padding."""
    detector = Detector(create_cnn('your_convnet'), 3, True, channels=8, head_channels=8, mask_layers=1, rois=8).eval()
    x, _, _ = Collate(32)([(torch.randn(3, *size), {'size': size}, [])])
    detector.roi_heads.score_thresh = 0.0
    assert detector.detect(x, [size], [size])
    for pool in (detector.roi_heads.box_roi_pool, detector.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8]


def test_networks_without_halving_maps_are_refused():
    class Jump(nn.Module):
        def forward_intermediates(self, x, **_):
            return [nn.functional.avg_pool2d(x, stride) for stride in (4, 16)]
    with pytest.raises(ValueError, match='maps of strides 4, 16'):
        Pyramid(Jump())
    with pytest.raises(ValueError, match='cannot take an image|no forward_intermediates'):
        Pyramid(timm.create_model('visformer_tiny'))
    with pytest.raises(ValueError, match='powers of two|no forward_intermediates'):
        Pyramid(timm.create_model('convmixer_768_32'))
    with pytest.raises(ValueError, match='forward_intermediates'):
        Pyramid(nn.Conv2d(3, 8, 3))


@pytest.mark.parametrize(('name', 'heads'), [('resnet18', ('fc',)), ('your_convnet', ('head',)),
                                             ('convnext_atto', ('head.norm', 'head.fc'))])
def test_every_trained_parameter_gets_a_gradient(name, heads, scenes):
    options = Options(**{**SMALL, 'name': 'n', 'model': name})
    detector, _ = build(options, 12, True)
    frozen = {key for key, one in detector.named_parameters() if not one.requires_grad}
    assert frozen == {f'backbone.cnn.{head}.{kind}' for head in heads for kind in ('weight', 'bias')}
    images = Scenes(CocoImages(*files(scenes), keep_empty=True), WholeView(64, 64), options.normalisation)
    for places in ((0, 1), (11, 11)):  # 11: nothing in it
        detector.zero_grad()
        x, targets, _ = Collate(32)([images[0, place] for place in places])
        loss = detector(x, targets)
        loss.backward()
        assert loss.isfinite() and all(one.grad is not None for one in detector.parameters() if one.requires_grad)


def test_frozen_parts_stay(scenes):
    options = Options(**{**SMALL, 'name': 'n', 'freeze': True})
    for changes, moves in (({}, True), ({'frozen_bn': True}, False), ({'freeze': True}, False)):
        options = Options(**{**SMALL, 'name': 'n', **changes})
        detector, _ = build(options, 12, False)
        detector.train()
        before = {name: one.clone() for name, one in detector.backbone.cnn.named_buffers() if 'running' in name}
        assert before
        images = Scenes(CocoImages(*files(scenes), masks=False), WholeView(64, 64), options.normalisation)
        x, targets, _ = Collate(32)([images[0, 0], images[0, 1]])
        detector(x, targets).backward()
        after = dict(detector.backbone.cnn.named_buffers())
        assert any(not torch.equal(after[name], one) for name, one in before.items()) == moves
        trained = any(one.grad is not None for one in detector.backbone.cnn.parameters())
        assert trained == ('freeze' not in changes) and 'masks' not in targets[0]


def test_boxes_stay_in_full_precision_under_bf16(scenes):
    detector, _ = build(Options(**{**SMALL, 'name': 'n'}), 12, True)
    images = Scenes(CocoImages(*files(scenes)), WholeView(64, 64), Options(**SMALL, name='n').normalisation)
    x, targets, _ = Collate(32)([images[0, 0], images[0, 1]])
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        assert {one.dtype for one in detector.backbone(x).values()} == {torch.float32}
        proposed = detector.rpn.head(list(detector.backbone(x).values()))
        assert all(one.dtype == torch.float32 for part in proposed for one in part)
        assert detector(x, targets).isfinite()
        detector.roi_heads.score_thresh = 0.0
        found = detector.eval().detect(x, [(64, 64)] * 2, [(128, 96), (64, 64)])
    assert found[0]['boxes'].dtype == found[0]['scores'].dtype == found[0]['masks'].dtype == torch.float32
    assert found[0]['boxes'][:, 2].max() <= 96 and found[0]['boxes'][:, 3].max() <= 128 and len(found[0]['boxes'])


# -- average precision ------------------------------------------------------------------------------------------------

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


# -- runs -------------------------------------------------------------------------------------------------------------

def saved(folder):
    return torch.load(folder / 'your_convnet_coco_last.pth', weights_only=True)


def log_of(folder):
    return [json.loads(line) for line in (folder / 'coco_log.txt').read_text().splitlines()]


@pytest.mark.parametrize('changes', [{'ema': 0.9, 'save_every_steps': 1, 'crop_scale': (0.5, 1), 'scales': (0.5, 1)},
                                     {'batch_size': 1, 'save_every_steps': 4, 'scales': (0.5, 1), 'frozen_bn': True},
                                     {'heads': 'box', 'accum': 2, 'opt': 'lamb', 'layer_decay': 1.0}])
def test_a_run_resumes_to_the_last_bit(small, tmp_path, monkeypatch, changes):
    whole = train_detector(small(run_dir=str(tmp_path / 'whole'), **changes))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 4)
        train_detector(small(**changes))
    assert saved(tmp_path / 'run')['step'] == (4 if 'save_every_steps' in changes else 3)  # 12 images, three steps of four
    train_detector(small(**changes))
    one, other = saved(tmp_path / 'run'), saved(whole)
    for key in ('model', 'ema', 'optimizer', 'step', 'sums', 'best'):
        assert same(one[key], other[key]), key
    epochs = [[{key: line[key] for key in ('epoch', 'loss', 'box_AP')} for line in log_of(folder) if 'epoch' in line]
              for folder in (tmp_path / 'run', whole)]
    assert epochs[0] == epochs[1] and len(epochs[0]) == 2
    assert ('mask_AP' in one['best']['model']) == ('heads' not in changes) and ('ema' in one['best']) == ('ema' in changes)


def test_eval_and_predict_read_what_a_run_wrote(small, tmp_path, capsys):
    folder = train_detector(small(ema=0.5))
    said = (folder / 'stdout_backup.txt').read_text()
    for text in ('left out    1 crowd regions', 'unused      head\n', 'stride 4 (64 channels), 8 (128 channels)'):
        assert text in said, text
    last = log_of(folder)[-1]
    path = str(folder / 'your_convnet_coco_last.pth')
    found = train_detector(Options(eval=path, data_path=small().data_path, workers=0))  # sizes and all are the file's
    for name in ('box_AP', 'mask_AP', 'objects_found', 'images'):
        assert found['model'][name] == last[name] and found['ema'][name] == last[f'{name}_ema'], name
    assert last['objects_found'] > 0
    Image.new('L', (50, 90)).save(tmp_path / 'grey.png')
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new('RGB', (30, 20)).save(tmp_path / 'turned.jpg', exif=exif)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    val = tmp_path / 'grey.png', tmp_path / 'broken.png', tmp_path / 'turned.jpg'
    results = predict(path, val, tmp_path / 'out', score=0.0, say=print)
    assert (tmp_path / 'out' / '0000_grey.png').exists() and not list((tmp_path / 'out').glob('*broken*'))
    assert Image.open(tmp_path / 'out' / '0002_turned.png').size == (20, 30)
    assert json.loads((tmp_path / 'out' / 'predictions.json').read_text()) == results
    content = saved(folder)
    content['model']['roi_heads.box_predictor.cls_score.bias'][0] += 8  # nothing is likely now
    torch.save(content, tmp_path / 'unsure.pth')
    assert len(predict(tmp_path / 'unsure.pth', val[:1], tmp_path / 'out', score=1e-6)) == 100
    assert not predict(tmp_path / 'unsure.pth', val[:1], tmp_path / 'out', score=0.05)
    assert 'broken.png cannot be read' in capsys.readouterr().out
    with pytest.raises(ValueError, match='no average'):
        predict(str(folder / 'your_convnet_coco_best.pth'), val, tmp_path / 'out', which='ema')
    with pytest.raises(ValueError, match='no image or folder'):
        predict(path, [tmp_path / 'none'], tmp_path / 'out')


def test_weights_of_the_cnn_are_loaded_strictly(small, tmp_path):
    cnn = create_cnn('your_convnet', num_classes=7)
    torch.save(cnn.state_dict(), tmp_path / 'w.pth')
    detector, loaded = build(small(finetune_from=str(tmp_path / 'w.pth')), 12, True)
    assert loaded.left_out == ('head.weight', 'head.bias')
    assert torch.equal(detector.backbone.cnn.stages[1].conv1.weight, cnn.stages[1].conv1.weight)
    torch.save({'model': detector.state_dict()}, tmp_path / 'detector.pth')
    again, _ = build(small(finetune_from=str(tmp_path / 'detector.pth')), 3, False)
    assert all(torch.equal(a, b) for a, b in zip(again.backbone.cnn.parameters(), detector.backbone.cnn.parameters()))
    with pytest.raises(ValueError, match='do not fit ResNet'):
        build(small(finetune_from=str(tmp_path / 'w.pth'), model='resnet18'), 12, True)
    with pytest.raises(SystemExit, match='holds no detector'):
        coco_main(['--eval', str(tmp_path / 'w.pth'), '--data_path', small().data_path])


def test_unreadable_validation_images_are_left_out(scenes, small, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / 'scenes')
    broken = sorted((tmp_path / 'scenes' / 'val2017').iterdir())
    for path in broken[:-1]:
        path.write_bytes(b'no image')
    folder = train_detector(small(data_path=str(tmp_path / 'scenes'), epochs=1))
    assert log_of(folder)[-1]['images'] == 1 and capsys.readouterr().err.count('it is left out') == 4
    broken[-1].write_bytes(b'no image')
    with pytest.raises(ValueError, match='none of the validation images can be read'):
        train_detector(small(eval=str(folder / 'your_convnet_coco_last.pth'), data_path=str(tmp_path / 'scenes')))


def test_few_images_at_a_time_are_warned_of(small, capsys):
    train_detector(small(epochs=1, batch_size=4, accum=4, freeze=False))
    assert 'see 1 images at a time' in capsys.readouterr().err
    train_detector(small(epochs=1, freeze=True, fresh=True))
    err = capsys.readouterr().err
    assert 'stays as random as it is' in err and 'at a time' not in err


@pytest.mark.slow
def test_two_processes_look_at_each_image_once(scenes, tmp_path):
    flags = [f'--{name}={value}' for name, value in {**SMALL, 'epochs': 1}.items()]
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    command = ['bash', str(ROOT / 'downstream_coco/main.sh'), 'two', '--ngpu_per_node=2', f'--data_path={scenes}', *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'output_two'
    last = log_of(folder)[-1]
    assert last['images'] == 5
    alone = train_detector(Options(eval=str(folder / 'your_convnet_coco_last.pth'), data_path=str(scenes), **SMALL))['model']
    assert alone['box_AP'] == pytest.approx(last['box_AP']) and alone['objects_found'] == last['objects_found']


@pytest.mark.parametrize(('line', 'words'), [
    ('--long_side=700', 'long_side 700 must be input_size 800 or more'),
    ('--scales=1,0.5', 'scales is from,to'),
    ('--freeze --frozen_bn', 'leave --frozen_bn out'),
    ('--dataset=hfds/x', '--dataset is for classes'),
    ('--heads=both', 'invalid choice'),
    ('--input_size=3,4', 'invalid int value'),
])
def test_wrong_options_are_refused(line, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options(['--name=n', *line.split()])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_missing_paths_and_other_runs_are_named(small, tmp_path, capsys):
    with pytest.raises(SystemExit, match='say where the images are'):
        coco_main(['--name=n', '--run_dir', str(tmp_path / 'n')])
    with pytest.raises(SystemExit, match='no annotation file'):
        coco_main(['--name=n', '--run_dir', str(tmp_path / 'n'), '--data_path', str(tmp_path)])
    train_detector(small(epochs=1))
    with pytest.raises(ValueError, match='epochs was 1 and is 2 now'):
        train_detector(small(epochs=2))
    with pytest.raises(ValueError, match='rois was 16 and is 8 now'):
        train_detector(small(epochs=1, rois=8))


def test_groups_hold_every_trained_parameter_once(small, monkeypatch):
    held = {}

    def make_datasets(self):
        held.update(groups=self.optimizer.param_groups, model=self.network)
        raise Stop
    monkeypatch.setattr(DetectorTraining, 'make_datasets', make_datasets)
    with pytest.raises(Stop):
        train_detector(small(layer_decay=0.5))
    found = [id(one) for group in held['groups'] for one in group['params']]
    assert sorted(found) == sorted(id(one) for one in held['model'].parameters() if one.requires_grad)
    scale = {id(one): group.get('lr_scale', 1.0) for group in held['groups'] for one in group['params']}
    cnn = held['model'].backbone.cnn
    assert [scale[id(cnn.stages[i].conv1.weight)] for i in (1, 2)] == [0.25, 0.5]
    assert scale[id(held['model'].rpn.head.cls_logits.weight)] == 1


@pytest.mark.slow
def test_a_compiled_network_trains(small):
    plain = log_of(train_detector(small(epochs=1)))[-1]
    compiled = log_of(train_detector(small(epochs=1, compile=True, fresh=True)))[-1]
    assert compiled['loss'] == pytest.approx(plain['loss'], rel=1e-3)


@pytest.mark.slow
def test_a_small_network_learns_the_drawn_images(tmp_path):
    write_coco(tmp_path, 8, 1, 128, seed=0)
    folder = train_detector(Options(
        name='n', run_dir=str(tmp_path / 'run'), data_path=str(tmp_path), val_images=str(files(tmp_path)[0]),
        val_annotations=str(files(tmp_path)[1]), model='convnext_atto', input_size=128, long_side=128, scales=(1.0, 1.0),
        fpn_channels=64, head_channels=128, mask_layers=1, rois=32, batch_size=4, epochs=100, lr=2e-3, layer_decay=1.0,
        weight_decay=0.01, clip_grad=10.0, flip=False, workers=0, val_every=100))
    last = log_of(folder)[-1]
    assert last['box_AP'] > 50 and last['mask_AP'] > 50
