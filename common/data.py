"""Images: reading them, drawing for them, and the order in which steps take them.

Nothing here has a random state. The order of an epoch is a function of (seed, epoch), the augmentation of an image one of
(seed, epoch, index): neither workers, nor ranks, nor a resume change what a step sees.
"""
import hashlib
import math
import multiprocessing
import os
import random
import re
import signal
import stat
import threading
import time
import warnings
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_dataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from common.schedule import seed_for

BICUBIC = InterpolationMode.BICUBIC
PATIENCE = 100  # unreadable images in a row before giving up: then it is not the images
# What Pillow registers and is not read here: EPS starts Ghostscript, whatever the file is called; IPTC opens what it wraps as
# anything, EPS too; BUFR, GRIB, HDF5 and WMF are stubs that ask for a program; MPEG has no decoder; PALM and PDF no reader.
NOT_READ = frozenset({'EPS', 'IPTC', 'BUFR', 'GRIB', 'HDF5', 'WMF', 'MPEG', 'PALM', 'PDF'})


class ImageFiles(Dataset):
    """The images of a folder (flat or nested, whatever Pillow reads, but for NOT_READ) or of a text file with one path a line.

    root: the folder in which the paths of a list lie, the list's own if not given; a folder of images is its own. Yields PIL
    images as they are stored (not turned as EXIF may say), or float tensors (C, H, W) in [0, 1] for
    16-bit and float ones. Raises ValueError if there are none, or if a list names what does not lie below its root.
    """

    def __init__(self, source, in_chans=3, root=None):
        source = Path(source)
        check_channels(in_chans)
        if source.is_dir():
            endings = tuple(ending for ending, kind in Image.registered_extensions().items() if kind not in NOT_READ)
            paths = sorted(find_files(source, endings))
            self.root = source
        elif source.is_file():
            self.root = source.parent if root is None else Path(root)
            paths = read_list(source, self.root)
        else:
            raise ValueError(f'there is no folder or list of images {source}')
        if not paths:
            raise ValueError(f'{source} holds no images that Pillow reads by their file names')
        # One array, not a list of strings: workers share it, reference counts would copy it into each of them.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.mode = 'RGB' if in_chans == 3 else 'L'

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return str(self.root / os.fsdecode(self.paths[index]))

    def __getitem__(self, index):
        with open_image(self.name(index)) as image:
            return as_channels(self.turned(image, index), 3 if self.mode == 'RGB' else 1)

    def fingerprint(self):
        """A short text that is the same for the same files: by their names, their number, and the sizes of 1,000 of them.

        Asking for the sizes of all would take minutes on a file system across a network. A file that is gone has size -1.
        """
        some = np.linspace(0, len(self) - 1, min(len(self), 1000)).round().astype(int)
        found = hashlib.sha256(f'{len(self)} {[size_of(self.name(index)) for index in some]}'.encode())
        found.update(b'\0'.join(self.paths.tolist()))
        return found.hexdigest()[:32]

    def turned(self, image, index):
        """The image as it is to be seen; a file may say (EXIF) that it is to be turned, which is not looked at here."""
        return image


