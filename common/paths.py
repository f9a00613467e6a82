"""Whether what the options name is there, which is asked before torch is loaded."""
import os


def require_images(path):
    """Raise a ValueError if there is no folder and no file of this path."""
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise ValueError(f'there is no folder or list of images {path}')


def require_file(path):
    """Raise a ValueError if there is no file of this path. If it is a folder, the message names one of its files."""
    if os.path.isdir(path):
        raise ValueError(f'{path} is a folder: give a file of it{such_as(path)}')
    if not os.path.isfile(path):
        raise ValueError(f'there is no file {path}')


def such_as(folder):
    """', such as ...' with the path of a file of weights in a folder, of the last state if there is one; '' without any."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(('.pth', '.pt', '.safetensors', '.bin')))
    last = [name for name in names if name.endswith('_last.pth')]
    return f', such as {os.path.join(folder, (last or names)[0])}' if names else ''


def require_weights(source):
    """Raise a ValueError if there is no file of weights for FILE, or FILE:KEY. 'timm' stands for timm's own."""
    if source not in (None, 'timm') and not os.path.isfile(source.rpartition(':')[0]):
        require_file(source)
