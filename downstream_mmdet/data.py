"""A data set in COCO's layout, of any classes, in the place of COCO in a config of MMDetection."""
from pathlib import Path

from common.coco_layout import read_split


def use_data(config, folder):
    """Put a folder in COCO's layout, and the number and names of its classes, into a config. Raises ValueError."""
    names = []
    for split in ('train', 'val'):
        _, annotations, content, has_masks = read_split(folder, split)
        if not has_masks:
            raise ValueError(f'{annotations} has boxes alone, and the detectors of this folder have masks: use downstream_coco')
        names.append([one['name'] for one in content['categories']])
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
