"""Annotation files in COCO's format: reading them, and checking what they say before it is used."""
import json
import math
from collections import Counter

import numpy as np

from downstream_coco.checks import ROUNDING, Checks
from downstream_coco.layout import open_annotations
from downstream_coco.masks import PIXELS, SIDE, check_masks
from downstream_coco.remarks import Remarks

LARGE = 5e7  # bytes of a file whose reading takes seconds
ENORMOUS = 1e9  # pixels; a box with such a value is no box
AREAS = 'areas are no finite numbers: those of the boxes are taken'
LISTS = ('images', 'annotations', 'categories')
# The fields that every entry of a list must have.
FIELDS = {'images': ('id', 'file_name', 'width', 'height'),
          'annotations': ('image_id', 'category_id', 'bbox'),
          'categories': ('id',)}


def read_annotations(path, line=None):
    """The content of an annotation file in COCO's format, completed and checked.

    In each annotation, iscrowd (0), area (of the box) and id are filled in where they are missing. A
    segmentation that is no mask of its image becomes None. A bbox that reaches beyond its image by more than
    ROUNDING is cut at the border. Two entries are added: 'box', x1 y1 x2 y2 in the image, None without area
    there; and 'contradicts', True where the mask does not fill its box. content['checks'] is a Checks.

    line: a LiveLine (common/live_line.py) that shows how far this has come, if given.

    Raises ValueError, which says what is wrong, for a file that cannot be used. Checks.judge raises more.
    """
    content = load(path, line)
    images = {image['id']: image for image in content['images']}
    categories = {category['id']: category for category in content['categories']}
    annotations = content['annotations']
    remarks = Remarks(path, {image_id: image['file_name'] for image_id, image in images.items()})
    boxes = []
    sizes = []
    for number, annotation in enumerate(annotations):
        if annotation.get('id') is None:
            annotation['id'] = number + 1
        boxes.append(complete(annotation, images, categories, remarks))
        image = images[annotation['image_id']]
        sizes.append((image['height'], image['width']))
    boxes = np.array(boxes, float).reshape(-1, 4)
    sizes = np.array(sizes, np.int64).reshape(-1, 2)
    faults, extents = check_masks(annotations, sizes, remarks, line)
    has_area = np.array([annotation['box'] is not None for annotation in annotations], bool)
    checks = Checks(annotations, boxes, sizes, faults, extents, has_area, remarks)
    for number in np.flatnonzero(checks.contradicts):
        annotations[number]['contradicts'] = True
    for number in np.flatnonzero(checks.beyond(ROUNDING)):
        x1, y1, x2, y2 = annotations[number]['box']
        annotations[number]['bbox'] = [x1, y1, x2 - x1, y2 - y1]
    content['checks'] = checks
    return content


def complete(annotation, images, categories, remarks):
    """Fill in 'box', 'iscrowd' and 'area' of an annotation. Returns its bbox, four NaN where a value is
    enormous or NaN.

    images: {id: image}. categories: {id: category}. Raises ValueError.
    """
    what = f'{remarks.path}: annotation {annotation["id"]}'
    for key, known_ids in (('image_id', images), ('category_id', categories)):
        if not is_id(annotation[key]) or annotation[key] not in known_ids:
            raise ValueError(unknown_id(what, annotation, key, known_ids))
    box = annotation['bbox']
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        raise ValueError(f'{what} has the box {box}, not four numbers, x, y, width, height')
    is_sound = all(-ENORMOUS < value < ENORMOUS for value in box)  # False for NaN too.
    annotation['box'] = inside_image(box, images[annotation['image_id']]) if is_sound else None
    annotation['iscrowd'] = crowd(what, annotation.get('iscrowd'))
    area = annotation.get('area')
    if type(area) not in (int, float) or not -math.inf < area < math.inf:
        if area is not None:
            remarks.add(AREAS, annotation)
        annotation['area'] = box[2] * box[3] if is_sound else 0
    return box if is_sound else [math.nan] * 4


