"""Networks by name, and what is said of those that do not fit."""
import pytest
import timm
import torch
from timm.models import register_model
from torch import nn
from torchvision.models import convnext_tiny

from common.networks.create import create_cnn, drop_path_of, warn_of_normalisation
from downstream_imagenet.classifier import build_classifier
from downstream_imagenet.config import recommended

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5,) * 3, (0.5,) * 3


def net_without_keywords(pretrained=False):
    return nn.Conv2d(3, 4, 3)


def net_of_ten_classes(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, num_classes=10,
                       in_chans=3):
    return nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@pytest.fixture(scope='module')
def own():
    """Networks of a user, registered with timm, which does not forget them."""
    for function in (net_without_keywords, net_of_ten_classes):
        if not timm.is_model(function.__name__):
            register_model(function)


def test_a_function_that_takes_no_keywords_is_named(own):
    with pytest.raises(ValueError, match=r'registered as net_without_keywords .* must have \*\*kwargs, among them in_chans'):
        create_cnn('net_without_keywords')


def test_a_network_that_is_no_classifier_of_so_many_classes_is_refused(own):
    options = recommended(name='n', model='net_of_ten_classes', input_size=32)
    assert build_classifier(options, 10).logits(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match=r'net_of_ten_classes gives \(1, 10\) for an image, not the 7 numbers of a classifier'):
        build_classifier(options, 7)


def test_a_drop_path_of_0_is_none_for_every_network(own):
    torch.manual_seed(0)
    network = create_cnn('net_of_ten_classes').state_dict()
    torch.manual_seed(0)
    same = create_cnn('net_of_ten_classes', drop_path=0.0).state_dict()
    assert all(torch.equal(same[key], value) for key, value in network.items())
    with pytest.raises(ValueError, match='net_of_ten_classes has no drop path'):
        create_cnn('net_of_ten_classes', drop_path=0.1)
    with torch.device('meta'):
        assert drop_path_of(create_cnn('convnext_atto', drop_path=0.1)) == 'up to 0.1'
        assert drop_path_of(convnext_tiny(stochastic_depth_prob=0.3)) == 'up to 0.3'


def test_weights_for_images_that_are_normalised_in_another_way_are_warned_of(own):
    assert warn_of_normalisation('resnet50', IMAGENET) is None
    assert warn_of_normalisation('resnetv2_50x1_bit', HALVES) is None
    said = warn_of_normalisation('resnetv2_50x1_bit', IMAGENET)
    assert said.endswith('give --mean=0.5,0.5,0.5 --std=0.5,0.5,0.5')
    assert warn_of_normalisation('resnetv2_50x1_bit', ((0.5,), (0.5,))) is None  # of other images
    assert warn_of_normalisation('net_of_ten_classes', HALVES) is None  # timm has no weights of it
