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
import types
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.demo_world import write_coco
from common.networks.keys import unwrap
from common.reliability.checkpoint import check_archive, read_plain
from pretrain import export, playground, report
from pretrain.formats.to_detectron2 import ArraysAlone
from pretrain.results.card import as_markdown, write_card
from pretrain.results.read_log import read_log
from pretrain.saved import read_saved
from tests.conftest import ROOT
from tests.pretrain.served import free_port, until_served

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
    ('common/networks/create.py', 'importlib.import_module'): '--register: a module that the user names on the command line',
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


WORDS = ['--data_path=$(touch X)', '--a=`touch X`', '; touch X', 'two words', '--b=1\n2\ntouch X', '*', '--c=[a-z]*.?', '-n',
         '--d="quoted" \'too\'', '\\', '', '--e=${HOME}', '--f=~', '&& touch X', '| touch X', '> X', '--g=a\tb', '!!', '{1,2}']


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
                          env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got[got.index(f'{program}.main') + 1:] == [f'--name={name}', *WORDS]
    assert {path.name for path in tmp_path.iterdir()} == {'a.py', 'print words'}


@pytest.mark.parametrize('words', [
    ['--ngpu_per_node=$(touch X)'], ['--ngpu_per_node=BASH_VERSINFO[$(touch X)0]'], ['--ngpu_per_node=1;touch X'],
    ['--num_nodes=BASH_VERSINFO[$(touch X)0]'], ['--master_port=`touch X`'], ['--node_rank', 'BASH_VERSINFO[$(touch X)0]'],
    ['--num_nodes=2', '--node_rank=0', '--master_address=$(touch X)', '--master_port=1 2']])
