"""Images in files, as data sets: of a folder, of a list of paths, or of files and folders that are named one by one."""
import copy
import hashlib
import os
import stat
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from common.images.finding import (
    NOT_READ,
    LeftOut,
    find_files,
    image_endings,
    in_words,
    register_plug_ins,
    remedy,
)
from common.images.limits import pixel_limit
from common.images.path_lists import read_list
from common.images.pixels import as_channels
from common.images.reading import AS_IT_IS
from common.images.tiff import Tiff, begins_as_tiff
from common.paths import require_images

SIZES = 1000  # the most files whose sizes are part of a fingerprint


class ImageFiles(Dataset):
    """The images of a folder (flat or nested) or of a text file with one path a line, in all formats but NOT_READ.

    Items are PIL images as they are stored, or float tensors (C, h, w) in [0, 1] for files of more than 8 bits. EXIF's
    orientation is ignored, except in TIFFs, which Pillow turns upright.

    source: the folder or the text file. in_chans: 1 or 3.
    root: the folder in which the paths of a list lie; the list's own if not given. For a folder it is the folder itself.
    reading: how pixels are read, a Reading.

    left_out: a Counter {what is not looked at, in words: how many}. unread: how many of these files may hold images.

    rows: the names of the attributes with an entry for each image, for `subset`; a subclass that has more of them
    says so.

    Raises ValueError if there are no images, or if a list names what does not lie below its root.
    """
    rows = ('paths',)

    def __init__(self, source, in_chans=3, root=None, reading=AS_IT_IS):
        source = Path(source)
        left_out = LeftOut()
        check_channels(in_chans)
        require_images(source)
        if source.is_dir():
            paths = sorted(find_files(source, image_endings(), left_out))
            self.root = source
        else:
            self.root = source.parent if root is None else Path(root)
            paths = read_list(source, self.root, left_out)
        self.keep_count(left_out)
        if not paths:
            raise ValueError(f'{source} holds no images that Pillow reads by their file names'
                             + (f', but {self.notes}' if self.notes else ''))
        # This is an array, which loading processes share. The reference counts of a list of texts would have
        # it copied into each of them.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.mode = 'RGB' if in_chans == 3 else 'L'
        self.reading = reading

    def keep_count(self, left_out):
        """Keep what a LeftOut has counted."""
        self.left_out = left_out.counted()
        self.unread = left_out.images

    def forget_left_out(self):
        """Keep no count, as of a part of a data set whose other part tells of it."""
        self.keep_count(LeftOut())

    def subset(self, places):
        """The images at some places, an array of ascending numbers, as a data set of the same kind."""
        part = copy.copy(self)
        for name in self.rows:
            setattr(part, name, getattr(self, name)[places])
        return part

    @property
    def notes(self):
        """What is left out, in words; empty if nothing is."""
        return in_words(self.left_out)

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        """The path of a file."""
        return str(self.root / os.fsdecode(self.paths[index]))

    def __getitem__(self, index):
        with self.opened(index) as image:
            in_chans = 3 if self.mode == 'RGB' else 1
            return as_channels(image, in_chans, self.reading, self.is_to_turn(image, index))

    def opened(self, index):
        """The context of an opened file, as open_image gives it."""
        return open_image(self.name(index), self.reading.max_pixels)

    def size(self, index):
        """The size of a file in bytes, -1 if there is no such file."""
        return size_of(self.name(index))

    def fingerprint(self):
        """A short text that is the same for the same files: by their names, their number, and the sizes of
        SIZES of them.

        To ask for the sizes of all files would take minutes on a file system across a network. A file that is
        gone has the size -1.
        """
        places = np.linspace(0, len(self) - 1, min(len(self), SIZES)).round().astype(int)
        digest = hashlib.sha256(f'{len(self)} {[self.size(index) for index in places]}'.encode())
        digest.update(b'\0'.join(self.paths.tolist()))
        return digest.hexdigest()[:32]

    def is_to_turn(self, image, index):
        """Whether an opened file is turned upright as its EXIF orientation says."""
        return False


class SeveralFiles(ImageFiles):
    """The images of files and folders, in the order in which they are named, turned upright.

    Raises ValueError for a source that is neither a file nor a folder.
    """

    def __init__(self, sources, in_chans=3, reading=AS_IT_IS):
        check_channels(in_chans)
        self.mode = 'RGB' if in_chans == 3 else 'L'
        self.reading = reading
        self.root = Path()
        self.left_out = Counter()
        self.unread = 0
        names = []
        for source in map(Path, sources):
            if source.is_dir():
                folder = ImageFiles(source, in_chans)
                names += [folder.name(index) for index in range(len(folder))]
                self.left_out += folder.left_out
                self.unread += folder.unread
            elif source.is_file():
                names.append(str(source))
            else:
                raise ValueError(f'there is no image or folder {source}')
        self.paths = np.array([os.fsencode(name) for name in names])

    def is_to_turn(self, image, index):
        return True


@contextmanager
def open_image(file, max_pixels=None):
    """The context of an opened image: a PIL image, or a Tiff if only tifffile reads it.

    file: the path of a regular file, whatever its name ends with, or a file in memory; not of the formats NOT_READ.
    max_pixels: the pixels of the largest image that is read; Pillow's limit if None.

    Raises UnidentifiedImageError for what Pillow does not read, OSError for what is no regular file, and
    whatever a damaged file makes Pillow raise.

    Warnings are ignored inside. They do not name the file, and many hold numbers and so would come for each
    image. Images are read up to Pillow's limit for bombs, which is twice the number of pixels above which it warns.
    """
    # To open a FIFO waits for a writer, and to read a device may never end.
    if isinstance(file, (str, os.PathLike)) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError('it is no regular file')
    register_plug_ins()
    # This imports those plug-ins of Pillow's own that it otherwise imports only when they are needed.
    Image.init()
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
    """The PIL image of a file, not loaded yet. Raises UnidentifiedImageError, with the remedy where there is one."""
    try:
        return Image.open(file, formats=[name for name in Image.ID if name not in NOT_READ])
    except UnidentifiedImageError as error:
        advice = remedy(file)
        if advice is None:
            raise
        raise UnidentifiedImageError(f'{error}: {advice}') from None


def fits_turned(image, shape):
    """Whether an opened image has a shape, (height, width), only after it is turned by 90 degrees."""
    return tuple(image.size) == tuple(shape) != tuple(image.size[::-1])


def size_of(path):
    """The size of a file in bytes, -1 if there is no such file."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def check_channels(in_chans):
    """Raises ValueError for a number of channels that image files are not read with."""
    if in_chans not in (1, 3):
        raise ValueError(f'image files are read with 1 or 3 channels, not {in_chans}: give a Dataset of your '
                         'own, or tensors, in code (docs/python.md)')
