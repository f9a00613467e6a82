"""Images in tar shards, as WebDataset packs them, read in any order: an index of where they lie is made from the headers."""
import io
import os
import stat
import tarfile
from array import array
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.images.files import ImageFiles, check_channels, open_image
from common.images.finding import SYSTEM_FOLDERS, LeftOut, ending_of, find_files, image_endings
from common.images.pixels import AS_IT_IS

BLOCK = 512  # a tar is made of
COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')  # how gzip, bzip2, xz and zstd begin
COMPRESSED_ENDINGS = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')
TAR_ENDINGS = ('.tar', *COMPRESSED_ENDINGS)
EXTENSIONS = {b'L', b'K', b'x', b'X', b'g'}  # headers that say something of the next one: a long name, more fields
NO_CONTENT = {b'1', b'2', b'3', b'4', b'5', b'6'}  # links, devices, folders, pipes
SPARSE, FOLDER, REGULAR = b'S', b'5', (b'0', b'\0', b'7')
LONGEST_NAME, LONGEST_HEADER = 1024, 2 ** 20  # bytes; all names take as much memory as the longest, so it must not be any
LARGEST = 2 ** 30  # bytes of an image; without compression the largest that Pillow takes has fewer
AGAIN = 'pack or download it again'
OPEN_FILES = 128  # that a process keeps: often it may have no more than 1,024


class TarShards(ImageFiles):
    """The images of a tar, or of all tars in a folder, in the order that ImageFiles has of the same files unpacked.

    Members that are no images by their names are left out, and counted. Images of one name in several tars are all there, in
    the tars' order. The fingerprint is that of the files unpacked. Each process opens tars of its own accord, when it reads
    from them; it may be forked and spawned. Raises ValueError for tars that are not whole, plain and uncompressed.
    """

    def __init__(self, source, in_chans=3, reading=AS_IT_IS):
        check_channels(in_chans)
        self.root, self.mode, self.reading, self.handles = Path(source), 'RGB' if in_chans == 3 else 'L', reading, OrderedDict()
        left_out = LeftOut()
        self.shards = shards_of(source, left_out)
        with ThreadPoolExecutor(min(16, len(self.shards))) as pool:  # most of the time is spent waiting for the storage
            found = list(pool.map(index_of, self.shards))
        names = [name for one in found for name in one[0]]
        for *_, of_shard in found:
            left_out.add(of_shard)
        self.keep_count(left_out)
        if not names:
            raise ValueError(f'{source} holds tars, but no images in them that Pillow reads by their names'
                             + (f', but {self.notes}' if self.notes else ''))
        order = sorted(range(len(names)), key=names.__getitem__)
        self.paths = np.array([os.fsencode(names[i]) for i in order])
        self.places = np.concatenate([np.array([[number] * len(one[0]), one[1], one[2]], np.int64).reshape(3, -1)
                                      for number, one in enumerate(found)], 1).T[order]  # (images, 3): tar, first byte, bytes
        self.stamps = [one[3] for one in found]

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
        file = self.handle(shard)
        if stamp_of(file) != self.stamps[shard]:
            raise OSError(f'{self.shards[shard]} was changed since the run began: start it again')
        content = os.pread(file.fileno(), size, first)
        if len(content) < size:
            raise OSError(f'{self.shards[shard]} gives {len(content):,} of its {size:,} bytes')
        return content

    def handle(self, shard):
        """This process's open file of a tar. Reading by position does not disturb a process that it is shared with."""
        if shard not in self.handles:
            while len(self.handles) >= OPEN_FILES:
                self.handles.popitem(last=False)[1].close()
            self.handles[shard] = open(self.shards[shard], 'rb', buffering=0)  # noqa: SIM115  (closed when others need room)
        self.handles.move_to_end(shard)
        return self.handles[shard]


def is_sharded(source):
    """Whether a path is a tar, or a folder with tars in it and no images."""
    source = Path(source)
    if source.is_dir():
        return next(find_files(source, image_endings()), None) is None and \
            next(find_files(source, TAR_ENDINGS, dead_links=True), None) is not None
    return source.name.lower().endswith(TAR_ENDINGS) and source.exists()


def shards_of(source, left_out=None):
    """The paths of a tar, or of the tars in a folder, in order. Raises ValueError if some are compressed.

    left_out: a LeftOut, in which the other files of the folder are counted.
    """
    source = Path(source)
    shards = [str(source / path) for path in sorted(find_files(source, TAR_ENDINGS, left_out, True))] if source.is_dir() \
        else [str(source)]
    for path in shards:
        if path.lower().endswith(COMPRESSED_ENDINGS):
            raise compressed(path)
    return shards


def compressed(path):
    return ValueError(f'{path} is compressed, so images cannot be read from its middle: decompress it first (with gunzip, '
                      'unxz, unzstd) and give the .tar; images gain nothing from it')


def stamp_of(file):
    """(bytes, time of the last change) of an open file."""
    about = os.fstat(file.fileno())
    return about.st_size, about.st_mtime_ns


