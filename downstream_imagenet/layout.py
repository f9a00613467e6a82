"""ImageNet's layout: where the training images and the validation images are. It does not load torch."""
import os
from pathlib import Path

from common.images.finding import what_is_in
from common.images.splits import TAR_ENDINGS, VALIDATION, is_tar, training_split, validation_split
from common.words import first_of


def training_source(data_path, val_path=None, divided=False):
    """The path of the training images: data_path if it is a tar, else train/ in it, else train.tar in it.

    divided: whether they will be divided, by val_fraction. Then data_path itself may hold the folders of the
    classes, or tars.

    Raises ValueError if there are no such images, or validation images although they will be divided.
    """
    if data_path is None:
        raise ValueError('say where the images are: --data_path=DIR, with train/ and val/ in it')
    found = training_split(data_path)
    if divided:
        held_out = val_path or validation_split(data_path)
        if held_out:
            what = 'tar' if is_tar(held_out) else 'folder'
            raise ValueError(f'--val_fraction holds out a part of the training images, and there is a {what} '
                             f'{held_out} of validation images already: leave --val_fraction out to use that '
                             'one, or take it away')
        if not Path(data_path).is_dir() and not is_tar(data_path):
            raise ValueError(f'there is no folder {data_path}')
        return found or Path(data_path)
    if is_tar(data_path):
        return Path(data_path)
    if found is None:
        raise ValueError(f'there is no folder {Path(data_path, "train")} with the training images: '
                         "ImageNet's layout is train/ and val/, each with a folder for each class; "
                         f'{what_is_in(data_path)}{tars_in(data_path)}. One folder with a folder for each '
                         'class is enough with --val_fraction=0.1, which holds out a part')
    return found


def validation_source(data_path, val_path=None):
    """The path of the validation images: val_path; or else val/, valid/ or validation/ in data_path, or a
    tar of such a name.

    Raises ValueError if there are no such images.
    """
    if val_path is not None:
        if not Path(val_path).is_dir() and not is_tar(val_path):
            raise ValueError(f'there is no folder or tar {val_path} with the validation images: give another '
                             '--val_path')
        return Path(val_path)
    advice = ('Say which has them, --val_path=DIR, or hold out a part of the training images, '
              '--val_fraction=0.1')
    if is_tar(data_path):
        raise ValueError(f'{data_path} is one tar, whose images are trained on, and there are none to '
                         f'validate on. {advice}. If it holds both, pack each into a tar of its own')
    found = validation_split(data_path)
    if found is None:
        names = ' or '.join(f'{name}/' for name in VALIDATION[1:])
        raise ValueError(f'there is no folder {Path(data_path, "val")} with the validation images, nor '
                         f'{names}: {what_is_in(data_path)}{tars_in(data_path)}. {advice}')
    return found


def tars_in(folder):
    """What to do with the tars that lie in a folder itself, as the end of a clause; '' if there are none."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) and os.access(folder, os.R_OK) else []
    tars = [name for name in names if name.lower().endswith(TAR_ENDINGS)]
    if not tars:
        return ''
    return (f', and the tar{"s" * (len(tars) > 1)} {first_of(tars)}: put tars of training images into train/ '
            'and tars of validation images into val/, and pack a tar that holds both as two')
