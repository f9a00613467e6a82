"""Images in tar shards, as WebDataset packs them. An index of where they lie, made from the headers, lets
them be read in any order.
"""
import errno
import io
import os
import stat
import tarfile
from array import array
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.images.files import ImageFiles, check_channels, open_image
from common.images.finding import SYSTEM_FOLDERS, LeftOut, ending_of, find_files, image_endings
from common.images.reading import AS_IT_IS
from common.images.splits import COMPRESSED_ENDINGS, TAR_ENDINGS

BLOCK = 512  # bytes; a tar is made of blocks
COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')  # how gzip, bzip2, xz and zstd begin
# kinds of headers that describe the next one: a long name, more fields
EXTENSIONS = {b'L', b'K', b'x', b'X', b'g'}
NO_CONTENT = {b'1', b'2', b'3', b'4', b'5', b'6'}  # links, devices, folders, pipes
SPARSE, FOLDER, REGULAR = b'S', b'5', (b'0', b'\0', b'7')
# Bytes. All names together take as much memory as the longest of them each, so it must not be of any length.
LONGEST_NAME, LONGEST_HEADER = 1024, 2 ** 20
LARGEST = 2 ** 30  # bytes of an image; uncompressed, the largest that Pillow takes has fewer
REMEDY = 'pack or download it again'
OPEN_FILES = 128  # that a process keeps; often it may have no more than 1,024


class TarShards(ImageFiles):
    """The images of a tar, or of all tars in a folder, in the order in which ImageFiles has the same files unpacked.

    Members that are no images by their names are left out, and counted. If several tars hold images of one
    name, all of them are there, in the order of the tars. The fingerprint is that of the files unpacked. Each
    process opens the tars that it reads from by itself, so it may be forked or spawned.

    source: the path. in_chans: 1 or 3. reading: a Reading.

    folders: the names of the folders that the tars have at their top, whether or not with images in them.

    Raises ValueError for tars that are not whole, plain and uncompressed.
    """
    rows = ('paths', 'places')

    def __init__(self, source, in_chans=3, reading=AS_IT_IS):
        check_channels(in_chans)
        self.root = Path(source)
        self.mode = 'RGB' if in_chans == 3 else 'L'
        self.reading = reading
        # {number of a tar: its open file}, the one that was used last at the end
        self.handles = OrderedDict()
        left_out = LeftOut()
        self.shards = shards_of(source, left_out)
        # Most of the time is spent waiting for the storage.
        with ThreadPoolExecutor(min(16, len(self.shards))) as pool:
            found = list(pool.map(index_of, self.shards))
        names = []
        places = []
        self.folders = set()
        for number, index in enumerate(found):
            self.folders |= index.folders
            names += index.names
            rows = [[number] * len(index.names), index.firsts, index.sizes]
            places.append(np.array(rows, np.int64).reshape(3, -1))
            left_out.add(index.left_out)
        self.keep_count(left_out)
        if not names:
            raise ValueError(f'{source} holds tars, but no images in them that Pillow reads by their names'
                             + (f', but {self.notes}' if self.notes else ''))
        order = sorted(range(len(names)), key=names.__getitem__)
        self.paths = np.array([os.fsencode(names[i]) for i in order])
        self.places = np.concatenate(places, 1).T[order]  # (images, 3): number of the tar, first byte, bytes
        self.stamps = [index.stamp for index in found]

    def __getstate__(self):
        return {**self.__dict__, 'handles': OrderedDict()}

    def name(self, index):
        return f'{self.shards[self.places[index, 0]]}/{os.fsdecode(self.paths[index])}'

    def size(self, index):
        return int(self.places[index, 2])

    @contextmanager
    def opened(self, index):
        with open_image(io.BytesIO(self.content(index)), self.reading.max_pixels) as image:
            yield image

    def content(self, index):
        """The bytes of an image's file. Raises OSError."""
        shard, first, size = self.places[index].tolist()
        if size > LARGEST:
            raise OSError(f'it is {size:,} bytes large, more than any image')
        try:
            content = self.read(shard, first, size)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            self.close(shard)  # The server has exported its folder anew: the file is there under another handle.
            content = self.read(shard, first, size)
        if len(content) < size:
            raise OSError(f'{self.shards[shard]} gives {len(content):,} of its {size:,} bytes')
        return content

    def read(self, shard, first, size):
        """Bytes of a tar. Raises OSError."""
        file = self.handle(shard)
        if stamp_of(file) != self.stamps[shard]:
            raise OSError(f'{self.shards[shard]} was changed since the run began: start it again')
        return os.pread(file.fileno(), size, first)

    def close(self, shard):
        """Close this process's file of a tar, if it has one: the next read opens it anew."""
        if shard in self.handles:
            with suppress(OSError):
                self.handles.pop(shard).close()

    def left_out_of(self, folder=''):
        """A LeftOut that counts the members of the tars below one of `folders`, or all of them for ''.

        The headers are read once more. Raises OSError, and ValueError for a tar that is not whole any more.
        """
        left_out = LeftOut()
        endings = image_endings()
        for path in self.shards:
            with open(path, 'rb', buffering=0) as file:
                for name, kind, _, _ in members(path, file.fileno(), stamp_of(file)[0]):
                    name = as_unpacked(name)
                    if kind != FOLDER and folder in ('', folder_of(name)):
                        is_image_member(name, endings, left_out)
        return left_out

    def handle(self, shard):
        """This process's open file of a tar. It is read by position, which disturbs no process that shares it."""
        if shard not in self.handles:
            while len(self.handles) >= OPEN_FILES:
                _, oldest = self.handles.popitem(last=False)
                oldest.close()
            self.handles[shard] = open(self.shards[shard], 'rb', buffering=0)  # noqa: SIM115  (closed above)
        self.handles.move_to_end(shard)
        return self.handles[shard]


