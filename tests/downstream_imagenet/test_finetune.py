"""Fine-tuning runs: their files, that they resume to the last bit, and what they refuse."""
import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from common.demo_world import write_world
from common.networks.create import create_cnn
from common.reliability.checkpoint import save
from common.training.finetuning import Average
from downstream_imagenet.config import Options
from downstream_imagenet.main import fine_tune
from tests.conftest import ROOT, Stop, randomise, same, stop_after
from tests.downstream_imagenet.runs import saved


def test_a_run_leaves_its_files(small, capsys):
    folder = fine_tune(small())
    assert {p.name for p in folder.iterdir()} == {
        'your_convnet_1kfinetuned_last.pth', 'your_convnet_1kfinetuned_best.pth', 'your_convnet_1kfinetuned_best_ema.pth',
        'your_convnet_1kfinetuned_last_step4.pth', 'finetune_log.txt', 'stdout_backup.txt', 'stderr_backup.txt',
        'tensorboard_log', 'run.lock', 'heartbeat'}
    lines = [json.loads(line) for line in (folder / 'finetune_log.txt').read_text().splitlines()]
    assert [line.get('epoch') for line in lines] == [None, 1, 2]
    assert {'top1', 'top5', 'top1_ema', 'val_loss'} <= lines[-1].keys()
    out = capsys.readouterr().out
    for text in ('none of its own; that of resnet50', '12 classes', 'EMA of the weights, decay 0.9', 'x 0.3430',
                 'after the last epoch', 'chosen on these same images, so it is no test result'):
        assert text in out, text
    assert saved(folder)['classes'][0] == 'arrow_waves' and saved(folder, 'best')['epoch'] in (1, 2)
    found = fine_tune(small(eval=str(folder / 'your_convnet_1kfinetuned_last.pth')))
    assert found['model']['top1'] == pytest.approx(lines[-1]['top1'])
    assert found['ema']['top1'] == pytest.approx(lines[-1]['top1_ema'])
    cnn = timm.create_model('your_convnet', num_classes=12)
    cnn.load_state_dict(saved(folder, 'best')['model'])


@pytest.mark.parametrize('changes', [
    {}, {'opt': 'adamw', 'lr': 1e-3, 'repeats': 3, 'accum': 2, 'workers': 1}, {'official_lamb': True}])
def test_a_killed_run_goes_on_to_the_same_end_to_the_last_bit(small, tmp_path, monkeypatch, changes):
    whole = fine_tune(small(run_dir=str(tmp_path / 'whole'), **changes))
    options = small(run_dir=str(tmp_path / 'cut'), save_every_steps=3, **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stop):
            fine_tune(options)
    fine_tune(options)
    one, other = saved(whole), saved(tmp_path / 'cut')
    for key in ('step', 'sums', 'model', 'ema', 'optimizer', 'best', 'classes'):
        assert same(one[key], other[key]), key
    assert saved(whole, 'best')['top1'] == saved(tmp_path / 'cut', 'best')['top1'] == one['best']['model']['top1']


def test_a_finished_run_goes_on_with_more_epochs_to_the_last_bit(small, tmp_path, monkeypatch, capsys):
    for name in ('one', 'other'):
        fine_tune(small(run_dir=str(tmp_path / name)))
    longer = {'epochs': 4, 'warmup_epochs': None}  # what is not given is as it was
    with pytest.raises(ValueError, match='warmup_epochs was 0.5 and is 1.0 now'):
        fine_tune(small(run_dir=str(tmp_path / 'one'), epochs=4, warmup_epochs=1.0))
    fine_tune(small(run_dir=str(tmp_path / 'one'), **longer))
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Stop):
            fine_tune(small(run_dir=str(tmp_path / 'other'), **longer))
    with pytest.raises(ValueError, match='--epochs=6, with which it goes on; or .* --finetune_from=') as refused:
        fine_tune(small(run_dir=str(tmp_path / 'other'), epochs=6))
    fine_tune(small(run_dir=str(tmp_path / 'other'), epochs=None, warmup_epochs=None))  # 4, as it was given before
    one, other = saved(tmp_path / 'one'), saved(tmp_path / 'other')
    for key in ('step', 'sums', 'model', 'ema', 'optimizer', 'best', 'ended_at'):
        assert same(one[key], other[key]), key
    assert (one['step'], one['ended_at'], one['config']['warmup_epochs']) == (16, (8,), 0.5)
    lines = [json.loads(line) for line in (tmp_path / 'one/finetune_log.txt').read_text().splitlines()]
    assert [line['epoch'] for line in lines if 'epoch' in line] == [1, 2, 3, 4]
    assert 'For more epochs: the same command with --epochs=8' in capsys.readouterr().out
    weights = str(refused.value).rpartition('--finetune_from=')[2]  # the other remedy
    fine_tune(small(finetune_from=weights, run_dir=str(tmp_path / 'another'), epochs=1, warmup_epochs=0.0))
    assert 'matched' in capsys.readouterr().out


