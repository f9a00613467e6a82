"""Images and their objects: what is read and left out, views, batches."""
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from common.demo_objects import CLASSES
from common.images.datasets import fingerprint
from downstream_coco.annotations import read_annotations
from downstream_coco.data import CocoImages
from downstream_coco.evaluation import average_precision
from downstream_coco.scenes import Collate, Scenes, SimilarShapes, TrainingView, View, WholeView, largest_size, resized
from tests.downstream_coco.files import files, written

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


@pytest.mark.parametrize(('crop_scale', 'images', 'expected'), [
    ((1.0, 1.0), 1, (96, 80)),  # the upright image alone, which has most pixels
    ((1.0, 1.0), 2, (96, 120)),  # as high as the upright one, as wide as the wide one
    ((0.1, 1.0), 1, (80, 107)),
    ((0.1, 1.0), 4, (107, 107))])  # crops of any image may be upright or wide
def test_the_largest_batch_holds_upright_and_wide_images(crop_scale, images, expected):
    view = TrainingView((40, 80), 120, crop_scale)
    shapes = np.array([(60, 120), (120, 100), (60, 60)])
    assert largest_size(shapes, view, images) == expected


def test_no_drawn_batch_is_larger_than_the_largest():
    shapes = [(60, 120), (120, 100), (60, 60), (300, 30)]
    torch.manual_seed(0)
    for crop_scale in ((1.0, 1.0), (0.2, 1.0)):
        view = TrainingView((40, 80), 120, crop_scale)
        drawn = [view(*shape).size for shape in shapes for _ in range(100)]
        largest = np.array(largest_size(np.array(shapes), view, 2))
        assert (np.max(drawn, 0) <= largest + 2).all()  # whole pixels of a small crop may exceed its aspect
        assert (np.max(drawn, 0) > 0.9 * largest).all()

