"""Segmentation runs: they resume, learn, are measured as by --eval, and are the same on two processes."""
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common.demo_masks import MASK_CLASSES, write_masks
from common.training import trainer
from downstream_ade20k.checkpoints import build_segmenter
from downstream_ade20k.config import Options, parse_options
from downstream_ade20k.main import train_segmenter
from downstream_ade20k.training import SegmenterTraining
from tests.conftest import ROOT, Stop, same, stop_after
from tests.downstream_ade20k.runs import SMALL, evaluations, log_of, saved


def assert_same_runs(one, other):
    """Checkpoints, figures and losses of two runs are the same, to the last bit."""
    for key in ('model', 'ema', 'optimizer', 'step', 'sums', 'best'):
        assert same(saved(one)[key], saved(other)[key]), key
    keys = ('step', 'loss', 'mIoU', 'mAcc', 'aAcc')
    figures = [[{key: line[key] for key in keys} for line in evaluations(folder)] for folder in (one, other)]
    assert figures[0] == figures[1] and figures[0]
    tables = [[line for line in log_of(folder) if 'classes_of' in line] for folder in (one, other)]
    assert [line['IoU'] for line in tables[0]] == [line['IoU'] for line in tables[1]]


def parts_of(folder):
    """Options of the training images alone, of which a part is held out."""
    return {'data_path': None, 'train_images': str(folder / 'images/train'), 'train_masks': str(folder / 'annotations/train')}


@pytest.mark.parametrize('changes', [
    {'ema': 0.9, 'save_every_steps': 1},
    {'freeze': True, 'val_fraction': 0.3, 'workers': 2, 'save_every_steps': 1},
    {'head': 'fpn', 'opt': 'sgd', 'lr': 1e-2, 'layer_decay': 1.0, 'accum': 2},
    {'aux_weight': 0.0, 'frozen_bn': True, 'save_every_steps': 4, 'keep_size': True, 'input_size': 48}])
def test_a_run_resumes_to_the_last_bit(small, drawn_masks, tmp_path, monkeypatch, changes):
    if 'val_fraction' in changes:
        changes = {**changes, **parts_of(drawn_masks)}
    whole = train_segmenter(small(run_dir=str(tmp_path / 'whole'), **changes))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 5)
        train_segmenter(small(**changes))
    # Without save_every_steps, what is saved is the state at the last evaluation.
    assert saved(tmp_path / 'run')['step'] == {1: 5, 4: 4}.get(changes.get('save_every_steps'), 3)
    assert_same_runs(train_segmenter(small(**changes)), whole)
    assert ('ema' in saved(whole)['best']) == ('ema' in changes)


def test_a_run_goes_on_without_steps_that_were_not_finite(small, tmp_path, monkeypatch):
    """Steps 5 and 6 are bad whenever they come; the run goes back to step 4, and their images are left out."""
    changes = {'iterations': 8, 'val_every': 4, 'rewind': True, 'max_skips': 2}
    taken = []  # (step, sum of its images)
    take, before = trainer.train_step, SegmenterTraining.before_step

    def before_step(self, step):
        taken.append([step, None])
        before(self, step)

    def noted(batches):
        for images, masks in batches:
            taken[-1][1] = images.sum().item()
            yield images * (float('nan') if taken[-1][0] in bad else 1), masks

    monkeypatch.setattr(SegmenterTraining, 'before_step', before_step)
    monkeypatch.setattr(trainer, 'train_step', lambda model, batches, *rest: take(model, noted(batches), *rest))
    bad = ()
    train_segmenter(small(run_dir=str(tmp_path / 'other'), **changes))
    images = dict(taken)
    taken.clear()
    bad = 5, 6
    folder = train_segmenter(small(**changes))
    assert [step for step, _ in taken] == [*range(7), 4, 7] and saved(folder)['left_out'] == ((5, 7),)
    assert all(total == images[step] for step, total in taken) and len(set(images.values())) == 8
    assert saved(folder)['step'] == 8 and len(evaluations(folder)) == 2


def test_changed_validation_masks_are_checked_before_a_run_goes_on(small, drawn_masks, tmp_path):
    shutil.copytree(drawn_masks, tmp_path / 'masks')
    given = {'data_path': str(tmp_path / 'masks'), 'iterations': 3}
    folder = train_segmenter(small(**given))
    mask = np.random.default_rng(0).choice(np.uint8([0, 1, 200]), (64, 64))  # of more bytes than the one before
    Image.fromarray(mask).save(tmp_path / 'masks/annotations/val/000002.png')
    with pytest.raises(ValueError, match='annotations/val hold values that are no classes, 200; 000002.png'):
        train_segmenter(small(**{**given, 'iterations': 6}))
    assert saved(folder)['step'] == 3


def test_a_class_may_be_renamed_and_none_added_when_a_run_goes_on(small, tmp_path):
    file = tmp_path / 'classes.txt'
    lines = [f'{value} {name}' for value, name in enumerate(('ground', *MASK_CLASSES))]
    file.write_text('\n'.join(lines))
    folder = train_segmenter(small(classes=str(file), iterations=3))
    file.write_text('\n'.join(['0 meadow', *lines[1:]]))
    train_segmenter(small(classes=str(file), iterations=6))
    assert saved(folder)['classes']['names'] == ['meadow', *MASK_CLASSES]
    file.write_text('\n'.join([*lines, '99 sea']))
    with pytest.raises(ValueError, match='the value 99 is "sea" there, and no class in .*--fresh'):
        train_segmenter(small(classes=str(file), iterations=9))


