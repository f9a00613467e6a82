"""Who may import whom: the contract between the top folders is a file of weights, not code; and no import goes in a circle."""
import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAY = {'common': {'common'}, 'pretrain': {'pretrain', 'common'}, 'downstream_imagenet': {'downstream_imagenet', 'common'},
       'downstream_coco': {'downstream_coco', 'common'}, 'downstream_ade20k': {'downstream_ade20k', 'common'},
       'downstream_d2': {'downstream_d2', 'common'}, 'analysis': {'analysis', 'common'},
       'downstream_mmdet': {'downstream_mmdet', 'common'}}
OURS = {*MAY, 'tests', 'benchmarks'}
# The one exception: users register networks of their own there, and every program imports it by its name.
USERS_NETWORKS = 'pretrain.models'
MODULE = re.compile(rf'(?:{"|".join(OURS)})(?:\.\w+)+')


def imports(path):
    """(module, level) of every import statement of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or '', node.level
            yield from ((f'{node.module}.{alias.name}', 0) for alias in node.names
                        if node.module and is_module(f'{node.module}.{alias.name}'))


def names(path):
    """Every text of a file that is the name of a module. What follows a '-m' is a program that is started, not imported."""
    started = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        parts = getattr(node, 'args', None) if isinstance(node, ast.Call) else getattr(node, 'elts', None)
        for one, following in zip(parts or (), (parts or ())[1:]):
            if isinstance(one, ast.Constant) and one.value == '-m':
                started.add(following)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value) \
                and node not in started:
            yield node.value


def is_module(name):
    path = ROOT / name.replace('.', '/')
    return path.with_suffix('.py').is_file() or path.is_dir() and name.split('.')[0] in OURS


def modules(folder):
    """{name of a module: path} of the Python files of a folder."""
    return {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
            for path in (ROOT / folder).rglob('*.py')}


def graph():
    """{module: the modules of ours that it imports}."""
    known = {name: path for folder in MAY for name, path in modules(folder).items()}
    return {name: {module for module, _ in imports(path) if module in known and module != name}
            for name, path in known.items()}


def room(module):
    """The folder below the top one that a module stands in, or the module where it stands in the top folder itself."""
    return '.'.join(module.split('.')[:2])


def circle(edges):
    """A circle in {node: its predecessors}, or None."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize('folder', MAY)
def test_imports_are_absolute_and_stay_within_the_rule(folder):
    for path in (ROOT / folder).rglob('*.py'):
        by_name = [(module, 0) for module in names(path) if module != USERS_NETWORKS]
        for module, level in [*imports(path), *by_name]:
            assert level == 0, f'{path} imports relatively'
            top = module.split('.')[0]
            assert top not in OURS or top in MAY[folder], f'{path} imports {module}'
            assert not (ROOT / folder / f'{top}.py').exists(), f'{path} imports its sibling {top} by its bare name'


def test_no_import_goes_in_a_circle():
    assert circle(graph()) is None


def test_no_import_goes_upwards():
    """Between the folders, and the files beside them, there is an order: what stands higher is imported by nothing below."""
    edges = {}
    for module, imported in graph().items():
        edges.setdefault(room(module), set()).update(room(one) for one in imported if room(one) != room(module))
    assert circle(edges) is None


def test_the_rule_sees_imports(tmp_path):
    (tmp_path / 'a.py').write_text('import pretrain.spark\nfrom . import b\ndef f():\n    from common import cli\n'
                                   "    import_module('pretrain.decoder')\n    run('-m', 'downstream_d2.x')\n")
    assert list(imports(tmp_path / 'a.py')) == [('pretrain.spark', 0), ('', 1), ('common', 0), ('common.cli', 0)]
    assert list(names(tmp_path / 'a.py')) == ['pretrain.decoder']


def test_a_circle_is_found():
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'a'}}) and circle({'a': {'b'}, 'b': {'c'}}) is None


def test_every_module_of_ours_is_looked_at():
    assert {'common.cli', 'pretrain.spark', 'downstream_coco.main'} <= graph().keys()
    assert 'pretrain.encoder' in graph()['pretrain.spark']
    assert all(isinstance(path, Path) for path in modules('common').values())
