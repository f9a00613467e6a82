"""ConvViT: the numbers of the authors' classifier, and timm's contract for networks."""
import functools
import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath

import tests.small_convvit  # noqa: F401
from common.convvit import ConvBlock, ConvViT
from common.networks.create import create_cnn, without_values
from common.networks.load import load_classifier
from common.training.layer_decay import layers_of, parameter_groups, table
from tests.conftest import ROOT, randomise
from tests.pretrain.official import fill

CASES = ['small', pytest.param('base', marks=pytest.mark.slow)]


# -- the numbers of the authors' classifier ---------------------------------------------------------------------------

def sines(grid, width):
    """The fixed positions of a grid, (1, L, C), rounded to float32."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = (axis.flatten()[:, None] * frequencies for axis in torch.meshgrid(*map(torch.arange, grid), indexing='ij'))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1).float().double()[None]


def official_value(name, shape):
    if name == 'pos_embed':
        return sines((math.isqrt(shape[1]),) * 2, shape[2])
    if len(shape) == 1:
        return (1 if name.endswith('weight') else 0) + 0.1 * fill(name, shape)
    return fill(name, shape) * math.sqrt(2 / math.prod(shape[1:]))


def official_images(batch, grid=(14, 14)):
    def each(patches):
        return patches.repeat_interleave(16, 2).repeat_interleave(16, 3)
    height, width = grid
    images = fill('input', (batch, 3, 16 * height, 16 * width)) * (1 + 0.5 * each(fill('contrast', (batch, 1, *grid))))
    return images + each(fill('brightness', (batch, 3, *grid)))


@functools.cache
def golden(name):
    """(constructor, what the authors' classifier gave, batch)."""
    case = json.loads((ROOT / f'tests/golden/convmae_{name}_224.json').read_text())
    return case['constructor'], case['finetune'], case['batch']


def shape_of(constructor):
    return {'widths': constructor['embed_dim'], 'depths': constructor['depth'], 'heads': constructor['num_heads'],
            'mlp_ratios': constructor['mlp_ratio']}


@functools.cache
def computed(name):
    """(the network with the golden weights, after one backward; its maps; its features; logits; loss)."""
    constructor, tuned, batch = golden(name)
    network = ConvViT(224, **shape_of(constructor), num_classes=tuned['num_classes']).double().eval()
    network.load_state_dict({key: official_value(key, tuple(shape)) for key, shape in tuned['keys'].items()})
    images = official_images(batch)
    with torch.no_grad():
        _, maps = network.forward_intermediates(images)
    logits = network(images)
    loss = F.cross_entropy(logits, torch.tensor(tuned['labels']))
    loss.backward()
    with torch.no_grad():
        tokens = network.forward_features(images)
        pooled = network.forward_head(tokens, pre_logits=True)
    return network, {'stage1': maps[0], 'stage2': maps[1], 'stage3': tokens, 'pooled': pooled}, logits.detach(), loss.item()


def assert_sums(tensor, want):
    assert list(tensor.shape) == want['shape']
    scale = want['abs_sum'] / math.sqrt(tensor.numel())
    assert tensor.sum().item() == pytest.approx(want['sum'], abs=1e-10 * scale)
    assert tensor.abs().sum().item() == pytest.approx(want['abs_sum'], rel=1e-10)
    assert tensor.square().sum().item() == pytest.approx(want['sq_sum'], rel=1e-10)


@pytest.mark.parametrize('name', CASES)
def test_logits_loss_and_gradients_are_the_authors(name):
    _, tuned, _ = golden(name)
    network, features, logits, loss = computed(name)
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == tuned['keys']
    assert sum(p.numel() for p in network.parameters()) == tuned['params']
    for key, want in tuned['features'].items():
        assert_sums(features[key], want)
    assert_sums(logits, tuned['logits'])
    torch.testing.assert_close(logits[:, :4], torch.tensor(tuned['logits_probe']).double(), rtol=1e-6, atol=1e-6)
    assert loss == pytest.approx(tuned['cross_entropy'], rel=1e-10)
    norms = {key: parameter.grad.norm().item() for key, parameter in network.named_parameters()}
    assert norms == pytest.approx(tuned['grad_norm'], rel=1e-10)
    assert math.hypot(*norms.values()) == pytest.approx(tuned['grad_norm_total'], rel=1e-10)


@pytest.mark.parametrize('name', ['small', 'base'])
def test_rates_of_layers_weight_decay_and_drop_path_are_the_authors(name):
    constructor, tuned, _ = golden(name)
    network = without_values(lambda: ConvViT(224, **shape_of(constructor), num_classes=10, drop_path_rate=0.1))
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    found = {names[id(p)]: [group['lr_scale'], group['weight_decay']]
             for group in parameter_groups(network, 0.05, 0.65) for p in group['params']}
    assert found.keys() == tuned['layer_decay_0.65'].keys()
    for key, want in tuned['layer_decay_0.65'].items():
        assert found[key] == pytest.approx(want, rel=1e-12), key
    blocks = [*network.blocks1, *network.blocks2, *network.blocks3]
    for block, want in zip(blocks, tuned['drop_path_0.1'], strict=True):
        rates = [module.drop_prob for module in block.modules() if isinstance(module, DropPath)]
        assert rates == pytest.approx([want] * len(rates)) and (len(rates) > 0) == (want > 0)
    assert "layers (ConvMAE's)" in table(network, 0.65)


def test_other_readings_change_the_numbers():
    """Each of these is a mistake that the golden numbers must see: eps, the form of GELU, the order of the positions."""
    network, _, logits, _ = computed('small')
    images = official_images(golden('small')[2])

    def differs(change):
        other = ConvViT(224, **shape_of(golden('small')[0]), num_classes=10).double().eval()
        other.load_state_dict(network.state_dict())
        change(other)
        with torch.no_grad():
            return (other(images) - logits).abs().max().item() > 1e-9

    def eps_of(block, eps):
        block.norm1.eps = eps

    assert not differs(lambda other: None)
    assert differs(lambda other: eps_of(other.blocks1[0], 1e-6))
    assert differs(lambda other: eps_of(other.blocks3[0], 1e-5))
    assert differs(lambda other: setattr(other.blocks3[0].mlp, 'act', torch.nn.GELU('tanh')))
    assert differs(lambda other: setattr(other.blocks2[0].mlp, 'act', torch.nn.GELU('tanh')))
    columns_first = network.pos_embed.data.unflatten(1, (14, 14)).transpose(1, 2).flatten(1, 2)
    assert differs(lambda other: other.pos_embed.data.copy_(columns_first))


@pytest.mark.parametrize('size, parameters', [('small', 22_327_528), ('base', 85_374_824), ('large', 322_977_384),
                                              ('huge', 680_738_792)])
def test_the_registered_networks_have_the_papers_sizes(size, parameters):
    network = without_values(lambda: create_cnn(f'convvit_{size}'))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(layers_of(network)[0]) == len(list(network.parameters()))


# -- timm's contract --------------------------------------------------------------------------------------------------

def tiny(**given):
    torch.manual_seed(0)
    return randomise(timm.create_model('tiny_convvit', **given)).eval()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_classifier_can_be_made_anew_or_taken_away():
    """timm's own generic checks of a network: by arguments, and by reset_classifier, with the same shapes."""
    images = noise(2, 3, 64, 64)
    for network in (tiny(num_classes=7), tiny(num_classes=0), tiny(num_classes=0, global_pool='')):
        with torch.no_grad():
            made = network(images)
        for num_classes, pool, shape in ((0, None, (2, 96)), (5, None, (2, 5)), (0, '', (2, 16, 96)), (4, '', (2, 16, 4)),
                                         (5, 'avg', (2, 5))):
            if pool is None and network.global_pool == '':
                continue
            network.reset_classifier(num_classes, pool)
            assert network(images).shape == shape and network.num_classes == num_classes
        assert made.shape[0] == 2
    network = tiny(num_classes=7)
    assert network.get_classifier() is network.head and network.num_features == network.head_hidden_size == 96
    with torch.no_grad():
        features = network.forward_features(images)
        torch.testing.assert_close(network.forward_head(features), network(images))
        torch.testing.assert_close(network.head(network.forward_head(features, pre_logits=True)), network(images))
        torch.testing.assert_close(network.forward_head(features, pre_logits=True), network.fc_norm(features.mean(1)))
    for pool in ('max', 'token'):
        with pytest.raises(ValueError, match="global_pool is 'avg' or ''"):
            network.reset_classifier(5, pool)


def test_what_timm_says_of_a_network_is_so():
    cfg = timm.get_pretrained_cfg('convvit_base')
    network = without_values(lambda: timm.create_model('convvit_base'))
    parameters = dict(network.named_parameters())
    assert f'{cfg.classifier}.weight' in parameters and f'{cfg.first_conv}.weight' in parameters
    assert cfg.input_size == (3, 224, 224) and cfg.crop_pct == 0.875 and cfg.interpolation == 'bicubic'
    assert network.grid == (14, 14) and network.pretrained_cfg['num_classes'] == network.num_classes == 1000
    assert set(network.no_weight_decay()) == {'pos_embed'} <= set(parameters)
    with pytest.raises(RuntimeError, match='No pretrained weights'):
        timm.create_model('tiny_convvit', pretrained=True)


def test_every_parameter_has_a_gradient():
    network = tiny(num_classes=7).train()
    network(noise(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_checkpointing_changes_nothing():
    images, gradients = noise(2, 3, 64, 64), []
    for enable in (False, True):
        network = tiny(num_classes=7).train()
        network.set_grad_checkpointing(enable)
        network(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert network.grad_checkpointing
    for one, other in zip(*gradients):
        assert torch.equal(one, other)


def test_features_only():
    network = timm.create_model('tiny_convvit', features_only=True)
    assert network.feature_info.channels() == [32, 48, 96] and network.feature_info.reduction() == [4, 8, 16]
    assert [tuple(one.shape) for one in network(noise(2, 3, 64, 96))] == [(2, 32, 16, 24), (2, 48, 8, 12), (2, 96, 4, 6)]
    network = timm.create_model('tiny_convvit', features_only=True, out_indices=(0, 1))
    assert network.feature_info.channels() == [32, 48]
    assert not any(name.startswith('model.blocks3.') for name, _ in network.named_parameters())
    assert [tuple(one.shape) for one in network(noise(1, 3, 64, 64))] == [(1, 32, 16, 16), (1, 48, 8, 8)]


def test_maps_are_those_behind_the_stages():
    network, images = tiny(), noise(2, 3, 64, 96)
    with torch.no_grad():
        first = network.blocks1(network.patch_embed1(images))
        second = network.blocks2(network.patch_embed2(first))
        last, maps = network.forward_intermediates(images)
        assert torch.equal(maps[0], first) and torch.equal(maps[1], second)
        assert torch.equal(last, network.forward_features(images)) and torch.equal(maps[2].flatten(2).mT, last)
        for indices, wanted in ((None, (0, 1, 2)), (1, (2,)), (2, (1, 2)), ([0], (0,)), ([-1], (2,)), ([0, 2], (0, 2))):
            for stop_early in (False, True):
                found = network.forward_intermediates(images, indices, stop_early=stop_early, intermediates_only=True)
                assert len(found) == len(wanted) and all(torch.equal(one, maps[i]) for one, i in zip(found, wanted))
            after, found = network.forward_intermediates(images, indices, norm=True)
            assert torch.equal(after, last) and len(found) == len(wanted)
    called = []
    network.patch_embed4.register_forward_hook(lambda *_: called.append(1))
    network.forward_intermediates(images, [0, 1], stop_early=True, intermediates_only=True)
    assert not called
    with pytest.raises(ValueError, match='output_fmt is NCHW, not NLC'):
        network.forward_intermediates(images, output_fmt='NLC')
    with pytest.raises((AssertionError, ValueError)):
        network.forward_intermediates(images, [3])


def test_pruning_keeps_what_the_maps_need():
    for indices, wanted in ((1, [2]), ([0, 1], [0, 1]), ([0], [0])):
        network, images = tiny(), noise(1, 3, 64, 64)
        with torch.no_grad():
            before = network.forward_intermediates(images, indices, intermediates_only=True)
            assert network.prune_intermediate_layers(indices) == wanted
            after = network.forward_intermediates(images, indices, stop_early=True, intermediates_only=True)
        assert all(torch.equal(one, other) for one, other in zip(before, after)) and isinstance(network.head, torch.nn.Identity)
        assert len(network.blocks3) == (2 if 2 in wanted else 0) and len(network.blocks2) == (0 if wanted == [0] else 1)
    network.prune_intermediate_layers(1, prune_norm=True, prune_head=False)
    assert isinstance(network.fc_norm, torch.nn.Identity)


# -- sizes ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [(64, 64), (16, 16), (48, 160), (96, 64)])
def test_a_network_takes_images_of_other_sizes(size):
    """Positions are resized in the forward as they are once and for all by set_input_size."""
    network, images = tiny(num_classes=3), noise(2, 3, *size)
    with torch.no_grad():
        logits = network(images)
        positions = F.interpolate(network.pos_embed.mT.unflatten(2, (4, 4)), [side // 16 for side in size], mode='bicubic',
                                  align_corners=False)
        network.set_input_size(size)
        assert network.grid == tuple(side // 16 for side in size)
        assert torch.equal(network.pos_embed, positions.flatten(2).mT) or size == (64, 64)
        torch.testing.assert_close(network(images), logits, rtol=0, atol=0)
    made = timm.create_model('tiny_convvit', img_size=size)
    assert made.grid == network.grid and made.pos_embed.shape == network.pos_embed.shape
    assert network.pos_embed.requires_grad and isinstance(network.pos_embed, torch.nn.Parameter)


def test_positions_have_a_gradient_through_another_size():
    network = tiny(num_classes=3)
    network(noise(1, 3, 96, 32)).square().sum().backward()
    assert network.pos_embed.grad.abs().sum() > 0
    frozen = tiny()
    frozen.pos_embed.requires_grad_(False)
    frozen.set_input_size(96)
    assert not frozen.pos_embed.requires_grad


@pytest.mark.parametrize('shape', [{'widths': (8, 16, 24), 'depths': (2, 1, 1), 'heads': 3, 'mlp_ratios': (2, 1.5, 3)},
                                   {'widths': (16, 16, 16), 'depths': (1, 3, 1), 'heads': 1, 'mlp_ratios': (8, 8, 4)}])
@pytest.mark.parametrize('in_chans', [1, 3, 5])
def test_own_sizes_and_channels(shape, in_chans):
    network = ConvViT((32, 48), **shape, in_chans=in_chans, num_classes=4)
    assert network(noise(2, in_chans, 32, 48)).shape == (2, 4)
    for width, ratio, blocks in zip(shape['widths'], shape['mlp_ratios'], (network.blocks1, network.blocks2, network.blocks3)):
        fc1 = blocks[0].mlp.fc1.weight
        assert fc1.shape[:2] == (round(width * ratio), width)
    assert all(isinstance(block, ConvBlock) for block in (*network.blocks1, *network.blocks2))
    layers, last, _ = layers_of(network)
    assert last == shape['depths'][2] + 1 and layers['blocks2.0.attn.weight'] == 0 and layers['fc_norm.bias'] == last


@pytest.mark.parametrize('given, words', [
    ({'input_size': 100}, 'multiples of 16 pixels, not 100x100'), ({'input_size': (224, 8)}, 'of 16 pixels, not 224x8'),
    ({'input_size': 0}, 'multiples of 16'), ({'widths': (8, 16)}, 'three numbers each'),
    ({'depths': (1, 0, 1)}, 'three numbers each'), ({'widths': (8, 16, 30), 'heads': 4}, 'they are 4 and 30'),
    ({'widths': (8, 16, 30), 'heads': 3}, 'they are 3 and 30'), ({'global_pool': 'token'}, "global_pool is 'avg' or ''")])
def test_what_does_not_fit_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        ConvViT(**{'input_size': 32, 'widths': (8, 8, 16), 'depths': (1, 1, 1), 'heads': 2, **given})


def test_images_that_do_not_fit_are_refused():
    network = tiny()
    for height, width in ((60, 64), (64, 65), (8, 64)):
        with pytest.raises(ValueError, match=f'multiples of 16 pixels, not {height}x{width}'):
            network(noise(1, 3, height, width))
    with pytest.raises(ValueError, match='multiples of 16'):
        network.set_input_size(65)
    with pytest.raises(ValueError, match='cannot be made for images of 40x40'):
        create_cnn('tiny_convvit', input_size=(40, 40))


def test_it_starts_as_the_authors_does():
    torch.manual_seed(0)
    network = ConvViT(64, widths=(64, 64, 256), depths=(1, 1, 1), heads=4, num_classes=500)
    for layer in (network.patch_embed4, network.blocks3[0].attn.qkv, network.blocks3[0].mlp.fc1):
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert layer.weight.abs().max() <= bound and layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert not layer.bias.any()
    weight = network.patch_embed3.proj.weight
    bound = math.sqrt(6 / (256 + 64 * 4))
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for layer in (network.patch_embed1.proj, network.patch_embed2.proj, network.blocks1[0].conv1, network.blocks1[0].attn,
                  network.blocks1[0].mlp.fc2):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert 0 < layer.bias.abs().max() <= bound * (1 + 1e-6)
    for table_ in (network.pos_embed, network.head.weight):
        assert table_.std().item() == pytest.approx(0.02, rel=0.05)


# -- files ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [(64, 64), (96, 96), (32, 96)])
def test_positions_of_a_file_are_resized_for_images_of_another_size(size):
    """Bicubic, corners not aligned, without a filter: what the network does in a forward."""
    source = tiny(num_classes=12)
    state = {key: value for key, value in source.state_dict().items() if not key.startswith(('head.', 'fc_norm.'))}
    network = create_cnn('tiny_convvit', num_classes=12, input_size=size)
    report = str(load_classifier(network, state, 'tiny_convvit', size))
    assert 'missing 4' in report and ('resized from 4x4 patches' in report) == (size != (64, 64))
    if size != (64, 64):
        assert f'the positions are resized from 4x4 patches to {size[0] // 16}x{size[1] // 16}' in report
    with torch.no_grad():
        assert torch.equal(network.pos_embed, source.positions(network.grid))
        torch.testing.assert_close(network.eval().forward_features(noise(1, 3, *size)),
                                   source.forward_features(noise(1, 3, *size)), rtol=0, atol=0)
