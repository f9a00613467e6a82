"""The network: its levels, its heads, its loss, and scores for images of any size."""
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from common.networks.create import create_cnn
from downstream_ade20k.classes import IGNORE
from downstream_ade20k.segmenter import Backbone, Segmenter, pixel_loss


def a_segmenter(model='test_resnet', **options):
    torch.manual_seed(0)
    return Segmenter(create_cnn(model), 5, head_channels=16, **options)


def a_batch(side=64, number=2):
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(-1, 5, (number, side, side), dtype=torch.int16, generator=generator)
    return torch.randn(number, 3, side, side, generator=generator), masks


@pytest.mark.parametrize('head', ['upernet', 'fpn'])
@pytest.mark.parametrize('model', ['test_resnet', 'test_convnext', 'test_convvit', 'mobilevit_xxs', 'vgg11'])
def test_any_network_is_trained_through_all_that_its_levels_depend_on(model, head):
    network = a_segmenter(model, head=head)
    for parameter in network.parameters():
        if not parameter.any():  # such as the last factors of residual blocks, behind which no gradient would come
            nn.init.normal_(parameter)
    network(*a_batch()).backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert all(parameter.grad.any() for parameter in network.parameters() if parameter.requires_grad)
    frozen = {name for name, _ in network.named_parameters()} - trained
    assert frozen == {f'backbone.{name}' for name in network.unused}
    assert network.backbone.strides == (4, 8, 16, 32)


def test_a_network_that_ends_at_stride_16_gets_a_level_made_by_a_convolution_without_padding():
    backbone = Backbone(create_cnn('test_convvit'))
    maps = backbone(torch.randn(2, 3, 256, 256))
    assert backbone.is_extended and [tuple(one.shape[2:]) for one in maps] == [(64, 64), (32, 32), (16, 16), (7, 7)]
    assert not Backbone(create_cnn('test_resnet')).is_extended


def test_images_of_one_patch_are_scored_by_a_network_that_ends_at_stride_16():
    assert a_segmenter('test_convvit').eval().scores(torch.randn(1, 3, 16, 40)).shape == (1, 5, 16, 40)


