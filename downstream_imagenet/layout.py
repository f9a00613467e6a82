"""ImageNet's layout: where the training images are. It does not load torch."""
from pathlib import Path

from common.images.finding import what_is_in


def train_folder(data_path):
    """The folder of the training images, train/ in data_path. Raises ValueError if there is none."""
    if data_path is None:
        raise ValueError('say where the images are: --data_path=DIR, with train/ and val/ in it')
    train = Path(data_path, 'train')
    if not train.is_dir():
        raise ValueError(f'there is no folder {train} with the training images: ImageNet\'s layout is train/ '
                         f'and val/, each with a folder for each class; {what_is_in(data_path)}')
    return train
