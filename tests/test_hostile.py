"""Foreign files, names and words: none of them runs, is followed, or shows as anything but text."""
import ast
import io
import json
import os
import pickle
import re
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import time
import types
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.archive import check_archive
from common.checkpoint import read_plain
from common.demo_world import write_coco
from common.weights import unwrap
from pretrain import export, playground, report
from pretrain.card import as_markdown, write_card
from pretrain.log import read_log
from pretrain.saved import read_saved
from tests.conftest import ROOT
from tests.test_playground import free_port

# -- our own sources --------------------------------------------------------------------------------------------------

FOLDERS = ('pretrain', 'common', 'downstream_imagenet', 'downstream_coco', 'downstream_d2', 'downstream_mmdet', 'benchmarks',
           'docs')
PICKLES = {'pickle', 'cPickle', '_pickle', 'dill', 'joblib', 'cloudpickle', 'marshal', 'shelve', 'jsonpickle'}
DANGEROUS = {'os.system', 'os.popen', 'tempfile.mktemp', 'torch.hub.load', 'torch.hub.load_state_dict_from_url', 'yaml.load',
             'yaml.unsafe_load', 'yaml.full_load', 'shutil.unpack_archive', 'runpy.run_path', 'runpy.run_module',
             'torch.package.PackageImporter', 'torch.jit.load', 'pandas.read_pickle', 'subprocess.getoutput',
             'subprocess.getstatusoutput', 'importlib.import_module', 'importlib.__import__', 'os.execv', 'os.execvp',
             'os.spawnv', 'numpy.core.multiarray._reconstruct', 'code.interact', 'builtins.eval', 'builtins.exec'}
