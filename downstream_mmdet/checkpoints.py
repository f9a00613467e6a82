"""How MMEngine reads checkpoints here: its own hold Python objects, which can run code; only trusted ones are read whole.

(torch 2.6 and later refuse such files, and with them `--resume` of MMEngine 0.10.7, which asks for nothing else.)
"""
import os
import pickle
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader


def trust(work_dir, everything=False):
    """Let MMEngine read the files in its own work-dir whole, or all files; others as plain data."""

    @CheckpointLoader.register_scheme(prefixes='', force=True)
    def load(filename, map_location=None):
        path = Path(os.path.expanduser(filename)).resolve()
        if not path.is_file():
            raise ValueError(f'there is no file {filename}')
        own = everything or path.is_relative_to(Path(work_dir).resolve())
        try:
            return torch.load(path, map_location=map_location, weights_only=not own)
        except pickle.UnpicklingError as error:
            if own:
                raise ValueError(f'{filename} is damaged ({error})') from error
            raise ValueError(f'{filename} is refused: it lies outside of {work_dir}, and is damaged or holds Python objects, '
                             'which could run code when loaded. If you made it, give --trust') from error
