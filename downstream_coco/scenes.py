"""What a detector sees of the images: views of them, their targets, and batches.

Boxes are x1 y1 x2 y2 in pixels. Labels count from 1; 0 is the background. Masks are (N, h, w) uint8.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from common.images.augmented import ASPECTS, Augmented, Steps, as_input
from common.seeds import seed_for
from common.training.device import to_device


@dataclass(frozen=True)
class View:
    """What is seen of an image, and how large: a box of it, resized, and perhaps mirrored.

    box: (top, left, height, width) in the image. size: (height, width) of the view.
    """
    box: tuple
    size: tuple
    mirrored: bool

    def image(self, image):
        """The view of a PIL image or a tensor (C, h, w)."""
        image = F.resized_crop(image, *self.box, list(self.size), InterpolationMode.BILINEAR, antialias=True)
        return F.hflip(image) if self.mirrored else image

    @property
    def scale(self):
        """(x, y), sides of the view as shares of those of the box."""
        return self.size[1] / self.box[3], self.size[0] / self.box[2]

    def corners(self, points):
        """Points (n, 2), x y in the image, as points in the view."""
        points = (np.asarray(points, float) - (self.box[1], self.box[0])) * self.scale
        if self.mirrored:
            points[:, 0] = self.size[1] - points[:, 0]
        return points

    def boxes(self, boxes):
        """Boxes (N, 4) in the image as boxes in the view, cut at its borders."""
        first = self.corners(boxes[:, :2])
        second = self.corners(boxes[:, 2:])
        low = np.minimum(first, second)
        high = np.maximum(first, second)
        return np.concatenate([low, high], 1).clip(0, (self.size[1], self.size[0]) * 2)

    def mask(self, segmentation):
        """One object's mask in the view, (h, w) uint8.

        segmentation: as in COCO's format. Polygons are drawn at the view's size; run lengths are decoded and resized.
        """
        height, width = self.size
        if isinstance(segmentation, dict):
            top, left, box_height, box_width = self.box
            if isinstance(segmentation['counts'], list):
                segmentation = coco_mask.frPyObjects(segmentation, *segmentation['size'])
            whole = torch.from_numpy(coco_mask.decode(segmentation))[None]
            seen = whole[:, top:top + box_height, left:left + box_width]
            seen = F.resize(seen, [height, width], InterpolationMode.NEAREST)
            return (F.hflip(seen) if self.mirrored else seen)[0].numpy()
        polygons = [self.corners(np.reshape(polygon, (-1, 2))).flatten().tolist() for polygon in segmentation]
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


@dataclass(frozen=True)
class TrainingView:
    """Draws a View for training: the whole image or a random crop, its short side of random length, perhaps mirrored.

    short: (least, most) pixels of the short side, in steps of 32 where that leaves a choice.
    long: the most pixels of the long side.
    crop_scale: (from, to), the area of a crop as a share of the image; (1, 1) for no crop.
    flip: whether half of the views are mirrored.
    """
    short: tuple
    long: int
    crop_scale: tuple = (1.0, 1.0)
    flip: bool = True

    def __call__(self, height, width):
        box = (0, 0, height, width)
        if self.crop_scale != (1.0, 1.0):
            box = RandomResizedCrop.get_params(torch.empty(1, height, width), self.crop_scale, ASPECTS)
        least, most = self.short
        sides = range(most, least - 1, -32 if most - least >= 32 else -1)
        short = sides[int(torch.randint(len(sides), ()))]
        size = resized(*box[2:], short, self.long)
        mirrored = self.flip and bool(torch.rand(()) < 0.5)
        return View(box, size, mirrored)


@dataclass(frozen=True)
class WholeView:
    """The View of the whole image with a short side of `short` pixels, or less so that the long side has at most `long`."""
    short: int
    long: int

    def __call__(self, height, width):
        return View((0, 0, height, width), resized(height, width, self.short, self.long), False)


def resized(height, width, short, long):
    """(height, width) of an image whose short side is resized to `short`, or its long side to `long` if that is less."""
    scale = min(short / min(height, width), long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def largest_size(shapes, view, images):
    """(height, width) in pixels of the largest batch that a TrainingView gives, before it is padded to a stride.

    A batch of several images may hold upright and wide ones. It is then as high as the one and as wide as the other.

    shapes: height and width of the data set's images, (N, 2). images: of the batch.
    """
    if view.crop_scale != (1.0, 1.0):
        shapes = [(1 / aspect, 1) for aspect in ASPECTS]
    sizes = [resized(*shape, view.short[1], view.long) for shape in np.unique(shapes, axis=0).tolist()]
    if images == 1:
        return max(sizes, key=math.prod)
    return tuple(max(sides) for sides in zip(*sizes))


class Scenes(Augmented):
    """Images with objects as a detector takes them: (C, h, w) float32, normalised, and a dict of their targets.

    The targets are boxes (N, 4), labels (N,), masks (N, h, w) if the objects have some, size (h, w) of the
    image here, and number, the index of the image in its data set. Objects whose centre is outside of the
    view, and those that are less than a pixel wide or high there, are left out.

    images: a CocoImages. view: called with the height and width of an image; returns a View, and may draw
    random numbers. The other arguments are those of Augmented.
    """

    def __init__(self, images, view, normalisation, seed=0, stand_ins=True, timeout=120.0):
        super().__init__(images, None, normalisation, seed, stand_ins=stand_ins, timeout=timeout)
        self.view = view

    def prepare(self, image, item, index):
        objects = item[1]
        view = self.view(*F.get_dimensions(image)[1:])
        tensor = as_input(view.image(image), self.normalisation)
        boxes = view.boxes(objects['boxes'])
        centres = view.corners((objects['boxes'][:, :2] + objects['boxes'][:, 2:]) / 2)
        is_centre_inside = ((centres >= 0) & (centres <= view.size[::-1])).all(1)
        is_large_enough = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        kept = is_centre_inside & is_large_enough
        labels = torch.tensor(objects['labels'], dtype=torch.int64)[torch.from_numpy(kept)]
        targets = {'boxes': torch.from_numpy(boxes[kept]).float(), 'size': view.size, 'number': index,
                   'labels': labels}
        if objects['segmentations'] is not None:
            masks = [view.mask(objects['segmentations'][i]) for i in np.flatnonzero(kept)]
            masks = np.stack(masks) if masks else np.zeros((0, *view.size), np.uint8)
            targets['masks'] = torch.from_numpy(masks)
        return tensor, targets


class SimilarShapes(Steps):
    """Steps whose batches hold images that are all upright or all wide, which need less padding; one batch
    may hold both.

    Which images make a batch is drawn anew for each epoch, and so is the order of the batches.

    upright: (images,) bool. The other arguments are those of Steps from `batch` on.
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
        batches = batches[torch.randperm(len(batches), generator=generator)]
        return torch.cat([batches.flatten(), order[whole:]])


@dataclass(frozen=True)
class Collate:
    """Makes a batch of items of Scenes.

    Takes [(image or None, targets, failures)]. Returns images (B, C, H, W), padded with zeros at the right
    and the bottom to multiples of `stride`; the list of their targets; and the list of all failures. Items
    without an image are left out.
    """
    stride: int

    def __call__(self, items):
        failures = [failure for *_, of_item in items for failure in of_item]
        read = [(image, targets) for image, targets, _ in items if image is not None]
        if not read:
            return torch.empty(0), [], failures
        images, targets = zip(*read)
        height, width = (math.ceil(max(image.shape[side] for image in images) / self.stride) * self.stride
                         for side in (1, 2))
        padded = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for place, image in zip(padded, images):
            place[:, :image.shape[1], :image.shape[2]] = image
        return padded, list(targets), failures


def moved(batches, device):
    """Yield (images, targets) of the batches on a device, as Detector(...) takes them."""
    for images, targets in batches:
        on_device = [{key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
                      for key, value in target.items()} for target in targets]
        yield to_device(images, device), on_device