def load(path, line=None):
    """The content of an annotation file, whose lists are there, with entries that have the FIELDS. Raises ValueError."""
    with open_annotations(path) as file:
        text = file.read()
    try:
        if line and len(text) > LARGE:
            line.say(f'{path}: {len(text) / 1e6:,.0f} MB are read')
        content = json.loads(text)  # From bytes it reads UTF-8, 16 and 32, with a byte order mark or without.
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no JSON file ({error})') from error
    missing = [name for name in LISTS
               if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(f'{path} is not in COCO\'s format: it has no list {", ".join(map(repr, missing))}')
    for name in LISTS:
        for entry in content[name]:
            check_entry(path, name, entry)
    for name, what in (('images', 'an image'), ('categories', 'a category')):
        counts = Counter(entry['id'] for entry in content[name])
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f'{path} uses an id twice, {repeated[0]!r} of {what}')
    for name in ('images', 'categories'):
        if not content[name]:
            raise ValueError(f'{path} names no {name}')
    for image in content['images']:
        check_image(path, image)
    return content


def check_entry(path, name, entry):
    """Raises ValueError if an entry of the list `name` lacks one of its FIELDS, or has no proper id."""
    missing = [key for key in FIELDS[name] if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise ValueError(f'{path}: an entry of {name} has no {missing[0]!r}: {str(entry)[:80]}')
    if name != 'annotations' and not is_id(entry['id']):
        raise ValueError(f'{path}: an entry of {name} has an id that is neither a number nor text: '
                         f'{str(entry)[:80]}')


def check_image(path, image):
    """Raises ValueError if an entry of 'images' has no proper name, width and height."""
    sides = (image['width'], image['height'])
    if not isinstance(image['file_name'], str) or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f'{path}: an image has no file_name that is text, or no width and height that are '
                         f'whole numbers: {str(image)[:120]}')
    if max(sides) > SIDE or math.prod(sides) > PIXELS:
        raise ValueError(f'{path} says that {image["file_name"]} has {image["width"]} x {image["height"]} '
                         'pixels, more than can be read: correct its width and height')


def is_id(value):
    return type(value) in (int, str) or type(value) is float and math.isfinite(value)


def plain_id(value):
    """An id as text, which is the same for 1, 1.0 and '1'."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def unknown_id(what, annotation, key, known_ids):
    """The message about an annotation whose id of an image or a category, annotation[key], is not among the known ones.

    what: names the annotation.
    """
    given = annotation[key]
    listed = {plain_id(known_id): known_id for known_id in known_ids}.get(plain_id(given))
    if listed is not None:
        of_what = 'image' if key == 'image_id' else 'category'
        kinds = ['text' if isinstance(each, str) else 'a number' for each in (given, listed)]
        return (f'{what} has the {key} {given!r}, which is {kinds[0]}; the {of_what} has the id {listed!r}, '
                f'which is {kinds[1]}: write the ids alike in both places, as numbers')
    return (f'{what} is of image {annotation["image_id"]!r} and category {annotation["category_id"]!r}, '
            'which the file does not list: is it whole, and of these images?')


def inside_image(box, image):
    """x1 y1 x2 y2 of the part of a box x, y, width, height that lies in its image; None without area there."""
    x, y, width, height = box
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + width, image['width']), min(y + height, image['height'])
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None


def crowd(what, given):
    """The value of iscrowd, given in any of the usual ways, as 0 or 1. Raises ValueError for anything else.

    what: names the annotation.
    """
    values = {None: 0, '': 0, '0': 0, 'false': 0, '1': 1, 'true': 1}
    known = given.lower() if isinstance(given, str) else given
    if isinstance(known, (bool, int, float)) and known in (0, 1):
        return int(known)
    if not isinstance(known, (str, type(None))) or known not in values:
        raise ValueError(f'{what} has iscrowd {given!r}: it is 0 for one object and 1 for a crowd')
    return values[known]
