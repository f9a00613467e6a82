"""Finding the image files below a folder, and counting by kind what is left out, so that users can be told."""
import os
from collections import Counter
from contextlib import suppress
from functools import cache

from PIL import Image

from common.words import first_of, printable

# Formats that Pillow registers and that are not read here. EPS starts Ghostscript, whatever the file is
# called. IPTC opens what it wraps as any format, EPS too. BUFR, GRIB, HDF5 and WMF are stubs that ask for a
# program. MPEG has no decoder, and PALM and PDF have no reader.
NOT_READ = frozenset({'EPS', 'IPTC', 'BUFR', 'GRIB', 'HDF5', 'WMF', 'MPEG', 'PALM', 'PDF'})

# Files that hold images, or may, and are read only if a plug-in of Pillow does: (their kind, their endings,
# what to do).
UNREAD = (
    ('HEIC', '.heic .heics .heif .heifs .hif', 'pip install pillow-heif'),
    ('JPEG XL', '.jxl', 'pip install pillow-jxl-plugin'),
    ('AVIF', '.avif .avifs', "pip install 'Pillow>=11.3'"),
    ('camera raw', '.3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw '
                   '.orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f',
     'develop them into JPEG, PNG or TIFF'),
    ('image', '.bpg .djvu .exr .hdr .jls .jxr .kra .psb .wdp .xcf', 'save them as PNG or TIFF'),
    ('drawing or document', '.ai .cdr .emf .eps .odg .pdf .ps .svg .svgz .wmf', 'draw them as PNG'),
    ('medical image', '.dcm .dicom .mgh .mgz .mha .mhd .mnc .nhdr .nii .nii.gz .nrrd',
     'write them as PNG or TIFF, or give a Dataset of your own'),
    ('microscope image', '.czi .lif .mrxs .nd2 .ndpi .oib .oif .scn .svs .vsi .zvi',
     'write them, or tiles of them, as PNG or TIFF, or give a Dataset of your own'),
    ('array', '.bufr .grib .h5 .hdf .hdf5 .nc .npy .npz', 'give a Dataset of your own'),
    ('video', '.3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv',
     'take frames out of them: ffmpeg -i VIDEO frame_%06d.png'),
    ('archive', '.7z .rar .tar .tar.bz2 .tar.gz .tar.xz .tar.zst .tbz2 .tgz .txz .zip', 'unpack them'),
    ('packed data', '.arrow .beton .lmdb .mdb .parquet .rec .tfrecord',
     'unpack them, or give a Dataset of your own'))
# {ending: place in UNREAD}
UNREAD_ENDINGS = {ending: place for place, (_, endings, _) in enumerate(UNREAD)
                  for ending in endings.split()}
PACKED_ENDINGS = frozenset({'.gz', '.bz2', '.xz', '.zst'})  # say less than the ending before them

# Folders that systems make for themselves, of thumbnails or deleted files, in lower case. Hidden ones are
# left out anyway.
SYSTEM_FOLDERS = frozenset({
    '@eadir', '@tmp', '#recycle', '#snapshot', '@recycle', '@recently-snapshot', '~snapshot',  # of a NAS
    '__macosx', '$recycle.bin', 'recycler', 'system volume information', 'lost+found'})


@cache
def register_plug_ins():
    """Let Pillow read HEIC and JPEG XL in this process, if pillow-heif and pillow-jxl-plugin are installed."""
    with suppress(ImportError):
        import pillow_heif
        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  (registers itself)


def image_endings():
    """The endings, such as '.png', of the names of files that are read as images; a tuple."""
    register_plug_ins()
    return tuple(ending for ending, kind in Image.registered_extensions().items() if kind not in NOT_READ)


def ending_of(name):
    """The ending of a file's name in lower case, such as '.png' or '.nii.gz'; '' if it has none, or a number for one."""
    at = name.rfind('.')
    ending = name[at:].lower() if at > 0 else ''
    if ending in PACKED_ENDINGS:
        longer = name[name.rfind('.', 0, at):].lower()
        return longer if longer in UNREAD_ENDINGS else ending
    return '' if len(ending) > 13 or ending[1:].isdigit() else ending


def remedy(file):
    """What a user can do about a file that is not read, by the ending of its name; None if that is not known."""
    if not isinstance(file, (str, os.PathLike)):
        return None
    ending = ending_of(os.path.basename(file))
    if ending not in UNREAD_ENDINGS or ending in image_endings():
        return None
    _, _, advice = UNREAD[UNREAD_ENDINGS[ending]]
    return advice


