"""Our own sources load no code and run no texts."""
import ast
import json
import re

import pytest

from tests.conftest import ROOT

FOLDERS = ('pretrain', 'common', 'downstream_imagenet', 'downstream_coco', 'downstream_ade20k', 'downstream_d2',
           'downstream_mmdet', 'benchmarks', 'docs', 'analysis')
PICKLES = {'pickle', 'cPickle', '_pickle', 'dill', 'joblib', 'cloudpickle', 'marshal', 'shelve', 'jsonpickle'}
DANGEROUS = {'os.system', 'os.popen', 'tempfile.mktemp', 'torch.hub.load', 'torch.hub.load_state_dict_from_url', 'yaml.load',
             'yaml.unsafe_load', 'yaml.full_load', 'shutil.unpack_archive', 'runpy.run_path', 'runpy.run_module',
             'torch.package.PackageImporter', 'torch.jit.load', 'pandas.read_pickle', 'subprocess.getoutput',
             'subprocess.getstatusoutput', 'importlib.import_module', 'importlib.__import__', 'os.execv', 'os.execvp',
             'os.spawnv', 'numpy.core.multiarray._reconstruct', 'code.interact', 'builtins.eval', 'builtins.exec'}
BUILTIN = {'eval', 'exec', 'compile', '__import__'}
ANYWHERE = {'extractall', 'unpack_archive', 'import_module', 'Unpickler', 'read_pickle', 'load_module', 'exec_module'}
MAY = {
    ('common/networks/users.py', 'importlib.import_module'): '--register: a module that the user names on the command line',
    ('common/training/log.py', 'importlib.import_module'): '--tracker: one of two names that the option allows',
    ('pretrain/formats/to_detectron2.py', 'pickle.Unpickler'): 'ArraysAlone, which makes arrays of NumPy and refuses all else',
    ('downstream_mmdet/checkpoints.py', 'torch.load'): "MMEngine's own checkpoints in the run's own work-dir, or with --trust",
}


def dotted(node, names):
    """The full name that an expression has by the imports of its file: `T.load` is torch.load after `import torch as T`."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value, names)}.{node.attr}'
    return '?'


def literal(call, name, of=None):
    """The value of a keyword argument that is written as a literal; `of` if it is absent, ... if it is not a literal."""
    found = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return of if not found else found[0].value if isinstance(found[0], ast.Constant) else ...


def dangers(source):
    """The names in a Python source that load code or run it, and the calls that do so by their arguments."""
    tree, names = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split('.')[0]: alias.name if alias.asname else alias.name.split('.')[0]
                      for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f'{node.module}.{alias.name}' for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            name = dotted(node, names)
            top, last = name.partition('.')[0], name.rpartition('.')[2]
            loads = top in PICKLES and last in ('load', 'loads', 'Unpickler', 'open')
            of_any_kind = last in ANYWHERE if isinstance(node, ast.Attribute) else name in BUILTIN
            if loads or of_any_kind or name in DANGEROUS:
                yield name
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        if name == 'torch.load' and literal(node, 'weights_only') is not True:
            yield name
        if name.startswith(('numpy.load', 'np.load')) and literal(node, 'allow_pickle', False) is not False:
            yield 'numpy.load'
        if name.startswith('subprocess.') and literal(node, 'shell', False) is not False:
            yield f'{name} (shell)'
        if any(keyword.arg is None for keyword in node.keywords) and name in ('torch.load', 'numpy.load'):
            yield f'{name} (**)'


def sources():
    """(path within the project, text) of all our Python, the cells of the notebooks among it."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob('*.py')):
            yield str(path.relative_to(ROOT)), path.read_text(encoding='utf-8')
        for path in sorted((ROOT / folder).rglob('*.ipynb')):
            cells = [''.join(cell['source']) for cell in json.loads(path.read_text(encoding='utf-8'))['cells']
                     if cell['cell_type'] == 'code']
            lines = [line for cell in cells for line in cell.splitlines()]
            magics = [line for line in lines if re.match(r'\s*[!%]', line)]
            assert not [line for line in magics if re.search(r'[{$]', line)], f'{path}: a shell line with a value in it'
            yield str(path.relative_to(ROOT)), '\n'.join(re.sub(r'^(\s*)[!%].*', r'\1pass', line) for line in lines)


def test_nothing_of_ours_loads_pickles_or_runs_texts():
    found = {(path, name) for path, text in sources() for name in dangers(text)}
    assert found - MAY.keys() == set()
    assert MAY.keys() - found == set(), 'an exception that is none any more'
    assert len({path for path, _ in sources()}) > 60 and any(path.endswith('.ipynb') for path, _ in sources())


@pytest.mark.parametrize('source', [
    'import torch\ntorch.load(f)', 'import torch as T\nT.load(f, weights_only=False)', 'from torch import load\nload(f)',
    'import torch\ntorch.load(f, weights_only=flag)', 'import torch\ntorch.load(f, **more)',
    'import pickle\npickle.load(f)', 'from pickle import loads as l\nl(b)', 'import pickle\nclass A(pickle.Unpickler): pass',
    'import dill\ndill.loads(b)', 'import joblib\njoblib.load(f)', 'import marshal\nmarshal.loads(b)',
    'import shelve\nshelve.open(f)', 'import numpy as np\nnp.load(f, allow_pickle=True)', 'import yaml\nyaml.load(f)',
    'eval(text)', 'exec(text)', 'compile(text, f, "exec")', 'run = eval', 'import builtins\nbuiltins.exec(text)',
    'import os\nos.system(text)', 'from os import popen\npopen(text)', 'import subprocess as s\ns.run(text, shell=True)',
    'import subprocess\nsubprocess.Popen(text, shell=flag)', 'tar.extractall(path)', 'import shutil\nshutil.unpack_archive(f)',
    'import tempfile\ntempfile.mktemp()', 'import torch\ntorch.hub.load(a, b)', 'import importlib\nimportlib.import_module(n)',
    'from importlib import import_module\nimport_module(n)', '__import__(n)'])
def test_the_scan_sees(source):
    assert list(dangers(source))


@pytest.mark.parametrize('source', ['import torch\ntorch.load(f, weights_only=True)', 'import pickle\npickle.dump(a, f)',
                                    'model.eval()', 'model.compile()', 'import re\nre.compile(a)', 'options.eval',
                                    'import numpy as np\nnp.load(f)', 'import subprocess\nsubprocess.run([a, b])'])
def test_the_scan_lets_pass(source):
    assert not list(dangers(source))
