"""Which files below a folder are images, and what is left out, by kind and number, for a person to know."""
import os
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image

from common.words import first_of, printable

# What Pillow registers and is not read here: EPS starts Ghostscript, whatever the file is called; IPTC opens what it wraps as
# anything, EPS too; BUFR, GRIB, HDF5 and WMF are stubs that ask for a program; MPEG has no decoder; PALM and PDF no reader.
NOT_READ = frozenset({'EPS', 'IPTC', 'BUFR', 'GRIB', 'HDF5', 'WMF', 'MPEG', 'PALM', 'PDF'})

# Files that hold images, or may, and are not read unless a plug-in of Pillow does: (their kind, their endings, what to do).
UNREAD = (
    ('HEIC', '.heic .heics .heif .heifs .hif', 'pip install pillow-heif'),
    ('JPEG XL', '.jxl', 'pip install pillow-jxl-plugin'),
    ('AVIF', '.avif .avifs', "pip install 'Pillow>=11.3'"),
    ('camera raw', '.3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw '
     '.rw2 .rwl .sr2 .srf .srw .x3f', 'develop them into JPEG, PNG or TIFF'),
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
    ('packed data', '.arrow .beton .lmdb .mdb .parquet .rec .tfrecord', 'unpack them, or give a Dataset of your own'))
UNREAD_ENDINGS = {ending: number for number, (_, endings, _) in enumerate(UNREAD) for ending in endings.split()}
PACKED_ENDINGS = frozenset({'.gz', '.bz2', '.xz', '.zst'})  # say less than the ending before them

# Folders that systems make for themselves, of thumbnails or deleted files, in lower case. Hidden ones are left out anyway.
SYSTEM_FOLDERS = frozenset({
    '@eadir', '@tmp', '#recycle', '#snapshot', '@recycle', '@recently-snapshot', '~snapshot',  # of a NAS
    '__macosx', '$recycle.bin', 'recycler', 'system volume information', 'lost+found'})

VALIDATION = ('val', 'valid', 'validation')  # what the folder beside train/ may be called


@cache
def register_plug_ins():
    """Let Pillow read HEIC and JPEG XL in this process, if pillow-heif and pillow-jxl-plugin are installed."""
    with suppress(ImportError):
        import pillow_heif
        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  (registers itself)


def image_endings():
    """What the names of images end with."""
    register_plug_ins()
    return tuple(ending for ending, kind in Image.registered_extensions().items() if kind not in NOT_READ)


def ending_of(name):
    """What a file's name ends with, in lower case: '.png', '.nii.gz'; '' if it has no ending, or a number for one."""
    at = name.rfind('.')
    ending = name[at:].lower() if at > 0 else ''
    if ending in PACKED_ENDINGS:
        longer = name[name.rfind('.', 0, at):].lower()
        return longer if longer in UNREAD_ENDINGS else ending
    return '' if len(ending) > 13 or ending[1:].isdigit() else ending


def remedy(file):
    """What a user can do about a file that is not read, judged by its name; None if that does not help."""
    ending = ending_of(os.path.basename(file)) if isinstance(file, (str, os.PathLike)) else ''
    return UNREAD[UNREAD_ENDINGS[ending]][2] if ending in UNREAD_ENDINGS and ending not in image_endings() else None


class LeftOut:
    """What a search for images leaves out.

    files: {ending: [their number, the first of them by its name]}. system: SYSTEM_FOLDERS that were met. unreadable: {folder:
    why}. dead_links: links with the names of images that lead nowhere. All are paths from the folder that is searched. missing:
    of a list, (number of missing files, of how many that were looked for, the first of them).
    """

    def __init__(self):
        self.files, self.system, self.unreadable, self.dead_links, self.missing = {}, set(), {}, [], (0, 0, '')

    def file(self, path, ending):
        """Count a file that is no image by its name."""
        known = self.files.setdefault(ending, [0, path])
        known[0] += 1
        known[1] = min(known[1], path)

    def add(self, other):
        """Count what another search left out, too."""
        for ending, (number, path) in other.files.items():
            known = self.files.setdefault(ending, [0, path])
            known[0] += number
            known[1] = min(known[1], path)
        self.system |= other.system
        self.unreadable |= other.unreadable
        self.dead_links += other.dead_links

    @property
    def images(self):
        """Number of the files that hold images, or may hold some."""
        return sum(number for ending, (number, _) in self.files.items() if ending in UNREAD_ENDINGS) + len(self.dead_links)

    def counted(self):
        """Counter {what, for a person: how many}."""
        found = Counter()

        def count(number, what, about):
            if number:
                found[f'{what.replace("(s)", "s" * (number > 1))} ({about})'] += number

        for kind, (name, _, advice) in enumerate(UNREAD):
            of_kind = {ending: known for ending, known in self.files.items() if UNREAD_ENDINGS.get(ending) == kind}
            first = min((path for _, path in of_kind.values()), default='')
            count(sum(number for number, _ in of_kind.values()), f'{name} file(s)',
                  f'{", ".join(sorted(of_kind))}, such as {printable(first)}: {advice}')
        for what, paths in (('link(s) to nowhere', self.dead_links), ('folder(s) of thumbnails or system files', self.system)):
            count(len(paths), what, f'such as {printable(min(paths, default=""))}')
        missing, tried, first = self.missing
        count(missing, 'missing file(s)', f'of {tried:,} paths of the list that were looked for, such as {printable(first)}')
        for folder in sorted(self.unreadable)[:1]:
            count(len(self.unreadable), 'folder(s) that cannot be read',
                  f'such as {printable(folder)}: {self.unreadable[folder]}')
        others = {ending: number for ending, (number, _) in self.files.items() if ending not in UNREAD_ENDINGS}
        shown = [ending or 'without an ending' for ending in sorted(others, key=lambda ending: (-others[ending], ending))]
        count(sum(others.values()), 'other file(s)', first_of(shown, 4))
        return found


