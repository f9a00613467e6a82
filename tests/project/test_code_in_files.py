"""Code in files of weights does not run, whichever program reads them."""
import io
import json
import os
import pickle
import re
import runpy
import shutil
import struct
import sys
import types
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from common.demo_coco import write_coco
from common.demo_masks import write_masks
from downstream_ade20k.classes import Classes
from pretrain import report
from pretrain.formats.to_detectron2 import ArraysAlone
from tests.conftest import ROOT
from tests.pretrain.served import free_port
from tests.project.foreign import PAYLOADS, Code, among

# -- files of weights ----------------------------------------------------------------------------------------------------

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


@pytest.fixture(scope='module')
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp('masked')
    write_masks(folder, 4, 2, 64, seed=1)
    return folder


PRETRAIN = ['--name=x', '--model=your_convnet', '--input_size=32', '--decoder_width=16', '--bs=8', '--ep=2', '--workers=0']
CLASSES = ['--model=your_convnet', '--input_size=32', '--bs=8', '--workers=0']
TUNE = ['--name=x', '--ep=2', *CLASSES]
COCO = ['--model=your_convnet', '--input_size=64', '--long_side=64', '--bs=2', '--ep=2', '--workers=0', '--fpn_channels=16',
        '--head_channels=32', '--mask_layers=1', '--rois=16']
ADE20K = ['--model=your_convnet', '--input_size=64', '--bs=2', '--iterations=2', '--workers=0', '--head_channels=16',
          '--data_path=MASKED']
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
    'ade20k --finetune_from': ('downstream_ade20k.main', ['--name=x', *ADE20K, '--finetune_from=FILE', '--run_dir=OUT']),
    'ade20k --resume': ('downstream_ade20k.main', ['--name=x', *ADE20K, '--resume_from=FILE', '--run_dir=OUT']),
    'ade20k --eval': ('downstream_ade20k.main', [*ADE20K, '--eval=FILE']),
    'ade20k predict': ('downstream_ade20k.predict', ['--weights=FILE', 'WORLD/val', '--out=OUT']),
    'convert-timm-to-d2': ('downstream_d2/convert-timm-to-d2.py', ['FILE', 'OUT']),
    'mmdet weights': ('downstream_mmdet/weights.py', ['FILE', 'convnext_atto']),
}


@pytest.fixture
def refused(world, scenes, masked, tmp_path, monkeypatch):
    """refused(program, file): the sentence with which a program refuses it; with exit code 1, and nothing written."""
    def run(program, file):
        name, words = PROGRAMS[program]
        places = {'FILE': file, 'WORLD': world, 'SCENES': scenes, 'MASKED': masked, 'OUT': tmp_path / 'out',
                  'PORT': free_port()}
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
    ('downstream_coco.main', ['--name=x', *COCO, '--data_path=SCENES'], 'your_convnet_coco_last.pth'),
    ('downstream_ade20k.main', ['--name=x', *ADE20K], 'your_convnet_ade20k_last.pth')])
def test_code_in_a_run_folder_does_not_run(module, words, own, finished, world, scenes, masked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(finished / 'your_convnet_still_pretraining.pth', weights_only=True)
    (tmp_path / 'out').mkdir()
    torch.save(among(content, Code(tmp_path / 'marker')), tmp_path / 'out' / own)
    before = (tmp_path / 'out' / own).read_bytes()
    places = {'WORLD': world, 'SCENES': scenes, 'MASKED': masked, 'OUT': tmp_path / 'out'}
    words = [re.sub('|'.join(places), lambda match: str(places[match[0]]), word) for word in words]
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


@pytest.mark.parametrize('program, content', [
    ('downstream_coco.predict', {'categories': [], 'masks': False}),
    ('downstream_ade20k.predict', {'classes': Classes.of_ids((0, 1), ()).as_data()})])
def test_predict_imports_no_module_that_a_file_names(program, content, tmp_path, monkeypatch):
    (tmp_path / 'named_by_a_file.py').write_text('from pathlib import Path\nPath(__file__).with_name("marker").mkdir()\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'named_by_a_file', raising=False)
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    config = {'model': 'no_such_network', 'register': 'named_by_a_file', 'in_chans': 3, 'input_size': 64, 'long_side': 64,
              'mean': None, 'std': None}
    torch.save({'config': config, 'model': {}, **content}, tmp_path / 'w.pth')
    words = [f'--weights={tmp_path / "w.pth"}', str(tmp_path / 'a.png'), f'--out={tmp_path / "out"}']
    with pytest.raises(SystemExit, match='error: no network is called "no_such_network"'):
        import_module(program).main(words)
    assert not (tmp_path / 'marker').exists()
    with pytest.raises(SystemExit, match='error: no network is called "no_such_network"'):
        import_module(program).main([*words, '--register=named_by_a_file'])
    assert (tmp_path / 'marker').exists()  # the user's own word