class OneMap(nn.Module):
    """A network with maps of one stride alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 32, 32)

    def forward_intermediates(self, x, intermediates_only=True, **options):
        return [self.layer(x)]


def test_a_network_with_one_level_is_refused():
    with pytest.raises(ValueError, match='has maps of stride 32 alone: segmentation needs two strides or more'):
        Backbone(OneMap())


@pytest.mark.parametrize('model', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])
def test_a_network_for_images_of_one_size_is_refused_with_others_to_take(model):
    with pytest.raises(ValueError, match='A network that takes images of one size only.* take a CNN, a hybrid that takes any '
                                         'size, or a ConvViT'):
        Backbone(create_cnn(model))


def test_the_loss_is_the_mean_over_all_pixels_of_which_ignored_ones_count_as_zero():
    logits = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    _, masks = a_batch(32)
    enlarged = interpolate(logits.float(), (32, 32), mode='bilinear')
    log_probabilities = enlarged.log_softmax(1)
    total = sum(-log_probabilities[image, masks[image, y, x], y, x] for image in range(2) for y in range(32)
                for x in range(32) if masks[image, y, x] != IGNORE)
    assert pixel_loss(logits, masks).item() == pytest.approx(total.item() / masks.numel(), rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_parts_and_finite_where_all_is_ignored():
    logits, masks = torch.randn(2, 5, 8, 8), a_batch(32)[1]
    masks[0] = IGNORE
    parts = [pixel_loss(logits[i:i + 1], masks[i:i + 1]) for i in range(2)]
    assert parts[0].item() == 0
    assert pixel_loss(logits, masks).item() == pytest.approx(sum(parts).item() / 2, rel=1e-6)


def test_the_auxiliary_loss_counts_by_its_weight_and_stands_on_the_map_of_stride_16():
    batch = a_batch()
    network = a_segmenter(dropout=0.0, aux_weight=0.4).eval()
    maps = network.backbone(batch[0])
    main = pixel_loss(network.classifier(network.head(maps)), batch[1])
    auxiliary = pixel_loss(network.auxiliary(maps[2]), batch[1])
    assert network(*batch).item() == pytest.approx((main + 0.4 * auxiliary).item(), rel=1e-6)
    assert a_segmenter(aux_weight=0.0).auxiliary is None


def test_scores_are_those_of_the_loss():
    images, masks = a_batch()
    network = a_segmenter(aux_weight=0.0).eval()
    scores = network.scores(images)
    expected = cross_entropy(scores, masks.long(), ignore_index=IGNORE, reduction='sum') / masks.numel()
    assert network(images, masks).item() == pytest.approx(expected.item(), rel=1e-6)


def test_images_of_any_size_are_scored_without_padding_where_the_network_takes_them():
    network = a_segmenter().eval()
    odd = torch.randn(1, 3, 50, 71)
    assert network.backbone.size_step == 1
    maps = network.backbone(odd)
    expected = interpolate(network.classifier(network.head(maps)), (50, 71), mode='bilinear')
    torch.testing.assert_close(network.scores(odd), expected)


@pytest.mark.parametrize(('model', 'step', 'padded'), [('test_convvit', 16, (64, 80)), ('test_resnet', 1, (50, 71)),
                                                        ('maxvit_pico_rw_256', 256, (256, 256))])
def test_networks_that_take_no_odd_sizes_get_padded_images(model, step, padded):
    network = a_segmenter(model).eval()
    assert network.backbone.size_step == step
    assert tuple(side + network.missing(side) for side in (50, 71)) == padded
    with torch.no_grad():
        assert network.scores(torch.randn(1, 3, 50, 71)).shape == (1, 5, 50, 71)


@pytest.mark.parametrize('size', [(1, 1), (5, 200), (33, 20)])
def test_images_smaller_than_the_largest_stride_are_scored(size):
    assert a_segmenter().eval().scores(torch.randn(1, 3, *size)).shape == (1, 5, *size)


def test_norms_on_the_maps_are_there_if_asked_for():
    for head in ('upernet', 'fpn'):
        norms = [sum('LayerNorm' in type(module).__name__ for module in a_segmenter(head=head, map_norm=asked).head.modules())
                 for asked in (False, True)]
        assert norms == [0, 4]


def test_dropout_drops_whole_channels_in_training_alone():
    network = a_segmenter(dropout=0.5)
    features = torch.ones(1, 16, 4, 4)
    dropped = network.classifier[0](features)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0} and (dropped == dropped[..., :1, :1]).all()
    assert (network.eval().classifier[0](features) == features).all()


def test_a_frozen_network_stays_as_it_is_and_only_the_head_is_trained():
    network = a_segmenter(frozen=True).train()
    before = {name: one.clone() for name, one in network.backbone.state_dict().items()}
    network(*a_batch()).backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all((one == before[name]).all() for name, one in network.backbone.state_dict().items())
    assert all(parameter.grad is not None for parameter in network.head.parameters())


def test_frozen_batchnorms_keep_their_statistics():
    network = a_segmenter(frozen_bn=True).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.backbone.cnn.modules())
    network(*a_batch()).backward()
    convolutions = [module for module in network.backbone.cnn.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.weight.grad is not None for module in convolutions)


def test_under_bf16_the_loss_and_the_scores_are_float32():
    network = a_segmenter()
    with torch.autocast('cpu', torch.bfloat16):
        assert network(*a_batch()).dtype == torch.float32
        assert network.eval().scores(a_batch()[0]).dtype == torch.float32


def test_black_beyond_an_image_keeps_the_gradient_of_layernorms_small():
    """With zeros there, the norm is above 1e6: a LayerNorm of zeros has a slope of 1,000."""
    norms = []
    for padding in (-2.0, 0.0):
        network = a_segmenter('test_convnext', map_norm=True)
        images, masks = a_batch()
        images[..., 32:, :], masks[..., 32:, :] = padding, IGNORE
        network(images, masks).backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
    assert norms[0] < 100 and norms[1] > 100 * norms[0]
