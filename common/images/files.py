"""Images in files: finding them, reading them whatever they are, and telling whether they are the same as before."""
import codecs
import hashlib
import os
import signal
import stat
import threading
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset, Subset

from common.images.finding import (
    NOT_READ,
    UNREAD_ENDINGS,
    LeftOut,
    ending_of,
    find_files,
    image_endings,
    in_words,
    register_plug_ins,
    remedy,
)
from common.images.pixels import AS_IT_IS, Tiff, as_channels, begins_as_tiff, pixel_limit

TRIED = 1000  # paths of a list that are looked for before the start


class ImageFiles(Dataset):
    """The images of a folder (flat or nested, whatever Pillow reads, but for NOT_READ) or of a text file with one path a line.

    root: the folder in which the paths of a list lie, the list's own if not given; a folder of images is its own. reading: how
    pixels are read. Yields PIL images as they are stored (not turned as EXIF may say), or float tensors (C, H, W) in [0, 1] for
    those of more than 8 bits. left_out: Counter {what is not looked at, for a person: how many}; unread: how many of these
    files may hold images. Raises ValueError if there are none, or if a list names what does not lie below its root.
    """

    def __init__(self, source, in_chans=3, root=None, reading=AS_IT_IS):
        source, left_out = Path(source), LeftOut()
        check_channels(in_chans)
        if source.is_dir():
            paths = sorted(find_files(source, image_endings(), left_out))
            self.root = source
        elif source.is_file():
            self.root = source.parent if root is None else Path(root)
            paths = read_list(source, self.root, left_out)
        else:
            raise ValueError(f'there is no folder or list of images {source}')
        self.keep_count(left_out)
        if not paths:
            raise ValueError(f'{source} holds no images that Pillow reads by their file names'
                             + (f', but {self.notes}' if self.notes else ''))
        # One array, not a list of strings: workers share it, reference counts would copy it into each of them.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.mode, self.reading = 'RGB' if in_chans == 3 else 'L', reading

    def keep_count(self, left_out):
        """Keep what a LeftOut has counted."""
        self.left_out, self.unread = left_out.counted(), left_out.images

    @property
    def notes(self):
        """What is left out, for a person; empty if nothing is."""
        return in_words(self.left_out)

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return str(self.root / os.fsdecode(self.paths[index]))

    def __getitem__(self, index):
        with self.opened(index) as image:
            return as_channels(image, 3 if self.mode == 'RGB' else 1, self.reading, self.is_to_turn(image, index))

    def opened(self, index):
        """The context of an opened file, see open_image."""
        return open_image(self.name(index), self.reading.max_pixels)

    def size(self, index):
        """Bytes of a file, -1 if there is none."""
        return size_of(self.name(index))

    def fingerprint(self):
        """A short text that is the same for the same files: by their names, their number, and the sizes of 1,000 of them.

        Asking for the sizes of all would take minutes on a file system across a network. A file that is gone has size -1.
        """
        some = np.linspace(0, len(self) - 1, min(len(self), 1000)).round().astype(int)
        found = hashlib.sha256(f'{len(self)} {[self.size(index) for index in some]}'.encode())
        found.update(b'\0'.join(self.paths.tolist()))
        return found.hexdigest()[:32]

    def is_to_turn(self, image, index):
        """Whether an opened file is turned as it says itself (EXIF)."""
        return False


def read_list(source, root, left_out=None):
    """The paths that a text file names, one a line, as paths below the folder `root`.

    The text is UTF-8, or UTF-16 with a byte order mark. Backslashes are taken as slashes unless a file is there as it is
    written. left_out: a LeftOut, which counts the files of formats that are not read, and how many of TRIED others are missing.
    Raises ValueError.
    """
    left_out = LeftOut() if left_out is None else left_out
    try:
        text = decoded(source.read_bytes())
    except UnicodeDecodeError:
        text = '\0'
    if '\0' in text:
        raise ValueError(f'{source} is neither a folder nor a text file with one image path a line (UTF-8, no NUL bytes)')
    if not root.is_dir():
        raise ValueError(f'there is no folder {root} for the paths of {source} to start from: give --list_root=DIR')
    # Lists that were put together from several may have byte order marks inside.
    lines = [line for line in (line.strip().removeprefix('\ufeff') for line in text.splitlines()) if line]
    lines = with_slashes(lines, root)
    paths = inside(lines, root)
    if None in paths:
        raise ValueError(f'{source} names {lines[paths.index(None)]}, which does not lie below {root}: give the folder that '
                         'all its images lie below, --list_root=DIR')
    not_read, kept = UNREAD_ENDINGS.keys() - set(image_endings()), []
    for path in paths:
        ending = ending_of(path)
        if ending in not_read:
            left_out.file(path, ending)
        else:
            kept.append(path)
    if kept:
        look_for(source, root, kept, left_out)
    return kept


