"""Evaluation: each image counts once."""
import os
import shutil
import subprocess
import sys

import pytest
import torch

from common.images.augmented import Augmented
from downstream_imagenet.class_folders import LabelledFolder
from downstream_imagenet.classifier import build_classifier as build
from downstream_imagenet.config import recommended
from downstream_imagenet.data import evaluation_transform
from downstream_imagenet.evaluation import as_in_training, counts, evaluate
from downstream_imagenet.main import fine_tune
from downstream_imagenet.main import main as finetune_main
from tests.conftest import ROOT
from tests.downstream_imagenet.runs import ALONE, picture

# -- evaluation -------------------------------------------------------------------------------------------------------

def test_counts_by_hand():
    logits = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]])
    assert counts(logits, torch.tensor([6, 6]))[[0, 1, 3]].tolist() == [1, 1, 2]
    assert counts(logits, torch.tensor([2, 0]))[[0, 1, 3]].tolist() == [1, 2, 2]
    assert counts(logits[:, :3], torch.tensor([0, 1]))[[0, 1, 3]].tolist() == [0, 2, 2]


EVALUATE = '''
import sys
import torch
from common.images.augmented import Augmented
from common.distributed import distributed
from downstream_imagenet.config import recommended
from downstream_imagenet.class_folders import find_labelled
from downstream_imagenet.data import evaluation_transform
from downstream_imagenet.evaluation import evaluate
from downstream_imagenet.classifier import build_classifier as build
import pretrain.models
options = recommended(name='n', model='your_convnet', input_size=32)
torch.manual_seed(0)
model = build(options, 12)
with distributed() as ranks:
    if ranks.rank:
        torch.nn.init.normal_(model.cnn.stages[0].bn1.running_mean)  # only the main rank's statistics count
    _, val = find_labelled(sys.argv[1])
    images = Augmented(val, evaluation_transform(options), options.normalisation, labelled=True, stand_ins=False)
    found = evaluate(model, images, 12, int(sys.argv[2]), ranks, torch.enable_grad)
    if ranks.is_main:
        print(repr(found))
'''


@pytest.mark.slow
def test_each_image_counts_once_on_any_number_of_processes(labelled, tmp_path):
    (tmp_path / 'e.py').write_text(EVALUATE)
    results = []
    for processes, batch in ((1, 26), (1, 4), (2, 5), (3, 4)):
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}',
                   str(tmp_path / 'e.py'), str(labelled), str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True,
                              env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
        results.append(eval(done.stdout.strip().splitlines()[-1]))
    assert all(r['images'] == 26 and r['top1'] == results[0]['top1'] and r['top5'] == results[0]['top5'] for r in results)
    assert all(r['loss'] == pytest.approx(results[0]['loss'], rel=1e-5) for r in results) and 0 < results[0]['top5'] < 100


def test_unreadable_validation_images_are_left_out_and_named(tmp_path):
    for i in range(7):
        picture(tmp_path / f'{i % 2}/{i}.png', i)
    (tmp_path / '0/2.png').write_bytes(b'')
    options = recommended(name='n', model='your_convnet', input_size=16)
    images = Augmented(LabelledFolder(tmp_path), evaluation_transform(options), options.normalisation, labelled=True,
                       stand_ins=False)
    told = []
    found = evaluate(build(options, 2), images, 2, 3, ALONE, torch.enable_grad, warn=told.append)
    assert found['images'] == 6 and len(told) == 1 and '0/2.png' in told[0]
    for path in tmp_path.rglob('*.png'):
        path.write_bytes(b'')
    with pytest.raises(ValueError, match='none of the validation images can be read'):
        evaluate(build(options, 2), images, 2, 3, ALONE, torch.enable_grad, warn=told.append)
    assert evaluate(build(options, 2), images, 2, 3, ALONE, torch.enable_grad, warn=told.append, go_on=lambda: False) is None


# -- what went wrong once ---------------------------------------------------------------------------------------------

def test_eval_minds_the_classes_and_asks_for_no_more_than_it_needs(small, labelled, tmp_path, capsys, monkeypatch):
    folder = fine_tune(small(epochs=1, warmup_epochs=0.0))
    file = folder / 'your_convnet_1kfinetuned_best.pth'
    shutil.copytree(labelled / 'val', tmp_path / 'test')
    monkeypatch.setattr(sys, 'argv', ['main'])
    finetune_main([f'--eval={file}', f'--val_path={tmp_path}/test', '--model=your_convnet', '--img_size=40', '--workers=0'])
    assert 'note: input_size was 32 in training, and is 40 here' in capsys.readouterr().out
    finetune_main([f'--eval={file}', f'--val_path={tmp_path}/test', '--workers=0'])  # of the network and size of the file
    assert 'note:' not in (out := capsys.readouterr().out) and 'model: top-1' in out
    (tmp_path / 'test/bar_stripes').rename(tmp_path / 'test/bars')
    with pytest.raises(SystemExit, match='classes that the training images do not have: bars'):
        finetune_main([f'--eval={file}', f'--val_path={tmp_path}/test', '--model=your_convnet', '--img_size=32', '--workers=0'])


@pytest.mark.parametrize(('given', 'crop'), [({}, 0.9), ({'crop': 0.8}, 0.8), ({'model': 'convvit_base'}, 0.9),
                                             ({'model': 'convvit_base', 'crop': 0.8}, 0.8)])
def test_eval_takes_the_crop_of_the_run_over_that_of_the_recipe(given, crop):
    options = recommended(name='e', eval='FILE', **given)
    assert as_in_training(options, {'model': 'convvit_base', 'crop': 0.9}).crop == crop
