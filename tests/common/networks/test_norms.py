"""Norms that see a single value of each channel: found without a trace, and refused by name before anything is lost."""
import copy
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from common.distributed import Ranks
from common.networks import norms
from common.networks.norms import refused, single_valued
from common.sync_batchnorm import CPUSyncBatchNorm, synchronise_batchnorm
from common.training import accumulation
from common.training.accumulation import fit_accumulation
from common.training.run import Run
from downstream_coco.main import train_detector
from downstream_imagenet.main import fine_tune
from pretrain.main import pretrain
from pretrain.plan import GIB, MEMORY_ERROR, Plan, plan, plan_options
from pretrain.spark import build_spark
from pretrain.spark_options import SparKOptions as Options
from tests.conftest import ROOT, flags
from tests.downstream_coco.conftest import scenes  # noqa: F401  (a fixture, as the next ones)
from tests.downstream_coco.conftest import small as small_detection  # noqa: F401
from tests.downstream_imagenet.conftest import labelled  # noqa: F401
from tests.downstream_imagenet.conftest import small as small_tuning  # noqa: F401


class Gated(nn.Module):
    """A convolution whose channels are weighted by a norm after a global pool, as in split attention."""

    def __init__(self, cin, cout, norm):
        super().__init__()
        self.conv, self.bn, self.norm = nn.Conv2d(cin, cout, 3, 2, 1), nn.BatchNorm2d(cout), norm

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return x * self.norm(x.mean((2, 3), keepdim=True)).sigmoid()


def gated(norm=None, **changes):
    """A SparK of a small network of stride 4 whose second level is Gated."""
    cnn = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Gated(8, 16, norm or nn.BatchNorm2d(16)))
    return build_spark(cnn, **{'input_size': (16, 24), 'decoder_width': 16, 'levels': ['0', '1'], **changes})


