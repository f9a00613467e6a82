"""The numbers of the official implementation (tests/golden, computed with it in float64) are reproduced."""
import copy
import json
import math

import pytest
import torch

from common.training.optim import build_optimizer, parameter_groups, set_schedule
from common.training.schedule import learning_rate, weight_decay
from pretrain.masking import patchify, unpatchify
from pretrain.spark import build_spark
from pretrain.spark_method import SparKMethod
from tests.pretrain.official import GOLDEN, fill, official_name, official_value


@pytest.fixture(scope='module', params=['resnet26', 'convnext_tiny'])
def golden(request):
    """The official numbers, a network of the official weights that tests copy, images, and what of them is visible."""
    want = json.loads((GOLDEN / f'spark_{request.param}_96.json').read_text())
    state = {name: official_value(name, shape) for name, shape in want['keys'].items()}
    images = fill('input', (want['batch'], 3, want['input_size'], want['input_size']))
    spark = build_spark(want['model'], input_size=want['input_size'], mask_ratio=want['mask_ratio']).double()
    spark.load_official({'module': state, 'config': {}})
    return want, spark, images, torch.tensor(want['visible'])


def loaded(golden, accelerated=None):
    want, spark, images, visible = golden
    spark = copy.deepcopy(spark)
    spark.accelerated = accelerated
    return spark, want, images, visible


@pytest.mark.parametrize('accelerated', [True, False])
def test_features(golden, accelerated):
    spark, want, images, visible = loaded(golden, accelerated)
    pyramid = spark.train().encode(images, visible)
    assert len(pyramid) == len(want['features']) == 4
    for features, expected in zip(pyramid, want['features']):
        assert list(features.shape) == expected['shape']
        for got, name in ((features.sum(), 'sum'), (features.abs().sum(), 'abs_sum'), (features.square().sum(), 'sq_sum')):
            assert got.item() == pytest.approx(expected[name], rel=1e-9)
        side = features.shape[2] // 3
        seen = torch.zeros(len(images), 9, dtype=torch.bool).scatter(1, visible, True).view(-1, 3, 3)
        seen = seen.repeat_interleave(side, 1).repeat_interleave(side, 2)
        probe = features.permute(0, 2, 3, 1)[seen][:3, :4]
        torch.testing.assert_close(probe, torch.tensor(expected['probe'], dtype=torch.float64), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('accelerated', [True, False])
def test_loss_gradients_and_running_statistics(golden, accelerated):
    spark, want, images, visible = loaded(golden, accelerated)
    loss = spark.train()(images, visible)
    assert loss.item() == pytest.approx(want['loss_train'], rel=1e-9)
    loss.backward()
    norms = {official_name(name): p.grad.norm().item() for name, p in spark.named_parameters() if p.grad is not None}
    assert norms.keys() == want['grad_norm'].keys()
    assert norms == pytest.approx(want['grad_norm'], rel=1e-9, abs=1e-12)
    total = math.sqrt(sum(norm ** 2 for norm in norms.values()))
    assert total == pytest.approx(want['grad_norm_total'], rel=1e-9)
    sums = {official_name(k): v.sum().item() for k, v in spark.state_dict().items() if k.endswith('running_mean')}
    assert {k: sums[k] for k in want['running_mean_sum_after_1']} == pytest.approx(
        want['running_mean_sum_after_1'], rel=1e-9, abs=1e-11)


@pytest.mark.parametrize('accelerated', [True, False])
def test_evaluation_and_reconstruction(golden, accelerated):
    spark, want, images, visible = loaded(golden, accelerated)
    with torch.no_grad():
        assert spark.eval()(images, visible).item() == pytest.approx(want['loss_eval'], rel=1e-9)
        picture = spark.reconstruct(images, visible)
    assert picture.sum().item() == pytest.approx(want['vis']['rec_or_inp_sum'], rel=1e-9)
    assert picture.square().sum().item() == pytest.approx(want['vis']['rec_or_inp_sq_sum'], rel=1e-9)
    seen = spark.is_visible(visible)[..., 0]
    cell_size = spark.encoder.cell_size
    masked = unpatchify(patchify(images, cell_size) * seen[..., None], spark.encoder.grid, cell_size)
    assert masked.sum().item() == pytest.approx(want['vis']['masked_sum'], rel=1e-9)


def test_lamb_steps(golden):
    spark, want, images, visible = loaded(golden)
    steps = want['train_steps']
    for name, p in spark.encoder.cnn.named_parameters():
        p.requires_grad_(name not in spark.encoder.unused)
    groups = parameter_groups(spark.train(), steps['wd'], SparKMethod.no_decay)
    curve = SparKMethod().curve(None)
    optimizer = build_optimizer('lamb', groups, tuple(steps['betas']))
    assert steps['betas'][1] == (0.95 if spark.encoder.norm == 'bn' else 0.999)
    for t, (loss_want, norm_want, expected) in enumerate(zip(steps['loss'], steps['grad_norm'], steps['schedule'])):
        lr = learning_rate(t, steps['max_iters'], steps['warmup_iters'], steps['lr'], curve.start, curve.end)
        wd = weight_decay(t, steps['max_iters'], steps['wd'], steps['wde'])
        assert (lr, wd) == pytest.approx((expected['lr'], expected['wd_decay_group']), rel=1e-12)
        set_schedule(optimizer, lr, wd)
        loss = spark(images, visible)
        assert loss.item() == pytest.approx(loss_want, rel=1e-7)
        spark.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(spark.parameters(), steps['max_grad_norm'])
        assert norm.item() == pytest.approx(norm_want, rel=1e-6)
        optimizer.step()
