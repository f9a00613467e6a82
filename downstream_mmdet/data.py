"""A data set in COCO's layout, of any classes, in the place of COCO in a config of MMDetection."""
from common.coco_layout import read_split


def use_data(config, folder):
    """Put a folder in COCO's layout, and the number and names of its classes, into a config. Raises ValueError."""
    names = {}
    for split, parts in (('train', ('train',)), ('val', ('val', 'test'))):
        images, annotations, content, has_masks = read_split(folder, split)
        if not has_masks:
            raise ValueError(f'{annotations} has boxes alone, and the detectors of this folder have masks: use downstream_coco')
        names[split] = tuple(one['name'] for one in content['categories'])
        for part in parts:
            config[f'{part}_dataloader'].dataset.update(
                data_root='', ann_file=str(annotations), data_prefix={'img': f'{images}/'}, metainfo={'classes': names[split]})
            if part != 'train':
                config[f'{part}_evaluator'].ann_file = str(annotations)
    if names['train'] != names['val']:
        raise ValueError(f'the training and validation annotations in {folder} do not name the same categories in one order')
    heads = config.model.roi_head
    for head in (*(heads.bbox_head if isinstance(heads.bbox_head, list) else [heads.bbox_head]), heads.mask_head):
        head.num_classes = len(names['train'])