def index_of(path):
    """(names, first bytes, sizes, stamp, a LeftOut) of the images of a tar, in its order. Raises ValueError."""
    names, firsts, sizes, endings, left_out = [], array('q'), array('q'), image_endings(), LeftOut()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO waits for a writer
            raise ValueError(f'{path} is no regular file: give tars as files')
        with open(path, 'rb', buffering=0) as file:
            stamp = stamp_of(file)
            for name, kind, first, size in members(path, file.fileno(), stamp[0]):
                name = as_unpacked(name)
                parts = name.split('/')
                if kind == FOLDER or any(part[:1] == '.' and part != '..' for part in parts):
                    continue
                system = [at for at, part in enumerate(parts[:-1], 1) if part.lower() in SYSTEM_FOLDERS]
                if system:
                    left_out.system.add('/'.join(parts[:system[0]]))
                    continue
                if not name.lower().endswith(endings):
                    left_out.file(name, ending_of(parts[-1]))
                    continue
                if kind not in REGULAR:
                    raise ValueError(f'{path} holds {name} as a link, or as another thing that is no regular file: pack the '
                                     'images themselves (tar --dereference --hard-dereference)')
                if '..' in name.split('/'):
                    raise ValueError(f'{path} holds {name}, which leads out of its folder: pack it from a folder above')
                if len(os.fsencode(name)) > LONGEST_NAME or '\0' in name:
                    raise ValueError(f'{path} holds a name of more than {LONGEST_NAME:,} bytes, or with a NUL in it, '
                                     f'{name[:60]}...: pack it again')
                names.append(name)
                firsts.append(first)
                sizes.append(size)
    except OSError as error:
        raise ValueError(f'{path} cannot be read ({error}): see to its storage, or take it away') from error
    if len(set(names)) < len(names):
        seen = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise ValueError(f'{path} holds {twice} more than once: pack it again with each file once')
    return names, firsts, sizes, stamp, left_out


def as_unpacked(name):
    """The path that a member's name has below the folder into which it is unpacked."""
    return '/'.join(part for part in name.split('/') if part not in ('', '.'))


def members(path, file, length):
    """(name, kind, first byte, size) of each member of a tar of so many bytes, by its headers alone. Raises ValueError."""
    if not length:
        raise ValueError(f'{path} is empty: {AGAIN}')
    at, said = 0, {}  # said: by headers in front of the one that they are for
    while True:
        header = os.pread(file, BLOCK, at)
        is_compressed = not at and any(map(header.startswith, COMPRESSED))
        if len(header) < BLOCK:
            raise compressed(path) if is_compressed else ValueError(
                f'{path} is cut off, for it does not end as a tar does: {AGAIN}')
        if not header.strip(b'\0'):
            break
        try:
            name, kind, size = fields(header, said)
        except (ValueError, tarfile.HeaderError) as error:
            raise compressed(path) if is_compressed else ValueError(
                f'{path} is no tar, or a damaged one (byte {at:,}: {error}): {AGAIN}') from error
        first = at + BLOCK
        at = first + (0 if kind in NO_CONTENT else -(-size // BLOCK) * BLOCK)
        if size < 0 or first + size > length and kind not in NO_CONTENT:
            raise ValueError(f'{path} is cut off or damaged: {name[:200]} has {size:,} bytes by its header, and there are '
                             f'{length - first:,} left: {AGAIN}')
        if kind == SPARSE or any(key.startswith('GNU.sparse') for key in said):
            raise ValueError(f'{path} holds {name[:200]} with holes: pack it without --sparse')
        if kind in EXTENSIONS:
            if size > LONGEST_HEADER:
                raise ValueError(f'{path} has a header of {size:,} bytes (byte {at:,}), which no tar of images needs: {AGAIN}')
            try:
                said |= extension(kind, os.pread(file, size, first))
            except ValueError as error:
                raise ValueError(f'{path} is damaged (byte {first:,}: {error}): {AGAIN}') from error
            continue
        said = {}
        yield name, kind, first, size
    if os.pread(file, 2 ** 20, at).strip(b'\0'):
        raise ValueError(f'{path} holds something behind its end (byte {at:,}), as tars do that were put together by cat: use '
                         'tar --concatenate, or leave them apart')


def fields(header, said):
    """(name, kind, size) of a header of 512 bytes, and of what was said in front of it. Raises ValueError, HeaderError."""
    kind = header[156:157]
    if kind in REGULAR and header[124] < 128 and header[345] == 0 and header[99] == 0:  # as nearly all are, in less time
        if int(header[148:156].strip(b' \0'), 8) != sum(header) - sum(header[148:156]) + 256:
            raise ValueError('bad checksum')
        name = header[:header.index(0)].decode('utf-8', 'surrogateescape')
        size = int(header[124:136].strip(b' \0') or b'0', 8)
    else:
        info = tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape')
        name, size = info.name, info.size
    if kind not in EXTENSIONS:  # these may come several in a row
        name, size = said.get('path', name), int(said.get('size', size))
    return name, FOLDER if kind == b'\0' and name.endswith('/') else kind, size


def extension(kind, content):
    """What a header says of the next one, {keyword: text}. Raises ValueError."""
    if kind == b'L':
        return {'path': content.split(b'\0')[0].decode('utf-8', 'surrogateescape')}
    said, at = {}, 0
    while kind in (b'x', b'X') and at < len(content):  # each field is '<its length> <keyword>=<value>' and a line's end
        number = content[at:at + 8].partition(b' ')[0]
        end = at + (int(number) if number.isdigit() else 0)
        keyword, equals, value = content[at + len(number) + 1:end - 1].partition(b'=')
        if not equals or content[end - 1:end] != b'\n':
            raise ValueError('an extended header is not as it should be')
        said[keyword.decode('utf-8', 'replace')] = value.decode('utf-8', 'surrogateescape')
        at = end
    return said