def read_list(source, root):
    """The paths that a text file names, one a line, as paths below the folder `root`. Raises ValueError."""
    try:
        text = source.read_text(encoding='utf-8')
    except UnicodeDecodeError:
        text = '\0'
    if '\0' in text:
        raise ValueError(f'{source} is neither a folder nor a text file with one image path a line (UTF-8, no NUL bytes)')
    if not root.is_dir():
        raise ValueError(f'there is no folder {root} for the paths of {source} to start from: give --list_root=DIR')
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    paths = inside(lines, root)
    if None in paths:
        raise ValueError(f'{source} names {lines[paths.index(None)]}, which does not lie below {root}: give the folder that '
                         'all its images lie below, --list_root=DIR')
    if paths and not os.path.isfile(os.path.join(root, paths[0])):
        raise ValueError(f"{source} names {lines[0]}, which is no file: a list has one path a line, from the list's own folder "
                         'on or from --list_root=DIR')
    return paths


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
def open_image(path):
    """A regular file as a PIL image, whatever its name ends with, but for NOT_READ. Raises whatever a file does to Pillow.

    Warnings are ignored inside: they do not name the file, many hold numbers and so come once an image, and an image is read
    up to Pillow's own limit for bombs, which is twice the number of pixels that it warns of.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO waits for a writer, reading a device may never end
        raise OSError('it is no regular file')
    Image.init()  # Pillow's own plugins, which it imports only when they are needed
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with Image.open(path, formats=[name for name in Image.ID if name not in NOT_READ]) as image:
            yield image


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


def as_channels(image, in_chans):
    """A PIL image as one of 1 or 3 channels; with 16 bits or floats as a tensor (C, h, w) in [0, 1]. Raises ValueError."""
    if image.mode.startswith('I') or image.mode == 'F':  # 16-bit or float grey, which Pillow would clip to 8 bits
        values = torch.from_numpy(np.array(image, dtype=np.float32))[None]
        if image.mode != 'F':
            values = values / 65535
        if not values.isfinite().all():
            raise ValueError('it holds NaN or infinite values')
        if values.max() > 1 or values.min() < 0:
            raise ValueError('its grey values are neither 8 or 16 bits nor floats in [0, 1]')
        return values.expand(3, -1, -1) if in_chans == 3 else values
    return image.convert('RGB' if in_chans == 3 else 'L')


class SeveralFiles(ImageFiles):
    """The images of files and folders, in the order in which they are named. Raises ValueError for what is neither."""

    def __init__(self, sources, in_chans=3):
        check_channels(in_chans)
        self.mode, self.root, files = 'RGB' if in_chans == 3 else 'L', Path(), []
        for source in map(Path, sources):
            parts = ImageFiles(source, in_chans) if source.is_dir() else None
            if parts is None and not source.is_file():
                raise ValueError(f'there is no image or folder {source}')
            files += [str(source)] if parts is None else [parts.name(i) for i in range(len(parts))]
        self.paths = np.array([os.fsencode(file) for file in files])

    def turned(self, image, index):
        return ImageOps.exif_transpose(image)


def check_channels(in_chans):
    if in_chans not in (1, 3):
        raise ValueError(f'image files are read with 1 or 3 channels, not {in_chans}: give a Dataset of your own, or tensors, '
                         'in code (README, "Your own data")')


def find_files(folder, endings):
    """Paths below a folder with one of the endings, links followed, hidden files left out."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in files:
            if name.lower().endswith(endings) and not name.startswith('.'):
                yield os.path.relpath(os.path.join(where, name), folder)


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


@dataclass(frozen=True)
class RandomCrop:
    """RandomResizedCrop to (height, width) and a flip of half of the images."""
    size: tuple
    scale: tuple = (0.67, 1.0)
    flip: bool = True

    def __call__(self, image):
        box = RandomResizedCrop.get_params(image, self.scale, (3 / 4, 4 / 3))
        image = F.resized_crop(image, *box, list(self.size), BICUBIC, antialias=True)
        return F.hflip(image) if self.flip and torch.rand(()) < 0.5 else image


@dataclass(frozen=True)
class CentreCrop:
    """Resize until (height, width) fits inside, as the share `crop` of each side, and cut that out of the middle.

    Of an image that would become more than 16 times as long as (height, width), only the middle is resized.
    """
    size: tuple
    crop: float = 1.0

    def __call__(self, image):
        height, width = F.get_dimensions(image)[1:]
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop
        if max(height, width) * scale > 16 * max(self.size):  # a strip of 1 x 60,000 would be resized to gigapixels
            height, width = (min(side, math.ceil(4 * seen / scale)) for side, seen in zip((height, width), self.size))
            image = F.center_crop(image, [height, width])
        image = F.resize(image, [max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1])],
                         BICUBIC, antialias=True)
        return F.center_crop(image, list(self.size))


