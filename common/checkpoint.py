"""Files that a run writes and reads back: written whole or not at all, read as plain data."""
import itertools
import os
import pickle
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import distributed as dist

from common.cli import changes
from common.lock import FolderLock

VERSION = 1


def write_atomically(path, write):
    """Call write(file) on a temporary file beside path, flush it to the disk, and rename it to path.

    Raises ValueError (unwritable, disk full); whatever stood at path is still there then.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.writing')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise ValueError(f'cannot write {path}: {error}. Make room there or give another folder; '
                         'what was written before is untouched') from error


def save(path, content):
    write_atomically(path, lambda file: torch.save(content, file))


def open_folder(folder, fresh, ranks, own):
    """Make the run folder; if fresh, move the old one aside, and return where to (on the main rank, else None).

    own: the run's checkpoint in it. Raises ValueError if the folder is another run's, if another process writes into it, or if
    nothing can be written there.
    """
    aside = None
    if ranks.is_main:
        runs = ('*_still_pretraining.pth', '*_1kfinetuned_last.pth', '*_coco_last.pth')
        others = [path for kind in runs for path in folder.glob(kind) if path != own]
        if others and not fresh:
            raise ValueError(f'{folder} holds another run ({others[0].name}): give this one another name, or --fresh to move '
                             'that one aside')
        if folder.exists():
            FolderLock(folder).release()  # RunLog holds it for the run
        try:
            if fresh and folder.exists():
                aside = next(path for i in itertools.count(1)
                             if not (path := folder.with_name(f'{folder.name}_old{i}')).exists())
                folder.rename(aside)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f'cannot make the run folder {folder}: {error}. Give another one: --run_dir') from error
        write_atomically(folder / '.writable', lambda file: file.write(b'yes'))
        (folder / '.writable').unlink()
    ranks.barrier()
    return aside


def load_run(resume, own, ranks):
    """The run to go on with: the file `resume`, or the run folder's `own` checkpoint where that is further; None if neither.

    So the same command again never goes back. Raises ValueError if a file is no checkpoint of a run, or if the ranks do not
    all see the same.
    """
    found = {path: read_run(path) for path in ([resume] if resume else []) + ([own] if own.exists() else [])}
    path = max(found, key=lambda path: found[path]['step'], default=None)
    step = found[path]['step'] if path else -1
    if ranks.size > 1 and ranks.all_reduce(torch.tensor([step, -step], device=ranks.device), dist.ReduceOp.MAX).sum():
        raise ValueError(f'not all ranks see the same {path or own}: put the run folder on a file system that all nodes share')
    return {**found[path], 'path': str(path)} if path else None


def refuse_changes(options, saved, **facts):
    """Raise a ValueError that lists what differs from the run that was saved: options, and other facts by name."""
    wrong = changes(options, saved['config'], harmless=False)
    wrong += [(name, value, saved.get(name)) for name, value in facts.items() if value != saved.get(name)]
    if wrong:
        raise ValueError(f'{saved["path"]} is of another run: '
                         + '; '.join(f'{name} was {then} and is {now} now' for name, now, then in wrong)
                         + '. Give what was given then, another name, or --fresh to start over')


def read_plain(path):
    """What is in a file of torch (tensors and plain data only) or safetensors; no code in it can run. Raises ValueError."""
    if not Path(path).is_file():
        raise ValueError(f'there is no file {path}')
    try:
        if Path(path).suffix == '.safetensors':
            return load_file(path)
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f'{path} is refused: it is no file of weights, or it holds Python objects besides tensors and '
                         'plain data, which could run code when loaded. Save its state_dict alone') from error
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f'{path} is damaged, or no file of weights ({type(error).__name__} {error}): give another '
                         'file; a run starts over with --fresh') from error


def read_run(path):
    """The content of a checkpoint that this program wrote. Raises ValueError for any other file."""
    content = read_plain(path)
    if not is_run(content, path):
        raise ValueError(f'{path} holds weights, not a run: start from them with --init or --finetune_from')
    return content


def is_run(content, path):
    """Whether a file's content is the checkpoint of a run. Raises ValueError if a later version of this program wrote it."""
    if not isinstance(content, dict) or not content.keys() >= {'version', 'step', 'config', 'model', 'optimizer'}:
        return False
    if content['version'] > VERSION:
        raise ValueError(f'{path} was written by a later version of this program: update it to read that run')
    return True


def plain_state(module):
    """A module's state_dict, detached and in the ordinary memory layout, on the CPU."""
    return {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}


def git_commit():
    """The commit of this program's checkout, '+' behind it if files were changed; None outside of one."""
    def git(*words):
        return subprocess.run(['git', '-C', str(Path(__file__).parent), *words], capture_output=True, text=True, check=True)
    try:
        return git('rev-parse', 'HEAD').stdout.strip() + ('+' if git('status', '--porcelain', '-uno').stdout else '')
    except (OSError, subprocess.CalledProcessError):
        return None
