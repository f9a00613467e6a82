"""Results that are kept in files while an analysis runs, so that the same command goes on where it stopped."""
import copy
import hashlib
import json
from pathlib import Path

from common.cli import folder_for
from common.reliability.checkpoint import write_atomically


def kept_file(out, about):
    """Return the path, in a folder, of the results of what a dictionary of plain values describes: another
    file for whatever differs, so that nothing of other images, weights or options is taken for these.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    return folder_for(Path(out, 'kept')) / f'{digest}.json'


def read_kept(path, empty):
    """Return the content of a file of results, or a copy of `empty` if there is none. Raises ValueError if it is damaged."""
    if not path.exists():
        return copy.deepcopy(empty)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}): remove it, and what it held is computed '
                         'again') from error
    if not isinstance(content, dict) or not content.keys() >= empty.keys():
        raise ValueError(f'{path} is not what an analysis writes: remove it, and what it held is computed '
                         'again')
    return content


def write_json(path, content):
    """Write plain values as JSON, whole or not at all."""
    text = json.dumps(content, indent=1, allow_nan=False) + '\n'
    write_atomically(path, lambda file: file.write(text.encode()))