class LeftOut:
    """What a search for images leaves out. All paths are relative to the folder that is searched.

    files: {ending: [their number, the first of them by its name]}. system: the SYSTEM_FOLDERS that were met.
    unreadable: {folder: why it cannot be read}. dead_links: links with the names of images that lead nowhere.
    missing: of a list of paths, (number of missing files, of how many that were looked for, the first of them).
    """

    def __init__(self):
        self.files = {}
        self.system = set()
        self.unreadable = {}
        self.dead_links = []
        self.missing = (0, 0, '')

    def file(self, path, ending):
        """Count a file that is no image by its name."""
        self.add_files(ending, 1, path)

    def add_files(self, ending, number, path):
        """Count so many files of an ending, of which the first one has this path."""
        known = self.files.setdefault(ending, [0, path])
        known[0] += number
        known[1] = min(known[1], path)

    def add(self, other):
        """Count what another LeftOut has counted, too."""
        for ending, (number, path) in other.files.items():
            self.add_files(ending, number, path)
        self.system |= other.system
        self.unreadable |= other.unreadable
        self.dead_links += other.dead_links

    @property
    def images(self):
        """The number of files that hold images, or may hold some."""
        unread = sum(number for ending, (number, _) in self.files.items() if ending in UNREAD_ENDINGS)
        return unread + len(self.dead_links)

    def counted(self):
        """What is left out, as a Counter {what, in words: how many}."""
        found = Counter()

        def count(number, what, about):
            if number:
                found[f'{what.replace("(s)", "s" * (number > 1))} ({about})'] += number

        for kind, (name, _, advice) in enumerate(UNREAD):
            of_kind = {ending: known for ending, known in self.files.items()
                       if UNREAD_ENDINGS.get(ending) == kind}
            first = min((path for _, path in of_kind.values()), default='')
            count(sum(number for number, _ in of_kind.values()), f'{name} file(s)',
                  f'{", ".join(sorted(of_kind))}, such as {printable(first)}: {advice}')
        for what, paths in (('link(s) to nowhere', self.dead_links),
                            ('folder(s) of thumbnails or system files', self.system)):
            count(len(paths), what, f'such as {printable(min(paths, default=""))}')
        missing, tried, first = self.missing
        count(missing, 'missing file(s)',
              f'of {tried:,} paths of the list that were looked for, such as {printable(first)}')
        if self.unreadable:
            folder = min(self.unreadable)
            count(len(self.unreadable), 'folder(s) that cannot be read',
                  f'such as {printable(folder)}: {self.unreadable[folder]}')
        others = {ending: number for ending, (number, _) in self.files.items()
                  if ending not in UNREAD_ENDINGS}
        most_first = sorted(others, key=lambda ending: (-others[ending], ending))
        count(sum(others.values()), 'other file(s)',
              first_of([ending or 'without an ending' for ending in most_first], 4))
        return found


def in_words(left_out):
    """A Counter {what: how many} as text, empty if nothing was left out."""
    return ', '.join(f'{number:,} {what}' for what, number in left_out.items())


def find_files(folder, endings, left_out=None, dead_links=False):
    """Yield the paths, relative to a folder, of the files below it that have one of the endings.

    Links are followed. Hidden files and folders are left out, and so are SYSTEM_FOLDERS.

    endings: in lower case, each with its dot.
    left_out: a LeftOut, which counts all other files that are not hidden. If not given, nothing is counted.
    dead_links: whether links that lead nowhere are yielded, too.
    """
    left_out = LeftOut() if left_out is None else left_out
    has_ending = ending_test(endings)
    seen = set()  # the real paths of the folders that were searched
    pending = [(os.fspath(folder), '')]  # [(folder, what its files' paths begin with)]
    while pending:
        where, prefix = pending.pop()
        real = os.path.realpath(where)
        if real in seen:  # A link has led back up.
            continue
        seen.add(real)
        folders = []
        try:
            # A folder may be listed although none of its files can be opened.
            os.stat(os.path.join(where, '.'))
            with os.scandir(where) as entries:
                for entry in entries:
                    if holds(entry.is_dir):
                        if entry.name.lower() in SYSTEM_FOLDERS:
                            left_out.system.add(prefix + entry.name)
                        elif entry.name[0] != '.':
                            folders.append((entry.path, f'{prefix}{entry.name}{os.sep}'))
                    elif is_wanted(entry, prefix, has_ending, left_out, dead_links):
                        yield prefix + entry.name
        except OSError as error:
            left_out.unreadable[prefix.rstrip(os.sep) or str(folder)] = error.strerror
        pending += reversed(folders)


def ending_test(endings):
    """A function that tells whether a file's name ends with one of these endings, in time that does not grow with them."""
    short = {ending for ending in endings if ending.rfind('.') == 0}
    longer = tuple(set(endings) - short)  # such as .tar.gz

    def has_ending(name):
        return name[name.rfind('.'):].lower() in short or bool(longer) and name.lower().endswith(longer)

    return has_ending


def is_wanted(entry, prefix, has_ending, left_out, dead_links):
    """Whether find_files yields an entry of os.scandir that is no folder; if not, it is counted unless it is hidden."""
    name = entry.name
    if name[0] == '.':
        return False
    if not has_ending(name):
        left_out.file(prefix + name, ending_of(name))
        return False
    if not dead_links and entry.is_symlink() and not holds(entry.is_file) and not os.path.exists(entry.path):
        left_out.dead_links.append(prefix + name)
        return False
    return True


def holds(question):
    """The answer of a method of an entry of os.scandir; False where it raises OSError.

    A link may lead to what may not be read, or to itself.
    """
    try:
        return question()
    except OSError:
        return False


def folders_of(folder):
    """The names of the folders in a folder that are searched, in order. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries
                      if holds(entry.is_dir) and not entry.name.startswith('.')
                      and entry.name.lower() not in SYSTEM_FOLDERS)


def what_is_in(folder):
    """What a folder holds, as a clause of a message to a user who expected something else there."""
    try:
        folders = folders_of(folder)
    except OSError as error:
        return f'{folder} cannot be read ({error.strerror})'
    if not folders:
        return f'{folder} holds no folders'
    return f'{folder} holds the folder{"s" * (len(folders) > 1)} {first_of(folders)}'


def why_without_images(folder):
    """Why no images were found in a folder, as the end of a sentence whose subject is the folder."""
    left_out = LeftOut()
    if next(find_files(folder, image_endings(), left_out), None) is not None:
        return 'is what a link in another folder leads to, and its images are counted there'
    if str(folder) in left_out.unreadable:
        return f'cannot be read ({left_out.unreadable[str(folder)]})'
    return f'holds {in_words(left_out.counted())}' if left_out.counted() else 'is empty'
