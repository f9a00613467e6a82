"""Files that a run writes and reads back: written whole or not at all, read as plain data."""
import itertools
import os
import pickle
import shutil
import subprocess
import zipfile
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import distributed as dist

from common.reliability.lock import FolderLock

LARGEST_PICKLE = 2 ** 26  # bytes of the part of a checkpoint that is no tensor; of the largest networks it has some 100 kB
VERSION = 2  # 1 had neither a fingerprint of the data nor steps that were left out


class CannotWrite(ValueError):
    """A file could not be written: no space, no permission, no such folder any more. What stood there is untouched."""


class WrittenLater(ValueError):
    """A file is of a later version of this program."""


def write_atomically(path, write, keep_as=None):
    """Call write(file) on a temporary file beside path, flush it to the disk, and rename it to path; flush that too.

    keep_as: another name, under which what stood at path until then stays. Raises CannotWrite.
    """
    path = Path(path)
    temporary, errors = path.with_name(f'.{path.name}.writing'), []
    try:
        with open(temporary, 'wb') as file:
            write(_Telling(file, errors))
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            another_name(path, keep_as)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # there may be no folder any more
            temporary.unlink()
        raise CannotWrite(f'cannot write {path}: {(errors or [error])[0]}. Make room there or give another folder; '
                          'what was written before is untouched') from error


class _Telling:
    """A file that notes what goes wrong in writing it: of a full disk torch says only 'unexpected pos'."""

    def __init__(self, file, errors):
        self.file, self.errors = file, errors

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        try:
            return self.file.write(data)
        except OSError as error:
            self.errors.append(error)
            raise


def another_name(path, name):
    """Give a file a second name, so that it has one at every moment; where the file system cannot, its only one."""
    Path(name).unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        os.replace(path, name)  # until the new file stands at path, load_run finds the old one here


def flush_folder(folder):
    """Make a rename outlive a power failure, where the system lets folders be opened."""
    with suppress(OSError):  # some file systems refuse it, and rename safely without
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def save(path, content, keep_as=None):
    write_atomically(path, lambda file: torch.save(content, file), keep_as)


def earlier(path):
    """The checkpoints before the one at path, {step: file}: as `save_checkpoint` names them."""
    stem, found = f'{Path(path).stem}_step', {}
    for file in Path(path).parent.glob(f'{stem}*.pth'):
        step = file.stem.removeprefix(stem)
        if step.isdecimal():
            found[int(step)] = file
    return found


def save_checkpoint(path, content, before=None, keep=2, milestone=None):
    """Write a checkpoint to path. The one that stood there, of step `before`, stays beside it as <stem>_step<before>.pth.

    keep: how many stay, the new one counted; those whose step is a multiple of `milestone` stay for good. Those of later steps,
    of a course that the run has left, go. Raises CannotWrite.
    """
    path = Path(path)
    save(path, content, None if before is None else path.with_name(f'{path.stem}_step{before}.pth'))
    files = earlier(path)
    past = [step for step in sorted(files, reverse=True) if step < content['step']]
    gone = [step for step in past if not (milestone and step and step % milestone == 0)][keep - 1:]
    for step in [*gone, *(files.keys() - past)]:
        with suppress(OSError):
            files[step].unlink()


def require_space(folder, size, files):
    """Raise a ValueError if there is no room for so many more files of a size in bytes."""
    free = shutil.disk_usage(folder).free
    if free < size * files:
        raise ValueError(f'{folder} has {free / 1e9:.2f} GB of free space; a checkpoint takes {size / 1e9:.2f} GB, and there '
                         f'must be room for {files}. Make room, or give another folder: --run_dir')


