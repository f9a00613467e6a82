"""Images with objects, in COCO's format: what is left out and why, augmentation, batches.

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

from common.images.augmented import Augmented, Steps, as_input
from common.images.files import ImageFiles
from common.images.path_lists import inside
from common.images.pixels import AS_IT_IS
from common.seeds import seed_for
from common.training.device import to_device
from downstream_coco.annotations import read_annotations


class CocoImages(ImageFiles):
    """The images that an annotation file in COCO's format names. Yields (image, objects).

    image: as of ImageFiles. objects: {'boxes': (N, 4), 'labels': [N], 'segmentations': [N] as in the file, or None}.
    categories: [{'id', 'name'}] of the training images for those of validation, else those of the file; own_categories: the
    same with the ids of the file, None for those that it lacks. keep_empty: also images without objects. masks: whether
    objects need one; None: if most are given one. say: told of the progress of reading. `notes` says what is left out,
    `remarks` what a person should know of the file. Raises ValueError for files that do not fit together.
    """

    def __init__(self, folder, annotations, in_chans=3, categories=None, keep_empty=False, masks=None, reading=AS_IT_IS,
                 say=None):
        content = read_annotations(annotations, say)
        if in_chans not in (1, 3):
            raise ValueError(f'image files are read with 1 or 3 channels, not {in_chans}')
        self.root, self.mode, self.annotations = Path(folder), 'RGB' if in_chans == 3 else 'L', str(annotations)
        self.reading = reading
        own = [{'id': one['id'], 'name': str(one.get('name', one['id']))} for one in content['categories']]
        self.categories = sorted(own, key=lambda one: (str(type(one['id'])), one['id'])) if categories is None else categories
        self.label = labels_of(own, self.categories, annotations)
        self.own_categories = [{**one, 'id': None} for one in self.categories]
        for key, label in self.label.items():
            self.own_categories[label - 1]['id'] = key
        if not self.root.is_dir():
            raise ValueError(f'there is no folder of images {folder}')
        paths = self.find(content['images'])
        images = {one['id']: one for one in content['images'] if paths[one['id']] is not None}
        missing = [one['file_name'] for one in content['images'] if paths[one['id']] is None]
        wanted = [one for one in content['annotations'] if one['image_id'] in images]
        # Bad masks count here: with many of them a file is refused, and does not become one of boxes.
        given = [bool(there) for one, there in zip(content['annotations'], content['checks'].given)
                 if one['image_id'] in images and not one['iscrowd']]
        self.has_masks = 2 * sum(given) > len(given) if masks is None else masks
        self.remarks = content['checks'].judge(masks)
        renamed = [one for one in self.own_categories if one['id'] is not None and one not in self.categories]
        if renamed:
            there = self.categories[self.own_categories.index(renamed[0])]
            self.remarks.append(f'{annotations}: {len(renamed)} categories have other ids than in the training images, and are '
                                f'told by their names; for example {renamed[0]["name"]}, {renamed[0]["id"]!r} here and '
                                f'{there["id"]!r} there')
        self.left_out = Counter()
        found = self.sort_out(wanted, images)
        if masks is None and not self.has_masks and any(given):
            self.remarks.append(f'{annotations}: the masks of {sum(given):,} objects are not used, since the other '
                                f'{len(given) - sum(given):,} have none: --heads=mask uses them')
        if missing:
            self.left_out[f'images that are not in the folder ({missing[0]}, ...)'] = len(missing)
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

    def find(self, images):
        """{image id: the path of its file below the folder, None if it is not there}. Raises ValueError.

        Backslashes, which Windows has between folders, are read as such where there is no file with the name as it stands.
        """
        found = {}
        for names in ({one['id']: one['file_name'] for one in images},
                      {one['id']: one['file_name'].replace('\\', '/') for one in images if '\\' in one['file_name']}):
            wanted = [key for key in names if found.get(key) is None]
            for key, path in zip(wanted, inside([names[key] for key in wanted], self.root)):
                if path is None:
                    raise ValueError(f'{self.annotations} names {names[key]!r}, which does not lie below {self.root}: give the '
                                     'folder that all its images lie below, and names from there on')
                found[key] = path if os.path.isfile(self.root / path) else None
        if not any(found.values()):
            name = images[0]['file_name'].replace('\\', '/')
            last = name.rsplit('/', 1)[-1]
            near = '' if last == name or not os.path.isfile(self.root / last) else \
                f'. {last} itself is there: give the folder in which {name} lies, or take the folders out of the names'
            raise ValueError(f'none of the {len(images)} images that {self.annotations} names is in {self.root}, for example '
                             f'{images[0]["file_name"]}: give the folder that belongs to that file{near}')
        return found

    def sort_out(self, annotations, images):
        """{image id: its objects} of what can be trained on; the rest is counted in `left_out`."""
        found = {key: {'boxes': [], 'labels': [], 'segmentations': [] if self.has_masks else None} for key in images}
        for one in annotations:
            objects = found[one['image_id']]
            if one['iscrowd']:
                self.left_out['crowd regions (evaluation alone takes note of them)'] += 1
            elif one['box'] is None:
                self.left_out['boxes without area in the image'] += 1
            elif self.has_masks and one['segmentation'] is None:
                self.left_out['objects without a mask that fits the image'] += 1
            elif self.has_masks and one.get('contradicts'):
                self.left_out['objects whose mask does not fit their box'] += 1
            else:
                objects['boxes'].append(one['box'])
                objects['labels'].append(self.label[one['category_id']])
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


def labels_of(own, categories, path):
    """{id: label} of the categories of an annotation file, by the names of `categories`, whose first has label 1.

    Both are [{'id', 'name'}]. Raises ValueError for a name that is not among them, or not to be told from another.
    """
    labels = {}
    for one in own:
        exact = [number for number, other in enumerate(categories, 1) if other == one]
        found = exact or [number for number, other in enumerate(categories, 1) if other['name'] == one['name']]
        what = f'{path} has the category {one["id"]} ({one["name"]}), which '
        if not found:
            names = ', '.join(other['name'] for other in categories[:20]) + ', ...' * (len(categories) > 20)
            raise ValueError(f'{what}the training images do not have; theirs are {names}')
        if len(found) > 1 or found[0] in labels.values():
            raise ValueError(f'{what}cannot be told by its name: several have it')
        labels[one['id']] = found[0]
    return labels


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