def test_numbers_of_the_launcher_are_no_programs(words, tmp_path):
    environment = {**os.environ, 'PYTHON': 'false'}
    environment.pop('OMP_NUM_THREADS', None)  # the launcher computes it from the numbers: shell arithmetic evaluates
    done = subprocess.run(['bash', str(ROOT / 'pretrain/main.sh'), 'n', *words], cwd=tmp_path, capture_output=True, text=True,
                          env=environment, timeout=600)
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
COCO = ['--model=your_convnet', '--input_size=64', '--long_side=64', '--bs=2', '--ep=2', '--workers=0', '--fpn_channels=16',
        '--head_channels=32', '--mask_layers=1', '--rois=16']
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
    'imagenet predict': ('downstream_imagenet.predict', ['FILE', 'WORLD/val', '--out=OUT/t.csv', *NETWORK]),
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
def test_code_in_a_run_folder_does_not_run(module, words, own, finished, world, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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


# -- files that claim more than they hold -----------------------------------------------------------------------------------

FLOATS, CLAIM = 77_777, 2 ** 31 - 1  # CLAIM floats are 8.6 GB
MIB = 2 ** 20


def bomb(path, floats=5 * 10 ** 7):
    """A zip archive as torch reads it, of 0.2 MB, whose one tensor unpacks to 200 MB of zeros."""
    with torch.serialization.skip_data():
        torch.save({'conv1.weight': torch.empty(floats)}, path.with_suffix('.holes'))
    with zipfile.ZipFile(path.with_suffix('.holes')) as plain, \
            zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for entry in plain.infolist():
            with packed.open(entry.filename, 'w') as file:
                if entry.file_size < MIB:
                    file.write(plain.read(entry))
                else:
                    for start in range(0, entry.file_size, MIB):
                        file.write(bytes(min(MIB, entry.file_size - start)))
    path.with_suffix('.holes').unlink()


def overlapping(path):
    """A zip archive of 1 MB whose 500 entries are all the same megabyte: stored, and 500 MB together."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data/0', bytes(MIB))
        archive.filelist += [archive.filelist[0]] * 499


def claiming(path, legacy):
    """A file of torch in which each number of values was overwritten by a larger one, with the same number of bytes."""
    torch.save({'conv1.weight': torch.zeros(FLOATS)}, path, _use_new_zipfile_serialization=not legacy)

    def larger(content):
        assert content.count(struct.pack('<i', FLOATS)) > 1
        return content.replace(struct.pack('<i', FLOATS), struct.pack('<i', CLAIM))
    if legacy:
        path.write_bytes(larger(path.read_bytes()))
        return
    with zipfile.ZipFile(path) as whole:
        entries = {entry.filename: whole.read(entry) for entry in whole.infolist()}
    with zipfile.ZipFile(path, 'w') as whole:
        for name, content in entries.items():
            whole.writestr(name, larger(content) if name.endswith('data.pkl') else content)


def held_by_itself(path):
    content = {'epoch': 1}
    content['model'] = content
    torch.save(content, path)


def a_decoder_of(path, weight):
    torch.save({'encoder.cnn.conv1.weight': torch.zeros(1), 'dense_decoder.dec.0.up_sample.weight': weight}, path)


WIDE = 10 ** 6
CLAIMS = {
    'compressed': bomb, 'overlapping': overlapping, 'legacy': lambda path: claiming(path, True),
    'zip': lambda path: claiming(path, False), 'in itself': held_by_itself,
    'expanded': lambda path: a_decoder_of(path, torch.zeros(1).expand(WIDE, WIDE, 4, 4)),
    'meta': lambda path: a_decoder_of(path, torch.zeros(WIDE, WIDE, 4, 4, device='meta')),
    'sparse': lambda path: a_decoder_of(path, torch.sparse_coo_tensor([[0]] * 4, [1.0], (WIDE, WIDE, 4, 4)))}
MEASURE = '''
import resource, runpy, sys, warnings
from pathlib import Path
warnings.simplefilter('ignore')
from common.reliability.checkpoint import check_archive
from common.reliability.checkpoint import read_plain
from pretrain.saved import read_saved
from downstream_mmdet import weights as mmdet
d2 = runpy.run_path('downstream_d2/convert-timm-to-d2.py')
readers = {'saved': lambda path: read_saved(path, model='resnet18', input_size=64), 'd2': d2['read'],
           'mmdet': lambda path: mmdet.read(path, None), 'plain': read_plain, 'archive': check_archive}
for word in sys.argv[2:]:
    reader, _, name = word.partition(':')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        readers[reader](Path(sys.argv[1], f'{name}.pth'))
        said = 'read'
    except ValueError as error:
        said = str(error).splitlines()[0]
    print(word, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, said, sep='|', flush=True)
'''


def measured(folder, words):
    """{reader:file: (MiB that the peak memory of a process grew by, what was said)}."""
    for name in {word.partition(':')[2] for word in words}:
        CLAIMS[name](folder / f'{name}.pth')
    done = subprocess.run([sys.executable, '-c', MEASURE, str(folder), *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=600, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    lines = [line.split('|') for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == words
    return {word: (int(grown), said) for word, grown, said in lines}


def test_what_claims_more_than_it_holds_costs_no_memory(tmp_path):
    words = [f'{reader}:{name}' for reader in ('saved', 'd2', 'mmdet') for name in CLAIMS
             if (reader, name) not in (('saved', 'compressed'), ('saved', 'overlapping'))]
    for word, (grown, said) in measured(tmp_path, [*words, 'archive:compressed', 'archive:overlapping']).items():
        assert re.search('refused|damaged|holds no weights|unpacks to', said), (word, said)
        assert grown < 60, (word, grown, said)


@pytest.mark.parametrize('write', [lambda path: bomb(path, 10 ** 6), overlapping])
def test_a_zip_bomb_is_not_read(write, tmp_path):
    write(tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='unpacks to'):
        read_plain(tmp_path / 'w.pth')


def test_a_file_of_torch_is_as_large_as_what_it_holds(finished, tmp_path):
    for path in finished.glob('*.pth'):
        check_archive(path)
    torch.save({'a': torch.zeros(0), 'b': torch.zeros(3).expand(2, 3)}, tmp_path / 'small.pth')
    check_archive(tmp_path / 'small.pth')
    (tmp_path / 'text').write_text('no archive')
    check_archive(tmp_path / 'text')


def test_views_of_stored_values_are_weights():
    whole = torch.zeros(4, 4)
    assert unwrap({'a': whole.T, 'b': whole[:2], 'c': whole[:0], 1: whole}).keys() == {'a', 'b', 'c', '1'}
    with pytest.raises(ValueError, match='its a is no dense tensor, or of more values'):
        unwrap({'a': whole[:1].expand(400, 4)}, 'w.pth')


@pytest.mark.parametrize('changes', [
    {'step': 'x'}, {'images': None}, {'model': 'timm'}, {'model': ['a']}, {'config': ['model']}, {'config': 'x'},
    {'decoder_width': 10 ** 6}, {'decoder_width': 'x'}, {'model': '../../evil'}, {'input_size': 'x'}, {'mask_ratio': [1]},
    {'in_chans': 10 ** 9}, {'levels': 7}, {'mean': 'x'}, {'cell_size': 'x'}, {'input_size': 10 ** 6}])
def test_a_run_that_lies_about_itself(finished, tmp_path, changes):
    content = torch.load(finished / 'your_convnet_still_pretraining.pth', weights_only=True)
    own = {name: value for name, value in changes.items() if name in ('step', 'images', 'config') or not isinstance(value, str)
           and name == 'model' or value == 'timm'}
    content = {**content, **own}
    if not own:
        content['config'] = {**content['config'], **changes}
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(ValueError):
        read_saved(tmp_path / 'w.pth')


def test_arrays_alone():
    arrays = {'model': {'a': np.ones((2, 3), np.float32), 'b': np.array(3)}, '__author__': 'SparK', 'matching_heuristics': True}
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        read = ArraysAlone(io.BytesIO(pickle.dumps(arrays, protocol))).load()
        assert (read['model']['a'] == 1).all() and read['model']['b'] == 3 and read['__author__'] == 'SparK'


def test_what_is_no_array(tmp_path):
    for what in (Code(tmp_path / 'marker'), np.testing.assert_equal, np.array([Code(tmp_path / 'marker')], object), os.system):
        with pytest.raises(ValueError, match='besides arrays'):
            ArraysAlone(io.BytesIO(pickle.dumps({'model': what}))).load()
    assert not (tmp_path / 'marker').exists()


def test_mmengine_reads_foreign_files_as_plain_data(tmp_path, monkeypatch):
    """With a loader in place of MMEngine's, which is not needed to see what is read whole."""
    loaders = {}

    class Loader:
        @staticmethod
        def register_scheme(prefixes, force):
            return lambda function: loaders.setdefault(prefixes, function)
    monkeypatch.setitem(sys.modules, 'mmengine', types.ModuleType('mmengine'))
    monkeypatch.setitem(sys.modules, 'mmengine.runner', types.SimpleNamespace(CheckpointLoader=Loader))
    monkeypatch.delitem(sys.modules, 'downstream_mmdet.checkpoints', raising=False)
    (tmp_path / 'work').mkdir()
    import_module('downstream_mmdet.checkpoints').trust(tmp_path / 'work')
    monkeypatch.delitem(sys.modules, 'downstream_mmdet.checkpoints')
    for path in (tmp_path / 'w.pth', tmp_path / 'work/../w.pth', tmp_path / 'work_of_others.pth'):
        torch.save({'state_dict': {}, 'message_hub': Code(tmp_path / 'marker')}, path)
        with pytest.raises(ValueError, match='give --trust'):
            loaders[''](str(path))
    (tmp_path / 'work/link.pth').symlink_to(tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='give --trust'):
        loaders[''](str(tmp_path / 'work/link.pth'))
    assert not (tmp_path / 'marker').exists()


def test_predict_imports_no_module_that_a_file_names(tmp_path, monkeypatch):
    (tmp_path / 'named_by_a_file.py').write_text('from pathlib import Path\nPath(__file__).with_name("marker").mkdir()\n')
    monkeypatch.syspath_prepend(tmp_path)
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    config = {'model': 'no_such_network', 'register': 'named_by_a_file', 'in_chans': 3, 'input_size': 64, 'long_side': 64,
              'mean': None, 'std': None}
    torch.save({'config': config, 'model': {}, 'categories': [], 'masks': False}, tmp_path / 'w.pth')
    words = [f'--weights={tmp_path / "w.pth"}', str(tmp_path / 'a.png'), f'--out={tmp_path / "out"}']
    with pytest.raises(SystemExit, match='error: no network is called "no_such_network"'):
        import_module('downstream_coco.predict').main(words)
    assert not (tmp_path / 'marker').exists()
    with pytest.raises(SystemExit, match='error: no network is called "no_such_network"'):
        import_module('downstream_coco.predict').main([*words, '--register=named_by_a_file'])
    assert (tmp_path / 'marker').exists()  # the user's own word


# -- the playground ---------------------------------------------------------------------------------------------------------

SECRET = 'TOP-SECRET-4711'
POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n'


def ghostscript(folder):
    """A program in the place of Ghostscript, to which Pillow hands PostScript, that only says that it was called."""
    folder.mkdir()
    (folder / 'gs').write_text(f'#!/bin/sh\ntouch {folder}/was_called\n')
    (folder / 'gs').chmod(0o755)


@pytest.fixture(scope='module')
def served(finished, tmp_path_factory):
    """(address, folder): a playground, and a folder with secrets wherever gradio looks by itself; it works in cwd/."""
    pytest.importorskip('gradio', reason='pip install -r pretrain/requirements.txt')
    folder, port = tmp_path_factory.mktemp('served'), free_port()
    run = shutil.copytree(finished, folder / 'cwd/output_tiny')
    (run / 'notes.txt').write_text(SECRET)
    for place in ('cwd', 'cwd/.gradio/cached_examples', 'tmp/gradio', 'allowed'):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / 'secret.txt').write_text(SECRET)
        Image.new('RGB', (40, 40), 'red').save(folder / place / 'secret.png')
    ghostscript(folder / 'bin')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'TMPDIR': str(folder / 'tmp'),
                   'PATH': f'{folder / "bin"}:{os.environ["PATH"]}',
                   'GRADIO_ALLOWED_PATHS': str(folder / 'allowed'), 'GRADIO_SERVER_NAME': '0.0.0.0'}
    environment.pop('GRADIO_TEMP_DIR', None)
    with open(folder / 'log.txt', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'pretrain.playground', 'output_tiny', f'--port={port}'],
                                  cwd=folder / 'cwd', env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        until_served(port, server, folder / 'log.txt')
        yield f'http://127.0.0.1:{port}', folder
    finally:
        server.terminate()
        server.wait(600)


