"""Other numbers of ranks, and data that are not those of before."""
import dataclasses
import shutil

import pytest
import torch

from common.distributed import Ranks
from common.training.run import Run
from pretrain.main import pretrain
from tests.conftest import Stop, saved, stop_after

# Other numbers of ranks

def test_four_ranks_become_three(tiny):
    def run(batch, ranks, accum, saved=None):
        return Run(tiny(batch_size=batch, accum=accum), Ranks(0, ranks, torch.device('cpu')), 40).parts(saved)
    assert run(24, 4, 2) == 2 and run(24, 3, 2, {'ranks': 4, 'accum': 2}) == 2
    assert run(12, 4, 3) == 3 and run(12, 3, 3, {'ranks': 4, 'accum': 3}) == 4  # 4 images a rank are not cut into 3 parts
    found_out = {'ranks': 3, 'accum': 8, 'config': {'accum': 'auto'}}
    assert run(24, 3, 'auto', found_out) == 8 and run(24, 3, 'auto', {**found_out, 'ranks': 4}) is None
    assert run(24, 3, 'auto', {**found_out, 'config': {'accum': 8}}) is None  # it was given, and was too few
    with pytest.raises(ValueError, match='16 images cannot be divided among 3 ranks: give --bs=15 or --bs=18; or, to go on '
                                         'with a run of that batch, start 2 or 4 processes'):
        run(16, 3, 1, {'ranks': 4, 'accum': 1})
    with pytest.raises(ValueError, match='12 images cannot be divided among 3 ranks in 3 parts each: give --bs=9 or --bs=18'):
        run(12, 3, 3)


@pytest.mark.parametrize('available', [False, True])
def test_a_gpu_of_apple_is_refused_by_name(tiny, monkeypatch, available):
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: available)
    warned = Run(tiny(), Ranks(0, 1, torch.device('cpu')), 40).warnings(None, 1)
    assert any("Apple's MPS has no float64" in warning for warning in warned) == available


@pytest.mark.parametrize(('precision', 'has_bf16', 'is_told'), [
    (None, False, True), (None, True, False), ('fp32', False, False)])
def test_a_gpu_without_bf16_is_told_of(tiny, monkeypatch, precision, has_bf16, is_told):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: has_bf16)
    run = Run(tiny(precision=precision), Ranks(0, 1, torch.device('cuda')), 40)
    assert any('--precision=fp16 is faster' in warning for warning in run.warnings(None, 1)) == is_told


@pytest.mark.parametrize(('precision', 'is_supported', 'is_told'), [
    ('bf16', False, True), ('fp16', False, True), ('bf16', True, False), ('fp32', False, False), (None, False, False)])
def test_a_cpu_without_instructions_for_a_precision_is_told_of(tiny, monkeypatch, precision, is_supported, is_told):
    for name in ('bf16', 'fp16'):
        monkeypatch.setattr(torch.ops.mkldnn, f'_is_mkldnn_{name}_supported', lambda: is_supported)
    run = Run(tiny(precision=precision), Ranks(0, 1, torch.device('cpu')), 40)
    assert any('no instructions for' in warning for warning in run.warnings(None, 1)) == is_told


def test_a_pytorch_without_onednn_claims_nothing_of_the_cpu(tiny, monkeypatch):
    monkeypatch.setattr(torch.ops, 'mkldnn', object())
    run = Run(tiny(precision='bf16'), Ranks(0, 1, torch.device('cpu')), 40)
    assert not any('no instructions for' in warning for warning in run.warnings(None, 1))


# Data that changed

def test_data_that_changed_are_refused_or_allowed(tiny, world, tmp_path, monkeypatch, capsys):
    shutil.copytree(world, tmp_path / 'data')
    options = tiny(data_path=str(tmp_path / 'data'))
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(options)
    image = sorted((tmp_path / 'data/train').rglob('*.png'))[0]
    image.rename(image.with_name('another_name.png'))
    with pytest.raises(ValueError, match='the 40 training images have other names or sizes than then.*--allow_changed_data'):
        pretrain(options)
    pretrain(dataclasses.replace(options, allow_changed_data=True))
    assert 'are not those of before' in capsys.readouterr().err and saved(tmp_path / 'run')['step'] == 10


def test_so_few_images_that_nothing_would_be_left_are_refused(tiny, world, tmp_path):
    shutil.copytree(world, tmp_path / 'data')
    options = tiny(data_path=str(tmp_path / 'data'))
    pretrain(options)
    for image in sorted((tmp_path / 'data/train').rglob('*.png'))[10:]:
        image.unlink()
    with pytest.raises(ValueError, match='is of step 10; with 10 images the run has 4 steps only'):
        pretrain(dataclasses.replace(options, allow_changed_data=True))
