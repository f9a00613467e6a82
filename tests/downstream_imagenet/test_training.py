"""What of a fine-tuning run's options reaches the images, the optimiser and the average of the weights."""
from types import SimpleNamespace

import pytest

from common.images.augmented import CentreCrop, RandomCrop
from common.training.optim import Lamb
from downstream_imagenet.config import recommended
from downstream_imagenet.run import Run
from downstream_imagenet.training import ClassifierTraining
from tests.downstream_imagenet.runs import ALONE

DECAY = 0.25


def training_of(**given):
    """A ClassifierTraining whose network is built, with 12 images that are never read."""
    options = recommended(**{'name': 'run', 'model': 'test_resnet', 'input_size': 32, 'batch_size': 4, 'epochs': 3, 'lr': 0.1,
                             'weight_decay': DECAY, 'workers': 0, 'warmup_epochs': 1.0, **given})
    training = ClassifierTraining(Run(options, ALONE, 12), list(range(12)), [0], ['a', 'b', 'c'])
    training.saved, training.accum, training.unreadable, training.log = None, 1, set(), None
    training.network = training.build_network()
    training.train_dataset, training.val_dataset = training.make_datasets()
    return training


def test_layer_decay_and_weight_decay_reach_the_groups():
    training = training_of(layer_decay=0.5, opt='adamw')
    found = {id(p): group for group in training.build_optimizer().param_groups for p in group['params']}
    trained = {name: p for name, p in training.network.named_parameters() if p.requires_grad}
    assert found.keys() == {id(p) for p in trained.values()}
    for name, p in trained.items():
        assert found[id(p)]['weight_decay'] == (DECAY if p.ndim > 1 else 0), name
    shares = {name: found[id(p)].get('lr_scale', 1.0) for name, p in trained.items()}
    assert shares['cnn.fc.weight'] == 1 > shares['cnn.layer4.0.conv1.weight'] > shares['cnn.conv1.0.weight'] > 0
    flat = {group.get('lr_scale', 1.0) for group in training_of(layer_decay=1.0).build_optimizer().param_groups}
    assert flat == {1.0}


@pytest.mark.parametrize('official', [False, True])
def test_the_kind_of_lamb_and_the_clipping_are_those_of_the_options(official):
    training = training_of(opt='lamb', official_lamb=official, clip_grad=0.3)
    optimizer = training.build_optimizer()
    assert isinstance(optimizer, Lamb) and training.clip_grad() == 0.3
    plain = training_of(opt='lamb', official_lamb=False).build_optimizer()
    assert (optimizer.param_groups[0] == {**plain.param_groups[0], 'params': optimizer.param_groups[0]['params']}) != official


def test_views_have_what_the_options_say():
    training = training_of(crop_scale=(0.3, 0.9), flip=False, augment='none', erase=0.5, crop=0.7, seed=3, read_timeout=7)
    crop, = training.train_dataset.transform.transforms
    assert crop == RandomCrop((32, 32), (0.3, 0.9), False) and training.train_dataset.seed == 3
    assert training.val_dataset.transform == CentreCrop((32, 32), 0.7)
    assert training.train_dataset.timeout == training.val_dataset.timeout == 7
    assert training.train_dataset.erase.probability == 0.5 and training.val_dataset.erase is None
    _, sampler = training_of(repeats=3).make_batches()
    assert sampler.repeats == 3


def test_the_average_takes_the_decay_of_the_step():
    training = training_of(ema=0.9, ema_warmup=1)
    given = []
    training.average = SimpleNamespace(set_decay=given.append)
    training.optimizer = training.build_optimizer()
    for step in (0, 8):
        training.before_step(step)
    assert given == [training.run.ema_decay(0), training.run.ema_decay(8)] and given[0] < given[1] == 0.9
