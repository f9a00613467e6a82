"""How a detector is measured: COCO's average precision, each image looked at once, on any number of processes.

--eval measures a file.
"""
import contextlib
import io
import sys

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.roi_heads import paste_masks_in_image

from common.images.held_out import warn_of_division
from common.images.loading import each_once, naming_the_file
from common.live_line import LiveLine
from common.training.device import to_device
from common.training.run import autocast, loading_processes
from common.words import counted
from downstream_coco.annotations import read_annotations
from downstream_coco.checkpoints import read_detector, restore
from downstream_coco.data import CocoImages, divided_images
from downstream_coco.scenes import Collate, Scenes, WholeView

PIXELS = 2 ** 26  # of masks that are drawn at a time
NAMES = ('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large')
EVAL_BATCH = 4  # images, of all ranks together, where --batch_size is not given


def encoded(masks, boxes, height, width):
    """COCO's run lengths of masks (N, 1, 28, 28) in boxes (N, 4), drawn into an image; a few at a time, for
    they are large.
    """
    found, some = [], max(1, PIXELS // (height * width))
    for mask, box in zip(masks.split(some), boxes.split(some)):
        drawn = paste_masks_in_image(mask, box, (height, width), padding=1)[:, 0] > 0.5
        lengths = coco_mask.encode(np.asfortranarray(drawn.permute(1, 2, 0).cpu().numpy().astype(np.uint8)))
        found += [{**one, 'counts': one['counts'].decode()} for one in lengths]
    return found


def as_results(found, image_id, categories, height, width):
    """What Detector.detect found in an image, as COCO's result format has it."""
    boxes = found['boxes'].cpu()
    shapes = encoded(found['masks'], found['boxes'], height, width) if 'masks' in found else [None] * len(boxes)
    return [{'image_id': image_id, 'category_id': categories[label - 1]['id'], 'score': score,
             'bbox': [x1, y1, x2 - x1, y2 - y1], **({'segmentation': shape} if shape else {})}
            for (x1, y1, x2, y2), label, score, shape in
            zip(boxes.tolist(), found['labels'].tolist(), found['scores'].tolist(), shapes)]


@torch.no_grad()
def evaluate(model, scenes, batch, ranks, autocast, workers=0, warn=print, go_on=None, count=None):
    """{'box_AP', 'box_AP50', ..., 'mask_AP', ... in percent, 'images', 'objects_found'}; the same on all ranks.

    scenes: of a CocoImages data set, without stand-ins; what cannot be read is left out, and warn(text) told.
    batch: images at a time on a rank, upright ones after wide ones. go_on() -> whether to go on with the next
    batch; if not, on some rank, None is returned. count: a Count of the images, if given.

    Raises ValueError, on all ranks, if no image can be read, or if the annotation file has changed for the worse.
    """
    # without sync_bn the ranks' running statistics differ: rank 0's are those saved
    ranks.broadcast(model.buffers())
    images, mode = scenes.images, model.training
    model.eval()
    results, looked = [], []
    for x, targets in each_once(scenes, batch, workers, ranks, warn, Collate(model.stride),
                                images.upright.__getitem__, go_on, count):
        places = [one['number'] for one in targets]
        originals = [tuple(map(int, images.shapes[place])) for place in places]
        with autocast():
            found = model.detect(to_device(x, ranks.device), [one['size'] for one in targets], originals)
        for one, place, original in zip(found, places, originals):
            looked.append(images.ids[place])
            results += as_results(one, images.ids[place], images.own_categories, *original)
    model.train(mode)
    if ranks.any(go_on is not None and not go_on()):
        return None
    if count:
        count.start('average precision')
    looked, results = ranks.gather(looked), ranks.gather(results)
    if not looked:
        raise ValueError('none of the validation images can be read')
    return ranks.on_main(lambda: average_precision(images.annotations, results, looked, images.has_masks))


def average_precision(annotations, results, looked, masks, dry=False):
    """COCO's figures, by pycocotools, over the images with the ids in `looked`; None where there is nothing to find.

    Left out of the truth are objects without area, which nothing could match, and where masks are trained those whose
    mask contradicts their box. For the average precision of masks those without a mask are left out too. Regions of
    crowds stay: what is found in them counts neither way.

    Results have the ids of the annotation file; those of a category that it lacks, None, count as found and are not
    compared. dry: go through the truth even if there are no results, to see whether pycocotools takes it.
    """
    metrics, content = {'images': len(looked), 'objects_found': len(results)}, read_annotations(annotations)
    for kind, name in (('bbox', 'box'), *((('segm', 'mask'),) if masks else ())):
        there = [one for one in content['annotations'] if one['box'] is not None and (kind == 'bbox' or one['segmentation'])
                 and not (masks and one.get('contradicts') and not one['iscrowd'])]
        # Sizes of objects are those of their masks where masks are compared, as in the evaluation of COCO itself.
        found = [{key: value for key, value in one.items() if key != ('segmentation' if kind == 'bbox' else 'bbox')}
                 for one in results if one['category_id'] is not None]
        found_none = not found
        if there and (dry or found_none):  # pycocotools takes no empty results
            found = [{key: there[0][key] for key in ('image_id', 'category_id', 'bbox')} | {'score': 1.0}]
        stats = compared({**content, 'annotations': there}, found, looked, kind) if found else [-1.0] * len(NAMES)
        if found_none:
            stats = [min(value, 0.0) for value in stats]
        metrics |= {f'{name}_{one}': None if value < 0 else 100 * float(value) for one, value in zip(NAMES, stats)}
    return metrics


def compared(content, results, looked, kind):
    """pycocotools' twelve figures, -1 where there is nothing to find.

    It sorts ids, and takes no annotation with the id 0, so all of them are numbered anew, in the order that they have.
    """
    image, category = ({key: number for number, key in enumerate(sorted(
        (one['id'] for one in content[name]), key=lambda key: (isinstance(key, str), key)), 1)}
        for name in ('images', 'categories'))

    def numbered(entries):
        return [{**one, 'id': number, 'image_id': image[one['image_id']], 'category_id': category[one['category_id']]}
                for number, one in enumerate(entries, 1)]

    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        truth = COCO()
        truth.dataset = {'images': [{**one, 'id': image[one['id']]} for one in content['images']],
                         'categories': [{'id': number} for number in category.values()],
                         'annotations': numbered(content['annotations'])}
        truth.createIndex()
        measured = COCOeval(truth, truth.loadRes(numbered(results)), kind)
        measured.params.imgIds = sorted(image[key] for key in looked)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return measured.stats


def whole_scenes(options, val):
    """Images as they are measured: whole, and none stands in for one that cannot be read."""
    return Scenes(val, WholeView(options.input_size, options.long_side), options.normalisation, stand_ins=False,
                  timeout=options.read_timeout)


def evaluate_file(options, ranks):
    """--eval: {which: average precisions} of a run's file, of its weights and of their average."""
    content = read_detector(options.eval)
    options, models, categories, masks = restore(content, options)
    line = LiveLine(print if ranks.is_main else None)
    warn = line.say if ranks.is_main else print
    if options.val_fraction is not None:
        _, images = divided_images(options, masks, categories, line)
    else:
        images = CocoImages(*options.files('val'), options.in_chans, categories, True, masks, options.reading, line)
    if ranks.is_main:
        warn_of_division(options, content['config'])
        for remark in images.remarks:
            print(f'warning: {remark}', file=sys.stderr)
        print(f'measured on images with a short side of {options.input_size} and a long side of at most '
              f'{options.long_side}; at most {options.detections} objects are found in one')
    seen, results = whole_scenes(options, images), {}
    for which, model in models.items():
        model = model.to(ranks.device, memory_format=torch.channels_last)
        what = 'validation images' if which == 'model' else 'validation images (EMA)'
        with naming_the_file(seen), line.counting(what, len(images)) as count:
            results[which] = evaluate(model, seen, max((options.batch_size or EVAL_BATCH) // ranks.size, 1), ranks,
                                      lambda: autocast(options, ranks), loading_processes(options, ranks), warn,
                                      count=count)
        if ranks.is_main:
            print(f'{which}: {figures(results[which])} on {counted(results[which]["images"], "image")}')
    return results


def figures(metrics, suffix=''):
    """AP and AP50 of boxes, and of masks where there are some, for a person; of 100, as the field has it."""
    texts = []
    for kind in ('box', 'mask'):
        if f'{kind}_AP{suffix}' in metrics:
            average, at_half = (metrics[f'{kind}_{name}{suffix}'] for name in ('AP', 'AP50'))
            texts.append(f'{kind} AP not measured' if average is None else
                         f'{kind} AP {average:.2f} (AP50 {at_half:.2f})')
    return ', '.join(texts)