class Augmented(Dataset):
    """Images as the network takes them: (C, H, W) float32, normalised.

    images: a map-style data set of PIL images or tensors (C, h, w), uint8 or float, or of tuples that start with one; with
    labelled, of (image, class). transform: image -> image of the network's size, which may draw random numbers: they are seeded
    by an item's (epoch, index). erase: what is done to the normalised tensor. An image that cannot be read is replaced by the
    next one that can: items are (image, class or None, indices that could not be read); without stand_ins, by None. An image
    that can be read and not transformed is an error. timeout: seconds after which the reading of an image is given up (see
    at_most), which makes it one that cannot be read; None: never.
    """

    def __init__(self, images, transform, normalisation, seed=0, labelled=False, erase=None, stand_ins=True, timeout=120.0):
        self.images, self.transform, self.normalisation = images, transform, normalisation
        self.seed, self.labelled, self.erase, self.stand_ins = seed, labelled, erase, stand_ins
        self.timeout = timeout
        # (process id, number of the image it is at or -1), in memory that loading processes share: what a dead one was at. A
        # process has the row of its id modulo 1024, so that several loaders of the same images need not agree on anything.
        self.at_work = torch.full((1024, 2), -1).share_memory_()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        epoch, index = item
        failed = []
        with seeded(seed_for('augmentation', self.seed, epoch, index)), self.own_row() as row:
            for offset in range(min(PATIENCE, len(self.images)) if self.stand_ins else 1):
                at = (index + offset) % len(self.images)
                row[:] = torch.tensor([os.getpid(), at])
                try:
                    with at_most(self.timeout):
                        item = self.images[at]
                        image = item[0] if isinstance(item, (tuple, list)) else item
                        if isinstance(image, Image.Image):
                            image.load()  # Pillow reads a file only when asked for its pixels
                    if 0 in (image.size if isinstance(image, Image.Image) else getattr(image, 'shape', ())):
                        raise ValueError('it has no pixels')
                except Exception as error:  # whatever a file can do to a reader
                    failed.append((at, f'{type(error).__name__}: {error}'))
                    continue
                huge = isinstance(image, Image.Image) and math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf)
                try:
                    with warnings.catch_warnings() if huge else nullcontext():
                        if huge:  # every crop of it would warn again
                            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
                        tensor, label = self.prepare(image, item, at)
                except Exception as error:
                    raise ValueError(f'image {self.name(at)} can be read, but not be prepared: {error}') from error
                if tensor.isfinite().all():
                    return tensor, label, failed
                failed.append((at, 'it holds NaN or infinite values'))
        if not self.stand_ins:
            return None, None, failed
        raise ValueError(f'{len(failed)} images in a row could not be read, from number {index} on; the last said '
                         f'"{failed[-1][1]}"')

    @contextmanager
    def own_row(self):
        """This process's row of `at_work`, which afterwards says that it is at no image."""
        row = self.at_work[os.getpid() % len(self.at_work)]
        try:
            yield row
        finally:
            row[1] = -1

    def prepare(self, image, item, index):
        """What was read of number `index` -> (the image as the network takes it, its class or None)."""
        tensor = as_input(self.transform(image), self.normalisation)
        return tensor if self.erase is None else self.erase(tensor), item[1] if self.labelled else None

    def name(self, index):
        return self.images.name(index) if hasattr(self.images, 'name') else f'number {index}'


def as_input(image, normalisation):
    """A PIL image or a tensor (C, H, W), uint8 or float -> (C, H, W) float32, normalised with (mean, std)."""
    image = image if torch.is_tensor(image) else F.pil_to_tensor(image)
    return F.normalize(F.convert_image_dtype(image, torch.float32), *normalisation)


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


class seeded:
    """Python's, NumPy's and torch's (CPU) random numbers from a seed, and as they were afterwards."""

    def __init__(self, seed):
        self.seed = seed

    def __enter__(self):
        self.before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(self.seed)
        np.random.seed(self.seed % 2 ** 32)
        torch.random.default_generator.manual_seed(self.seed)

    def __exit__(self, *error):
        random.setstate(self.before[0])
        np.random.set_state(self.before[1])
        torch.set_rng_state(self.before[2])