@pytest.mark.slow
def test_a_compiled_run_agrees_with_an_eager_one(small, tmp_path, capsys):
    plain = fine_tune(small(run_dir=str(tmp_path / 'plain'), epochs=1, warmup_epochs=0.0))
    counter = CompileCounterWithBackend('aot_eager')
    with torch.compiler.set_stance(force_backend=counter):
        folder = fine_tune(small(compile=True, epochs=1, warmup_epochs=0.0))
    assert counter.frame_count == 3  # the blocks, and nothing for the validation images
    assert 'compiled    3 parts of the network' in capsys.readouterr().out
    one, other = saved(folder), saved(plain)
    assert one['compiled'] is True and other['compiled'] is False
    assert one['sums'] == pytest.approx(other['sums'], rel=1e-3)
    assert one['model'].keys() == other['model'].keys()


def test_weights_given_to_resume_from_are_weights(small, tmp_path, capsys):
    save(tmp_path / 'w.pth', create_cnn('your_convnet').state_dict())
    folder = fine_tune(small(resume=str(tmp_path / 'w.pth'), epochs=1, warmup_epochs=0.0))
    assert 'matched' in capsys.readouterr().out
    with pytest.raises(ValueError, match='is of another run: batch_size was 12 and is 6 now'):
        fine_tune(small(batch_size=6, epochs=1, warmup_epochs=0.0))
    again = fine_tune(small(resume=str(folder / 'your_convnet_1kfinetuned_last.pth'), run_dir=str(tmp_path / 'b'), epochs=1,
                            warmup_epochs=0.0))
    assert 'This run is finished' in capsys.readouterr().out and again == tmp_path / 'b'


def test_the_average_starts_at_the_loaded_weights(small, tmp_path, monkeypatch):
    donor = randomise(create_cnn('your_convnet', num_classes=12))
    save(tmp_path / 'w.pth', donor.state_dict())
    seen = []

    def update(self, model, finite):
        if not seen:
            seen.append({k: v.clone() for k, v in self.module.state_dict().items()})
    monkeypatch.setattr(Average, 'update', update)
    fine_tune(small(finetune_from=str(tmp_path / 'w.pth'), epochs=1, warmup_epochs=0.0))
    assert all(torch.equal(seen[0][k], v) for k, v in donor.state_dict().items())


@pytest.mark.slow
def test_a_short_run_learns(tmp_path):
    write_world(tmp_path, 360, 96, 40, seed=2)
    folder = fine_tune(Options(name='n', run_dir=str(tmp_path / 'run'), data_path=str(tmp_path), model='your_convnet',
                               input_size=40, batch_size=24, epochs=25, warmup_epochs=2.0, lr=3e-2, workers=1, augment='none',
                               mixup=0.0, cutmix=0.0, erase=0.0, crop_scale=(0.5, 1.0), ema=0.9, layer_decay=1.0, val_every=25))
    last = [json.loads(line) for line in (folder / 'finetune_log.txt').read_text().splitlines()][-1]
    assert last['top1'] > 5 * 100 / 12 and last['top1_ema'] > 5 * 100 / 12


def test_data_of_your_own_and_refusals(small, tmp_path):
    class Bands(torch.utils.data.Dataset):
        classes = ['dark', 'light']

        def __len__(self):
            return 13

        def __getitem__(self, index):
            return torch.full((2, 20, 20), index % 2 * 0.5) + 0.1 * torch.rand(2, 20, 20), index % 2
    bands = {'in_chans': 2, 'mean': (0.5, 0.5), 'std': (0.2, 0.2), 'data_path': None, 'epochs': 1, 'warmup_epochs': 0.0}
    folder = fine_tune(small(**bands), Bands(), Bands())
    assert saved(folder)['classes'] == ['dark', 'light']
    with pytest.raises(ValueError, match='give a val_dataset'):
        fine_tune(small(**bands), Bands())
    with pytest.raises(ValueError, match='nothing to measure'):
        save(tmp_path / 'w.pth', create_cnn('your_convnet').state_dict())
        fine_tune(small(eval=str(tmp_path / 'w.pth')))


@pytest.mark.slow
def test_the_launch_line_in_the_folder_and_main_sh(labelled, tmp_path):
    flags = [f'--data_path={labelled}', '--model=your_convnet', '--img_size=32', '--bs=12', '--ep=1', '--lr=1e-3', '--ema=0',
             '--dataloader_workers=0', '--wp_ep=0']
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)
    one = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', 'main.py', '--exp_name=t',
           f'--exp_dir={tmp_path}/a', *flags]
    two = ['bash', str(ROOT / 'downstream_imagenet/main.sh'), 't', '--ngpu_per_node=1', *flags]
    for command, cwd in ((one, ROOT / 'downstream_imagenet'), (two, tmp_path)):
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        assert 'top-1' in done.stdout
    assert saved(tmp_path / 'a')['ranks'] == 2 and saved(tmp_path / 'output_t')['step'] == 4


def test_fresh_goes_with_weights_given_to_resume_from(small, tmp_path, capsys):
    save(tmp_path / 'w.pth', create_cnn('your_convnet').state_dict())
    folder = fine_tune(small(resume=str(tmp_path / 'w.pth'), fresh=True, epochs=1, warmup_epochs=0.0))
    with pytest.raises(ValueError, match='--fresh starts over'):
        fine_tune(small(resume=str(folder / 'your_convnet_1kfinetuned_last.pth'), fresh=True, epochs=1, warmup_epochs=0.0))