BUILTIN = {'eval', 'exec', 'compile', '__import__'}
ANYWHERE = {'extractall', 'unpack_archive', 'import_module', 'Unpickler', 'read_pickle', 'load_module', 'exec_module'}
MAY = {
    ('common/weights.py', 'importlib.import_module'): '--register: a module that the user names on the command line',
    ('common/log.py', 'importlib.import_module'): '--tracker: one of two names that the option allows',
    ('pretrain/export.py', 'pickle.Unpickler'): 'ArraysAlone, which makes arrays of NumPy and refuses all else',
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
            if name in DANGEROUS or (top in PICKLES and last in ('load', 'loads', 'Unpickler', 'open')):
                yield name
            elif isinstance(node, ast.Attribute) and last in ANYWHERE or isinstance(node, ast.Name) and name in BUILTIN:
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


# -- words of a command line ------------------------------------------------------------------------------------------

SHELLS = [path for path in (*sorted(ROOT.rglob('*.sh')), ROOT / '.ci/run') if '.venv' not in str(path.relative_to(ROOT))]
HARMLESS = {'$#', '$?', '$$', '$!'}


def bare_expansions(text):
    """Expansions outside of double quotes in a shell script, where the shell would split and glob what they hold.

    Within single quotes nothing is expanded; nor is anything split in an assignment or in arithmetic.
    """
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", '', line)
        line = re.sub(r'\$\(\(.*?\)\)', '', line)  # arithmetic, of numbers that were checked before
        line = re.sub(r'"\$\(cd "\$\(dirname "\$\{BASH_SOURCE\[0\]\}"\)(/\.\.)?" && pwd\)"', '', line)
        while (changed := re.sub(r'\$\((?:[^()"\']|"[^"]*"|\'[^\']*\')*\)', '', line)) != line:
            for inner in re.findall(r'\$\(((?:[^()"\']|"[^"]*"|\'[^\']*\')*)\)', line):
                yield from ((number, found) for _, found in bare_expansions(inner))
            line = changed
        line = re.sub(r"'[^']*'", '', line)
        line = re.sub(r'\$\{\w+\[@\]\+("\$\{\w+\[@\]\}")\}', '', line)  # an empty array is unset for old shells; quoted within
        line = re.sub(r'"(?:\\.|[^"\\])*"', '', line)
        line = re.sub(r'(^|\s|;)\w+=\S*', ' ', line)
        for found in re.findall(r'\$\{[^}]*\}|\$[\w@*#?!$]', line):
            if found not in HARMLESS:
                yield number, found


@pytest.mark.parametrize('path', SHELLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_evaluate_nothing(path):
    text = path.read_text()
    code = re.sub(r'(?m)(^|\s)#.*$', '', text)
    assert not re.search(r'(^|[\s;&|(])(eval|source|\.)\s|\bbash -c\b|\bsh -c\b|`', code, re.MULTILINE)
    assert not list(bare_expansions(text))


@pytest.mark.parametrize('line', ['python -m $module', 'exec "$a" ${options[@]}', 'rm -rf $1', 'cd $(dirname $0)', 'a "b" $@'])
def test_the_scan_of_shells_sees(line):
    assert list(bare_expansions(line))


WORDS = ['--data_path=$(touch X)', '--a=`touch X`', '; touch X', 'two words', '--b=1\n2\ntouch X', '*', '--c=[a-z]*.?', '-n', '',
         '--d="quoted" \'too\'', '\\', '--e=${HOME}', '--f=~', '&& touch X', '| touch X', '> X', '--g=a\tb', '!!', '{1,2}']


@pytest.mark.parametrize('program', ['pretrain', 'downstream_imagenet', 'downstream_coco'])
@pytest.mark.parametrize('name', ['$(touch X)', '`touch X`;touch X', 'a b\n*'])
@pytest.mark.parametrize('processes', [1, 2])
def test_words_arrive_as_they_were_given(program, name, processes, tmp_path):
    (tmp_path / 'a.py').touch()  # what a glob would find
    python = tmp_path / 'print words'
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, 'PYTHON': str(python)}
    done = subprocess.run(['bash', str(ROOT / program / 'main.sh'), name, f'--ngpu_per_node={processes}', *WORDS], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got[got.index(f'{program}.main') + 1:] == [f'--name={name}', *WORDS]
    assert {path.name for path in tmp_path.iterdir()} == {'a.py', 'print words'}


@pytest.mark.parametrize('words', [['--ngpu_per_node=$(touch X)'], ['--ngpu_per_node=a[$(touch X)]'], ['--ngpu_per_node=1;touch X'],
                                   ['--num_nodes=a[$(touch X)0]'], ['--master_port=`touch X`'], ['--node_rank', 'x[$(touch X)]'],
                                   ['--num_nodes=2', '--node_rank=0', '--master_address=$(touch X)', '--master_port=1 2']])
def test_numbers_of_the_launcher_are_no_programs(words, tmp_path):
    done = subprocess.run(['bash', str(ROOT / 'pretrain/main.sh'), 'n', *words], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHON': 'false'}, timeout=60)
    assert done.returncode and not list(tmp_path.iterdir())


# -- files of weights ----------------------------------------------------------------------------------------------------


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def among(content, code):
    """A checkpoint with all that belongs there, and code in the place of one value."""
    return {**content, 'config': {**content['config'], 'name': code}}


PAYLOADS = {
    'zip': lambda path, code, content: torch.save({'layer.weight': code}, path),
    'legacy': lambda path, code, content: torch.save({'a': code}, path, _use_new_zipfile_serialization=False),
    'legacy, among the right keys': lambda path, code, content: torch.save(among(content, code), path,
                                                                           _use_new_zipfile_serialization=False),
    'pickle': lambda path, code, content: path.write_bytes(pickle.dumps({'a': code})),
    'old pickle': lambda path, code, content: path.write_bytes(pickle.dumps(code, protocol=0)),
    'among the right keys': lambda path, code, content: torch.save(among(content, code), path),
}


def safetensors(header, length=None, data=b''):
    """A .safetensors file with this header."""
    return struct.pack('<Q', len(header) if length is None else length) + header + data


ABSURD = {'F32': {'a': {'dtype': 'F32', 'shape': [10 ** 12], 'data_offsets': [0, 4 * 10 ** 12]}},
          'short': {'a': {'dtype': 'F32', 'shape': [10 ** 12], 'data_offsets': [0, 4]}},
          'overflow': {'a': {'dtype': 'F32', 'shape': [2 ** 62, 2 ** 62], 'data_offsets': [0, 4]}}}
BROKEN = {'pickle': lambda code: pickle.dumps({'a': code}), 'empty': lambda code: b'',
          'no header': lambda code: safetensors(b'{'), 'endless': lambda code: safetensors(b'{}', 2 ** 63),
          'long': lambda code: safetensors(b'{}', 99_000_000), 'list': lambda code: safetensors(b'[' * 100_000),
          **{name: lambda code, header=header: safetensors(json.dumps(header).encode(), data=bytes(4))
             for name, header in ABSURD.items()}}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    write_coco(folder, 2, 2, 64, seed=1)
    return folder


PRETRAIN = ['--name=x', '--model=your_convnet', '--input_size=32', '--decoder_width=16', '--bs=8', '--ep=2', '--workers=0']
CLASSES = ['--model=your_convnet', '--input_size=32', '--bs=8', '--workers=0']
TUNE = ['--name=x', '--ep=2', *CLASSES]
COCO = ['--model=your_convnet', '--input_size=64', '--long_side=64', '--bs=2', '--ep=2', '--workers=0']
NETWORK = ['--model=your_convnet', '--input_size=32']
PROGRAMS = {
    'pretrain --resume_from': ('pretrain.main', [*PRETRAIN, '--resume_from=FILE', '--data_path=WORLD', '--run_dir=OUT']),
    'pretrain --init': ('pretrain.main', [*PRETRAIN, '--init=FILE', '--data_path=WORLD', '--run_dir=OUT']),
    'reconstruct': ('pretrain.reconstruct', ['FILE', 'WORLD/val', '--out=OUT']),
    'reconstruct --model': ('pretrain.reconstruct', ['FILE', 'WORLD/val', '--out=OUT', *NETWORK]),
    'features': ('pretrain.features', ['FILE', 'WORLD/val', '--out=OUT', *NETWORK]),
    'export': ('pretrain.export', ['FILE', '--to=timm', '--out=OUT', *NETWORK]),
    'playground': ('pretrain.playground', ['FILE', '--port=PORT']),
    'imagenet --finetune_from': ('downstream_imagenet.main', [*TUNE, '--finetune_from=FILE', '--data_path=WORLD',
                                                              '--run_dir=OUT']),
    'imagenet --resume': ('downstream_imagenet.main', [*TUNE, '--resume_from=FILE', '--data_path=WORLD', '--run_dir=OUT']),
    'imagenet --eval': ('downstream_imagenet.main', [*CLASSES, '--eval=FILE', '--data_path=WORLD']),
    'knn': ('downstream_imagenet.knn', [*CLASSES, '--weights=FILE', '--data_path=WORLD']),
    'linear': ('downstream_imagenet.linear', [*CLASSES, '--weights=FILE', '--data_path=WORLD']),
    'linear --mae': ('downstream_imagenet.linear', ['--mae', *TUNE, '--weights=FILE', '--data_path=WORLD', '--run_dir=OUT']),
    'coco --finetune_from': ('downstream_coco.main', ['--name=x', *COCO, '--finetune_from=FILE', '--data_path=SCENES',
                                                      '--run_dir=OUT']),
    'coco --resume': ('downstream_coco.main', ['--name=x', *COCO, '--resume_from=FILE', '--data_path=SCENES', '--run_dir=OUT']),
    'coco --eval': ('downstream_coco.main', [*COCO, '--eval=FILE', '--data_path=SCENES']),
    'coco predict': ('downstream_coco.predict', ['--weights=FILE', 'WORLD/val', '--out=OUT']),
    'convert-timm-to-d2': ('downstream_d2/convert-timm-to-d2.py', ['FILE', 'OUT']),
    'mmdet weights': ('downstream_mmdet/weights.py', ['FILE', 'convnext_atto']),
}


@pytest.fixture
def refused(world, scenes, tmp_path, monkeypatch):
    """refused(program, file): the sentence with which a program refuses it; with exit code 1, and nothing written."""
    def run(program, file):
        name, words = PROGRAMS[program]
        places = {'FILE': file, 'WORLD': world, 'SCENES': scenes, 'OUT': tmp_path / 'out', 'PORT': free_port()}
        argv = [re.sub('|'.join(places), lambda match: str(places[match[0]]), word) for word in words]
        with pytest.raises(SystemExit) as stop:
            if name.endswith('.py'):
                monkeypatch.setattr(sys, 'argv', [name, *argv])
                runpy.run_path(str(ROOT / name), run_name='__main__')
            else:
                import_module(name).main(argv)
        said = stop.value.code
        assert isinstance(said, str) and said.startswith('error: ') and '\n' not in said, said  # as text the code is 1
        assert str(file) in said and not (tmp_path / 'out').exists()
        return said
    return run


@pytest.mark.parametrize('kind', PAYLOADS)
def test_the_payloads_work(kind, finished, tmp_path):
    content = torch.load(finished / 'your_convnet_still_pretraining.pth', weights_only=True)
    PAYLOADS[kind](tmp_path / 'w.pth', Code(tmp_path / 'marker'), content)
    if 'pickle' in kind:
        pickle.loads((tmp_path / 'w.pth').read_bytes())
    else:
        torch.load(tmp_path / 'w.pth', weights_only=False)
    assert (tmp_path / 'marker').is_dir()


@pytest.mark.parametrize('program', PROGRAMS)
def test_code_in_a_file_of_weights_does_not_run(program, refused, finished, tmp_path):
    content = torch.load(finished / 'your_convnet_still_pretraining.pth', weights_only=True)
    for number, write in enumerate(PAYLOADS.values()):
        file = tmp_path / f'your_convnet_1kpretrained_{number}.pth'
        write(file, Code(tmp_path / 'marker'), content)
        assert re.search('is refused|is damaged', refused(program, file))
        assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('program', PROGRAMS)
def test_broken_safetensors(program, refused, tmp_path):
    for number, write in enumerate(BROKEN.values()):
        file = tmp_path / f'your_convnet_1kpretrained_{number}.safetensors'
        file.write_bytes(write(Code(tmp_path / 'marker')))
        assert re.search('is refused|is damaged', refused(program, file))
        assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('module, words, own', [
    ('pretrain.main', [*PRETRAIN, '--data_path=WORLD'], 'your_convnet_still_pretraining.pth'),
    ('pretrain.reconstruct', ['OUT', 'WORLD/val'], 'your_convnet_still_pretraining.pth'),
    ('downstream_imagenet.main', [*TUNE, '--data_path=WORLD'], 'your_convnet_1kfinetuned_last.pth'),
    ('downstream_coco.main', ['--name=x', *COCO, '--data_path=SCENES'], 'your_convnet_coco_last.pth')])
def test_code_in_a_run_folder_does_not_run(module, words, own, finished, world, scenes, tmp_path):
    content = torch.load(finished / 'your_convnet_still_pretraining.pth', weights_only=True)
    (tmp_path / 'out').mkdir()
    torch.save(among(content, Code(tmp_path / 'marker')), tmp_path / 'out' / own)
    before = (tmp_path / 'out' / own).read_bytes()
    words = [word.replace('WORLD', str(world)).replace('SCENES', str(scenes)).replace('OUT', str(tmp_path / 'out'))
             for word in words]
    with pytest.raises(SystemExit, match=f'error: .*{own} is refused'):
        import_module(module).main([*words, *([] if module.endswith('reconstruct') else [f'--run_dir={tmp_path / "out"}'])])
    assert not (tmp_path / 'marker').exists() and (tmp_path / 'out' / own).read_bytes() == before


def test_a_report_reads_no_weights(finished, tmp_path):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    folder = shutil.copytree(finished, tmp_path / 'run')
    torch.save(Code(tmp_path / 'marker'), folder / 'your_convnet_still_pretraining.pth')
    report.report([folder], tmp_path / 'report.html')
    assert not (tmp_path / 'marker').exists()
