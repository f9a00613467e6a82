"""One folder of labelled images, of which --val_fraction holds out a part: fine-tuning, its evaluation and predictions, and
the probes.
"""
import shutil

import numpy as np
import pytest
import torch

from common.images.datasets import Share
from downstream_imagenet import predict
from downstream_imagenet.config import Options
from downstream_imagenet.features import Options as FeatureOptions
from downstream_imagenet.features import compute
from downstream_imagenet.labelled import labelled_images
from downstream_imagenet.main import fine_tune
from downstream_imagenet.training import ClassifierTraining
from tests.conftest import Stop, same, stop_after
from tests.downstream_imagenet.runs import saved


@pytest.fixture
def flat(labelled, tmp_path):
    """A folder with 4 images of each of 12 classes, in a folder a class."""
    return shutil.copytree(labelled / 'train', tmp_path / 'flat')


def options(folder, **changes):
    return Options(**{'name': 'n', 'data_path': str(folder), 'model': 'your_convnet', 'input_size': 32, 'workers': 0,
                      'val_fraction': 0.25, **changes})


def paths(images):
    return [images.name(i) for i in range(len(images))]


def test_each_class_is_divided(flat, labelled):
    images, val, classes = labelled_images(options(flat))
    assert np.bincount(images.labels).tolist() == [3] * 12 and val.labels.tolist() == list(range(12)) and len(classes) == 12
    assert sorted(paths(images) + paths(val)) == sorted(map(str, flat.rglob('*.png')))
    assert images[0][1] == 0 and val[11][1] == 11 and val.classes == images.classes
    assert paths(labelled_images(options(flat, seed=1))[1]) != paths(val)
    half, same_val, _ = labelled_images(options(flat, label_fraction=0.5))  # a share of what is not held out
    assert paths(same_val) == paths(val) and len(half) == 24 and not set(paths(half)) & set(paths(val))
    moved = shutil.copytree(flat, flat.parent / 'moved/train')  # train/ without val/
    again = labelled_images(options(moved.parent))[1]
    assert [path.rpartition('train/')[2] for path in paths(again)] == [path.rpartition('flat/')[2] for path in paths(val)]


def test_a_class_of_one_image_stays_in_training(flat):
    for image in sorted((flat / 'arrow_waves').iterdir())[1:]:
        image.unlink()
    images, val, _ = labelled_images(options(flat, val_fraction=0.01))
    assert np.bincount(images.labels).tolist() == [1] + [3] * 11 and set(val.labels) == set(range(1, 12))


def test_images_given_in_code_are_divided(flat):
    class Listed(list):
        classes = ['a', 'b']

    def made(number):
        return Listed([(torch.rand(3, 8, 8), i % 2) for i in range(number)])

    images, val, classes = labelled_images(options(flat, augment='none'), made(20))
    assert isinstance(val, Share) and val.labels.tolist().count(0) == 2 and len(val) == 4 and len(images) == 16
    assert [item[1] for item in val] == val.labels.tolist() and classes == ['a', 'b']
    with pytest.raises(ValueError, match=r'there are held-out images already, in a data set \(Listed\)'):
        labelled_images(options(flat, augment='none'), made(4), made(1))
    with pytest.raises(ValueError, match='give a val_dataset beside dataset, or val_fraction=0.1'):
        labelled_images(options(flat, val_fraction=None), made(4))


def test_what_is_refused_says_what_helps(flat, labelled):
    with pytest.raises(ValueError, match=r'a folder .*val of validation images already: leave --val_fraction out'):
        labelled_images(options(labelled))
    with pytest.raises(ValueError, match=r'a folder elsewhere of validation images already'):
        labelled_images(options(flat, val_path='elsewhere'))
    with pytest.raises(ValueError, match=r'One folder with a folder for each class is enough with --val_fraction=0\.1'):
        labelled_images(options(flat, val_fraction=None))
    shutil.move(flat, flat.parent / 'alone/train')
    with pytest.raises(ValueError, match=r'or hold out a part of the training images, --val_fraction=0\.1'):
        labelled_images(options(flat.parent / 'alone', val_fraction=None))


def test_every_program_measures_the_same_images(flat, small, tmp_path, monkeypatch, capsys):
    changes = {'data_path': str(flat), 'val_fraction': 0.25, 'seed': 3}
    held_out = paths(labelled_images(options(flat, seed=3))[1])
    runs = []
    original = ClassifierTraining.describe
    monkeypatch.setattr(ClassifierTraining, 'describe', lambda run: runs.append(run) or original(run))
    folder = fine_tune(small(run_dir=str(tmp_path / 'whole'), **changes))
    assert paths(runs[0].val_images) == held_out and saved(folder)['images'] == 36
    said = capsys.readouterr().out
    assert '36 for training, 12 for validation (held out of the same, --val_fraction=0.25); 12 classes' in said
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stop):
            fine_tune(small(**changes))
    with pytest.raises(ValueError, match='val_fraction was 0.25 and is 0.5 now'):
        fine_tune(small(**{**changes, 'val_fraction': 0.5}))
    assert same(saved(fine_tune(small(**changes)))['model'], saved(folder)['model'])

    file = str(folder / 'your_convnet_1kfinetuned_last.pth')
    found = fine_tune(small(eval=file, **changes))
    assert found['model']['top1'] == pytest.approx(runs[0].last['top1']) and found['model']['images'] == 12
    assert 'was trained' not in capsys.readouterr().err
    fine_tune(small(eval=file, **{**changes, 'seed': 0}))
    assert 'was trained with --val_fraction=0.25 --seed=3: if these are the same images' in capsys.readouterr().err

    predict.main([file, str(flat), '--held_out', '--no_sheet', f'--out={tmp_path}/t.csv', '--workers=0'])
    rows = (tmp_path / 't.csv').read_text().splitlines()[1:]
    assert [row.split(',')[0] for row in rows] == held_out

    features = compute(FeatureOptions(model='your_convnet', input_size=32, random=True, workers=0, **changes), say=print)
    assert features.val_y.tolist() == list(range(12)) and len(features.x) == 36
    assert 'features of 36 training and 12 validation images' in capsys.readouterr().out


def test_predictions_of_held_out_images_need_a_run_that_has_some(labelled, small, tmp_path):
    folder = fine_tune(small(epochs=1, warmup_epochs=0.0))
    with pytest.raises(SystemExit, match='not trained with --val_fraction'):
        predict.main([str(folder), str(labelled / 'train'), '--held_out', '--no_sheet'])
    with pytest.raises(SystemExit) as ended:
        predict.main([str(folder), 'a', 'b', '--held_out', '--no_sheet'])
    assert ended.value.code == 2
