"""Annotation files of one image of 60 x 80 pixels, with objects that say odd or wrong things."""
import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from downstream_coco import masks as mask_checks
from downstream_coco.data import CocoImages

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


def polygon(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]
