"""The feature maps of any network, in the three ways that networks have of giving them."""
import pytest
import timm
import torch
import torchvision
from torch import nn

from common.feature_maps import FeatureMapsError, feature_maps, find_taps, pooled_features

IMAGES = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two maps of strides 2 and 4, in whatever container."""

    def __init__(self, pack):
        super().__init__()
        self.first, self.second, self.pack = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 5, 2, 2), pack
        self.ran = 0

    def forward(self, x):
        first = self.first(x)
        second = self.second(first)
        self.ran += 1
        return self.pack(first, second)


@pytest.mark.parametrize('pack', [
    lambda a, b: [a, b], lambda a, b: (a, b), lambda a, b: {'fine': a, 'coarse': b}])
def test_what_a_forward_returns_and_taps_are_the_same_maps(pack):
    network = Two(pack)
    own, tapped = feature_maps(network, IMAGES), feature_maps(network, IMAGES, taps=('first', 'second'))
    assert [tuple(out.shape) for out in own] == [(2, 4, 16, 32), (2, 5, 8, 16)]
    assert all(torch.equal(a, b) for a, b in zip(own, tapped)) and network.ran == 1  # taps end the forward
    assert torch.equal(feature_maps(network, IMAGES, taps=('second', 'first'))[0], own[1])
    assert not any(module._forward_hooks for module in network.modules())


def test_taps_can_be_exported():
    """The forward does not end early then, since torch.export follows no exception."""
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.cnn = Two(lambda a, b: [a, b])

        def forward(self, x):
            return feature_maps(self.cnn, x, taps=('first',))

    network = Tapped()
    program = torch.export.export(network, (IMAGES,))
    assert torch.equal(program.module()(IMAGES)[0], network(IMAGES)[0])


def test_features_of_a_network_without_timms_methods():
    with pytest.raises(FeatureMapsError, match="Two has neither timm's forward_intermediates nor its forward_features"):
        pooled_features(Two(lambda a, b: [a, b]), IMAGES)


def test_timms_contract_is_used_and_stops():
    network = timm.create_model('test_resnet').eval()
    maps = network.forward_intermediates(IMAGES, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(feature_maps(network, IMAGES), maps, strict=True))
    assert len(feature_maps(network, IMAGES, stop=2)) == 2 < len(maps)


@pytest.mark.parametrize('pack', [
    lambda a, b: b.mean((2, 3)), lambda a, b: [a, b.mean((2, 3))], lambda a, b: (a, None)])
def test_what_gives_no_maps_is_told_what_to_do(pack):
    with pytest.raises(FeatureMapsError, match=r'Two gives no feature pyramid.*at its top are first, second'):
        feature_maps(Two(pack), IMAGES)


class Swallowing(Two):
    """Catches all exceptions, as it may."""

    def forward(self, x):
        try:
            return super().forward(x)
        except Exception:
            return None


def test_taps_that_give_no_map_are_named():
    network = Two(lambda a, b: [a, b])
    network.third, network.twice = nn.Linear(1, 1), nn.Sequential(network.first, network.first)
    with pytest.raises(FeatureMapsError, match=r"does not run \['third'\]"):
        feature_maps(network, IMAGES, taps=('first', 'third'))
    flat = torchvision.models.resnet18()
    with pytest.raises(FeatureMapsError, match='fc of ResNet gives no feature map'):
        feature_maps(flat, torch.randn(2, 3, 32, 32), taps=('layer1', 'fc'))
    again = nn.Sequential(relu := nn.ReLU(), relu, nn.Conv2d(3, 3, 1))
    with pytest.raises(FeatureMapsError, match='Sequential runs "0" more than once'):
        feature_maps(again, IMAGES, taps=('0', '2'))
    assert len(feature_maps(Swallowing(network.pack), IMAGES, taps=('first', 'second'))) == 2


def test_taps_are_found():
    resnet = torchvision.models.resnet18()
    assert find_taps(timm.create_model('test_resnet')) is None and find_taps(resnet) is None
    assert find_taps(resnet, 'layer1') == ('layer1',)
    assert find_taps(resnet, ['layer1', 'layer4']) == ('layer1', 'layer4')
    resnet.feature_info = [{'module': 'layer2'}, {'module': 'layer3.1'}]
    assert find_taps(resnet) == ('layer2', 'layer3.1')
    resnet.feature_info = [{'module': 'layer2'}, {'module': 'elsewhere'}]
    assert find_taps(resnet) is None
    for levels, word in ((['layer1', 'nothing'], '"nothing"; at its top are conv1'), ([], 'no submodule ""'),
                         (['layer1', 'layer1'], 'twice')):
        with pytest.raises(FeatureMapsError, match=word):
            find_taps(resnet, levels)