def bare(norm):
    """Levels of stride 2 and 4: the norm stands after the last of them."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, 2, 1), norm)


def test_a_single_image_is_refused_by_the_name_of_the_norm():
    spark, image = gated(), torch.randn(1, 3, 16, 24)
    visible = spark.draw_visible(1)
    assert spark.single_valued == ('encoder.cnn.1.norm',)
    before = copy.deepcopy(spark.state_dict())
    for call in (spark, spark.encode, spark.predict, spark.reconstruct):
        with pytest.raises(ValueError, match=r'encoder\.cnn\.1\.norm \(BatchNorm2d\) sees .* give two images or more'):
            call(image, visible)
    assert all(torch.equal(value, before[key]) for key, value in spark.state_dict().items())
    assert spark(torch.randn(2, 3, 16, 24)).isfinite()
    spark.encoder.cnn[1].norm.eval()  # takes no statistics of the image
    assert spark(image, visible).isfinite()
    assert spark.eval()(image, visible).isfinite() and spark.reconstruct(image, visible).shape == image.shape


def test_a_last_map_of_one_position_is_refused_if_one_cell_is_visible():
    def build(ratio):
        return build_spark(bare(nn.BatchNorm2d(16)), 8, ratio, decoder_width=16, levels=['1', '3'])
    assert build(0.5).single_valued == () and build(0.5)(torch.randn(1, 3, 8, 8)).isfinite()
    spark = build(0.75)
    assert spark.single_valued == ('encoder.cnn.3', 'densify_norms.0')
    with pytest.raises(ValueError, match=r'encoder\.cnn\.3 \(BatchNorm2d\)'):
        spark(torch.randn(1, 3, 8, 8))
    without = build_spark(bare(nn.Identity()), 8, 0.75, decoder_width=16, levels=['1', '3'])
    with pytest.raises(ValueError, match=r'densify_norms\.0 \(BatchNorm2d\)'):
        without(torch.randn(1, 3, 8, 8))
    assert without(torch.randn(2, 3, 8, 8)).isfinite()


def test_an_instance_norm_of_single_values_is_refused_whatever_the_batch():
    with pytest.raises(ValueError, match=r'"1\.norm" \(InstanceNorm2d\) sees a single value .* give a larger --input_size'):
        gated(nn.InstanceNorm2d(16))
    cnn = bare(nn.InstanceNorm2d(16))
    with pytest.raises(ValueError, match=r'cnn\.3 \(InstanceNorm2d\) sees a single value'):
        build_spark(cnn, 8, 0.75, decoder_width=16, levels=['1', '3'])
    assert build_spark(cnn, 16, decoder_width=16, levels=['1', '3'])(torch.randn(1, 3, 16, 16)).isfinite()


@pytest.mark.parametrize(('norm', 'expected'), [
    (nn.BatchNorm2d(16, track_running_stats=False), True), (nn.GroupNorm(16, 16), True), (nn.GroupNorm(4, 16), False),
    (nn.GroupNorm(1, 16), False)])
def test_norms_without_running_statistics_are_refused_in_both_modes(norm, expected):
    spark, image = gated(norm), torch.randn(1, 3, 16, 24)
    for mode in (True, False):
        spark.train(mode)
        with pytest.raises(ValueError, match=r'cnn\.1\.norm') if expected else nullcontext():
            assert spark(image).isfinite()
        assert spark(torch.randn(2, 3, 16, 24)).isfinite()


def test_a_search_changes_nothing():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.BatchNorm2d(4))
    module[1].eval()
    before, modes = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    image = torch.randn(1, 3, 8, 8)
    seed = torch.get_rng_state()
    assert single_valued(module, lambda: module(image)) == ('4',)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes and torch.equal(torch.get_rng_state(), seed)
    assert not any(part._forward_pre_hooks for part in module.modules())
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
    assert single_valued(head, lambda: head(torch.randn(1, 3, 2, 2))) == ('2',)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs torch's own SyncBatchNorm is used")
def test_shared_statistics_are_of_all_ranks(monkeypatch):
    module = synchronise_batchnorm(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(4)))
    assert type(module[0]) is CPUSyncBatchNorm and refused(module, ['0']) == '0'  # there are no ranks
    for ranks, alone, first in ((1, '0', '0'), (2, None, '1')):  # a BatchNorm1d has no equivalent on the CPU
        monkeypatch.setattr(norms.dist, 'is_initialized', lambda: True)
        monkeypatch.setattr(norms.dist, 'get_world_size', lambda ranks=ranks: ranks)
        assert refused(module, ['0']) == alone and refused(module, ['0', '1']) == first


POOLED = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))


@pytest.mark.parametrize(('batch', 'ranks', 'changes', 'least'), [
    (8, 1, {}, 1), (8, 1, {'accum': 4}, 1), (8, 1, {'accum': 'auto'}, 2), (8, 2, {'accum': 'auto', 'sync_bn': False}, 2),
    (2, 2, {}, 2), (4, 2, {'accum': 2}, 2), (2, 2, {'accum': 'auto'}, 2)])
def test_parts_that_a_norm_can_be_trained_on(batch, ranks, changes, least):
    run = Run(Options(name='x', batch_size=batch, **changes), Ranks(0, ranks, torch.device('cpu')), 100)
    found = run.with_norms(None, POOLED, lambda: POOLED(torch.randn(1, 3, 4, 4)))
    assert found.smallest_part == least and found.parts(None) == run.parts(None)


@pytest.mark.parametrize(('batch', 'ranks', 'changes', 'remedies'), [
    (6, 1, {'accum': 6}, ['--accum=3 or less', 'a larger --bs, 12 or more']), (2, 1, {'accum': 2}, ['--accum=1;', '4 or more']),
    (1, 1, {}, ['give a larger --bs, 2 or more']), (1, 1, {'accum': 'auto'}, ['give a larger --bs, 2 or more']),
    (4, 4, {'sync_bn': False}, ['give fewer processes; or --sync_bn=True; or a larger --bs, 8 or more']),
    (4, 4, {'sync_bn': False, 'accum': 'auto'}, ['fewer processes', '--sync_bn=True', '8 or more']),
    (8, 2, {'sync_bn': False, 'accum': 4}, ['--accum=2 or less', '16 or more'])])
def test_parts_of_one_image_are_refused_with_what_would_work(batch, ranks, changes, remedies):
    run = Run(Options(name='x', batch_size=batch, **changes), Ranks(0, ranks, torch.device('cpu')), 100)
    with pytest.raises(ValueError, match=r'1 \(BatchNorm2d\) sees a single value') as error:
        run.with_norms(None, POOLED, lambda: POOLED(torch.randn(1, 3, 4, 4)))
    assert all(remedy in str(error.value) for remedy in remedies)
    large = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(3))
    assert run.with_norms(None, large, lambda: large(torch.randn(1, 3, 4, 4))) is run


def test_a_run_that_goes_on_is_not_told_to_change_its_batch():
    run = Run(Options(name='x', batch_size=4, accum=4), Ranks(0, 1, torch.device('cpu')), 100)
    with pytest.raises(ValueError, match='give --accum=2 or less$'):
        run.with_norms({'ranks': 1, 'accum': 2}, POOLED, lambda: POOLED(torch.randn(1, 3, 4, 4)))


def test_accumulation_is_not_fitted_to_parts_of_one_image(monkeypatch):
    sizes = []

    def needed(network, example, images, autocast):
        sizes.append(images)
        return images

    monkeypatch.setattr(accumulation, 'needed_on_host', needed)
    monkeypatch.setattr(accumulation, 'free_memory', lambda: 1)

    def fit(share, least):
        sizes.clear()
        return fit_accumulation(nn.Linear(2, 1), lambda n: (torch.randn(n, 2),), share, Ranks(0, 1, torch.device('cpu')),
                                       nullcontext, least)

    assert fit(8, 1) == 8 and sizes == [8, 4, 2, 1]
    with pytest.raises(ValueError, match=r'2 images at a time do not fit .* needs two at a time.*smaller --bs or --input_size'):
        fit(8, 2)
    assert sizes == [8, 4, 2]
    assert fit(1, 2) == 1 and not sizes  # whose norms share their statistics with other ranks


def test_pretraining_is_refused_before_it_begins(tiny, tmp_path):
    changes = {'model': 'skresnet18', 'input_size': 64, 'decoder_width': 32, 'batch_size': 4, 'accum': 4}
    with pytest.raises(ValueError, match=r'encoder\.cnn\.layer1\.0\.conv1\.attn\.bn \(BatchNorm\w*\).*--accum=2 or less'):
        pretrain(tiny(**changes))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('changes', 'name'), [
    ({'model': 'mobilenetv4_conv_small', 'input_size': 64}, r'cnn\.norm_head \(BatchNormAct2d\)'),
    ({'model': 'test_resnet', 'input_size': 32}, r'cnn\.layer4\.0\.bn1 \(BatchNorm2d\)'),  # its last map is 1x1
    ({'freeze': True}, r'norm \(BatchNorm1d\)')])
def test_fine_tuning_is_refused_before_it_begins(small_tuning, tmp_path, changes, name):  # noqa: F811
    with pytest.raises(ValueError, match=name + ' sees a single value.*--accum=2 or less'):
        fine_tune(small_tuning(batch_size=4, accum=4, **changes))
    assert not (tmp_path / 'run').exists()


def test_detection_is_refused_before_it_begins_and_frozen_norms_are_not(small_detection, tmp_path, monkeypatch):  # noqa: F811
    changes = {'model': 'resnest14d', 'batch_size': 1}
    with pytest.raises(ValueError, match=r'backbone\.cnn\.layer1\.0\.conv2\.bn1 \(BatchNorm2d\).*--bs, 2 or more'):
        train_detector(small_detection(**changes))
    assert not (tmp_path / 'run').exists()

    class Begins(Exception):
        pass

    def begin(*arguments):
        raise Begins

    monkeypatch.setattr('downstream_coco.training.DetectorTraining.prepare', begin)
    for more in ({'frozen_bn': True}, {'freeze': True}):
        with pytest.raises(Begins):
            train_detector(small_detection(**changes, **more, run_dir=str(tmp_path / 'frozen'), fresh=True))


@pytest.mark.slow
@pytest.mark.parametrize('sync_bn', [True, False])
def test_one_image_a_rank_is_trained_on_if_ranks_share_their_statistics(tiny, tmp_path, sync_bn):
    options = tiny(model='resnest14d', input_size=64, decoder_width=32, batch_size=2, epochs=1, warmup_epochs=0,
                   sync_bn=sync_bn)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'pretrain.main',
               *flags(options), '--name=two']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode == 0) == sync_bn
    assert ('Finished' in done.stdout) == sync_bn and ('--sync_bn=True' in done.stderr) != sync_bn


def test_a_plan_has_no_parts_of_one_image():
    given = {'model': 'resnest14d', 'input_size': 64, 'decoder_width': 32, 'batch_size': 8, 'gpus': 1, 'precision': 'fp32'}
    found = plan(plan_options(**given))
    assert found.smallest == 2 and found.parts == 1
    tight = plan_options(**given, memory=(found.counts.held(1, False, 8) * (1 + MEMORY_ERROR) + 1) / GIB, reserve=0.0)
    assert Plan(tight, found.counts, None).parts == 8  # room for one image
    with pytest.raises(ValueError, match='2 images at a time, which the norms of this network need, take'):
        Plan(tight, found.counts, None, 2)
    with pytest.raises(ValueError, match='sees a single value.*--accum=4 or less'):
        plan(plan_options(**given, accum=8))
