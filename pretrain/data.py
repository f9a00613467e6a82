"""Images without labels: where they are."""
from pathlib import Path

from common.images import ImageFiles, timm_dataset


def find_images(data_path=None, dataset=None, in_chans=3, list_root=None):
    """The training images of --data_path and --dataset; list_root: where the paths of a list start. Raises ValueError."""
    if dataset is not None:
        return timm_dataset(dataset, data_path, 'train', in_chans)
    if data_path is None:
        raise ValueError('say where the images are: --data_path=DIR')
    folder = Path(data_path, 'train')
    return ImageFiles(folder if folder.is_dir() else data_path, in_chans, list_root)


def find_held_out(data_path=None, val_path=None, in_chans=3, list_root=None):
    """The held-out images of --val_path, or of val/ beside train/; None if there are none.

    list_root: where the paths of a list start. Raises ValueError if they would be trained on as well.
    """
    beside = data_path is not None and Path(data_path, 'train').is_dir()
    if val_path is None:
        return ImageFiles(Path(data_path, 'val'), in_chans) if beside and Path(data_path, 'val').is_dir() else None
    trained = data_path and Path(data_path, 'train' if beside else '').resolve()
    if trained and Path(val_path).resolve().is_relative_to(trained):
        raise ValueError(f'the held-out images {val_path} lie inside {trained}, whose images are trained on: put them beside '
                         'it, as train/ and val/')
    return ImageFiles(val_path, in_chans, list_root)
