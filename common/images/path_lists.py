"""Text files that name images, one path a line."""
import codecs
import os

import numpy as np

from common.images.finding import UNREAD_ENDINGS, LeftOut, ending_of, image_endings

TRIED = 1000  # the most paths of a list whose files are looked for before the start


def read_list(source, root, left_out=None):
    """The paths that a text file names, one a line, as a list of paths below the folder `root`.

    source: path of the file, in UTF-8, or in UTF-16 with a byte order mark. Backslashes are taken as slashes,
    unless a file has the name as it is written.
    left_out: a LeftOut. It counts the files of formats that are not read, and how many of TRIED others are missing.

    Raises ValueError for a file that is no such list, and for paths that do not lie below the root.
    """
    left_out = LeftOut() if left_out is None else left_out
    try:
        text = decoded(source.read_bytes())
    except UnicodeDecodeError:
        text = '\0'
    if '\0' in text:
        raise ValueError(f'{source} is neither a folder nor a text file with one image path a line (UTF-8, '
                         'no NUL bytes)')
    if not root.is_dir():
        raise ValueError(f'there is no folder {root} for the paths of {source} to start from: give '
                         '--list_root=DIR')
    # A list that was put together from several may have byte order marks inside.
    stripped = [line.strip().removeprefix('\ufeff') for line in text.splitlines()]
    lines = with_slashes([line for line in stripped if line], root)
    paths = inside(lines, root)
    if None in paths:
        raise ValueError(f'{source} names {lines[paths.index(None)]}, which does not lie below {root}: give '
                         'the folder that all its images lie below, --list_root=DIR')
    not_read = UNREAD_ENDINGS.keys() - set(image_endings())
    kept = []
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
    """The text in a file's bytes: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises UnicodeDecodeError.
    """
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode('utf-16' if is_utf_16 else 'utf-8-sig')


def evenly(items, most):
    """At most so many of the items, evenly spread; the first and the last are among them."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[place] for place in places]


def with_slashes(lines, root):
    """The lines with slashes for the backslashes of Windows, unless a file has the name as it is written."""
    def is_file(line):
        return os.path.isfile(os.path.join(root, line))

    with_backslash = [line for line in lines if '\\' in line]
    found = [is_file(line) for line in evenly(with_backslash, TRIED)]
    if all(found):  # This includes lists without a backslash.
        return lines
    some_have_backslashes = any(found)

    def with_slash(line):
        if '\\' not in line or some_have_backslashes and is_file(line):
            return line
        return line.replace('\\', '/')

    return [with_slash(line) for line in lines]


def look_for(source, root, paths, left_out):
    """Count in left_out how many of TRIED paths of the list `source` are missing.

    Raises ValueError if its lines hold more than paths, or if most of these files are missing.
    """
    tried = evenly(paths, TRIED)
    missing = [path for path in tried if not os.path.isfile(os.path.join(root, path))]
    for line in missing[:10]:
        path = path_in(line, root)
        if path:
            raise ValueError(f'{source} has more than a path in the line {line!r}, which should be {path!r} '
                             'alone: a list has one path a line, without labels or quotes')
    if missing and missing[0] == paths[0]:
        raise ValueError(f"{source} names {paths[0]}, which is no file: a list has one path a line, from the "
                         "list's "
                         'own folder on or from --list_root=DIR')
    if 2 * len(missing) > len(tried):
        raise ValueError(f'{source} names files that are missing, {len(missing):,} of {len(tried):,} that '
                         f'were looked for, such as {missing[0]}: give the folder that its paths start from, '
                         '--list_root=DIR')
    if missing:
        left_out.missing = (len(missing), len(tried), missing[0])


def path_in(line, root):
    """The path of a file in a line that holds more, such as a label or quotes; None if there is no such file."""
    for separator in (',', ';', '\t', ' ', '|'):
        before, _, after = line.partition(separator)
        before_last, _, _ = line.rpartition(separator)
        for part in (before_last, before, after):
            path = part.strip(' "\'')
            if os.path.isfile(os.path.join(root, path)):
                return path
    return None


def inside(paths, root):
    """Each path, relative to the folder `root` or absolute, as a path below it; None for each that leads out of it.

    Only the text is judged, with '..' resolved: a link below the folder may lead anywhere.
    """
    absolute = os.path.abspath(root)
    starts = [os.path.join(start, '') for start in (absolute, os.path.realpath(root))]

    def below(path):
        path = os.path.normpath(os.path.join(absolute, path))
        for start in starts:
            if path.startswith(start):
                return path[len(start):]
        return None

    return [below(path) if '..' in path or os.path.isabs(path) else path for path in paths]
