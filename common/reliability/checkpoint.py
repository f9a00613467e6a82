"""Files that a run writes and reads back. They are written whole or not at all, and read as plain data."""
import argparse
import itertools
import os
import pickle
import shutil
import subprocess
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from common.paths import require_file
from common.reliability.lock import FolderLock
from common.words import first_of

# The most bytes of the part of a checkpoint that is not tensors; of the largest networks it has some 100 kB.
LARGEST_PICKLE = 2 ** 26
PLAIN_CLASSES = (argparse.Namespace,)  # read from a file, besides those that torch allows
# How often all ranks look for the same checkpoint, and the seconds between: NFS may show a node what was a minute ago.
LOOKS, BETWEEN_LOOKS = 13, 5
VERSION = 2  # Version 1 had neither a fingerprint of the data nor steps that were left out.


class CannotWrite(ValueError):
    """A file could not be written: no space, no permission, the folder is gone. What stood there is untouched."""


class WrittenLater(ValueError):
    """A file was written by a later version of this program."""


def write_atomically(path, write, keep_as=None):
    """Write a file so that at every moment, even after a power failure, the old or the new one stands whole at path.

    write: called with a temporary file beside path, which is flushed to the disk and then renamed.
    keep_as: another path, under which what stood at path until then stays.

    Raises CannotWrite.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.writing')
    errors = []
    try:
        with open(temporary, 'wb') as file:
            write(_RecordingFile(file, errors))
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            link_or_rename(path, keep_as)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # The folder may be gone.
            temporary.unlink()
        cause = errors[0] if errors else error
        raise CannotWrite(f'cannot write {path}: {cause}. Make room there or give another folder; what was '
                          'written before is untouched') from error


class _RecordingFile:
    """A file that adds the errors of its write() to a list: of a full disk torch says only 'unexpected pos'."""

    def __init__(self, file, errors):
        self.file = file
        self.errors = errors

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        try:
            return self.file.write(data)
        except OSError as error:
            self.errors.append(error)
            raise


def link_or_rename(path, name):
    """Give a file a second name by a hard link, so that it always has one; without hard links, rename it."""
    Path(name).unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        os.replace(path, name)  # Until the new file stands at path, load_run finds the old one here.


def flush_folder(folder):
    """Make a rename in the folder outlive a power failure, where the system lets folders be opened."""
    with suppress(OSError):  # Some file systems refuse it, and rename safely without it.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(path, content, keep_as=None):
    """torch.save, by write_atomically."""
    write_atomically(path, lambda file: torch.save(content, file), keep_as)


def earlier(path):
    """The earlier checkpoints beside the one at path, as save_checkpoint names them: {step: file}."""
    stem = f'{Path(path).stem}_step'
    found = {}
    for file in Path(path).parent.glob(f'{stem}*.pth'):
        step = file.stem.removeprefix(stem)
        if step.isdecimal():
            found[int(step)] = file
    return found


def save_checkpoint(path, content, before=None, keep=2, milestone=None):
    """Write a checkpoint, and remove old ones.

    path: the file of the newest checkpoint. The one that stood there stays beside it as <stem>_step<before>.pth.
    content: a dict, with 'step' in it.
    before: the step of the checkpoint that stands at path; None if there is none, or if it is not to stay.
    keep: how many checkpoints stay, the new one included. Those whose step is a multiple of `milestone` stay besides.
    Those of later steps are removed: the run has gone back behind them.

    Raises CannotWrite.
    """
    path = Path(path)
    save(path, content, None if before is None else path.with_name(f'{path.stem}_step{before}.pth'))
    files = earlier(path)
    past = [step for step in sorted(files, reverse=True) if step < content['step']]
    future = files.keys() - past
    removable = [step for step in past if not (milestone and step and step % milestone == 0)]
    for step in [*removable[keep - 1:], *future]:
        with suppress(OSError):
            files[step].unlink()


def require_space(folder, size, files):
    """Raises ValueError if the folder has no room for so many files of `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size * files:
        raise ValueError(f'{folder} has {free / 1e9:.2f} GB of free space; a checkpoint takes '
                         f'{size / 1e9:.2f} GB, and there must be room for {files}. Make room, or give '
                         'another folder: --run_dir')


def refuse_others(folder, own):
    """Raise a ValueError if a run folder belongs to another run. own: the path of the run's checkpoint in it."""
    others = [path for path in sorted(folder.glob('*.pth'))
              if not path.stem.startswith(own.stem) and looks_like_run(path)]
    if others:
        raise ValueError(f'{folder} holds another run ({others[0].name}): give this one another name, or '
                         '--fresh to move that one aside')


def open_folder(folder, fresh, ranks, own):
    """Make the run folder, on the main rank. If fresh, an old one is renamed first.

    own: the path of the run's checkpoint in the folder.

    Returns the new path of the old folder if it was renamed, else None. Raises ValueError if the folder
    belongs to another run, if another process writes into it, or if nothing can be written there.
    """
    def open_it():
        moved_to = None
        if not fresh:
            refuse_others(folder, own)
        if folder.exists():
            FolderLock(folder).release()  # This only asks for the lock; RunLog holds it during the run.
        try:
            if fresh and folder.exists():
                moved_to = unused_name(folder)
                folder.rename(moved_to)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f'cannot make the run folder {folder}: {error}. Give another one: '
                             '--run_dir') from error
        write_atomically(folder / '.writable', lambda file: file.write(b'yes'))
        (folder / '.writable').unlink()
        return moved_to

    return ranks.on_main(open_it)


def unused_name(folder):
    """<folder>_old<number>, with the first number that is free."""
    candidates = (folder.with_name(f'{folder.name}_old{number}') for number in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def load_run(resume, own, ranks):
    """The content of the checkpoint from which a run is resumed; None if it is a new run.

    It is the file `resume` or the newest checkpoint of the run folder, whichever is of the later step. So the
    same command again never loses steps.

    resume: a path, or None. own: the path of the newest checkpoint in the run folder; if it is damaged, the
    newest of the earlier ones is taken that is not.

    Three entries are added to the content: 'path', the file; 'own', the step of the checkpoint at `own`, or
    None; 'damaged', {path: the error} of the checkpoints that cannot be read.

    Raises ValueError if a file is no checkpoint of a run, or if the ranks do not all see the same step. Where a file was
    written a moment ago, a node may see the one before it: so they look again for a minute.
    """
    for look in range(LOOKS):
        if look:
            time.sleep(BETWEEN_LOOKS)
            with suppress(OSError):
                os.listdir(own.parent)  # has NFS ask its server again
        found, damaged, failure = {}, {}, None
        try:
            found = {resume: read_run(resume)} if resume else {}
            newest, damaged = newest_readable(own)
            found |= newest
        except ValueError as error:
            failure = error
        if damaged and not found:
            failure = next(iter(damaged.values()))
        path = max(found, key=lambda path: found[path]['step'], default=None)
        step = found[path]['step'] if path else -1
        # A rank that cannot read any takes part too, or the others would wait for it.
        if ranks.all_the_same(step if failure is None else -2):
            break
    else:
        failure = failure or ValueError(f'not all ranks see the same {path or own}: put the run folder on a file system '
                                        'that all nodes share')
    if failure is not None:
        raise failure
    if path is None:
        return None
    own_step = found[own]['step'] if own in found else None
    return {**found[path], 'path': str(path), 'own': own_step, 'damaged': damaged}


def newest_readable(own):
    """({path: content} of the newest checkpoint that can be read, or {}; {path: the error} of those that cannot).

    own: the path of the newest checkpoint of a run folder. Raises WrittenLater.
    """
    past = earlier(own)
    damaged = {}
    for path in [own, *(past[step] for step in sorted(past, reverse=True))]:
        try:
            if path.exists():
                return {path: read_run(path)}, damaged
        except WrittenLater:
            raise
        except ValueError as error:
            damaged[path] = error
    return {}, damaged


def set_aside(damaged, warn):
    """Rename the checkpoints that cannot be read, so that nothing overwrites them, and warn of it.

    damaged: {path: the error}. warn: called with the text of a warning.
    """
    for path, error in damaged.items():
        moved_to = path.with_name(f'{path.stem}_damaged{path.suffix}')
        warn(f'{error}. It is {moved_to.name} now, and the checkpoint before it is used')
        path.replace(moved_to)


def read_plain(path):
    """The content of a file of torch or safetensors, on the CPU: tensors and plain data only, so that no code can run.

    Plain data includes argparse.Namespace, which programs such as MAE's keep beside the weights: it has attributes
    and does nothing. It comes back as such, so that nothing takes it for a dictionary of weights.

    Raises ValueError for a file that is missing, damaged, or holds anything else.
    """
    require_file(path)
    try:
        if Path(path).suffix == '.safetensors':
            from safetensors.torch import load_file  # Detectron2's environment may not have it.
            return load_file(path)
        check_archive(path)
        with torch.serialization.safe_globals(PLAIN_CLASSES):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(refusal(path)) from error
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} cannot be read without {error.name}: pip install safetensors') from error
    except Exception as error:  # A damaged file can make torch raise anything.
        raise ValueError(f'{path} is damaged, or no file of weights ({type(error).__name__} {error}): give '
                         'another file; a run starts over with --fresh') from error


def refusal(path):
    """Say why a file is refused, and how what is plain in it is saved alone."""
    try:
        with torch.serialization.safe_globals(PLAIN_CLASSES):
            objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # It is no archive as torch writes them.
        objects = []
    if not objects:
        return (f'{path} is refused: it is no file of weights, or it holds Python objects besides tensors and '
                'plain data, which could run code when loaded. Save its state_dict alone')
    return (f'{path} is refused: it holds {first_of(objects)} besides tensors and plain data, which could run '
            'code when loaded. If you trust where it is from, save its weights alone, with the packages that it '
            "names installed: content = torch.load(FILE, weights_only=False), then torch.save({'state_dict': "
            "content['state_dict']}, 'weights.pth')")


def check_archive(path):
    """Raises ValueError if an archive, as torch writes them, is damaged: torch itself ignores the checksums
    of its parts.

    An archive that unpacks to more bytes than it has is refused too, before it is read. torch stores tensors
    uncompressed, but also reads compressed ones. Files from before torch 1.6 are no archives, and pass.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
            if unpacked > os.path.getsize(path):
                raise ValueError(f'it unpacks to {unpacked / 1e6:,.0f} MB, more than it is, which no file of '
                                 'torch does')
            damaged_part = archive.testzip()
        if damaged_part is not None:
            raise ValueError(f'the checksum of {damaged_part} is wrong')


def read_run(path):
    """The content of a checkpoint that this program wrote. Raises ValueError for any other file."""
    content = read_plain(path)
    if not is_run(content, path):
        raise ValueError(f'{path} holds weights, not a run: start from them with --init or --finetune_from')
    return content


def is_run(content, path):
    """Whether the content of a file is the checkpoint of a run. Raises WrittenLater for one of a later version."""
    kinds = {'version': int, 'step': int, 'config': dict, 'model': dict, 'optimizer': dict}
    if not isinstance(content, dict):
        return False
    if not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        return False
    if content['version'] > VERSION:
        raise WrittenLater(f'{path} was written by a later version of this program: update it to read that '
                           'run')
    return True


def looks_like_run(path):
    """Whether a file is the checkpoint of a run, by the words in it. Its tensors are not loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.filename.endswith('/data.pkl'):
                    break
            else:
                return False
            if part.file_size > LARGEST_PICKLE:
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
    """A copy of a tensor, or of dicts and lists with tensors in them, on the CPU. All other values are not copied."""
    if torch.is_tensor(tree):
        return tree.detach().to('cpu', copy=True)
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [copied(value) for value in tree]
    return tree


def git_commit():
    """The commit of this program's checkout, with '+' after it if files were changed; None outside of a checkout."""
    def git(*words):
        command = ['git', '-C', str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        commit = git('rev-parse', 'HEAD').strip()
        is_changed = git('status', '--porcelain', '-uno') != ''
    except (OSError, subprocess.CalledProcessError):
        return None
    return f'{commit}+' if is_changed else commit
