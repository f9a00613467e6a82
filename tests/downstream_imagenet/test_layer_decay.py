"""Layers, their learning rates, and the optimisers that take them."""
import pytest
import timm
import torch
from torch import nn

import pretrain.models  # noqa: F401  (your_convnet)
from common.training.layer_decay import default_decay, layers_of, parameter_groups, table
from common.training.optim import build_optimizer, set_schedule

# -- layer decay ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'last', 'some'), [
    ('resnet50', 7, {'conv1.weight': 0, 'bn1.bias': 0, 'layer1.2.conv3.weight': 1, 'layer2.1.bn1.weight': 2,
                     'layer2.2.conv1.weight': 3, 'layer3.0.conv1.weight': 4, 'layer3.5.conv1.weight': 5,
                     'layer4.0.downsample.0.weight': 6, 'fc.bias': 7}),
    ('resnet101', 13, {'conv1.weight': 0, 'layer2.3.conv1.weight': 3, 'layer3.2.conv1.weight': 4, 'layer3.3.conv1.weight': 5,
                       'layer3.22.conv1.weight': 11, 'layer4.2.conv1.weight': 12, 'fc.weight': 13}),
    ('resnet200', 18, {'layer2.3.conv1.weight': 2, 'layer2.4.conv1.weight': 3, 'layer2.23.conv1.weight': 7,
                       'layer3.0.conv1.weight': 8, 'layer3.35.conv1.weight': 16, 'layer4.0.conv1.weight': 17, 'fc.weight': 18}),
    ('convnext_small', 13, {'stem.0.weight': 0, 'stages.0.blocks.2.gamma': 1, 'stages.1.downsample.0.weight': 2,
                            'stages.1.blocks.1.norm.weight': 2, 'stages.2.downsample.1.bias': 3, 'stages.2.blocks.2.gamma': 3,
                            'stages.2.blocks.3.gamma': 4, 'stages.2.blocks.26.gamma': 11, 'stages.3.downsample.0.bias': 12,
                            'stages.3.blocks.0.gamma': 12, 'head.norm.weight': 13, 'head.fc.weight': 13}),
    ('convnext_base', 13, {'stages.2.blocks.14.gamma': 7, 'head.fc.bias': 13}),
    ('convnext_tiny', 7, {'stages.2.blocks.8.gamma': 5, 'stages.3.blocks.2.gamma': 6, 'head.fc.bias': 7}),
    ('efficientnet_b0', 17, {'conv_stem.weight': 0, 'blocks.0.0.conv_dw.weight': 1, 'blocks.6.0.conv_pw.weight': 16,
                             'classifier.weight': 17}),
    ('densenet121', 59, {'features.conv0.weight': 0, 'classifier.weight': 59}),
    ('regnety_032', 22, {'stem.conv.weight': 0, 's1.b1.conv1.conv.weight': 1, 'head.fc.weight': 22}),
])
def test_layers(name, last, some):
    cnn = timm.create_model(name)
    layers, found, _ = layers_of(cnn)
    assert found == last and {key: layers[key] for key in some} == some
    assert sorted(layers) == sorted(key for key, _ in cnn.named_parameters()) and set(layers.values()) == set(range(last + 1))


def test_each_parameter_is_in_one_group_with_its_rate():
    for cnn in (timm.create_model('resnet18'), timm.create_model('test_convnext'), timm.create_model('your_convnet')):
        layers, last, _ = layers_of(cnn)
        groups, names = parameter_groups(cnn, 0.05, 0.5), {id(p): name for name, p in cnn.named_parameters()}
        found = {names[id(p)]: group for group in groups for p in group['params']}
        assert sorted(found) == sorted(names.values()) == sorted(names[id(p)] for group in groups for p in group['params'])
        for name, group in found.items():
            assert group['lr_scale'] == 0.5 ** (last - layers[name])
            free = name.endswith(('bias', 'gamma')) or cnn.get_parameter(name).ndim == 1
            assert group['weight_decay'] == (0 if free else 0.05)
    layers, last, rule = layers_of(timm.create_model('your_convnet'))
    assert (layers['stages.0.conv1.weight'], layers['head.weight'], last, rule) == (0, 3, 3, 'the order of its modules')
    assert default_decay(7) == default_decay(3) == 0.7 and default_decay(59) ** 59 == pytest.approx(0.7 ** 7)


