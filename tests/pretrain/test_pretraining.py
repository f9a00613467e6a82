"""What of a pretraining run's options reaches the images, the masks and the optimiser."""
from types import SimpleNamespace

import pytest
import torch

from common.images.augmented import CentreCrop, RandomCrop
from pretrain.methods import METHODS, recommended
from pretrain.pretraining import Pretraining, Run
from pretrain.spark import build_spark
from tests.common.runs import ALONE

SPARK = METHODS['spark']


def pretraining(options, images=(), **attributes):
    run = Pretraining(Run(options, ALONE, 40, curve=SPARK.curve(None)), images, None, SPARK)
    run.accum = 1
    for name, value in attributes.items():
        setattr(run, name, value)
    return run


def test_each_step_has_masks_of_its_own(tiny):
    run = pretraining(tiny(), network=build_spark('your_convnet', 32, decoder_width=16))
    assert len({tuple(run.draw_masks(step).flatten().tolist()) for step in range(5)}) == 5


def test_views_have_what_the_options_say(tiny):
    options = tiny(crop_scale=(0.3, 0.9), flip=False, interpolation='bilinear', seed=3, read_timeout=7)
    train, held_out = pretraining(options, [1], network=SimpleNamespace(input_size=(32, 48))).make_datasets()
    assert train.transform == RandomCrop((32, 48), (0.3, 0.9), False, 'bilinear') and train.seed == 3
    assert held_out.transform == CentreCrop((32, 48), interpolation='bilinear')
    assert train.timeout == held_out.timeout == 7


def test_beta2_is_that_of_the_kind_of_norm_unless_it_is_given(tiny):
    def betas(norm, **given):
        return SPARK.betas(SimpleNamespace(encoder=SimpleNamespace(norm=norm)), tiny(**given))

    assert betas('bn') == (0.9, 0.95) and betas('ln') == (0.9, 0.999) and betas('bn', beta2=0.5) == (0.9, 0.5)
    run = pretraining(tiny(beta2=0.8), network=build_spark('your_convnet', 32, decoder_width=16))
    assert {group['betas'] for group in run.build_optimizer().param_groups} == {(0.9, 0.8)}


@pytest.mark.parametrize(('method', 'model', 'given'), [
    ('spark', 'your_convnet', {'decoder_width': 32}), ('a2mim', 'your_convnet', {}),
    ('mae', 'test_vit', {'decoder_width': 32, 'decoder_depth': 1, 'decoder_heads': 4})])
def test_recompute_reaches_the_network(method, model, given):
    options = recommended(name='n', method=method, model=model, input_size=64, recompute='all', **given)
    assert METHODS[method].build(options).recomputed == 'all'


def test_noise_is_of_its_step(tiny, monkeypatch):
    """Drop path and dropout draw from the global generator, which each step seeds."""
    from common.training import trainer
    from pretrain.main import pretrain
    seeds, step = [], trainer.train_step

    def seen(*arguments):
        seeds.append(torch.initial_seed())
        return step(*arguments)

    monkeypatch.setattr(trainer, 'train_step', seen)
    pretrain(tiny(epochs=2))
    assert len(set(seeds)) == len(seeds) > 5