def decoded(content):
    """The text that a file's bytes are: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises UnicodeDecodeError.
    """
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode('utf-16' if wide else 'utf-8-sig')


def evenly(items, most):
    """At most so many of the items, evenly spread, the first and the last among them."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)]


def with_slashes(lines, root):
    """The lines, those with backslashes as Windows' paths: with slashes, unless a file is there as it is written."""
    def is_there(line):
        return os.path.isfile(os.path.join(root, line))

    with_backslash = [line for line in lines if '\\' in line]
    as_written = [is_there(line) for line in evenly(with_backslash, TRIED)]
    if all(as_written):  # also where there are none
        return lines
    return [line if '\\' not in line or any(as_written) and is_there(line) else line.replace('\\', '/') for line in lines]


def look_for(source, root, paths, left_out):
    """Count in left_out how many of TRIED paths of a list are missing. Raises ValueError for a list that is none of paths."""
    tried = evenly(paths, TRIED)
    missing = [path for path in tried if not os.path.isfile(os.path.join(root, path))]
    for line in missing[:10]:
        path = path_in(line, root)
        if path:
            raise ValueError(f'{source} has more than a path in the line {line!r}, which should be {path!r} alone: a list has '
                             'one path a line, without labels or quotes')
    if missing and missing[0] == paths[0]:
        raise ValueError(f"{source} names {paths[0]}, which is no file: a list has one path a line, from the list's own folder "
                         'on or from --list_root=DIR')
    if 2 * len(missing) > len(tried):
        raise ValueError(f'{source} names files that are missing, {len(missing):,} of {len(tried):,} that were looked for, '
                         f'such as {missing[0]}: give the folder that its paths start from, --list_root=DIR')
    if missing:
        left_out.missing = (len(missing), len(tried), missing[0])


def path_in(line, root):
    """The path of a file in a line that holds something besides, such as a label or quotes; None if there is no such file."""
    for separator in (',', ';', '\t', ' ', '|'):
        before, _, after = line.partition(separator)
        for part in (line.rpartition(separator)[0], before, after):
            path = part.strip(' "\'')
            if os.path.isfile(os.path.join(root, path)):
                return path
    return None


def inside(paths, root):
    """Each path, relative to the folder `root` or absolute, as one below it; None for each that leaves it.

    Judged by the text, with '..' resolved: links below the folder are its owner's business.
    """
    whole = os.path.abspath(root)
    starts = [os.path.join(start, '') for start in (whole, os.path.realpath(root))]

    def below(path):
        path = os.path.normpath(os.path.join(whole, path))
        return next((path[len(start):] for start in starts if path.startswith(start)), None)

    return [below(path) if '..' in path or os.path.isabs(path) else path for path in paths]


@contextmanager
def open_image(file, max_pixels=None):
    """A regular file, or one in memory, as a PIL image, whatever its name ends with, but for NOT_READ; a Tiff if only tifffile
    reads it.

    max_pixels: of the largest image that is read; Pillow's limit if None. Raises whatever a file does to Pillow,
    UnidentifiedImageError for what it does not read.

    Warnings are ignored inside: they do not name the file, many hold numbers and so come once an image, and an image is read
    up to Pillow's own limit for bombs, which is twice the number of pixels that it warns of.
    """
    # Opening a FIFO waits for a writer, and reading a device may never end.
    if isinstance(file, (str, os.PathLike)) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError('it is no regular file')
    register_plug_ins()
    Image.init()  # Pillow's own plugins, which it imports only when they are needed
    with warnings.catch_warnings(), pixel_limit(max_pixels):
        warnings.simplefilter('ignore')
        try:
            opened = identified(file)
        except UnidentifiedImageError:
            if not begins_as_tiff(file):
                raise
            opened = Tiff(file)
        with opened as image:
            yield image


def identified(file):
    """Pillow's image of a file. Raises UnidentifiedImageError, which says what to do where that is known."""
    try:
        return Image.open(file, formats=[name for name in Image.ID if name not in NOT_READ])
    except UnidentifiedImageError as error:
        advice = remedy(file)
        if advice is None:
            raise
        raise UnidentifiedImageError(f'{error}: {advice}') from None


