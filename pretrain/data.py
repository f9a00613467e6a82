"""Images without labels: where they are."""
from pathlib import Path

from common.images.datasets import timm_dataset
from common.images.files import ImageFiles
from common.images.finding import VALIDATION, validation_folder
from common.images.reading import AS_IT_IS
from common.images.shards import TarShards, is_sharded


def find_images(data_path=None, dataset=None, in_chans=3, list_root=None, reading=AS_IT_IS):
    """The training images of --data_path and --dataset; list_root: where the paths of a list start. Raises
    ValueError.
    """
    if dataset is not None:
        return timm_dataset(dataset, data_path, 'train', in_chans)
    if data_path is None:
        raise ValueError('say where the images are: --data_path=DIR')
    folder = Path(data_path, 'train')
    images = images_of(folder if folder.is_dir() else data_path, in_chans, list_root, reading)
    if isinstance(images, TarShards):
        first = {path.split(b'/')[0] for path in images.paths.tolist()}
        held_out = [name for name in VALIDATION if name.encode() in first]
        if b'train' in first and held_out:
            raise ValueError(f'{data_path} holds train/ and {held_out[0]}/ inside of its tars, and both '
                             'would be trained on: pack each into tars of its own, in folders train/ and '
                             f'{held_out[0]}/')
    return images


def find_held_out(data_path=None, val_path=None, in_chans=3, list_root=None, reading=AS_IT_IS):
    """The held-out images of --val_path, or of val/, valid/ or validation/ beside train/; None if there are
    none.

    list_root: where the paths of a list start. Raises ValueError if they would be trained on as well.
    """
    beside = data_path is not None and Path(data_path, 'train').is_dir()
    if val_path is None:
        found = validation_folder(data_path) if beside else None
        return None if found is None else images_of(found, in_chans, None, reading)
    trained = data_path and Path(data_path, 'train' if beside else '').resolve()
    if trained and Path(val_path).resolve().is_relative_to(trained):
        raise ValueError(f'the held-out images {val_path} lie inside {trained}, whose images are trained on: '
                         'put them beside it, as train/ and val/')
    return images_of(val_path, in_chans, list_root, reading)


def images_of(source, in_chans=3, list_root=None, reading=AS_IT_IS):
    """The images of a folder, of a list, of a tar, or of a folder of tars. Raises ValueError."""
    return TarShards(source, in_chans, reading) if is_sharded(source) else ImageFiles(source, in_chans, list_root, reading)