def test_rates_of_groups_follow_the_schedule():
    groups = parameter_groups(timm.create_model('your_convnet'), 0.05, 0.5)
    optimizer = build_optimizer('adamw', groups)
    set_schedule(optimizer, 0.8, 0.1)
    assert sorted({group['lr'] for group in optimizer.param_groups}) == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.0, 0.1}


def test_official_lamb_equals_timms_without_correction_and_with_trust_everywhere():
    def problem():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2)).double()
        return net, [{'params': list(net.parameters()), 'weight_decay': 0.1, 'decays': True}]
    (ours, one), (theirs, other) = problem(), problem()
    optimizers = (build_optimizer('lamb', one, official=True), timm.optim.Lamb(
        other, lr=0.0, eps=1e-6, bias_correction=False, max_grad_norm=None, always_adapt=True))
    x, y = torch.randn(16, 5).double(), torch.randn(16, 2).double()
    for _ in range(5):
        for net, optimizer in zip((ours, theirs), optimizers):
            for group in optimizer.param_groups:
                group['lr'] = 0.01
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# -- what went wrong once ---------------------------------------------------------------------------------------------

def test_lars_and_lamb_scale_their_steps_without_weight_decay_too():
    for name, lr, share in (('lars', 0.5, 0.5 * 0.001), ('lamb', 0.01, 0.01)):
        weight = nn.Parameter(torch.randn(4, 6))
        optimizer = build_optimizer(name, [{'params': [weight], 'weight_decay': 0.0, 'decays': True}])
        set_schedule(optimizer, lr, 0.0)
        before, weight.grad = weight.detach().clone(), torch.randn(4, 6)
        optimizer.step()
        assert ((weight - before).norm() / before.norm()).item() == pytest.approx(share, rel=1e-3)


# -- by the stages of a ConvNeXt --------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'last'), [('convnext_tiny', 7), ('convnext_small', 13)])
def test_stages_of_a_convnext_are_layers_as_its_authors_count_them_on_ade20k(name, last):
    cnn = timm.create_model(name, num_classes=1)
    layers, found, rule = layers_of(cnn, by_stages=True)
    some = {'stem.0.weight': 0, 'stem.1.bias': 0, 'stages.1.downsample.0.weight': 0, 'stages.3.downsample.1.bias': 0,
            'stages.0.blocks.0.gamma': 1, 'stages.1.blocks.2.norm.bias': 2, 'stages.2.blocks.8.mlp.fc1.weight': 3,
            'stages.3.blocks.0.conv_dw.weight': 4, 'head.norm.weight': last, 'head.fc.weight': last}
    assert found == last and {key: layers[key] for key in some} == some and rule == "the paper's, by stages"
    assert sorted(layers) == sorted(key for key, _ in cnn.named_parameters())
    shares = {group['lr_scale'] for group in parameter_groups(cnn, 0.05, 0.9, by_stages=True)}
    assert sorted(shares) == pytest.approx([0.9 ** power for power in (last, last - 1, last - 2, last - 3, last - 4, 0)])
    assert 'by stages' in table(cnn, 0.9, by_stages=True) and 'x 0.9000' not in table(cnn, 0.9, by_stages=True)


def test_stages_are_for_convnexts_alone():
    with pytest.raises(ValueError, match='a rule for ConvNeXts, and this network is none: give --layer_decay_by=layers'):
        layers_of(timm.create_model('resnet18'), by_stages=True)