def is_sharded(source):
    """Whether a path is a tar, or a folder with tars in it and no images."""
    source = Path(source)
    if source.is_dir():
        has_images = next(find_files(source, image_endings()), None) is not None
        return not has_images and next(find_files(source, TAR_ENDINGS, dead_links=True), None) is not None
    return source.name.lower().endswith(TAR_ENDINGS) and source.exists()


def shards_of(source, left_out=None):
    """The paths of a tar, or of the tars in a folder, in order. Raises ValueError if some are compressed.

    left_out: a LeftOut, in which the other files of the folder are counted.
    """
    source = Path(source)
    shards = [str(source)]
    if source.is_dir():
        shards = [str(source / path) for path in sorted(find_files(source, TAR_ENDINGS, left_out, True))]
    for path in shards:
        if path.lower().endswith(COMPRESSED_ENDINGS):
            raise compressed(path)
    return shards


def compressed(path):
    """The ValueError about a tar that is compressed."""
    return ValueError(f'{path} is compressed, so images cannot be read from its middle: decompress it first '
                      '(with gunzip, unxz, unzstd) and give the .tar; images gain nothing from it')


def stamp_of(file):
    """(bytes, time of the last change) of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


@dataclass
class Index:
    """Where the images of one tar lie.

    names: the paths that they have below the folder into which the tar is unpacked. firsts, sizes: the first
    byte and the number of bytes of each. stamp: as of stamp_of. left_out: a LeftOut, which counts the other
    members. folders: as of TarShards.
    """
    names: list = field(default_factory=list)
    firsts: array = field(default_factory=lambda: array('q'))
    sizes: array = field(default_factory=lambda: array('q'))
    stamp: tuple = None
    left_out: LeftOut = field(default_factory=LeftOut)
    folders: set = field(default_factory=set)


def index_of(path):
    """The Index of a tar, with the images in the tar's order. Raises ValueError for a tar that is not whole and plain."""
    index = Index()
    endings = image_endings()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # To open a FIFO would wait for a writer.
            raise ValueError(f'{path} is no regular file: give tars as files')
        with open(path, 'rb', buffering=0) as file:
            index.stamp = stamp_of(file)
            for name, kind, first, size in members(path, file.fileno(), index.stamp[0]):
                name = as_unpacked(name)
                folder = name if kind == FOLDER and '/' not in name else folder_of(name)
                if folder and folder[0] != '.' and folder.lower() not in SYSTEM_FOLDERS:
                    index.folders.add(folder)
                if kind != FOLDER and is_image_member(name, endings, index.left_out):
                    check_member(path, name, kind)
                    index.names.append(name)
                    index.firsts.append(first)
                    index.sizes.append(size)
    except OSError as error:
        raise ValueError(f'{path} cannot be read ({error}): see to its storage, or take it away') from error
    names = index.names
    if len(set(names)) < len(names):
        seen = set()
        repeated = next(name for name in names if name in seen or seen.add(name))
        raise ValueError(f'{path} holds {repeated} more than once: pack it again with each file once')
    return index


def is_image_member(name, endings, left_out):
    """Whether a member of a tar is an image by its name; counts in left_out what find_files would count of the file."""
    parts = name.split('/')
    if any(part[:1] == '.' and part != '..' for part in parts):  # hidden
        return False
    for depth, folder in enumerate(parts[:-1], 1):
        if folder.lower() in SYSTEM_FOLDERS:
            left_out.system.add('/'.join(parts[:depth]))
            return False
    if not name.lower().endswith(endings):
        left_out.file(name, ending_of(parts[-1]))
        return False
    return True


