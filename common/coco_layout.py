"""A data set in COCO's layout, for programs that read its annotation files by themselves.

Detectron2, MMDetection and pycocotools fail late, or train on nothing, where an annotation lacks what they need. So that
is checked before they start. It does not load torch.
"""
import json
from pathlib import Path


def read_split(folder, split):
    """(folder of images, annotation file, its content, whether its objects have masks) of 'train' or 'val'.

    Raises ValueError if something is missing, or some objects have a mask and others none.
    """
    images, annotations = Path(folder, f'{split}2017'), Path(folder, 'annotations', f'instances_{split}2017.json')
    if not images.is_dir() or not annotations.is_file():
        raise ValueError(f"{folder} is not in COCO's layout: there is no {images} or no {annotations}")
    try:
        content = json.loads(annotations.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{annotations} is no JSON file ({error})') from error
    return images, annotations, content, has_masks(annotations, content)


def has_masks(path, content):
    """Whether the objects of an annotation file have masks; crowd regions do not count. Raises ValueError."""
    for name in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(f"{path} is not in COCO's format: it has no list '{name}'")
    for one in content['annotations']:
        for key in ('bbox', 'category_id', 'image_id', 'area', 'iscrowd'):
            if not isinstance(one, dict) or one.get(key) is None:
                which = one.get('id') if isinstance(one, dict) else one
                raise ValueError(f"{path}: the annotation {which} has no '{key}', which is needed here; "
                                 'downstream_coco fills in area and iscrowd')
        if not isinstance(one['area'], int | float):
            raise ValueError(f"{path}: the annotation {one.get('id')} has the area {one['area']!r}, which is no number")
    for one in content['categories']:
        if not isinstance(one, dict) or not {'id', 'name'} <= one.keys():
            raise ValueError(f'{path}: the category {one} has no id or no name')
    objects = [one for one in content['annotations'] if not one['iscrowd']]
    if not any(one['area'] > 0 for one in objects):
        raise ValueError(f'{path} has no object with an area above 0')
    masks = sum(bool(one.get('segmentation')) for one in objects)
    if masks not in (0, len(objects)):
        raise ValueError(f'{path}: {masks:,} of {len(objects):,} objects have a segmentation. Give all of them one, or none, '
                         'or use downstream_coco')
    return masks > 0