def asked(address, path, content=None, kind='application/json'):
    """(status, body) of a request; what the address answers to a path that stays as it is written."""
    request = urllib.request.Request(address + path, content, {'Content-Type': kind} if content is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def called(address, api, *data, route='call'):
    """What the page's function of this name makes of some values that come from outside."""
    status, body = asked(address, f'/gradio_api/{route}/{api}', json.dumps({'data': data, 'session_hash': 'test'}).encode())
    if status != 200 or route != 'call':
        return body.decode()
    return asked(address, f'/gradio_api/call/{api}/{json.loads(body)["event_id"]}')[1].decode()


def as_file(path, **more):
    return {'path': str(path), 'meta': {'_type': 'gradio.FileData'}, **more}


def uploaded(address, name, content):
    """The path that the server gives to an uploaded file."""
    head = f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    body = head.encode() + content + b'\r\n--cut--\r\n'
    status, answer = asked(address, '/gradio_api/upload', body, 'multipart/form-data; boundary=cut')
    assert status == 200, answer
    return json.loads(answer)[0]


def png(colour, claimed=(40, 40)):
    """A PNG of 40 x 40 pixels that claims to have another size."""
    file = io.BytesIO()
    Image.new('RGB', (40, 40), colour).save(file, 'PNG')
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack('>II', *claimed)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    return bytes(content)


def test_the_playground_serves_no_files(served):
    address, folder = served
    files = ['/etc/passwd', '../../../../../../../../etc/passwd', 'secret.txt', './secret.txt', '../cwd/secret.txt',
             '.gradio/cached_examples/secret.txt', folder / 'cwd/.gradio/cached_examples/secret.txt',
             folder / 'cwd/secret.txt', folder / 'tmp/gradio/secret.txt', folder / 'allowed/secret.txt', folder / 'log.txt',
             'output_tiny/notes.txt', folder / 'cwd/output_tiny/notes.txt', 'output_tiny/your_convnet_still_pretraining.pth',
             folder / 'cwd/output_tiny/your_convnet_1kpretrained.pth', ROOT / 'pretrain/playground.py', ROOT / 'README.md',
             '/proc/self/environ', '/proc/self/cwd/secret.txt', f'file://{folder}/cwd/secret.txt', f'{address}/config']
    for file in files:
        for written in (str(file), urllib.parse.quote(str(file), safe=''), urllib.parse.quote(str(file)).replace('.', '%2e')):
            for route in ('/gradio_api/file=', '/gradio_api/file/', '/file=', '/static/', '/assets/', '/gradio_api/proxy=',
                          '/svelte/', '/gradio_api/custom_component/1/client/component/'):
                status, body = asked(address, route + written)
                assert status >= 400 and SECRET.encode() not in body and b'root:' not in body, (route, written, status)
    for path in ('/monitoring', '/monitoring/summary', '/gradio_api/runs', '/gradio_api/vibe-code'):
        assert asked(address, path)[0] >= 400, path


def test_the_playground_reads_no_image_that_was_not_uploaded(served):
    address, folder = served
    files = [folder / 'cwd/secret.png', 'secret.png', './secret.png', '../cwd/secret.png', folder / 'tmp/gradio/secret.png',
             folder / 'allowed/secret.png', folder / 'cwd/.gradio/cached_examples/secret.png',
             'output_tiny/reconstructions/epoch_0001.png', f'file://{folder}/cwd/secret.png', ROOT / 'docs/playground.png',
             f'{address}/static/img/logo.svg', '/etc/passwd']
    for file in files:
        for given in (as_file(file), as_file(file, url=f'file://{file}', orig_name='a.png'), [as_file(file)], str(file),
                      {'path': str(file)}):
            for route in ('call', 'run', 'api'):
                said = called(address, 'opened', given, route=route)
                assert 'image.png' not in said and SECRET not in said and 'event: complete' not in said, (file, route, said)
    secret, picture = uploaded(address, 'a.png', png('red')), uploaded(address, 'a.png', png('blue'))
    assert secret != picture
    said = called(address, 'opened', as_file(picture))  # what was uploaded is read
    assert 'event: complete' in said and 'loss on the hidden cells' in said
    shown = json.loads(said.partition('data: ')[2].splitlines()[0])[1]['url']
    status, body = asked(address, shown.removeprefix(address))
    colour = np.asarray(Image.open(io.BytesIO(body)).convert('RGB')).reshape(-1, 3).mean(0)
    assert status == 200 and colour[2] > colour[0] + 20


def test_what_is_uploaded_stays_in_a_folder_that_no_other_program_has(served):
    address, folder = served
    before = {path for path in folder.rglob('*') if 'tmp/playground' not in str(path)}
    paths = [Path(uploaded(address, name, png('green'))) for name in (
        'a.png', '../../../escaped.png', f'{folder}/cwd/escaped.png', '..%2f..%2fescaped.png', '$(touch X).png', 'a;b`c`.png')]
    for path in paths:
        own, = (folder / 'tmp').glob('playground*')
        assert path.resolve().is_relative_to(own) and own.stat().st_mode & 0o77 == 0 and path.is_file()
    assert {path for path in folder.rglob('*') if 'tmp/playground' not in str(path)} == before
    said = called(address, 'opened', as_file(uploaded(address, 'a.png', POSTSCRIPT)))
    assert 'is no image that can be read' in said and 'image.png' not in said
    assert not (folder / 'bin/was_called').exists()


def test_the_playground_is_on_this_machine_alone(served, finished, monkeypatch):
    address, _ = served
    with pytest.raises(OSError), socket.create_connection(('127.0.0.2', int(address.rpartition(':')[2])), 5):
        pass  # a server on all addresses is on this one too
    gradio, told = pytest.importorskip('gradio'), []
    monkeypatch.setattr(gradio.Blocks, 'launch', lambda self, **given: told.append(given))
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    for words in ([], ['--host=0.0.0.0']):
        playground.main([str(finished), f'--port={free_port()}', *words])
    assert [given['server_name'] for given in told] == ['127.0.0.1', '0.0.0.0']
    assert all(given['share'] is False and not {'allowed_paths', 'auth'} & given.keys() for given in told)


# -- names and texts of files -----------------------------------------------------------------------------------------------

SCRIPT = '<script>alert(1)</script>'
EVIL = (f'../../x{SCRIPT}\n---\nlicense: mit\n| a | ![](http://evil.example/a.png) [b](javascript:c) `d` '
        '</script><img src=x onerror=e>')


@pytest.fixture
def evil(finished, tmp_path):
    """A run whose log and checkpoint say evil things wherever there is a text."""
    folder = shutil.copytree(finished, tmp_path / 'runs' / 'output_evil')
    entries = [json.loads(line) for line in (folder / 'pretrain_log.txt').read_text().splitlines()]
    first, texts = entries[0], ('opt', 'init', 'data_path', 'val_path', 'run_dir', 'dataset', 'precision', 'levels')
    first.update(run=EVIL, commit=EVIL, machine=EVIL, precision=EVIL, time=EVIL, command=[EVIL, EVIL], ranks=EVIL,
                 versions={EVIL: EVIL})
    first['config'].update(dict.fromkeys(texts, EVIL), **{EVIL: EVIL}, weight_decay=EVIL)
    for entry in entries[1:]:
        entry.update({EVIL: EVIL, 'finish': EVIL, 'remaining': EVIL, 'unreadable': EVIL})
    (folder / 'pretrain_log.txt').write_text(''.join(json.dumps(entry) + '\n' for entry in (first, {**first}, *entries[1:])))
    content = torch.load(folder / 'your_convnet_still_pretraining.pth', weights_only=True)
    content['config'] |= {'name': EVIL, 'run_dir': EVIL, 'data_path': EVIL, 'model': 'your_convnet.<script>alert(1)\n---\n|a|'}
    torch.save(content, folder / 'your_convnet_still_pretraining.pth')
    return folder


def test_a_report_shows_texts_as_texts(evil, tmp_path):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    twin = shutil.copytree(evil, tmp_path / f'runs/{SCRIPT.replace("/", "")}')
    text = report.report([evil, twin], tmp_path / 'report.html').read_text()
    assert 'alert(1)' in text and '<script>alert' not in text and '<img src=x' not in text and '\\u003cscript' not in text
    assert '<a href' not in re.sub(r'<script.*?</script>', '', text, flags=re.DOTALL)
    assert text.count('</script>') == text.count('<script')  # none ends early
    assert text.count('../../x&lt;script&gt;alert(1)&lt;/script&gt;') > 10


@pytest.mark.parametrize('changes', [{'epoch': SCRIPT}, {'loss': SCRIPT}, {'lr': [1]}, {'seconds': {}}, {'step': SCRIPT},
                                     {'epoch': None}, {'val_loss': SCRIPT}])
def test_a_log_with_texts_for_numbers_is_none(finished, tmp_path, changes):
    lines = (finished / 'pretrain_log.txt').read_text().splitlines(keepends=True)
    (tmp_path / 'pretrain_log.txt').write_text(''.join(lines) + json.dumps({**json.loads(lines[-1]), **changes}) + '\n')
    with pytest.raises(ValueError, match='is not the log of a pretraining run'):
        read_log(tmp_path)


@pytest.mark.parametrize('changes', [{'versions': 'x'}, {'command': 7}, {'commit': 7}])
def test_a_log_of_other_kinds_of_values_is_one_sentence(finished, tmp_path, changes):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    lines = (finished / 'pretrain_log.txt').read_text().splitlines(keepends=True)
    (tmp_path / 'pretrain_log.txt').write_text(json.dumps({**json.loads(lines[0]), **changes}) + '\n' + ''.join(lines[1:]))
    with pytest.raises(SystemExit, match='error: .*not as this program writes it'):
        report.main([str(tmp_path), f'--out={tmp_path / "report.html"}'])


@pytest.mark.parametrize('write', [lambda path: path.write_text(SECRET), lambda path: path.symlink_to('/etc/passwd'),
                                   lambda path: path.write_bytes(POSTSCRIPT),
                                   lambda path: path.write_bytes(png('red')[:60]),
                                   lambda path: path.write_bytes(png('red', (60_000, 60_000)))],
                         ids=['text', 'link', 'postscript', 'cut', 'bomb'])
def test_pictures_of_a_foreign_run_are_pictures(finished, tmp_path, monkeypatch, write):
    for module in ('plotly', 'matplotlib'):
        pytest.importorskip(module, reason='pip install -r pretrain/requirements.txt')
    folder = shutil.copytree(finished, tmp_path / 'run')
    (folder / 'reconstructions/epoch_0002.png').unlink()
    write(folder / 'reconstructions/epoch_0002.png')
    ghostscript(tmp_path / 'bin')
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    monkeypatch.setattr('PIL.EpsImagePlugin.gs_binary', None)  # not looked for yet
    with pytest.raises(SystemExit, match='error: .*epoch_0002.png is no picture that can be read'):
        report.main([str(folder), f'--out={tmp_path / "report.html"}'])
    (tmp_path / 'card').mkdir()
    with pytest.raises(ValueError, match='epoch_0002.png is no picture that can be read'):
        write_card(read_saved(folder), tmp_path / 'card')
    assert not (tmp_path / 'report.html').exists() and not (tmp_path / 'card/reconstructions.png').exists()
    assert not (tmp_path / 'bin/was_called').exists()


def test_a_card_shows_texts_as_texts(evil, tmp_path):
    pytest.importorskip('matplotlib')
    write_card(read_saved(evil), tmp_path, 'cc-by-4.0')
    card = (tmp_path / 'README.md').read_text()
    front, _, rest = card.removeprefix('---\n').partition('\n---\n')
    assert front.splitlines()[0] == 'license: cc-by-4.0' and front.count('license') == 1 and len(front.splitlines()) == 4
    assert '\n---\n' not in rest.replace('\n|---|---|\n', '') and '\nlicense' not in rest
    assert 'alert(1)' in rest and not re.search(r'(?<!\\)<|(?<!\\)!\[\]|(?<!\\)\]\(javascript', rest)
    assert all(len(re.findall(r'(?<!\\)\|', line)) == 3 for line in rest.splitlines() if line.startswith('|'))


def test_texts_as_markdown():
    assert as_markdown('a\n b|c') == r'a b\|c' and as_markdown(SCRIPT) == r'\<script\>alert(1)\</script\>'
    assert as_markdown('your_convnet, strides 2, 4') == 'your_convnet, strides 2, 4' and as_markdown(0.5) == '0.5'


@pytest.mark.parametrize('licence', ['mit\nextra: yes', 'mit # a', '[mit]', 'mit: x', '&a', '-', 'm it', 'mit\n'])
def test_a_licence_is_an_identifier(finished, tmp_path, licence):
    with pytest.raises(ValueError, match='--licence is an identifier'):
        write_card(read_saved(finished), tmp_path, licence)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('to', ['timm', 'mmdet', 'hf', 'official'])
def test_exports_stay_in_their_folder(evil, tmp_path, to):
    before = {path for path in tmp_path.rglob('*') if 'out' not in path.relative_to(tmp_path).parts[:1]}
    try:
        export.main([str(evil), f'--to={to}', f'--out={tmp_path / "out"}'])
    except SystemExit as stop:
        assert str(stop.code).startswith('error: ')
    else:
        assert {path.name for path in (tmp_path / 'out').iterdir()} == {f'your_convnet_{to}.safetensors'}
    assert {path for path in tmp_path.rglob('*') if 'out' not in path.relative_to(tmp_path).parts[:1]} == before


@pytest.mark.parametrize('name', ['../../escaped', '/tmp/escaped', 'your_convnet/../../escaped', 'hf-hub:a/b', 'local-dir:/tmp',
                                  '', '.', f'{SCRIPT}'])
def test_a_name_that_is_no_network_s_is_refused(finished, tmp_path, name):
    content = torch.load(finished / 'your_convnet_still_pretraining.pth', weights_only=True)
    content['config']['model'] = name
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(SystemExit, match='error: no network is called|error: model cannot be'):
        export.main([str(tmp_path / 'w.pth'), '--to=timm', f'--out={tmp_path / "out"}'])
    assert not (tmp_path / 'out').exists()


def test_images_of_any_name_stay_in_the_folder_of_the_output(finished, tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('$(touch X).png', 'a;b.png', 'x..png', f'{SCRIPT.replace("/", "")}.png', 'a\nb.png', '%2e%2e%2fup.png'):
        Image.new('RGB', (40, 40)).save(tmp_path / 'in' / name)
    saved, before = read_saved(finished), {path.name for path in tmp_path.iterdir()}
    import_module('pretrain.reconstruct').reconstruct(saved, [tmp_path / 'in'], tmp_path / 'out', say=lambda text: None)
    import_module('pretrain.features').features(saved, [tmp_path / 'in'], tmp_path / 'out', say=lambda text: None)
    assert {path.name for path in tmp_path.iterdir()} == before | {'out'}
    assert len(list((tmp_path / 'out').iterdir())) == 6 * 3 + 1 + 6 + 1
    assert len(np.load(tmp_path / 'out/pooled.npz')['names']) == 6  # texts, without pickles
