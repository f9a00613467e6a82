"""The parts of a data set by their names: training images in train/ or train.tar, validation images in val/
or val.tar. It does not load torch.
"""
from pathlib import Path

# What the folder or the tar of the validation images may be called.
VALIDATION = ('val', 'valid', 'validation')
COMPRESSED_ENDINGS = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')
TAR_ENDINGS = ('.tar', *COMPRESSED_ENDINGS)


def is_tar(path):
    """Whether a path is a file with the name of a tar, which may be compressed."""
    path = Path(path)
    return path.name.lower().endswith(TAR_ENDINGS) and path.is_file()


def tar_of(data_path, name):
    """The path of a tar in a folder by its name without the ending, such as train.tar for 'train'; None if
    there is none.
    """
    candidates = (Path(data_path, name + ending) for ending in TAR_ENDINGS)
    return next((path for path in candidates if path.is_file()), None)


def training_split(data_path):
    """The path of train/ in a folder, else of train.tar; None if there is neither."""
    folder = Path(data_path, 'train')
    return folder if folder.is_dir() else tar_of(data_path, 'train')


def validation_folder(data_path):
    """The path of val/, else of valid/ or validation/, in a folder; None if there is none of them.

    Raises ValueError if there are both of the latter, and no val/.
    """
    folders = (Path(data_path, name) for name in VALIDATION)
    return only([path for path in folders if path.is_dir()], data_path)


def validation_split(data_path):
    """The path of the validation images in a folder: as of validation_folder, else of val.tar, valid.tar or
    validation.tar; None if there is none. Raises ValueError as validation_folder does.
    """
    tars = (tar_of(data_path, name) for name in VALIDATION)
    return validation_folder(data_path) or only([path for path in tars if path is not None], data_path)


def only(found, data_path):
    """The first of the paths that were found under the names of VALIDATION; None if there is none.

    Raises ValueError if there are two, and neither is called val.
    """
    if len(found) > 1 and found[0].name.split('.')[0] != VALIDATION[0]:
        raise ValueError(f'{data_path} holds {" and ".join(path.name for path in found)}: say which of them '
                         'has the images to validate on, --val_path=DIR')
    return found[0] if found else None


def validation_among(folders):
    """The one of the names VALIDATION that is in a set of names beside 'train'; None if there is none."""
    return next((name for name in VALIDATION if {'train', name} <= folders), None)
