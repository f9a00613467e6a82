"""Drawn images of several objects with boxes and masks, in COCO's layout (common/demo_world.py)."""
import json
from pathlib import Path

import numpy as np

from common.demo_objects import CLASSES, SCALE, Scene, reduced


def run_lengths(mask):
    """COCO's uncompressed run lengths of a mask (h, w): column by column, and the first run is of zeros."""
    pixels = np.concatenate([[0], mask.T.reshape(-1).astype(int), [1 - int(mask[-1, -1])]])
    ends = np.flatnonzero(np.diff(pixels))
    return {'size': list(mask.shape), 'counts': np.diff(np.concatenate([[0], ends])).tolist()}


def annotations_of(scene):
    """The objects of a Scene in COCO's format, without ids. Those in full view have polygons, the others run lengths."""
    found = []
    for name, visible, corners, is_crowd in scene.objects:
        mask = visible.reshape(scene.side, SCALE, scene.side, SCALE).mean((1, 3)) > 0.5
        if not mask.any():  # It is behind others.
            continue
        if corners is None:
            y, x = np.nonzero(mask)
            low = (x.min(), y.min())
            high = (x.max() + 1, y.max() + 1)
            segmentation = run_lengths(mask)
        else:
            corners = corners / SCALE
            low = corners.min(0)
            high = corners.max(0)
            segmentation = [corners.flatten().round(2).tolist()]
        box = [round(float(value), 2) for value in (*low, *np.subtract(high, low))]
        found.append({'category_id': category_id(list(CLASSES).index(name)), 'iscrowd': int(is_crowd),
                      'area': int(mask.sum()), 'bbox': box, 'segmentation': segmentation})
    return found


def draw_scene(rng, side, objects, crowd):
    """(PIL image, annotations without ids) of a Scene. objects: how many. crowd: whether there is a crowd besides."""
    scene = Scene(rng, side)
    if crowd:
        scene.add_crowd()
    for _ in range(objects):
        scene.add_object()
    annotations = annotations_of(scene)
    return reduced(scene.picture, side), annotations


def category_id(number):
    """As COCO's, the ids have gaps: 1, 2, 3, 5, 6, 7, 9, ..."""
    return 1 + number + number // 3


def write_coco(folder, train, val, side, seed):
    """Write train2017/, val2017/ and annotations/: images of up to five objects, some of them with a crowd.

    train, val: how many images. side: in pixels.
    """
    folder = Path(folder)
    (folder / 'annotations').mkdir(parents=True, exist_ok=True)
    categories = [{'id': category_id(number), 'name': name, 'supercategory': 'object'}
                  for number, name in enumerate(CLASSES)]
    for split, (name, count) in enumerate((('train2017', train), ('val2017', val))):
        (folder / name).mkdir(exist_ok=True)
        images = []
        annotations = []
        for number in range(count):
            rng = np.random.default_rng([seed, 2 + split, number])
            objects = 0 if number % 12 == 11 else rng.integers(1, 6)
            image, found = draw_scene(rng, side, objects, crowd=number % 8 == 5)
            image_id = 1000 + 7 * number
            file_name = f'{image_id:012}.png'
            image.save(folder / name / file_name)
            images.append({'id': image_id, 'file_name': file_name, 'height': side, 'width': side})
            for annotation in found:
                annotations.append({'id': len(annotations) + 1, 'image_id': image_id, **annotation})
        content = {'info': {'description': 'drawn by common.demo_world'}, 'licenses': [], 'images': images,
                   'annotations': annotations, 'categories': categories}
        (folder / 'annotations' / f'instances_{name}.json').write_text(json.dumps(content))
