"""Detection with networks whose last map has stride 16: a map of stride 32 is pooled from it."""
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import pretrain.models  # noqa: F401  (your_convnet)
import tests.small_convvit  # noqa: F401
from common.networks.create import create_cnn
from common.pyramid import measure
from common.training.layer_decay import parameter_groups
from downstream_coco.checkpoints import build_detector as build
from downstream_coco.data import CocoImages
from downstream_coco.detector import Detector, Pyramid
from downstream_coco.main import train_detector
from downstream_coco.predict import predict
from downstream_coco.scenes import Collate, Scenes, WholeView
from tests.conftest import Stop, randomise, same, stop_after
from tests.downstream_coco.files import files
from tests.downstream_coco.runs import log_of


class ToSixteen(nn.Module):
    """Maps of stride 4, 8 and 16, by convolutions."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2), nn.Conv2d(16, 24, 2, 2)])

    def forward_intermediates(self, x, **_):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


@pytest.mark.parametrize('make', [ToSixteen, lambda: create_cnn('tiny_convvit')], ids=['convolutions', 'ConvViT'])
def test_a_map_of_stride_32_is_pooled_from_one_of_16(make):
    torch.manual_seed(0)
    cnn = make().eval()
    assert list(measure(cnn)) == [4, 8, 16]
    pyramid = Pyramid(cnn, channels=8)
    assert pyramid.strides == (4, 8, 16, 32) and pyramid.is_pooled
    images = torch.randn(2, 3, 64, 96)
    own = cnn.forward_intermediates(images, intermediates_only=True)
    maps = pyramid.maps(images)
    assert all(torch.equal(one, other) for one, other in zip(maps, own)) and len(maps) == 4
    assert torch.equal(maps[3], F.max_pool2d(own[2], 2)) and maps[3].shape == (2, own[2].shape[1], 2, 3)
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert [tuple(one.shape) for one in pyramid(images).values()] == [(2, 8, *size) for size in sizes]


def test_networks_with_a_map_of_stride_32_or_of_8_at_last_are_as_they_were():
    for name, strides in (('test_convnext', (4, 8, 16, 32)), ('your_convnet', (4, 8))):
        pyramid = Pyramid(create_cnn(name), channels=8)
        assert pyramid.strides == strides and not pyramid.is_pooled
        assert len(pyramid.fpn.inner_blocks) == len(strides)


def test_anchors_and_pooled_objects_have_the_strides_of_all_maps():
    detector = Detector(create_cnn('tiny_convvit'), 3, True, channels=8, head_channels=8, mask_layers=1, rois=8).eval()
    assert detector.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    for pool in (detector.roi_heads.box_roi_pool, detector.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert detector.stride == 32
    detector.roi_heads.score_thresh = 0.0
    for size in ((64, 64), (40, 100), (20, 333)):
        x, _, _ = Collate(detector.stride)([(torch.randn(3, *size), {'size': size}, [])])
        assert detector.detect(x, [size], [size])


def test_what_is_trained_has_a_gradient_and_its_rate(small, scenes):
    detector, _ = build(small(model='tiny_convvit'), 12, True)
    frozen = {key for key, one in detector.named_parameters() if not one.requires_grad}
    assert frozen == {f'backbone.cnn.{key}.{kind}' for key in ('fc_norm', 'head') for kind in ('weight', 'bias')}
    images = Scenes(CocoImages(*files(scenes), keep_empty=True), WholeView(64, 64), small().normalisation)
    x, targets, _ = Collate(32)([images[0, 0], images[0, 1]])
    loss = detector(x, targets)
    loss.backward()
    assert loss.isfinite() and all(one.grad is not None for one in detector.parameters() if one.requires_grad)
    cnn = detector.backbone.cnn
    found = {id(p): (group['lr_scale'], group['decays']) for group in parameter_groups(cnn, 0.1, 0.8) for p in group['params']}
    assert found[id(cnn.pos_embed)] == (pytest.approx(0.8 ** 3), False)
    assert found[id(cnn.blocks1[0].attn.weight)] == (pytest.approx(0.8 ** 3), True)
    assert found[id(cnn.blocks3[1].attn.qkv.weight)] == (pytest.approx(0.8), True)


@pytest.mark.slow
def test_a_run_from_pretrained_weights(small, scenes, tmp_path, capsys):
    """With images of many sizes, for which positions are resized in each forward."""
    network = randomise(create_cnn('tiny_convvit'))
    torch.save({key: value for key, value in network.state_dict().items() if not key.startswith(('fc_norm.', 'head.'))},
               tmp_path / 'w.pth')
    folder = train_detector(small(model='tiny_convvit', finetune_from=str(tmp_path / 'w.pth'), epochs=1, input_size=80,
                                  long_side=120, scales=(0.5, 1.0), freeze=True))
    out = capsys.readouterr().out
    assert '16 (96 channels), 32 (96 channels, pooled from the one before), and one pooled from the last' in out
    assert 'missing 4 (fc_norm.weight' in out and 'unused      fc_norm, head' in out
    content = torch.load(folder / 'tiny_convvit_coco_last.pth', weights_only=True)
    kept = {key.removeprefix('backbone.cnn.'): value for key, value in content['model'].items() if '.blocks3.' in key}
    assert same(kept, {key: value for key, value in network.state_dict().items() if key.startswith('blocks3.')})
    found = train_detector(small(model='tiny_convvit', eval=str(folder / 'tiny_convvit_coco_last.pth'), input_size=80,
                                 long_side=120))
    assert found['model']['box_AP'] == log_of(folder)[-1]['box_AP']
    Image.new('RGB', (90, 60), (200, 40, 40)).save(tmp_path / 'red.png')
    predict(folder / 'tiny_convvit_coco_last.pth', [tmp_path / 'red.png'], tmp_path / 'out')
    assert (tmp_path / 'out/predictions.json').is_file()


@pytest.mark.slow
def test_a_run_resumes_to_the_last_bit(small, tmp_path, monkeypatch):
    given = {'model': 'tiny_convvit', 'drop_path': 0.1, 'scales': (0.5, 1.0), 'save_every_steps': 1, 'input_size': 96,
             'long_side': 128}
    whole = train_detector(small(run_dir=str(tmp_path / 'whole'), **given))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 4)
        train_detector(small(**given))
    train_detector(small(**given))
    one, other = (torch.load(folder / 'tiny_convvit_coco_last.pth', weights_only=True) for folder in (whole, tmp_path / 'run'))
    assert all(same(one[key], other[key]) for key in ('model', 'optimizer', 'step', 'best'))
    losses = [line['loss'] for line in log_of(whole) if 'epoch' in line]
    assert len(losses) == 2 and losses[1] < losses[0]
    positions = one['model']['backbone.cnn.pos_embed']
    assert not same(positions, build(small(model='tiny_convvit'), 12, True)[0].backbone.cnn.pos_embed.data)
