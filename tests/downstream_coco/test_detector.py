"""The detector: its feature maps, and what of it is trained."""
import pytest
import timm
import torch
from torch import nn

import pretrain.models  # noqa: F401  (registers your_convnet with timm)
from common.networks.create import create_cnn
from common.pyramid import measure
from downstream_coco.checkpoints import build_detector as build
from downstream_coco.config import Options
from downstream_coco.data import CocoImages
from downstream_coco.detector import Detector, Pyramid
from downstream_coco.scenes import Collate, Scenes, WholeView
from tests.downstream_coco.files import files
from tests.downstream_coco.runs import SMALL


@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto', 'efficientnet_b0', 'regnety_002', 'densenet121'])
def test_strides_and_channels_are_measured(name):
    cnn = create_cnn(name)
    if not hasattr(cnn, 'forward_intermediates'):
        pytest.skip(f'timm {timm.__version__} does not give the maps of {name}')
    info = {one['reduction']: one['num_chs'] for one in cnn.feature_info}
    found = {stride: channels for stride, (_, channels) in measure(cnn).items()}
    assert {stride: found[stride] for stride in (4, 8, 16, 32)} == {stride: info[stride] for stride in (4, 8, 16, 32)}
    pyramid = Pyramid(cnn, channels=8)
    assert pyramid.strides == (4, 8, 16, 32)
    assert [tuple(one.shape) for one in pyramid(torch.zeros(2, 3, 64, 96)).values()] == [
        (2, 8, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32)] + [(2, 8, 1, 2)]


@pytest.mark.parametrize('size', [(64, 64), (40, 40), (20, 1333), (66, 66)])
def test_objects_are_pooled_at_the_strides_of_the_maps(size):
    """torchvision would guess them from the first batch, from sizes without padding."""
    detector = Detector(create_cnn('your_convnet'), 3, True, channels=8, head_channels=8, mask_layers=1, rois=8).eval()
    x, _, _ = Collate(32)([(torch.randn(3, *size), {'size': size}, [])])
    detector.roi_heads.score_thresh = 0.0
    assert detector.detect(x, [size], [size])
    for pool in (detector.roi_heads.box_roi_pool, detector.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8]


def test_images_are_padded_as_the_windows_of_a_network_need_it():
    assert Detector(timm.create_model('maxvit_pico_rw_256'), 3, channels=16, head_channels=16).stride == 256
    assert Detector(timm.create_model('resnet18'), 3, channels=16, head_channels=16).stride == 32


def test_networks_without_halving_maps_are_refused():
    class Jump(nn.Module):
        def forward_intermediates(self, x, **_):
            return [nn.functional.avg_pool2d(x, stride) for stride in (4, 16)]
    with pytest.raises(ValueError, match='maps of strides 4, 16'):
        Pyramid(Jump())
    with pytest.raises(ValueError, match='cannot take an image|no forward_intermediates'):
        Pyramid(timm.create_model('visformer_tiny'))
    with pytest.raises(ValueError, match='cannot take an image of 256 x 512 px .*images of one size only'):
        Pyramid(timm.create_model('swinv2_tiny_window8_256'))
    with pytest.raises(ValueError, match='powers of two|no forward_intermediates'):
        Pyramid(timm.create_model('convmixer_768_32'))
    with pytest.raises(ValueError, match='forward_intermediates'):
        Pyramid(nn.Conv2d(3, 8, 3))


@pytest.mark.parametrize(('name', 'heads'), [('resnet18', ('fc',)), ('your_convnet', ('head',)),
                                             ('convnext_atto', ('head.norm', 'head.fc'))])
def test_every_trained_parameter_gets_a_gradient(name, heads, scenes):
    options = Options(**{**SMALL, 'name': 'n', 'model': name})
    detector, _ = build(options, 12, True)
    frozen = {key for key, one in detector.named_parameters() if not one.requires_grad}
    assert frozen == {f'backbone.cnn.{head}.{kind}' for head in heads for kind in ('weight', 'bias')}
    images = Scenes(CocoImages(*files(scenes), keep_empty=True), WholeView(64, 64), options.normalisation)
    for places in ((0, 1), (11, 11)):  # 11: nothing in it
        detector.zero_grad()
        x, targets, _ = Collate(32)([images[0, place] for place in places])
        loss = detector(x, targets)
        loss.backward()
        assert loss.isfinite() and all(one.grad is not None for one in detector.parameters() if one.requires_grad)


def test_frozen_parts_stay(scenes):
    options = Options(**{**SMALL, 'name': 'n', 'freeze': True})
    for changes, moves in (({}, True), ({'frozen_bn': True}, False), ({'freeze': True}, False)):
        options = Options(**{**SMALL, 'name': 'n', **changes})
        detector, _ = build(options, 12, False)
        detector.train()
        before = {name: one.clone() for name, one in detector.backbone.cnn.named_buffers() if 'running' in name}
        assert before
        images = Scenes(CocoImages(*files(scenes), masks=False), WholeView(64, 64), options.normalisation)
        x, targets, _ = Collate(32)([images[0, 0], images[0, 1]])
        detector(x, targets).backward()
        after = dict(detector.backbone.cnn.named_buffers())
        assert any(not torch.equal(after[name], one) for name, one in before.items()) == moves
        trained = any(one.grad is not None for one in detector.backbone.cnn.parameters())
        assert trained == ('freeze' not in changes) and 'masks' not in targets[0]


def test_detected_boxes_are_in_the_pixels_of_the_original():
    detector = Detector.__new__(Detector)
    nn.Module.__init__(detector)
    detector.backbone = lambda images: {}
    detector.rpn = lambda images, features: ([], {})
    detector.roi_heads = lambda features, proposals, sizes: ([{'boxes': torch.tensor([[8.0, 4, 16, 12]])}], {})
    found, = detector.detect(torch.zeros(1, 3, 64, 64), [(48, 64)], [(96, 192)])
    assert found['boxes'].tolist() == [[24, 8, 48, 24]]


def test_boxes_stay_in_full_precision_under_bf16(scenes):
    detector, _ = build(Options(**{**SMALL, 'name': 'n'}), 12, True)
    images = Scenes(CocoImages(*files(scenes)), WholeView(64, 64), Options(**SMALL, name='n').normalisation)
    x, targets, _ = Collate(32)([images[0, 0], images[0, 1]])
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        assert {one.dtype for one in detector.backbone(x).values()} == {torch.float32}
        proposed = detector.rpn.head(list(detector.backbone(x).values()))
        assert all(one.dtype == torch.float32 for part in proposed for one in part)
        assert detector(x, targets).isfinite()
        detector.roi_heads.score_thresh = 0.0
        found = detector.eval().detect(x, [(64, 64)] * 2, [(128, 96), (64, 64)])
    assert found[0]['boxes'].dtype == found[0]['scores'].dtype == found[0]['masks'].dtype == torch.float32
    assert found[0]['boxes'][:, 2].max() <= 96 and found[0]['boxes'][:, 3].max() <= 128 and len(found[0]['boxes'])
