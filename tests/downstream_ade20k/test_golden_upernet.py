"""The heads, the loss, the windows and the figures against MMSegmentation's numbers, in float64.

The papers whose recipes are here trained MMSegmentation's UPerHead, with an FCNHead of one convolution
beside it. `tests/golden/upernet_mmseg.json` holds what version 1.2.2 computes: with weights by a formula over
their names (`official_value`), on the maps `relu(fill('map.0', ...))` and so on.
"""
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from downstream_ade20k.classes import IGNORE
from downstream_ade20k.confusion import Confusion
from downstream_ade20k.heads import UPerNetHead, auxiliary_head, classifier
from downstream_ade20k.inference import Inference
from downstream_ade20k.segmenter import pixel_loss
from tests.pretrain.official import GOLDEN, fill, official_value
from tests.pretrain.official_a2mim import close

LEVELS = 4
FOLDERS = {'fpn_lateral_blocks': 'lateral_convs', 'fpn_conv_blocks': 'fpn_convs'}
OTHERS = {'classifier.1': 'decode_head.conv_seg', 'auxiliary.0.0': 'auxiliary_head.convs.0.conv',
          'auxiliary.0.1': 'auxiliary_head.convs.0.bn', 'auxiliary.1.1': 'auxiliary_head.conv_seg'}


@pytest.fixture(scope='module')
def want():
    return json.loads((GOLDEN / 'upernet_mmseg.json').read_text())


@pytest.fixture
def heads(want):
    """{'upernet', 'classifier', 'auxiliary'}, without dropout, with the official values."""
    upernet = UPerNetHead(want['widths'], want['channels'])
    heads = nn.ModuleDict({
        'upernet': upernet,
        'classifier': classifier(want['channels'], want['classes'], 0.0),
        'auxiliary': auxiliary_head(want['widths'][2], want['aux_channels'], want['classes'], 0.0),
    }).double()
    state = heads.state_dict()
    heads.load_state_dict({name: official_value(official_name(name), state[name].shape) for name in state})
    return heads


@pytest.fixture
def maps(want):
    shapes = [(want['batch'], width, *size) for width, size in zip(want['widths'], want['sizes'])]
    return [fill(f'map.{level}', shape).relu().requires_grad_() for level, shape in enumerate(shapes)]


def official_name(name):
    """Our name of a parameter or buffer -> MMSegmentation's."""
    module, _, entry = name.rpartition('.')
    if module in OTHERS:
        return f'{OTHERS[module]}.{entry}'
    part, *places = module.removeprefix('upernet.decoder.').split('.')
    if part == 'psp':
        block = f'psp_modules.{places[1]}.1' if places[0] == 'blocks' else 'bottleneck'
    elif part in FOLDERS:  # the smallest map comes first
        block = f'{FOLDERS[part]}.{LEVELS - 2 - int(places[0])}'
    else:
        block = 'fpn_bottleneck'
    return f'decode_head.{block}.{("conv", "bn")[int(places[-1])]}.{entry}'


def drawn(name, shape, number):
    """Integers from 0 to number - 1, a formula over a name."""
    return ((fill(name, shape) / math.sqrt(12) + 0.5) * number).long()


def masks_of(want):
    """(B, H, W) class numbers."""
    masks = drawn('labels', (want['batch'], *want['image']), want['classes'] + 1)
    return torch.where(masks == want['classes'], IGNORE, masks)


def forward(heads, maps):
    """(features, logits, logits of the auxiliary head) of maps."""
    features = heads['upernet'](maps)
    return features, heads['classifier'](features), heads['auxiliary'](maps[2])


def exact_loss(logits, masks):
    """The mean over the pixels that are not ignored, in float64: pixel_loss computes in float32."""
    logits = F.interpolate(logits, masks.shape[1:], mode='bilinear')
    return F.cross_entropy(logits, masks, ignore_index=IGNORE)


def test_parameters_are_the_official_ones(want, heads):
    ours = {official_name(name): list(value.shape) for name, value in heads.state_dict().items()}
    assert ours == want['keys']


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_features_and_logits(want, heads, maps, mode):
    expected = want[mode]
    features, logits, auxiliary = forward(heads.train(mode == 'train'), maps)
    scores = F.interpolate(logits, want['image'], mode='bilinear')
    names = 'features', 'logits', 'scores', 'aux_logits'
    for found, name in zip((features, logits, scores, auxiliary), names):
        close(found, expected[name])
        probe = torch.tensor(expected[name]['probe'], dtype=torch.float64)
        torch.testing.assert_close(found[0, :3, 1, 2], probe, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_losses(want, heads, maps, mode):
    _, logits, auxiliary = forward(heads.train(mode == 'train'), maps)
    masks = masks_of(want)
    for found, weight, name in ((logits, 1.0, 'decode_head'), (auxiliary, 0.4, 'auxiliary_head')):
        over_all = want[mode]['losses_over_all_pixels'][name]
        assert weight * pixel_loss(found, masks).item() == pytest.approx(over_all, rel=1e-6)
        assert weight * exact_loss(found, masks).item() == pytest.approx(want[mode]['losses'][name], rel=1e-9)


def test_gradients_and_running_statistics(want, heads, maps):
    _, logits, auxiliary = forward(heads, maps)
    masks = masks_of(want)
    exact_loss(logits, masks).backward()
    for one, expected in zip(maps, want['map_grad_norm']):
        assert one.grad.norm().item() == pytest.approx(expected, rel=1e-9)
    (0.4 * exact_loss(auxiliary, masks)).backward()
    for name, parameter in heads.named_parameters():
        expected = want['grad_norm'][official_name(name)]
        assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-9), name
    for kind in ('running_mean', 'running_var'):
        buffers = [(name, one) for name, one in heads.named_buffers() if name.endswith(kind)]
        found = {official_name(name): one.sum().item() for name, one in buffers}
        assert found == pytest.approx(want[f'{kind}_sum_after_1'], rel=1e-9, abs=1e-11)


class Convolution:
    """As a network that sees each window alone: a convolution, which pads each of them with zeros."""

    def __init__(self, classes):
        self.weight = fill('slide.weight', (classes, 3, 3, 3))

    def scores(self, images):
        return F.conv2d(images, self.weight, padding=1)


def test_sliding_windows(want):
    expected = want['slide']
    image = fill('slide.image', (1, 3, *expected['size']))
    inference = Inference(tuple(expected['crop']), tuple(expected['stride']))
    found = inference.logits(Convolution(want['classes']), image)
    close(found[None], expected['scores'])
    probe = torch.tensor(expected['scores']['probe'], dtype=torch.float64)
    torch.testing.assert_close(found[:3, 1, 2], probe, rtol=1e-9, atol=1e-11)


def test_figures(want):
    """Of seven classes, of which one is nowhere and one is found alone."""
    expected, truth = want['figures'], masks_of(want)
    found = drawn('prediction', truth.shape, 10)
    found = torch.where(found > 6, truth.clamp(min=0), torch.where(found == 5, 1, found))
    pixels = Confusion(expected['classes'])
    for one, mask in zip(found, truth):
        pixels.add(one, mask)
    for name in ('mIoU', 'mAcc', 'aAcc'):
        assert pixels.metrics()[name] == pytest.approx(100 * expected[name], rel=1e-9)
    for name in ('IoU', 'accuracy'):
        found, fractions = pixels.of_classes()[name], expected[name]
        assert [value is None for value in found] == [value is None for value in fractions]
        percentages = [100 * value for value in fractions if value is not None]
        assert [value for value in found if value is not None] == pytest.approx(percentages, rel=1e-9)