def test_masks_that_changed_are_named_when_a_run_goes_on(small, drawn_masks, tmp_path):
    shutil.copytree(drawn_masks, tmp_path / 'masks')
    given = {'data_path': str(tmp_path / 'masks'), 'iterations': 3}
    train_segmenter(small(**given))
    with open(tmp_path / 'masks/annotations/train/000002.png', 'ab') as mask:
        mask.write(b'more')
    with pytest.raises(ValueError, match='the 13 training images or their masks have other names or sizes than then'):
        train_segmenter(small(**{**given, 'iterations': 6}))


def test_a_run_begins_with_the_network_of_another_segmenter(small, drawn_masks, tmp_path):
    one = train_segmenter(small(run_dir=str(tmp_path / 'one'), iterations=3, ema=0.9))
    path = one / 'your_convnet_ade20k_last.pth'
    for given, which in ((path, 'model'), (f'{path}:ema', 'ema')):
        network, loaded = build_segmenter(small(finetune_from=str(given), head='fpn'), 3)
        found = {f'backbone.cnn.{name}': value for name, value in network.backbone.cnn.state_dict().items()}
        expected = {name: value for name, value in saved(one)[which].items() if name.startswith('backbone.cnn.')}
        assert same(found, expected) and 'backbone.cnn.' in str(loaded)


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_iterations_to_the_last_bit(small, tmp_path, monkeypatch):
    changes = {'ema': 0.9, 'iterations': 3}
    for name in ('one', 'other'):
        train_segmenter(small(run_dir=str(tmp_path / name), **changes))
    changes |= {'iterations': 9, 'save_every_steps': 2}
    train_segmenter(small(run_dir=str(tmp_path / 'one'), **changes))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 4)
        train_segmenter(small(run_dir=str(tmp_path / 'other'), **changes))
    train_segmenter(small(run_dir=str(tmp_path / 'other'), **changes))
    assert_same_runs(tmp_path / 'one', tmp_path / 'other')
    assert saved(tmp_path / 'one')['step'] == 9


def test_eval_finds_what_the_run_found_last(small, drawn_masks):
    folder = train_segmenter(small(ema=0.5, lr=1e-2))
    last = evaluations(folder)[-1]
    path = str(folder / 'your_convnet_ade20k_last.pth')
    # How images are resized and measured, the file says.
    found = train_segmenter(Options(eval=path, data_path=str(drawn_masks), workers=0))
    for name in ('mIoU', 'mAcc', 'aAcc', 'images'):
        assert found['model'][name] == last[name] and found['ema'][name] == last[f'{name}_ema'], name
    assert last['mIoU'] > 0 and last['images'] == 5
    tables = {line['classes_of']: line for line in log_of(folder) if 'classes_of' in line}  # the last of each
    for which in ('model', 'ema'):
        assert list(tables[which]['IoU'].values()) == found[which]['IoU']
    assert list(tables['model']['IoU']) == [f'class {value}' for value in range(len(MASK_CLASSES) + 1)]


@pytest.mark.slow
def test_two_processes_train_as_one(drawn_masks, tmp_path):
    """Up to rounding, with eight images at a time: the BatchNorms of what is pooled to 1 x 1 enlarge its errors with
    fewer. The optimiser is SGD, since AdamW makes steps of the same size of gradients of any size, rounding errors too.
    """
    options = {**SMALL, 'batch_size': 8, 'iterations': 4, 'val_every': 2, 'opt': 'sgd', 'lr': 1e-2, 'layer_decay': 1.0,
               'head_dropout': 0.0, 'data_path': str(drawn_masks), 'classes': str(drawn_masks / 'classes.txt')}
    flags = [f'--{name}={value}' for name, value in options.items()]
    one = train_segmenter(parse_options(['--name=one', f'--run_dir={tmp_path / "one"}', *flags]))
    command = ['bash', str(ROOT / 'downstream_ade20k/main.sh'), 'two', '--ngpu_per_node=2', *flags]
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    two = tmp_path / 'output_two'
    expected = saved(one)['model']
    for name, value in saved(two)['model'].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-4, msg=name)
    for line, other in zip(evaluations(two), evaluations(one), strict=True):
        assert line['loss'] == pytest.approx(other['loss'], rel=1e-4)
        assert line['mIoU'] == pytest.approx(other['mIoU'], abs=0.05)
        assert line['images'] == other['images'] == 5


@pytest.mark.slow
def test_a_small_network_learns_the_drawn_masks(tmp_path):
    write_masks(tmp_path, 300, 48, 64, seed=0)
    folder = train_segmenter(Options(
        name='n', run_dir=str(tmp_path / 'run'), data_path=str(tmp_path), model='test_resnet', input_size=64,
        head_channels=32, scales=(0.8, 1.25), batch_size=8, iterations=900, val_every=900, opt='adamw', lr=3e-3,
        layer_decay=1.0, weight_decay=0.01, clip_grad=1.0, workers=0))
    last = evaluations(folder)[-1]
    assert last['images'] == 48 and last['mIoU'] > 60
