"""A data set in COCO's layout, of any classes, in the place of COCO in a config of MMDetection."""
import json
from pathlib import Path


def use_data(config, folder):
    """Put a folder in COCO's layout, and the number and names of its classes, into a config. Raises ValueError."""
    names = []
    for split in ('train', 'val'):
        images, annotations = Path(folder, f'{split}2017'), Path(folder, 'annotations', f'instances_{split}2017.json')
        if not images.is_dir() or not annotations.is_file():
            raise ValueError(f"{folder} is not in COCO's layout: there is no {images} or no {annotations}")
        names.append([one['name'] for one in json.loads(annotations.read_text(encoding='utf-8'))['categories']])
    if names[0] != names[1]:
        raise ValueError(f'the training and validation annotations in {folder} do not have the same categories')
    for part in ('train', 'val', 'test'):
        split = 'train' if part == 'train' else 'val'
        config[f'{part}_dataloader'].dataset.update(
            data_root='', ann_file=str(Path(folder, 'annotations', f'instances_{split}2017.json')),
            data_prefix={'img': f'{Path(folder, f"{split}2017")}/'}, metainfo={'classes': tuple(names[0])})
        if part != 'train':
            config[f'{part}_evaluator'].ann_file = str(Path(folder, 'annotations', 'instances_val2017.json'))
    heads = config.model.roi_head
    for head in (*(heads.bbox_head if isinstance(heads.bbox_head, list) else [heads.bbox_head]), heads.mask_head):
        head.num_classes = len(names[0])
