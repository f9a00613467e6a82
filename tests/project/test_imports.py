"""Who may import whom: the contract between the folders is a file of weights, not code."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY = {'common': {'common'}, 'pretrain': {'pretrain', 'common'}, 'downstream_imagenet': {'downstream_imagenet', 'common'},
       'downstream_coco': {'downstream_coco', 'common'}, 'downstream_d2': {'downstream_d2'},
       'downstream_mmdet': {'downstream_mmdet'}}
OURS = {*MAY, 'tests', 'benchmarks'}


def imports(path):
    """(module, level) of every import statement of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or '', node.level


@pytest.mark.parametrize('folder', MAY)
def test_imports_are_absolute_and_stay_within_the_rule(folder):
    for path in (ROOT / folder).rglob('*.py'):
        for module, level in imports(path):
            assert level == 0, f'{path} imports relatively'
            top = module.split('.')[0]
            assert top not in OURS or top in MAY[folder], f'{path} imports {module}'
            assert not (ROOT / folder / f'{top}.py').exists(), f'{path} imports its sibling {top} by its bare name'


def test_the_rule_sees_imports(tmp_path):
    (tmp_path / 'a.py').write_text('import pretrain.spark\nfrom . import b\ndef f():\n    from common import log\n')
    assert list(imports(tmp_path / 'a.py')) == [('pretrain.spark', 0), ('', 1), ('common', 0)]
