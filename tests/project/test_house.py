"""The tree in CONTRIBUTING.md is the house as it is."""
import re

import pytest

from tests.conftest import ROOT

FOLDERS = ('pretrain', 'common', 'downstream_imagenet', 'downstream_coco', 'downstream_ade20k', 'downstream_d2', 'analysis')


def tree():
    """{path of a folder: {name of a file: lines}} of the tree in CONTRIBUTING.md."""
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    block = re.search(r'The house, with the lines of its files:\n\n```\n(.*?)\n```', text, re.DOTALL)[1]
    found, top, here = {}, None, None
    for line in block.splitlines():
        folder = re.match(r'( *)(\w+)/ ', line)
        if folder:
            top = top if folder[1] else folder[2]
            here = found.setdefault(f'{top}/{folder[2]}' if folder[1] else folder[2], {})
        else:
            here.update({name: int(lines) for name, lines in re.findall(r'([\w.-]+\.py) (\d+)', line)})
    return found


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_tree_names_every_file_with_its_lines(folder):
    there = {}
    for path in (ROOT / folder).rglob('*.py'):
        lines = len(path.read_text(encoding='utf-8').splitlines())
        if path.name != '__init__.py':
            there.setdefault(str(path.parent.relative_to(ROOT)), {})[path.name] = lines
    told = {name: files for name, files in tree().items() if name.split('/')[0] == folder}
    assert {name: set(files) - {'__init__.py'} for name, files in told.items()} == \
        {name: set(files) for name, files in there.items()}
    for name, files in there.items():
        for file, lines in files.items():
            assert abs(told[name][file] - lines) <= max(15, lines // 5), f'{name}/{file} has {lines} lines'


def test_the_core_of_the_method_is_short():
    """What a reader of the paper reads: under 450 lines."""
    files = ('spark', 'encoder', 'decoder', 'masking')
    assert sum(len((ROOT / f'pretrain/{name}.py').read_text().splitlines()) for name in files) < 450
