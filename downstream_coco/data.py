"""Images with objects, in COCO's format: reading annotations, what is left out and why, augmentation, batches.

Boxes are x1 y1 x2 y2 in pixels; labels count from 1, 0 is the background; masks are (N, height, width) uint8.
"""
import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from common.data import Augmented, Steps, as_input
from common.engine import to_device
from common.images import ImageFiles, inside
from common.pixels import AS_IT_IS
from common.schedule import seed_for


def read_annotations(path):
    """The content of an annotation file in COCO's format, complete. Raises ValueError that says what is wrong with it.

    Fields that files of one's own often lack are filled in: iscrowd 0, area of the box, ids of annotations. `box` is added to
    each annotation: x1 y1 x2 y2 inside the image, None without area there. A segmentation that is no mask of that image becomes
    None.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f'there is no annotation file {path} ({error.strerror})') from error
    except ValueError as error:
        raise ValueError(f'{path} is no JSON file ({error})') from error
    lists = ('images', 'annotations', 'categories')
    lacking = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if lacking:
        raise ValueError(f'{path} is not in COCO\'s format: it has no list {", ".join(map(repr, lacking))}')
    needed = {'images': ('id', 'file_name', 'width', 'height'), 'annotations': ('image_id', 'category_id', 'bbox'),
              'categories': ('id',)}
    for name in lists:
        for entry in content[name]:
            missing = [key for key in needed[name] if key not in entry]
            if missing:
                raise ValueError(f'{path}: an entry of {name} has no {missing[0]!r}: {str(entry)[:80]}')
    images, categories = ({one['id']: one for one in content[name]} for name in ('images', 'categories'))
    if len(images) < len(content['images']) or len(categories) < len(content['categories']):
        raise ValueError(f'{path} uses an id twice, of an image or a category')
    if not images or not categories:
        raise ValueError(f'{path} names no {"images" if categories else "categories"}')
    for one in content['images']:
        if not isinstance(one['file_name'], str) or not all(isinstance(one[side], int) and one[side] > 0
                                                            for side in ('width', 'height')):
            raise ValueError(f'{path}: an image has no file_name that is text, or no width and height that are whole numbers: '
                             f'{str(one)[:120]}')
    for number, one in enumerate(content['annotations'], 1):
        what = f'{path}: annotation {one.get("id", number)}'
        if one['image_id'] not in images or one['category_id'] not in categories:
            raise ValueError(f'{what} is of image {one["image_id"]} and category {one["category_id"]}, which the file does not '
                             'list: is it whole, and of these images?')
        if not isinstance(one['bbox'], list) or len(one['bbox']) != 4 or not all(
                isinstance(value, (int, float)) for value in one['bbox']):
            raise ValueError(f'{what} has the box {one["bbox"]}, not four numbers, x, y, width, height')
        (x, y, width, height), image = one['bbox'], images[one['image_id']]
        box = [max(x, 0), max(y, 0), min(x + width, image['width']), min(y + height, image['height'])]
        one['box'] = box if box[2] > box[0] and box[3] > box[1] else None  # written so that NaN has none
        one['segmentation'] = mask_or_none(one.get('segmentation'), image['height'], image['width'])
        one['iscrowd'] = int(bool(one.get('iscrowd')))
        one['area'] = width * height if one.get('area') is None else one['area']
        one['id'] = number  # pycocotools asks for ids that are unique and not 0
    return content


def mask_or_none(segmentation, height, width):
    """Polygons that have three corners, or run lengths of an image of this size; None for anything else."""
    if isinstance(segmentation, dict):
        counts = segmentation.get('counts')
        whole = isinstance(counts, str) or isinstance(counts, list) and all(
            isinstance(count, int) for count in counts) and sum(counts) == height * width
        return segmentation if whole and list(segmentation.get('size', ())) == [height, width] else None
    if not isinstance(segmentation, list):
        return None
    return [one for one in segmentation if isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0 and all(
        isinstance(value, (int, float)) for value in one)] or None


class CocoImages(ImageFiles):
    """The images that an annotation file in COCO's format names. Yields (image, objects).

    image: as of ImageFiles. objects: {'boxes': (N, 4), 'labels': [N], 'segmentations': [N] as in the file, or None}.
    categories: [{'id', 'name'}] of the training images for those of validation, else those of the file. keep_empty: also
    images without objects. masks: whether objects need one; None: if most have one. `notes` says what is left out.
    Raises ValueError for files that do not fit together.
    """

    def __init__(self, folder, annotations, in_chans=3, categories=None, keep_empty=False, masks=None,
                 reading=AS_IT_IS):
        content = read_annotations(annotations)
        if in_chans not in (1, 3):
            raise ValueError(f'image files are read with 1 or 3 channels, not {in_chans}')
        self.root, self.mode, self.annotations = Path(folder), 'RGB' if in_chans == 3 else 'L', str(annotations)
        self.reading = reading
        own = [{'id': one['id'], 'name': str(one.get('name', one['id']))} for one in content['categories']]
        self.categories = sorted(own, key=lambda one: (str(type(one['id'])), one['id'])) if categories is None else categories
        strange = [one for one in own if one not in self.categories]
        if strange:
            raise ValueError(f'{annotations} has the category {strange[0]["id"]} ({strange[0]["name"]}), which the training '
                             'images do not have')
        if not self.root.is_dir():
            raise ValueError(f'there is no folder of images {folder}')
        paths = inside([one['file_name'] for one in content['images']], folder)
        paths = {one['id']: path for one, path in zip(content['images'], paths)}
        outside = [one['file_name'] for one in content['images'] if paths[one['id']] is None]
        if outside:
            raise ValueError(f'{annotations} names {outside[0]!r}, which does not lie below {folder}: give the folder that all '
                             'its images lie below, and names from there on')
        missing = {one['id']: one['file_name'] for one in content['images'] if not (self.root / paths[one['id']]).is_file()}
        images = {one['id']: one for one in content['images'] if one['id'] not in missing}
        if not images:
            raise ValueError(f'none of the {len(missing)} images that {annotations} names is in {folder}, for example '
                             f'{content["images"][0]["file_name"]}: give the folder that belongs to that file')
        wanted = [one for one in content['annotations'] if one['image_id'] in images]
        with_mask = [one['segmentation'] is not None for one in wanted if not one['iscrowd']]
        self.has_masks = 2 * sum(with_mask) > len(with_mask) if masks is None else masks
        self.left_out = Counter()
        found = self.sort_out(wanted, images)
        if missing:
            self.left_out[f'images that are not in the folder ({next(iter(missing.values()))}, ...)'] = len(missing)
        kept = [key for key in images if keep_empty or found[key]['labels']]
        if len(kept) < len(images):
            self.left_out['images without objects'] = len(images) - len(kept)
        if not kept or not any(found[key]['labels'] for key in kept):
            raise ValueError(f'{annotations} has no object that can be used'
                             + (f': left out are {self.notes}' if self.left_out else ''))
        self.ids = [images[key]['id'] for key in kept]
        self.shapes = np.array([(images[key]['height'], images[key]['width']) for key in kept])
        # One array, not lists of objects: loading processes share it, reference counts would copy it into each of them.
        self.paths = np.array([os.fsencode(paths[key]) for key in kept])
        texts = [json.dumps(found[key]).encode() for key in kept]
        self.texts, self.ends = np.frombuffer(b''.join(texts), np.uint8), np.cumsum([0, *map(len, texts)])

    def sort_out(self, annotations, images):
        """{image id: its objects} of what can be trained on; the rest is counted in `left_out`."""
        label = {one['id']: number for number, one in enumerate(self.categories, 1)}
        found = {key: {'boxes': [], 'labels': [], 'segmentations': [] if self.has_masks else None} for key in images}
        for one in annotations:
            objects = found[one['image_id']]
            if one['iscrowd']:
                self.left_out['crowd regions (evaluation alone takes note of them)'] += 1
            elif one['box'] is None:
                self.left_out['boxes without area in the image'] += 1
            elif self.has_masks and one['segmentation'] is None:
                self.left_out['objects without a mask that fits the image'] += 1
            else:
                objects['boxes'].append(one['box'])
                objects['labels'].append(label[one['category_id']])
                if self.has_masks:
                    objects['segmentations'].append(one['segmentation'])
        return found

    @property
    def upright(self):
        """Which images are higher than wide, (images,) bool."""
        return self.shapes[:, 0] > self.shapes[:, 1]

    @property
    def notes(self):
        """What is left out, for a person; empty if nothing is."""
        return ', '.join(f'{count:,} {what}' for what, count in self.left_out.items())

    @property
    def most(self):
        """Objects of the image that has most of them."""
        return max(len(self.objects(index)['labels']) for index in range(len(self)))

    @property
    def digest(self):
        """A short text that is the same for the same images and objects."""
        return hashlib.sha256(self.texts.tobytes() + repr(self.ids).encode()).hexdigest()

    def fingerprint(self):
        return self.digest

    def objects(self, index):
        return json.loads(bytes(self.texts[self.ends[index]:self.ends[index + 1]]))

    def is_to_turn(self, image, index):
        """Where the annotations have the size that it has when it is turned by 90 degrees."""
        return tuple(image.size) == tuple(self.shapes[index]) != tuple(image.size[::-1])

    def __getitem__(self, index):
        image = super().__getitem__(index)
        height, width = F.get_dimensions(image)[1:]
        if (height, width) != tuple(self.shapes[index]):
            raise ValueError(f'it is {width}x{height}, the annotations say {self.shapes[index][1]}x{self.shapes[index][0]}')
        objects = self.objects(index)
        return image, {**objects, 'boxes': np.array(objects['boxes'], float).reshape(-1, 4)}


@dataclass(frozen=True)
class View:
    """What of an image is seen, and how large: a box (top, left, height, width) of it, resized to a size, and mirrored."""
    box: tuple
    size: tuple
    mirrored: bool

    def image(self, image):
        image = F.resized_crop(image, *self.box, list(self.size), InterpolationMode.BILINEAR, antialias=True)
        return F.hflip(image) if self.mirrored else image

    @property
    def scale(self):
        return self.size[1] / self.box[3], self.size[0] / self.box[2]

    def corners(self, points):
        """Points (n, 2), x y in the image -> in the view."""
        points = (np.asarray(points, float) - (self.box[1], self.box[0])) * self.scale
        if self.mirrored:
            points[:, 0] = self.size[1] - points[:, 0]
        return points

    def boxes(self, boxes):
        """(N, 4) in the image -> in the view, cut at its borders."""
        first, second = self.corners(boxes[:, :2]), self.corners(boxes[:, 2:])
        low, high = np.minimum(first, second), np.maximum(first, second)
        return np.concatenate([low, high], 1).clip(0, (self.size[1], self.size[0]) * 2)

    def mask(self, segmentation):
        """One object's mask (h, w) uint8: polygons are drawn at the view's size, run lengths resized."""
        height, width = self.size
        if isinstance(segmentation, dict):
            top, left, *shape = self.box
            if isinstance(segmentation['counts'], list):
                segmentation = coco_mask.frPyObjects(segmentation, *segmentation['size'])
            seen = torch.from_numpy(coco_mask.decode(segmentation))[None, top:top + shape[0], left:left + shape[1]]
            seen = F.resize(seen, [height, width], InterpolationMode.NEAREST)
            return (F.hflip(seen) if self.mirrored else seen)[0].numpy()
        polygons = [self.corners(np.reshape(one, (-1, 2))).flatten().tolist() for one in segmentation]
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


class Scenes(Augmented):
    """Images with objects as a detector takes them: (C, h, w) float32, normalised, and a dictionary of its targets.

    Targets: boxes (N, 4), labels (N,), masks (N, h, w) where there are some, size (h, w) of the image here, number: that of the
    image in its data set. view(height, width) -> View, which may draw random numbers.
    """

    def __init__(self, images, view, normalisation, seed=0, stand_ins=True, timeout=120.0):
        super().__init__(images, None, normalisation, seed, stand_ins=stand_ins, timeout=timeout)
        self.view = view

    def prepare(self, image, item, index):
        objects, view = item[1], self.view(*F.get_dimensions(image)[1:])
        tensor = as_input(view.image(image), self.normalisation)
        boxes = view.boxes(objects['boxes'])
        centres = view.corners((objects['boxes'][:, :2] + objects['boxes'][:, 2:]) / 2)
        inside = ((centres >= 0) & (centres <= view.size[::-1])).all(1) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        targets = {'boxes': torch.from_numpy(boxes[inside]).float(), 'size': view.size, 'number': index,
                   'labels': torch.tensor(objects['labels'], dtype=torch.int64)[torch.from_numpy(inside)]}
        if objects['segmentations'] is not None:
            masks = [view.mask(objects['segmentations'][i]) for i in np.flatnonzero(inside)]
            targets['masks'] = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *view.size), np.uint8))
        return tensor, targets


@dataclass(frozen=True)
class TrainingView:
    """The whole image, or a random crop of it (share of the area from, to), its short side drawn from a range; mirrored or not.

    short: (least, most) of the short side in pixels, in steps of 32 where that leaves a choice; long: the most of the long one.
    """
    short: tuple
    long: int
    crop_scale: tuple = (1.0, 1.0)
    flip: bool = True

    def __call__(self, height, width):
        box = (0, 0, height, width)
        if self.crop_scale != (1.0, 1.0):
            box = RandomResizedCrop.get_params(torch.empty(1, height, width), self.crop_scale, (3 / 4, 4 / 3))
        least, most = self.short
        sides = range(most, least - 1, -32 if most - least >= 32 else -1)
        return View(box, resized(*box[2:], sides[int(torch.randint(len(sides), ()))], self.long),
                    self.flip and bool(torch.rand(()) < 0.5))


@dataclass(frozen=True)
class WholeView:
    """The whole image, its short side resized to `short` pixels unless its long one would be more than `long`."""
    short: int
    long: int

    def __call__(self, height, width):
        return View((0, 0, height, width), resized(height, width, self.short, self.long), False)


def resized(height, width, short, long):
    """(height, width) of an image whose short side is resized to `short`, or its long side to `long` where that is less."""
    scale = min(short / min(height, width), long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class SimilarShapes(Steps):
    """Steps whose batches hold images that are all upright or all wide, but for one at the seam: less padding.

    upright: (images,) bool. How images fall into batches is drawn anew for each epoch, and so is the order of the batches.
    """

    def __init__(self, upright, *rest, **named):
        super().__init__(len(upright), *rest, **named)
        self.upright = torch.as_tensor(upright)

    def order(self, epoch):
        order = super().order(epoch)
        order = torch.cat([order[self.upright[order]], order[~self.upright[order]]])
        whole = self.images // self.batch * self.batch
        generator = torch.Generator().manual_seed(seed_for('batches', self.seed, epoch))
        batches = order[:whole].view(whole // self.batch, self.batch)
        return torch.cat([batches[torch.randperm(len(batches), generator=generator)].flatten(), order[whole:]])


@dataclass(frozen=True)
class Collate:
    """[(image, targets, failures)] -> images (B, C, H, W), padded with zeros to a multiple of a stride; targets; failures.

    None is left out.
    """
    stride: int

    def __call__(self, items):
        failures, read = [one for *_, each in items for one in each], [item[:2] for item in items if item[0] is not None]
        if not read:
            return torch.empty(0), [], failures
        images, targets = zip(*read)
        height, width = (math.ceil(max(image.shape[side] for image in images) / self.stride) * self.stride for side in (1, 2))
        padded = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for one, image in zip(padded, images):
            one[:, :image.shape[1], :image.shape[2]] = image
        return padded, list(targets), failures


def moved(batches, device):
    """(images, targets) on the device: the arguments of Detector(...)."""
    for images, targets in batches:
        yield to_device(images, device), [{key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
                                           for key, value in one.items()} for one in targets]
