"""A run name that was used before, with other options or other images: what is said, before any mask is read."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common.distributed import Ranks
from common.reliability.checkpoint import save
from common.training.recipe import saved_entries
from downstream_ade20k import main
from downstream_ade20k.classes import Classes
from downstream_ade20k.data import listed
from downstream_ade20k.run import Run
from downstream_ade20k.same_run import ENTRIES, refuse_another_run

ALONE = Ranks(0, 1, torch.device('cpu'))


@pytest.fixture
def begun(small):
    """Writes what the checkpoint of a run holds besides tensors; returns the options."""
    def write(**changes):
        options = small(iterations=20, val_every=5, warmup_iterations=6, **changes)
        train, _ = listed(options)
        content = {'version': 1, 'config': options.as_dict(), 'classes': Classes.of_ids(range(4), ()).as_data(),
                   'images': len(train), 'step': 5, 'sums': (0.0, 0.0, 0), 'fingerprint': train.fingerprint(),
                   'model': {}, 'optimizer': {}}
        path = Run.checkpoint_of(options)
        path.parent.mkdir()
        save(path, content)
        return options
    return write


def refuse(options):
    refuse_another_run(options, saved_entries(options, Run.checkpoint_of(options), ALONE, ENTRIES), ALONE)


CHOSEN = {'iterations': None, 'val_every': None, 'warmup_iterations': None, 'batch_size': None, 'lr': None}


@pytest.mark.parametrize(('given', 'message'), [
    ({'head': 'fpn'}, 'head was upernet and is fpn now'),
    ({**CHOSEN, 'iterations': 30, 'val_every': 10}, 'run: val_every was 5 and is 10 now. Give'),
    ({**CHOSEN, 'batch_size': 8}, 'run: batch_size was 4 and is 8 now. Give'),
    ({**CHOSEN, 'iterations': 4}, 'is of a run of 20 iterations, and --iterations=4 is less'),
    ({'model': 'test_resnet'}, r'holds another run \(your_convnet_ade20k_last.pth\): give this one another name')])
def test_other_options_are_refused_before_the_masks_are_read(begun, small, monkeypatch, given, message):
    begun()
    monkeypatch.setattr('downstream_ade20k.data.training_and_validation', None)
    with pytest.raises(ValueError, match=message):
        main.train_segmenter(small(**given))


def test_what_is_not_given_and_more_iterations_are_no_difference(begun, small):
    begun()
    refuse(small(**CHOSEN))
    refuse(small(**{**CHOSEN, 'iterations': 40}))
    refuse(small(model='test_resnet', fresh=True))


def test_other_images_and_other_masks_are_told_before_the_masks_are_judged(begun, small, drawn_masks, tmp_path):
    shutil.copytree(drawn_masks, tmp_path / 'data')
    given = begun(data_path=str(tmp_path / 'data')).as_dict()
    mask = np.random.default_rng(0).choice(np.uint8([0, 1, 200]), (64, 64))  # 200 is no class of the checkpoint
    Image.fromarray(mask).save(tmp_path / 'data/annotations/train/000002.png')
    with pytest.raises(ValueError, match='13 training images or their masks have other names or sizes than then. Give the '
                                         'data of then, another name, or --fresh'):
        main.train_segmenter(small(**given))
    for folder in ('images', 'annotations'):
        for path in (tmp_path / 'data' / folder / 'train').glob('000002.*'):
            path.unlink()
    with pytest.raises(ValueError, match='there were 13 training images, and are 12 now'):
        main.train_segmenter(small(**given))
    refuse(small(**{**given, 'allow_changed_data': True}))


def test_a_run_goes_on_from_an_iteration(small):
    run = Run(small(iterations=20, val_every=5), ALONE, 13)
    assert run.going_on({'step': 7, 'path': 'FILE'}) == ', going on from iteration 7, of FILE'
    assert run.going_on(None) == ''


def test_iterations_that_may_grow_are_not_listed_among_the_differences(small):
    """Nor are they where the evaluations, at other iterations, are fewer than then."""
    then = small(iterations=20, val_every=5)
    now = small(iterations=30, val_every=15)
    classes = Classes.of_ids(range(4), ()).as_data()
    saved = {'config': then.as_dict(), 'path': 'FILE', 'images': 13, 'classes': classes}
    with pytest.raises(ValueError, match='another run: val_every was 5 and is 15 now. Give'):
        Run(now, ALONE, 13).refuse_changes(saved, classes=classes)
