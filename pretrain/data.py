"""Images without labels: where they are."""
from pathlib import Path

from common.images.datasets import timm_dataset
from common.images.files import ImageFiles
from common.images.reading import AS_IT_IS
from common.images.shards import TarShards, is_sharded
from common.images.splits import training_split, validation_among, validation_split


def find_images(data_path=None, dataset=None, in_chans=3, list_root=None, reading=AS_IT_IS):
    """The training images of --data_path and --dataset; list_root: where the paths of a list start. Raises ValueError."""
    if dataset is not None:
        return timm_dataset(dataset, data_path, 'train', in_chans)
    if data_path is None:
        raise ValueError('say where the images are: --data_path=DIR')
    images = images_of(training_part(data_path), in_chans, list_root, reading)
    held_out = validation_among(images.folders) if isinstance(images, TarShards) else None
    if held_out:
        raise ValueError(f'{data_path} holds train/ and {held_out}/ inside of its tars, and both would be trained '
                         f'on: pack each into tars of its own, in folders train/ and {held_out}/')
    return images


def training_part(data_path):
    """The path of what is trained on: train/ in a folder; or train.tar, if validation images lie beside it; or
    else all of data_path.
    """
    found = training_split(data_path)
    is_split = found is not None and (found.is_dir() or validation_split(data_path) is not None)
    return found if is_split else Path(data_path)


def find_held_out(data_path=None, val_path=None, in_chans=3, list_root=None, reading=AS_IT_IS):
    """The held-out images of --val_path, or of val/, valid/ or validation/ beside train/, or of tars of such
    names; None if there are none.

    list_root: where the paths of a list start. Raises ValueError if they would be trained on as well.
    """
    part = None if data_path is None else training_part(data_path)
    if val_path is None:
        is_split = part is not None and part != Path(data_path)
        found = validation_split(data_path) if is_split else None
        return None if found is None else images_of(found, in_chans, None, reading)
    trained = None if part is None else part.resolve()
    if trained and Path(val_path).resolve().is_relative_to(trained):
        raise ValueError(f'the held-out images {val_path} lie inside {trained}, whose images are trained on: '
                         'put them beside it, as train/ and val/')
    return images_of(val_path, in_chans, list_root, reading)


def images_of(source, in_chans=3, list_root=None, reading=AS_IT_IS):
    """The images of a folder, of a list, of a tar, or of a folder of tars. Raises ValueError."""
    return TarShards(source, in_chans, reading) if is_sharded(source) else ImageFiles(source, in_chans, list_root, reading)
