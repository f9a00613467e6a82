"""ImageNet's layout: where the training images are. It does not load torch."""
from pathlib import Path

from common.images.finding import validation_folder, what_is_in


def training_folder(data_path, val_path=None, divided=False):
    """The folder of the training images: train/ in data_path.

    divided: whether they will be divided, by val_fraction. Then data_path itself may hold the folders of the classes.
    Raises ValueError if there is no such folder, or a folder of validation images although they will be divided.
    """
    if data_path is None:
        raise ValueError('say where the images are: --data_path=DIR, with train/ and val/ in it')
    train = Path(data_path, 'train')
    if divided:
        found = val_path or validation_folder(data_path)
        if found:
            raise ValueError(f'--val_fraction holds out a part of the training images, and there is a folder {found} of '
                             'validation images already: leave --val_fraction out to use that one, or take it away')
        if not Path(data_path).is_dir():
            raise ValueError(f'there is no folder {data_path}')
        return train if train.is_dir() else Path(data_path)
    if not train.is_dir():
        raise ValueError(f'there is no folder {train} with the training images: ImageNet\'s layout is train/ '
                         f'and val/, each with a folder for each class; {what_is_in(data_path)}. One folder with '
                         'a folder for each class is enough with --val_fraction=0.1, which holds out a part')
    return train
