"""The folders that a data set of images and masks is made of. It does not load torch.

    DIR/images/train, DIR/images/val, DIR/annotations/train, DIR/annotations/val
    DIR/images/training, DIR/images/validation, DIR/annotations/training, DIR/annotations/validation

The second form is that of ADE20K.

The mask of an image is a PNG of the same name, but for the ending, and in the same folder below its split.
"""
import os
from pathlib import Path

from common.images.finding import find_files, image_endings, what_is_in
from common.images.splits import VALIDATION

NAMES = {'train': ('train', 'training'), 'val': VALIDATION}
ADE20K_PREFIX = 'ADE_'  # with which the names of ADE20K's files begin


def folders(options, split):
    """(folder of the images, folder of their masks) of 'train' or 'val', as the options say.

    options: with data_path, and with images and masks of each split, such as train_images; and val_fraction.
    With the latter, data_path may hold images/ and annotations/ without splits.

    Raises ValueError if one of them is not given or not there, or if one lies in the other.
    """
    images = getattr(options, f'{split}_images')
    masks = getattr(options, f'{split}_masks')
    if options.data_path is not None:
        images = images or folder_of_split(options, 'images', split)
        masks = masks or folder_of_split(options, 'annotations', split)
    if images is None or masks is None:
        raise ValueError('say where the images and masks are: --data_path=DIR with images/train, images/val, '
                         f'annotations/train and annotations/val in it, or --{split}_images=DIR and '
                         f'--{split}_masks=DIR')
    for folder, what in ((images, 'images'), (masks, 'masks')):
        if not os.path.isdir(folder):
            raise ValueError(f'there is no folder of {what} {folder}')
    require_apart(images, masks, 'images and their masks')
    return Path(images), Path(masks)


def folder_of_split(options, kind, split):
    """The folder of a split in 'images' or 'annotations', which is `kind`. Raises ValueError."""
    parent = Path(options.data_path, kind)
    found = [parent / name for name in NAMES[split] if (parent / name).is_dir()]
    if len(found) > 1:
        flag = f'--{split}_images' if kind == 'images' else f'--{split}_masks'
        raise ValueError(f'{parent} holds {" and ".join(path.name for path in found)}: leave one of them '
                         f'there, or say which is meant, {flag}=DIR')
    if found:
        return found[0]
    is_divided = options.val_fraction is not None
    if is_divided and split == 'train' and parent.is_dir():
        return parent
    where = what_is_in(parent if parent.is_dir() else options.data_path)
    raise ValueError(f'there is no folder {parent / NAMES[split][0]}, nor {" or ".join(NAMES[split][1:])} '
                     f'beside it: {where}. {advice_on(parent, kind, split)}')


def advice_on(parent, kind, split):
    """What to do where a folder `parent` of 'images' or 'annotations', which is `kind`, lacks a split."""
    if not parent.is_dir():
        what = 'images' if kind == 'images' else 'masks'
        return f'Folders with other names are given one by one, --train_{what}=DIR and --val_{what}=DIR'
    if split == 'val':
        return '--val_fraction=0.1 holds out a part of the training images instead'
    return (f'Of images that lie in {parent.parent / "images"} without splits, and masks in '
            f'{parent.parent / "annotations"}, --val_fraction=0.1 holds out a part')


def folders_to_train_on(options):
    """The folders of the training images and those of the validation images, each as of `folders`; the latter
    are None where val_fraction holds out a part of the former. Raises ValueError.
    """
    train = folders(options, 'train')
    if options.val_fraction is not None:
        refuse_validation_folders(options)
        return train, None
    val = folders(options, 'val')
    advice = '. --val_fraction=0.1 holds out a part of them'
    require_apart(train[0], val[0], 'training and validation images', advice)
    return train, val


def refuse_validation_folders(options):
    """Raises ValueError if there are validation images besides those that val_fraction holds out."""
    given = [path for path in (options.val_images, options.val_masks) if path]
    if options.data_path is not None:
        candidates = [Path(options.data_path, 'images', name) for name in VALIDATION]
        given += [path for path in candidates if path.is_dir()]
    if given:
        raise ValueError('--val_fraction holds out a part of the training images, and there are validation '
                         f'images already, {given[0]}: leave --val_fraction out to use those, or take them '
                         'away')


def require_apart(one, other, what, advice=''):
    """Raises ValueError if two folders are the same, or if one lies in the other.

    what: lies in them, in words. advice: what to do besides, from '. ' on.
    """
    paths = [Path(os.path.realpath(path)) for path in (one, other)]
    if paths[0] == paths[1]:
        raise ValueError(f'{what} are in one folder, {one}: give each a folder of its own{advice}')
    if paths[0] in paths[1].parents or paths[1] in paths[0].parents:
        outer, inner = (one, other) if paths[0] in paths[1].parents else (other, one)
        raise ValueError(f'{what} need folders that lie beside each other, and {inner} lies in '
                         f'{outer}{advice}')


def is_ade20k(images):
    """Whether a folder of images is that of ADE20K's benchmark, by its name and by those of its files."""
    if Path(images).name not in ('training', 'validation'):
        return False
    first = next(find_files(images, image_endings()), '')
    return first.startswith(ADE20K_PREFIX)