def size_of(path):
    """Bytes of a file, -1 if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def fingerprint(images):
    """A short text that is the same for the same images, None for a data set that does not know.

    A data set of one's own may have `fingerprint`, a text or a method that returns one.
    """
    if isinstance(images, Subset):
        whole, chosen = fingerprint(images.dataset), [int(index) for index in images.indices]
        return None if whole is None else hashlib.sha256(f'{whole} {chosen}'.encode()).hexdigest()[:32]
    known = getattr(images, 'fingerprint', None)
    return known() if callable(known) else known


def not_looked_at(images, val, which):
    """What is left out of the training images and of others, as a line of what a run says at its start; empty if nothing is.

    which: what the others are called. A data set of one's own may have `notes`, a text.
    """
    train, others = notes_of(images), notes_of(val)
    text = '; '.join([train] * bool(train) + [f'of {which} images, {others}'] * bool(others))
    return f'not looked at  {text}\n' if text else ''


def notes_of(images):
    """What a data set says that is left out of it; empty if it says nothing."""
    notes = notes_of(images.dataset) if isinstance(images, Subset) else getattr(images, 'notes', None)
    return notes if isinstance(notes, str) else ''


def mostly_unread(images):
    """A warning, if more files that may hold images are left out than are read; else None."""
    whole = images.dataset if isinstance(images, Subset) else images
    if not isinstance(whole, ImageFiles) or whole.unread <= len(whole):
        return None
    return f'{whole.unread:,} files that may hold images are not read, and only {len(whole):,} are: what they are is said ' \
        'under "not looked at"'


class SeveralFiles(ImageFiles):
    """The images of files and folders, in the order in which they are named. Raises ValueError for what is neither."""

    def __init__(self, sources, in_chans=3, reading=AS_IT_IS):
        check_channels(in_chans)
        self.mode, self.reading, self.root, files = 'RGB' if in_chans == 3 else 'L', reading, Path(), []
        self.left_out, self.unread = Counter(), 0
        for source in map(Path, sources):
            parts = ImageFiles(source, in_chans) if source.is_dir() else None
            if parts is None and not source.is_file():
                raise ValueError(f'there is no image or folder {source}')
            files += [str(source)] if parts is None else [parts.name(i) for i in range(len(parts))]
            if parts is not None:
                self.left_out += parts.left_out
                self.unread += parts.unread
        self.paths = np.array([os.fsencode(file) for file in files])

    def is_to_turn(self, image, index):
        return True


def check_channels(in_chans):
    if in_chans not in (1, 3):
        raise ValueError(f'image files are read with 1 or 3 channels, not {in_chans}: give a Dataset of your own, or tensors, '
                         'in code (README, "Your own data")')


def check_dataset(images, in_chans=3, timeout=120.0):
    """Refuse what is no map-style data set of images with so many channels, as far as its first item tells in `timeout` s."""
    if isinstance(images, (str, IterableDataset)) or not hasattr(images, '__len__') or not hasattr(images, '__getitem__') \
            or len(images) == 0:
        raise ValueError(f'{type(images).__name__} is no map-style data set with at least one image: it needs __len__ and '
                         '__getitem__, since the order of the images is drawn from the seed')
    try:
        with at_most(timeout):
            item = images[0]
    except Exception:  # an unreadable image is replaced later, and named
        return images
    image = item[0] if isinstance(item, (tuple, list)) else item
    what = f'{type(image).__name__}' + (f' {tuple(image.shape)} of {image.dtype}' if hasattr(image, 'shape') else '')
    good = isinstance(image, Image.Image) and len(image.getbands()) == in_chans or torch.is_tensor(image) and \
        image.ndim == 3 and image.shape[0] == in_chans and (image.dtype == torch.uint8 or image.is_floating_point())
    if not good:
        raise ValueError(f'the data set yields {what}: each item must be (or start with) a PIL image of {in_chans} channels or '
                         f'a tensor ({in_chans}, height, width), uint8 or float')
    return images


def timm_dataset(name, root, split, in_chans=3):
    """A map-style data set by timm's name, such as hfds/user/name. Raises ValueError."""
    mode = {1: 'L', 3: 'RGB'}.get(in_chans)
    try:
        images = create_dataset(name, root=root, split=split, **({'input_img_mode': mode} if mode else {}))
    except Exception as error:  # a missing package, an unknown name, no network: as timm and its readers put it
        raise ValueError(f'timm cannot make the data set {name}: {type(error).__name__}: {error}') from error
    return check_dataset(images, in_chans)


@contextmanager
def at_most(seconds):
    """TimeoutError if what is inside takes longer; None: it may take any time.

    Only a signal interrupts a read: nothing is done outside of a process's main thread (loading processes are in theirs) or on
    a system without SIGALRM, and code that does not return to Python is not interrupted.
    """
    if seconds is None or not hasattr(signal, 'SIGALRM') or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(*_):
        raise TimeoutError(f'it gave nothing for {seconds:g} seconds')

    began, handler = time.monotonic(), signal.signal(signal.SIGALRM, give_up)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # of its own: the alarm may still go off in the line before
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)  # None: C code's, out of reach
        if left:  # someone else's timer; one that has run out meanwhile goes off now
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-6), interval)


def same_images(images, ranks):
    """The fingerprint of the training images, which is the same on all ranks. Raises ValueError if it is not."""
    mark = fingerprint(images)
    if len({(len(images), mark), *ranks.gather([(len(images), mark)])}) > 1:
        raise ValueError('not all ranks see the same images: each node needs all of them, with the same names, and the same '
                         'annotation files')
    return mark
