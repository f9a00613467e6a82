"""Images with masks for semantic segmentation: finding them, checking them, and reading them."""
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import functional as F

from common.images.files import SIZES, ImageFiles, fits_turned, size_of
from common.images.finding import find_files
from common.images.held_out import with_held_out
from common.images.reading import AS_IT_IS
from common.live_line import LiveLine
from common.words import counted, first_of
from downstream_ade20k.checks import check_masks, check_validation_masks
from downstream_ade20k.classes import ade20k, in_order, read_classes
from downstream_ade20k.layout import folders, folders_to_train_on, is_ade20k
from downstream_ade20k.masks import read_mask
from downstream_ade20k.survey import mask_shapes


class SegmentationImages(ImageFiles):
    """Images, and a mask for each.

    Items are (image, mask). image: as of ImageFiles, turned upright if the mask is. mask: (h, w) int16, the
    number of each pixel's class, IGNORE where it has none.

    folder: of the images, flat or nested. masks: the folder of PNGs with the same names.
    in_chans: 1 or 3. reading: a Reading.

    classes: the Classes, and shapes: (N, 2), height and width of each mask. Both are None until `with_classes`.
    remarks: sentences on what is odd in the masks.

    Raises ValueError for images without a mask, and for images of which two have the same mask.
    """
    rows = ('paths', 'masks')

    def __init__(self, folder, masks, in_chans=3, reading=AS_IT_IS):
        super().__init__(folder, in_chans, reading=reading)
        self.mask_root = Path(masks)
        self.masks = self.find_masks()
        self.classes = None
        self.shapes = None
        self.remarks = []

    def find_masks(self):
        """The path of each image's mask below mask_root, (N,) of bytes. Raises ValueError."""
        found = {os.path.splitext(path)[0]: path for path in find_files(self.mask_root, ('.png',))}
        paths = [os.fsdecode(path) for path in self.paths]
        stems = [os.path.splitext(path)[0] for path in paths]
        missing = [path for path, stem in zip(paths, stems) if stem not in found]
        if missing:
            raise ValueError(self.without_masks(missing, sorted(found.values())))
        image_of = {}
        for path, stem in zip(paths, stems):
            if stem in image_of:
                raise ValueError(f'{self.root} has two images of one name, {image_of[stem]} and {path}, for '
                                 f'one mask, {found[stem]}: take one of them away, or give it another name')
            image_of[stem] = path
        unused = [found[stem] for stem in sorted(found.keys() - image_of.keys())]
        if unused:
            what = 'mask without an image' if len(unused) == 1 else 'masks without an image'
            self.left_out[f'{what} ({first_of(unused, 2)})'] = len(unused)
        return np.array([os.fsencode(found[stem]) for stem in stems])

    def without_masks(self, missing, masks):
        """The message about images without a mask. masks: the paths of all masks."""
        expected = Path(missing[0]).with_suffix('.png')
        there = f'; there is {masks[0]}, for example' if masks else ', which has no PNGs'
        if not masks and next(find_files(self.mask_root, ('.jpg', '.jpeg')), None):
            there += ' but JPEGs, whose values are not those that were drawn'
        return (f'{len(missing):,} of {counted(len(self), "image")} in {self.root} have no mask: for '
                f'{missing[0]} it would be {expected} in {self.mask_root}{there}. Give each image a mask, a '
                'PNG of the same name, or move it to another folder')

    def with_classes(self, classes, shapes):
        """The same images with Classes, and with the height and width of each mask, (N, 2)."""
        part = self.subset(np.arange(len(self)))
        part.classes = classes
        part.shapes = shapes
        return part

    def subset(self, places):
        part = super().subset(places)
        if self.shapes is not None:
            part.shapes = self.shapes[places]
        return part

    def mask_path(self, index):
        """The path of a mask below mask_root."""
        return os.fsdecode(self.masks[index])

    def mask_name(self, index):
        """The path of a mask's file."""
        return str(self.mask_root / self.mask_path(index))

    def fingerprint(self):
        places = np.linspace(0, len(self) - 1, min(len(self), SIZES)).round().astype(int)
        sizes = [size_of(self.mask_name(index)) for index in places]
        return hashlib.sha256(f'{super().fingerprint()} {sizes}'.encode()).hexdigest()[:32]

    def is_to_turn(self, image, index):
        """Whether the image has the size of its mask only after it is turned by 90 degrees."""
        return fits_turned(image, self.shapes[index])

    def __getitem__(self, index):
        image = super().__getitem__(index)
        values = read_mask(self.mask_name(index), self.classes, self.reading.max_pixels)
        _, height, width = F.get_dimensions(image)
        if values.shape != (height, width):
            raise ValueError(f'it is {width}x{height}, its mask {values.shape[1]}x{values.shape[0]}')
        return image, torch.from_numpy(self.classes.numbers(values))


