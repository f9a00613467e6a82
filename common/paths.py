"""Whether what the options name is there, which is asked before torch is loaded."""
import os


def require_images(path):
    """Raise a ValueError if there is no folder and no file of this path."""
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise ValueError(f'there is no folder or list of images {path}')


def require_file(path):
    """Raise a ValueError if there is no file of this path."""
    if not os.path.isfile(path):
        raise ValueError(f'there is no file {path}')


def require_weights(source):
    """Raise a ValueError if there is no file of weights for FILE, or FILE:KEY. 'timm' stands for timm's own."""
    if source not in (None, 'timm') and not os.path.isfile(source.rpartition(':')[0]):
        require_file(source)