def open_folder(folder, fresh, ranks, own):
    """Make the run folder; if fresh, move the old one aside, and return where to (on the main rank, else None).

    own: the run's checkpoint in it. Raises ValueError if the folder is another run's, if another process writes into it, or if
    nothing can be written there.
    """
    aside = None
    if ranks.is_main:
        others = [path for path in sorted(folder.glob('*.pth'))
                  if not path.stem.startswith(own.stem) and looks_like_run(path)]
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
    """The run to go on with: the file `resume`, or the run folder's newest checkpoint where that is further; None if neither.

    So the same command again never goes back. own: where the newest is; if it cannot be read, one before it is taken. What is
    returned has besides 'path', the file; 'own', the step of what is at `own` or None; 'damaged', {file: what is wrong}.
    Raises ValueError if a file is no checkpoint of a run, or if the ranks do not all see the same.
    """
    found, damaged = {resume: read_run(resume)} if resume else {}, {}
    past = earlier(own)
    for path in [own, *(past[step] for step in sorted(past, reverse=True))]:
        try:
            if path.exists():
                found[path] = read_run(path)
                break
        except WrittenLater:
            raise
        except ValueError as error:
            damaged[path] = error
    if damaged and not found:
        raise next(iter(damaged.values()))
    path = max(found, key=lambda path: found[path]['step'], default=None)
    step = found[path]['step'] if path else -1
    if ranks.size > 1 and ranks.all_reduce(torch.tensor([step, -step], device=ranks.device), dist.ReduceOp.MAX).sum():
        raise ValueError(f'not all ranks see the same {path or own}: put the run folder on a file system that all nodes share')
    own_step = found[own]['step'] if own in found else None
    return {**found[path], 'path': str(path), 'own': own_step, 'damaged': damaged} if path else None


def set_aside(damaged, warn):
    """Give files that cannot be read, {file: what is wrong}, a name under which nothing overwrites them, and say so."""
    for path, error in damaged.items():
        aside = path.with_name(f'{path.stem}_damaged{path.suffix}')
        warn(f'{error}. It is {aside.name} now, and the checkpoint before it is used')
        path.replace(aside)


def read_plain(path):
    """What is in a file of torch (tensors and plain data only) or safetensors; no code in it can run. Raises ValueError."""
    if not Path(path).is_file():
        raise ValueError(f'there is no file {path}')
    try:
        if Path(path).suffix == '.safetensors':
            return load_file(path)
        check_archive(path)
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f'{path} is refused: it is no file of weights, or it holds Python objects besides tensors and '
                         'plain data, which could run code when loaded. Save its state_dict alone') from error
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f'{path} is damaged, or no file of weights ({type(error).__name__} {error}): give another '
                         'file; a run starts over with --fresh') from error


def check_archive(path):
    """Raise a ValueError if an archive such as torch writes is not as it was written, by its parts' CRC-32 that torch ignores.

    One that unpacks to more than it is is refused before it is read: torch stores tensors as they are, but reads compressed
    ones too. Files from before torch 1.6 are no archives.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            whole = sum(part.file_size for part in archive.infolist())
            if whole > os.path.getsize(path):
                raise ValueError(f'it unpacks to {whole / 1e6:,.0f} MB, more than it is, which no file of torch does')
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f'the checksum of {broken} is wrong')


def read_run(path):
    """The content of a checkpoint that this program wrote. Raises ValueError for any other file."""
    content = read_plain(path)
    if not is_run(content, path):
        raise ValueError(f'{path} holds weights, not a run: start from them with --init or --finetune_from')
    return content


def is_run(content, path):
    """Whether a file's content is the checkpoint of a run. Raises ValueError if a later version of this program wrote it."""
    kinds = {'version': int, 'step': int, 'config': dict, 'model': dict, 'optimizer': dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        return False
    if content['version'] > VERSION:
        raise WrittenLater(f'{path} was written by a later version of this program: update it to read that run')
    return True


def looks_like_run(path):
    """Whether a file is the checkpoint of some run, by the words in it, without loading its tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = next((part for part in archive.infolist() if part.filename.endswith('/data.pkl')), None)
            if part is None or part.file_size > LARGEST_PICKLE:
                return False
            content = archive.read(part)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return False
    return all(word in content for word in (b'version', b'step', b'config', b'optimizer'))


def plain_state(module):
    """A copy of a module's state_dict, detached and in the ordinary memory layout, on the CPU."""
    return {key: value.detach().to('cpu', memory_format=torch.contiguous_format, copy=True)
            for key, value in module.state_dict().items()}


def copied(tree):
    """Tensors, in dicts and lists or alone, copied to the CPU; all else as it is."""
    if torch.is_tensor(tree):
        return tree.detach().to('cpu', copy=True)
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def git_commit():
    """The commit of this program's checkout, '+' behind it if files were changed; None outside of one."""
    def git(*words):
        return subprocess.run(['git', '-C', str(Path(__file__).parent), *words], capture_output=True, text=True, check=True)
    try:
        return git('rev-parse', 'HEAD').stdout.strip() + ('+' if git('status', '--porcelain', '-uno').stdout else '')
    except (OSError, subprocess.CalledProcessError):
        return None