class Steps(Sampler):
    """The (epoch, index) pairs that a rank takes at each step from `start` on, in `accum` parts: its share of each batch.

    An epoch has ceil(images / batch) steps; the last batch is filled up from the beginning of the order. repeats: how often an
    image comes in a batch, each time augmented in another way (repeated augmentation, Hoffer et al. 2020): an epoch then sees
    images / repeats of them. The copies stand apart, on other ranks where there are some: mixup takes neighbours. Items are
    (draw, index); without repeats the draw is the epoch. left_out: ((first step, step behind the last), ...) that do not come.
    """

    def __init__(self, images, batch, epochs, seed, start=0, rank=0, ranks=1, accum=1, repeats=1, left_out=()):
        self.images, self.batch, self.seed, self.repeats = images, batch, seed, repeats
        self.rank, self.share, self.accum = rank, batch // ranks, accum
        self.steps_per_epoch = -(-images // batch)
        out = {step for first, stop in left_out for step in range(first, stop)}
        self.steps = [step for step in range(start, epochs * self.steps_per_epoch) if step not in out] if out else \
            range(start, epochs * self.steps_per_epoch)

    def __len__(self):
        return len(self.steps) * self.accum

    def order(self, epoch):
        """All images in the order of an epoch, (images,)."""
        return torch.randperm(self.images, generator=torch.Generator().manual_seed(seed_for('order', self.seed, epoch)))

    def batch_of(self, step, order=None):
        """The (epoch, index) pairs of a step on all ranks; order: of its epoch, drawn if not given."""
        epoch, different = step // self.steps_per_epoch, -(-self.batch // self.repeats)
        order, first = self.order(epoch) if order is None else order, step % self.steps_per_epoch * different
        return [(epoch * self.repeats + i // different, int(order[(first + i % different) % self.images]))
                for i in range(self.batch)]

    def __iter__(self):
        epoch = order = None
        for step in self.steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            batch, part = self.batch_of(step, order), self.share // self.accum
            for begin in range(self.rank * self.share, (self.rank + 1) * self.share, part):
                yield batch[begin:begin + part]


def collate(items):
    """[(image, class or None, failures)] -> images (B, C, H, W), classes (B,) or None, all failures; None is left out."""
    failures, read = [one for *_, each in items for one in each], [item[:2] for item in items if item[0] is not None]
    if not read:
        return torch.empty(0), torch.empty(0, dtype=torch.int64), failures
    images, classes = zip(*read)
    labels = None if any(label is None for label in classes) else torch.as_tensor([int(label) for label in classes])
    return torch.stack(images), labels, failures


def loader(augmented, batches, workers, device, collate=collate):
    """Batches of images, in the order of `batches`, ahead of time in `workers` processes.

    For errors of these processes that say which file was at fault, use it inside naming_the_file(augmented).
    """
    # No signal interrupts a read from a file system that hangs: then a batch that takes 30 times what one image may is the end.
    timeout = 0 if not workers or augmented.timeout is None else 30 * augmented.timeout
    # A generator of its own: the loader draws a seed when it starts, in the middle of a step's random numbers.
    return DataLoader(augmented, batch_sampler=batches, num_workers=workers, collate_fn=collate, generator=torch.Generator(),
                      pin_memory=device.type == 'cuda', timeout=timeout, worker_init_fn=outlive_stops)


def outlive_stops(worker):
    """Let a loading process go on when its whole group is told to stop: the training process saves, and then ends it itself."""
    for name in ('SIGINT', 'SIGHUP', 'SIGUSR1'):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Not for good: the loader, and at exit multiprocessing, end a stuck process by SIGTERM, and the latter waits until it is
    # gone. So the first one only puts back the default. This replaces a handler in C that torch has set just before.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextmanager
def naming_the_file(*augmented):
    """Around all that happens while loaders of `augmented` are in use: what their processes die of, with the file.

    torch tells of a death by a RuntimeError anywhere in the main thread, since a signal brings the news; of a batch that never
    comes by one in the loop over the batches. Both become a ValueError. Other errors pass.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        died = death(error, augmented)
        if died:
            files = at_work(augmented, died[1])
            raise ValueError(f'a loading process died ({died[0]}) '
                             + (f'while it read {", ".join(files)}. If that repeats with this file, the file is at fault: '
                                'remove it; with others, memory' if files else 'between two images: memory')
                             + ' or /dev/shm ran out: give fewer --workers') from error
        if not str(error).startswith('DataLoader timed out'):
            raise
        children = multiprocessing.active_children()
        files = at_work(augmented, [child.pid for child in children])
        for child in children:
            if at_work(augmented, [child.pid]):  # SIGTERM would wait for a handler, and the exit of this process for the child
                with suppress(RuntimeError):  # torch, telling of this death
                    child.kill()
                    child.join(5)
        raise ValueError(f'{str(error).replace("DataLoader", "loading")}, reading {", ".join(files) or "no file"}: is the '
                         'storage still there? If it is only slow, allow an image more time') from error


def death(error, augmented):
    """(how, process ids) of the death of loading processes that an error tells of; None for any other error."""
    gone = []
    if not isinstance(error, RuntimeError):  # a batch that was being handed over when its process died? The signal follows,
        try:  # or has been lost: Python ignores errors in destructors
            for _ in range(50):
                time.sleep(0.1)
                living = {child.pid for child in multiprocessing.active_children()}
                gone = [pid for one in augmented for pid, index in one.at_work.tolist() if index >= 0 and pid not in living]
                if gone:
                    break
        except RuntimeError as news:
            error = news
    told = [re.match(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?([^.]*)', str(one))
            for one in (error.__cause__, error)]  # in the loop over the batches the loader hides the first news in its own
    if told[1]:
        return (told[0] or told[1])[2], [int(pid) for pid in told[1][1].split(', ')]
    return ('exited unexpectedly', gone) if gone else None


def at_work(augmented, pids):
    """Names of the images that these processes are, or were, at."""
    rows = [(one, one.at_work[pid % len(one.at_work)].tolist(), pid) for pid in pids for one in augmented]
    return [one.name(index) for one, (owner, index), pid in rows if owner == pid and index >= 0]


def each_once(augmented, batch, workers, ranks, warn, collate=collate, key=None, go_on=None):
    """(images, labels) of this rank's share of a data set, each image once; in order, or in that of key(place).

    augmented: without stand-ins; what cannot be read is left out, and warn(text) told. go_on() -> whether to go on with the
    next batch.
    """
    mine = sorted(range(ranks.rank, len(augmented), ranks.size), key=key)
    places = [mine[i:i + batch] for i in range(0, len(mine), batch)]
    for images, labels, failures in loader(augmented, [[(0, place) for place in part] for part in places], workers,
                                           ranks.device, collate):
        for place, error in failures:
            warn(f'unreadable image {augmented.name(place)} ({error}): it is left out')
        if len(images):
            yield images, labels
        if go_on and not go_on():
            return


def without_failures(batches, augmented, named, log):
    """(images, classes) of each batch; what could not be read is warned of once, and added to the set `named`."""
    for images, classes, failures in batches:
        for index, error in failures:
            name = augmented.name(index)
            if name not in named:
                named.add(name)
                log.warn(f'unreadable image {name} ({error}): the next one stands in for it; {len(named)} so far')
        yield images, classes


def same_images(images, ranks):
    """The fingerprint of the training images, which is the same on all ranks. Raises ValueError if it is not."""
    mark = fingerprint(images)
    if len({(len(images), mark), *ranks.gather([(len(images), mark)])}) > 1:
        raise ValueError('not all ranks see the same images: each node needs all of them, with the same names, and the same '
                         'annotation files')
    return mark