def check_member(path, name, kind):
    """Raises ValueError for an image in the tar `path` that is no regular file, or whose name is not as it should be."""
    if kind not in REGULAR:
        raise ValueError(f'{path} holds {name} as a link, or as another thing that is no regular file: pack '
                         'the images themselves (tar --dereference --hard-dereference)')
    if '..' in name.split('/'):
        raise ValueError(f'{path} holds {name}, which leads out of its folder: pack it from a folder above')
    if len(os.fsencode(name)) > LONGEST_NAME or '\0' in name:
        raise ValueError(f'{path} holds a name of more than {LONGEST_NAME:,} bytes, or with a NUL in it, '
                         f'{name[:60]}...: pack it again')


def as_unpacked(name):
    """The path that a member's name has below the folder into which it is unpacked."""
    return '/'.join(part for part in name.split('/') if part not in ('', '.'))


def folder_of(name):
    """The first folder in the path that a member has when it is unpacked; '' if it is in none."""
    folder, slash, _ = name.partition('/')
    return folder if slash else ''


def members(path, file, length):
    """Yield (name, kind, first byte, size) of each member of a tar, by its headers alone.

    path: for messages. file: a file descriptor. length: the bytes of the tar. Raises ValueError for a tar
    that is not whole and plain.
    """
    if not length:
        raise ValueError(f'{path} is empty: {REMEDY}')
    position = 0
    extended = {}  # what the headers before the next one say of it
    while True:
        header = os.pread(file, BLOCK, position)
        is_compressed = not position and any(map(header.startswith, COMPRESSED))
        if len(header) < BLOCK:
            raise compressed(path) if is_compressed else ValueError(
                f'{path} is cut off, for it does not end as a tar does: {REMEDY}')
        if not header.strip(b'\0'):
            break
        try:
            name, kind, size = fields(header, extended)
        except (ValueError, tarfile.HeaderError) as error:
            raise compressed(path) if is_compressed else ValueError(
                f'{path} is no tar, or a damaged one (byte {position:,}: {error}): {REMEDY}') from error
        first = position + BLOCK
        position = first + (0 if kind in NO_CONTENT else -(-size // BLOCK) * BLOCK)
        if size < 0 or first + size > length and kind not in NO_CONTENT:
            raise ValueError(f'{path} is cut off or damaged: {name[:200]} has {size:,} bytes by its header, '
                             f'and there are {length - first:,} left: {REMEDY}')
        if kind == SPARSE or any(key.startswith('GNU.sparse') for key in extended):
            raise ValueError(f'{path} holds {name[:200]} with holes: pack it without --sparse')
        if kind not in EXTENSIONS:
            extended = {}
            yield name, kind, first, size
            continue
        if size > LONGEST_HEADER:
            raise ValueError(f'{path} has a header of {size:,} bytes (byte {position:,}), which no tar of '
                             f'images needs: {REMEDY}')
        try:
            extended |= extension(kind, os.pread(file, size, first))
        except ValueError as error:
            raise ValueError(f'{path} is damaged (byte {first:,}: {error}): {REMEDY}') from error
    if os.pread(file, 2 ** 20, position).strip(b'\0'):
        raise ValueError(f'{path} holds something after its end (byte {position:,}), as tars do that were '
                         'put together by cat: use tar --concatenate, or leave them apart')


def fields(header, extended):
    """(name, kind, size) by a header of 512 bytes, and by what the headers before it say, {keyword: text}.

    Raises ValueError or tarfile.HeaderError.
    """
    kind = header[156:157]
    is_simple = kind in REGULAR and header[124] < 128 and header[345] == 0 and header[99] == 0
    if is_simple:  # Nearly all headers are, and this takes less time than tarfile does.
        checksum = sum(header) - sum(header[148:156]) + 256
        if int(header[148:156].strip(b' \0'), 8) != checksum:
            raise ValueError('bad checksum')
        name = header[:header.index(0)].decode('utf-8', 'surrogateescape')
        size = int(header[124:136].strip(b' \0') or b'0', 8)
    else:
        info = tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape')
        name = info.name
        size = info.size
    if kind not in EXTENSIONS:  # Several extensions may follow each other.
        name = extended.get('path', name)
        size = int(extended.get('size', size))
    if kind == b'\0' and name.endswith('/'):
        kind = FOLDER
    return name, kind, size


def extension(kind, content):
    """What the content of an extension says of the next header, {keyword: text}. Raises ValueError."""
    if kind == b'L':
        return {'path': content.split(b'\0')[0].decode('utf-8', 'surrogateescape')}
    said = {}
    position = 0
    # Each field is '<its length> <keyword>=<value>' and a newline.
    while kind in (b'x', b'X') and position < len(content):
        number, _, _ = content[position:position + 8].partition(b' ')
        end = position + (int(number) if number.isdigit() else 0)
        keyword, equals, value = content[position + len(number) + 1:end - 1].partition(b'=')
        if not equals or content[end - 1:end] != b'\n':
            raise ValueError('an extended header is not as it should be')
        said[keyword.decode('utf-8', 'replace')] = value.decode('utf-8', 'surrogateescape')
        position = end
    return said