def training_and_validation(options, ranks, line=None, classes=None, fingerprints=()):
    """(training images, validation images), as SegmentationImages whose masks were checked.

    classes: the Classes of a checkpoint, of which --classes may change names and colours. If not given, they are
        those of --classes, or ADE20K's in its layout, or what the training masks hold.
    fingerprints: of the checkpoint's training images, and of its validation images. If both are the same, and
        so are the colours that masks may have, the masks are not read again.
    ranks: the Ranks; the main one reads the masks. line: a LiveLine that shows how far it has come.

    Raises ValueError on all ranks for whatever cannot be trained on.
    """
    line = line or LiveLine(None)
    train, val = listed(options)
    known = given_classes(options, train.root) if classes is None else classes_to_go_on_with(options, classes)

    def look():
        is_known = classes is not None and known.mask_colours == classes.mask_colours
        if is_known and tuple(fingerprints) == (train.fingerprint(), val.fingerprint()):
            return known, (mask_shapes(train, line), mask_shapes(val, line)), []
        is_divided = options.val_fraction is not None
        return check_masks(train, val, known, in_order(options.ignore), is_divided, line)

    found, shapes, remarks = ranks.on_main(look)
    train, val = train.with_classes(found, shapes[0]), val.with_classes(found, shapes[1])
    train.remarks = remarks
    return train, val


def validation_images(options, classes, ranks, line=None):
    """The validation images of the options, as SegmentationImages whose masks were checked.

    classes: the Classes of a checkpoint; see `classes_to_measure` for what the options may change of them. The other
    arguments are those of training_and_validation. Raises ValueError on all ranks.
    """
    line = line or LiveLine(None)
    classes = classes_to_measure(options, classes)
    if options.val_fraction is not None:
        _, val = listed(options)
    else:
        val = SegmentationImages(*folders(options, 'val'), options.in_chans, options.reading)
    shapes, remarks = ranks.on_main(lambda: check_validation_masks(val, classes, line))
    val = val.with_classes(classes, shapes)
    val.remarks = remarks
    return val


def listed(options):
    """(training images, validation images) that the options name, as SegmentationImages whose masks were not read.

    Raises ValueError.
    """
    of_train, of_val = folders_to_train_on(options)
    train = SegmentationImages(*of_train, options.in_chans, options.reading)
    val = None if of_val is None else SegmentationImages(*of_val, options.in_chans, options.reading)
    return with_held_out(train, val, options.val_fraction, options.seed)


def given_classes(options, folder):
    """The Classes that the options name, or ADE20K's if `folder`, of the training images, is ADE20K's; None
    if these do not say it. Raises ValueError.
    """
    if options.classes is None:
        return ade20k(options.ignore) if is_ade20k(folder) else None
    return named_classes(options.classes, options.ignore)


def named_classes(name, ignored):
    """The Classes that a --classes names, which is ade20k or a file. Raises ValueError."""
    return ade20k(ignored) if name == 'ade20k' else read_classes(name, ignored)


def classes_to_go_on_with(options, classes):
    """The Classes of a checkpoint, with the names and colours of --classes, if that is given.

    Raises ValueError if --classes has other ids, or gives the colour of a class to another one.
    """
    if options.classes is None:
        return classes
    given = named_classes(options.classes, classes.ignored)
    names, trained = (dict(zip(each.ids, each.names)) for each in (given, classes))
    run = options.resume or options.folder
    remedy = 'which holds a run that goes on: undo that, or start another one, with another name or --fresh'
    changed = sorted(names.keys() ^ trained.keys())
    if changed:
        value = changed[0]
        raise ValueError(f'--classes={options.classes}: the value {value} is {described_class(names, value)} there, '
                         f'and {described_class(trained, value)} in {run}, {remedy}')
    value_of = {colour: value for value, colour in classes.mask_colours}
    for value, colour in given.mask_colours:
        if value_of.get(colour, value) != value:
            raise ValueError(f'--classes={options.classes}: the colour {colour} is that of {value} there, and of '
                             f'{value_of[colour]} in {run}, {remedy}')
    colours = dict(zip(given.ids, given.colours))
    return replace(classes, names=tuple(names[value] for value in classes.ids),
                   colours=tuple(colours[value] for value in classes.ids),
                   mask_colours=given.mask_colours or classes.mask_colours, source=given.source)


def classes_to_measure(options, classes):
    """The Classes of a checkpoint, with what --eval may change of them.

    --ignore adds values that are ignored. --classes may say which colours masks have; ids and names stay.

    Raises ValueError for values of --ignore that are classes, and for a --classes with other ids or names.
    """
    trained = dict(zip(classes.ids, classes.names))
    for value in options.ignore or ():
        if value in trained:
            raise ValueError(f'--ignore={value}: {options.eval} was trained with the class {trained[value]}, whose value '
                             'that is. Leave it out of --ignore, and do not count its row of the table')
    classes = replace(classes, ignored=in_order((*classes.ignored, *(options.ignore or ()))))
    if options.classes is None:
        return classes
    given = named_classes(options.classes, classes.ignored)
    named = dict(zip(given.ids, given.names))
    if named != trained:
        value = min(value for value in {*named, *trained} if named.get(value) != trained.get(value))
        raise ValueError(f'--classes={options.classes}: the value {value} is {described_class(named, value)} there, and '
                         f'{described_class(trained, value)} in {options.eval}, whose classes are measured. Leave '
                         '--classes out')
    return replace(classes, mask_colours=given.mask_colours or classes.mask_colours, source=given.source)


def described_class(names, value):
    """The class of a value, in words. names: {value: name}."""
    return f'"{names[value]}"' if value in names else 'no class'