def in_words(left_out):
    """A Counter {what: how many} as text for a person, empty if nothing was left out."""
    return ', '.join(f'{number:,} {what}' for what, number in left_out.items())


def find_files(folder, endings, left_out=None, dead_links=False):
    """Paths below a folder with one of the endings, links followed, hidden files and SYSTEM_FOLDERS left out.

    left_out: a LeftOut, in which all else is counted but for what is hidden. dead_links: find links that lead nowhere, too.
    """
    left_out, seen, pending = LeftOut() if left_out is None else left_out, set(), [(os.fspath(folder), '')]
    short = {ending for ending in endings if ending.rfind('.') == 0}
    longer = tuple(set(endings) - short)  # such as .tar.gz
    while pending:
        where, prefix = pending.pop()
        real = os.path.realpath(where)
        if real in seen:  # a link back up
            continue
        seen.add(real)
        folders = []
        try:
            os.stat(os.path.join(where, '.'))  # a folder may be listed, and yet none of its files be opened
            with os.scandir(where) as entries:
                for entry in entries:
                    name = entry.name
                    if is_one(entry.is_dir):
                        if name.lower() in SYSTEM_FOLDERS:
                            left_out.system.add(prefix + name)
                        elif name[0] != '.':
                            folders.append((entry.path, f'{prefix}{name}{os.sep}'))
                    elif name[0] == '.':
                        continue
                    elif name[name.rfind('.'):].lower() not in short and not (longer and name.lower().endswith(longer)):
                        left_out.file(prefix + name, ending_of(name))
                    elif not dead_links and entry.is_symlink() and not is_one(entry.is_file) and not os.path.exists(entry.path):
                        left_out.dead_links.append(prefix + name)
                    else:
                        yield prefix + name
        except OSError as error:
            left_out.unreadable[prefix.rstrip(os.sep) or str(folder)] = error.strerror
        pending += reversed(folders)


def is_one(asked):
    """Whether an entry of os.scandir is what its method says, or leads to such a thing."""
    try:
        return asked()
    except OSError:  # a link into what may not be read, or one that leads to itself
        return False


def folders_of(folder):
    """The names of the folders in a folder that are searched, in order. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_one(entry.is_dir) and not entry.name.startswith('.')
                      and entry.name.lower() not in SYSTEM_FOLDERS)


def what_is_in(folder):
    """What a folder holds, as a clause for a person who expected something else there."""
    try:
        folders = folders_of(folder)
    except OSError as error:
        return f'{folder} cannot be read ({error.strerror})'
    return f'{folder} holds the folder{"s" * (len(folders) > 1)} {first_of(folders)}' if folders else \
        f'{folder} holds no folders'


def why_without_images(folder):
    """What a folder is in which no images were found, as the end of a sentence for a person."""
    left_out = LeftOut()
    if next(find_files(folder, image_endings(), left_out), None) is not None:
        return 'is what a link in another folder leads to, and its images are counted there'
    if str(folder) in left_out.unreadable:
        return f'cannot be read ({left_out.unreadable[str(folder)]})'
    return f'holds {in_words(left_out.counted())}' if left_out.counted() else 'is empty'


def validation_folder(data_path):
    """val/, else valid/ or validation/, in a folder; None if it has none. Raises ValueError if it has both of the latter."""
    found = [path for path in (Path(data_path, name) for name in VALIDATION) if path.is_dir()]
    if len(found) > 1 and found[0].name != VALIDATION[0]:
        raise ValueError(f'{data_path} holds {" and ".join(path.name for path in found)}: say which of them has the images to '
                         'validate on, --val_path=DIR')
    return found[0] if found else None
