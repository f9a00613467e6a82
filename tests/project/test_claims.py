"""Files that claim more than they hold cost no memory, and runs that lie about themselves are refused."""
import os
import re
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from common.networks.keys import unwrap
from common.reliability.checkpoint import check_archive, read_plain
from pretrain.saved import read_saved
from tests.conftest import ROOT

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
