"""The files and folders that a data set in COCO's format is made of. It does not load torch."""
import os


def open_annotations(path):
    """An annotation file, opened for reading bytes. Raises ValueError if it cannot be opened."""
    try:
        return open(path, 'rb')
    except OSError as error:
        raise ValueError(f'there is no annotation file {path} ({error.strerror})') from error


def require_folder(folder):
    """Raise a ValueError if there is no such folder of images."""
    if not os.path.isdir(folder):
        raise ValueError(f'there is no folder of images {folder}')
