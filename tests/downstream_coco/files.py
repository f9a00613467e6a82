"""Annotation files: those of the drawn scenes, and small ones with one object."""
import json

from PIL import Image


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
