"""Where the mask token comes in: the rule on timm's networks, what is refused, and that the proof can fail."""
import copy

import pytest
import timm
import torch
from timm.models.selecsls import SelecSls
from torch import nn

from pretrain.dense.encoder import DenseEncoder
from tests.conftest import randomise

# {family: (model, side of the image, expected token_at)}, None where nothing but the proof says what is right.
# The families are those on which the rule was tried, one after another, before it was written.
QUICK = {
    'ResNet': ('resnet18', 64, 'layer3'), 'ResNet-D': ('resnet18d', 64, 'layer3'), 'SE-ResNet': ('seresnet18', 64, 'layer3'),
    'RegNet': ('regnetx_002', 64, 's3'), 'EfficientNet': ('test_efficientnet', 64, None),
    'MobileNetV2': ('mobilenetv2_035', 64, 'blocks.4'), 'MobileNetV3': ('mobilenetv3_small_050', 64, None),
    'MobileNetV4': ('mobilenetv4_conv_small_035', 64, None), 'LCNet': ('lcnet_050', 64, None),
    'GhostNet': ('ghostnet_050', 64, None), 'ConvNeXt': ('test_convnext', 64, 'stages.3.downsample'),
    'ConvNeXt-V2': ('test_convnext3', 64, 'stages.3.downsample'), 'InceptionNeXt': ('inception_next_atto', 64, 'stages.2'),
    'RepGhost': ('repghostnet_050', 64, None), 'StarNet': ('starnet_s050', 64, 'stages.2'),
    'VoVNet': ('ese_vovnet19b_slim_dw', 64, 'stages.2'), 'DLA': ('dla46x_c', 64, 'level4'),
    'EdgeNeXt': ('edgenext_xx_small', 64, 'stages.2'), 'EfficientViT': ('efficientvit_b0', 64, 'stages.2'),
    'MobileViT': ('mobilevit_xxs', 64, None), 'MambaOut': ('mambaout_femto', 64, 'stages.2'),
    'ViT': ('test_vit', 160, 'patch_embed'),
}
SLOW = {
    'SK-ResNet': ('skresnet18', 64, 'layer3'), 'GC-ResNeXt': ('gcresnext26ts', 64, 'stages.2'),
    'Res2Net': ('res2net50_14w_8s', 64, 'layer3'), 'ResNeSt': ('resnest14d', 64, 'layer3'),
    'ResNeXt': ('resnext26ts', 64, 'stages.2'), 'ResNet-V2': ('resnetv2_50', 64, 'stages.2'),
    'NF-ResNet': ('nf_resnet26', 64, 'stages.2'), 'MixNet': ('mixnet_s', 64, None), 'DenseNet': ('densenet121', 64, None),
    'RDNet': ('rdnet_tiny', 64, None), 'DPN': ('dpn48b', 64, None), 'VGG': ('vgg11', 64, None),
    'RepVGG': ('repvgg_a0', 64, 'stages.2'), 'RepViT': ('repvit_m0_9', 64, 'stages.2'),
    'MobileOne': ('mobileone_s0', 64, 'stages.2'), 'FastViT': ('fastvit_t8', 64, 'stages.2'),
    'TResNet': ('tresnet_m', 64, 'body.layer3'), 'CSPNet': ('cspresnet50', 64, 'stages.2'),
    'DarkNet': ('darknet17', 64, None), 'GENet': ('gernet_s', 64, 'stages.2'), 'HGNet': ('hgnetv2_b0', 64, 'stages.2'),
    'ReXNet': ('rexnet_100', 64, None), 'FocalNet': ('focalnet_tiny_srf', 64, 'layers.2'),
    'PoolFormer': ('poolformer_s12', 64, 'stages.2'), 'ConvFormer': ('convformer_s18', 64, 'stages.2'),
    'EfficientFormer': ('efficientformer_l1', 224, 'stages.2'), 'TinyViT': ('tiny_vit_5m_224', 224, 'stages.2'),
    'CoAtNet': ('coatnet_pico_rw_224', 224, 'stages.2'), 'MaxViT': ('maxvit_rmlp_pico_rw_256', 256, 'stages.2'),
    'NextViT': ('nextvit_small', 64, 'stages.2'), 'CAFormer': ('caformer_s18', 64, 'stages.2'),
    'Xception': ('xception41', 64, 'blocks.10'), 'Swin': ('swin_tiny_patch4_window7_224', 224, 'layers.2'),
    'XCiT': ('xcit_nano_12_p16_224', 224, 'patch_embed.proj'), 'Beit': ('beit_base_patch16_224', 224, 'patch_embed'),
}
KNOWN = set(timm.list_models())  # the lowest version lacks some


def assert_fits(model, side, place):
    """The proof once more, in another way: with the token in place of all features, nothing of the image remains."""
    torch.manual_seed(0)
    encoder = DenseEncoder(timm.create_model(model), (side, side), token='replace')
    assert place is None or encoder.token_at == place
    images, others = torch.randn(2, 2, 3, side, side)
    hidden = torch.zeros(2, 1, *encoder.grid)
    hidden[:, :, 0] = 1
    timm.create_model(model).load_state_dict(encoder.cnn.state_dict())  # strict

    encoder.train()(images, hidden).square().mean().backward()
    assert encoder.mask_token.grad is not None
    assert {name for name, p in encoder.cnn.named_parameters() if p.grad is None} == set(encoder.unused)
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())

    randomise(encoder.cnn)
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        encoder(images)  # gives running statistics to the random scales
        encoder.eval()
        ones = torch.ones_like(hidden)
        last = encoder(images, ones)
        assert last.isfinite().all() and torch.equal(last, encoder(others, ones))
        encoder.mask_token.add_(torch.randn_like(encoder.mask_token))
        assert not torch.equal(last, encoder(images, ones))
        assert not torch.equal(encoder(images), encoder(others))
    assert encoder.pyramid(images)[-1].shape[2:] == last.shape[2:] == (side // encoder.stride, side // encoder.stride)


@pytest.mark.parametrize('family', QUICK)
def test_the_rule_fits_a_family(family):
    model, side, place = QUICK[family]
    if model not in KNOWN:
        pytest.skip(f'timm {timm.__version__} has no {model}')
    assert_fits(model, side, place)


@pytest.mark.slow
@pytest.mark.parametrize('family', SLOW)
def test_the_rule_fits_more_families(family):
    model, side, place = SLOW[family]
    if model not in KNOWN:
        pytest.skip(f'timm {timm.__version__} has no {model}')
    assert_fits(model, side, place)


# -- networks that are refused ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(('model', 'size', 'message'), [
    ('hrnet_w18_small', (64, 64), r'HighResolutionNet computes branches .* --token_at=layer1'),
    ('inception_v3', (128, 128), r'last map of InceptionV3 is 2x2 .* pads its convolutions'),  # a share by chance
    pytest.param('inception_v3', (299, 299), 'InceptionV3 is 8x8 .* pads its convolutions', marks=pytest.mark.slow),
    pytest.param('pnasnet5large', (352, 352), 'PNASNet5Large has no submodule with an output of stride 16 .*--token_at=',
                 marks=pytest.mark.slow),
    pytest.param('selecsls42', (224, 224), 'no multiple of 64, the total stride of SelecSls: give 192 or 256',
                 marks=pytest.mark.skipif(not hasattr(SelecSls, 'forward_intermediates'), reason='this timm gives no maps')),
    ('deit_tiny_patch16_224', (96, 96), r'VisionTransformer cannot run on images of 96x96 \(.*\): give another input_size'),
    ('resnet18', (100, 96), 'the height 100 is no multiple of 32, the total stride of ResNet: give 96 or 128'),
    ('resnet18', (32, 32), 'a single cell of 32 px'),
])
def test_networks_and_sizes_that_do_not_fit(model, size, message):
    with pytest.raises(ValueError, match=message):
        DenseEncoder(timm.create_model(model), size)


@pytest.mark.parametrize(('place', 'message'), [
    ('layer5', 'ResNet has no submodule "layer5"; near are layer'),
    ('layer3.0.conv1', '"layer3.0.conv1" of ResNet does not hold all that .* something leads around it; name a submodule'),
    ('fc', '"fc" of ResNet is not run on the way to the last map'),
    ('layer4.1.conv2', 'leads around it'),
])
def test_places_that_do_not_fit(place, message):
    with pytest.raises(ValueError, match=f'token_at: .*{message}'):
        DenseEncoder(timm.create_model('resnet18'), (64, 64), token_at=place)


def test_a_place_in_front_of_the_branches_of_hrnet():
    assert DenseEncoder(timm.create_model('hrnet_w18_small'), (64, 64), token_at='layer1').token_at == 'layer1'


# -- networks of one's own --------------------------------------------------------------------------------------------

class Own(nn.Module):
    """Stride 6: 2, then 3. What `around` computes of the first map leads around the middle."""

    def __init__(self, around=None, times=1, scale=1.0):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.deep, self.norm = nn.Conv2d(8, 12, 3, 3), nn.BatchNorm2d(12)
        self.around, self.times, self.scale = around, times, nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        fine = self.stem(images)
        x = fine
        for _ in range(self.times):
            x = torch.relu_(self.middle(x))
        if self.around is not None:
            x = x + self.scale * self.around(fine)
        return [fine, self.norm(self.deep(x))]


def test_a_stride_that_is_no_power_of_two():
    encoder = DenseEncoder(Own(), (72, 108), token_at='middle')
    assert (encoder.stride, encoder.cell_size, encoder.grid) == (6, 36, (2, 3))
    assert encoder.reductions == (2, 6) and encoder.channels == (8, 12)
    images, hidden = torch.randn(2, 3, 72, 108), torch.tensor([[1.0, 0, 1], [0, 1, 0]]).expand(2, 1, 2, 3)
    assert encoder(images, hidden).shape == (2, 12, 12, 18)
    with pytest.raises(ValueError, match='cell_size 32 is no multiple of 6, the total stride of Own: give 30 or 36'):
        DenseEncoder(Own(), (72, 72), cell_size=32, token_at='middle')
    message = ('the height 96 is no multiple of the cell, 36 px: give 72 or 108, or cell_size 12 or 24 or 48')
    with pytest.raises(ValueError, match=message):
        DenseEncoder(Own(), (96, 96), token_at='middle')


def test_what_leads_around_is_seen_however_faint():
    """A branch that starts at zero is seen as well: scales are random in the proof."""
    for scale in (1.0, 1e-6, 0.0):
        with pytest.raises(ValueError, match='"middle" of Own does not hold all .* something leads around it'):
            DenseEncoder(Own(nn.Conv2d(8, 8, 1), scale=scale), (72, 72), token_at='middle')
    assert DenseEncoder(Own(nn.Conv2d(8, 8, 1)), (72, 72), token_at='stem').token_at == 'stem'


def test_a_submodule_that_is_run_twice_is_refused():
    with pytest.raises(ValueError, match='"middle" of Own is run 2 times in a forward'):
        DenseEncoder(Own(times=2), (72, 72), token_at='middle')


def test_a_refusal_names_a_place_that_would_do():
    """Nothing has half of the stride of 6; the last submodule in front of the last map is named."""
    with pytest.raises(ValueError, match=r'Own has no submodule with an output of stride 3 .* such as --token_at=middle'):
        DenseEncoder(Own(), (72, 72))


def test_a_submodule_without_effect_is_refused():
    class Idle(Own):
        def forward(self, images):
            fine, last = super().forward(images)
            return [fine, 0 * last]

    with pytest.raises(ValueError, match='"middle" of Idle changes nothing in the last map'):
        DenseEncoder(Idle(), (72, 72), token_at='middle')


def test_tokens_in_another_order_are_refused():
    class Sorted(nn.Module):
        """Tokens of an image, by columns if they are transposed."""

        def __init__(self, transposed):
            super().__init__()
            self.embed, self.tokens, self.transposed = nn.Conv2d(3, 8, 16, 16), nn.Identity(), transposed

        def forward(self, images):
            x = self.embed(images)
            x = x.transpose(2, 3) if self.transposed else x
            x = self.tokens(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (4, 4))
            return [x.transpose(2, 3) if self.transposed else x]

    assert DenseEncoder(Sorted(False), (64, 64), token_at='tokens').token_at == 'tokens'
    with pytest.raises(ValueError, match='not in the order of the image, row by row'):
        DenseEncoder(Sorted(True), (64, 64), token_at='tokens')


def test_the_stem_of_a_convolutional_network_is_no_embedding_of_patches():
    """A network that gives its last map alone has maps of one stride, as a ViT has."""
    class LastAlone(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.stage, self.last = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)

        def forward(self, images):
            return [self.last(self.stage(self.stem(images)))]

    assert DenseEncoder(LastAlone(), (64, 64)).token_at == 'stage'


def test_a_network_without_maps_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Linear(8 * 16 * 16, 5))
    with pytest.raises(ValueError, match='forward_intermediates'):
        DenseEncoder(network, (64, 64))


def test_the_norm_in_front_of_the_classifier():
    """It belongs to the last map if the classifier begins with it, and only then."""
    convnext = timm.create_model('test_convnext').eval()
    encoder, images = DenseEncoder(convnext, (64, 64)), torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder(images), convnext.head.norm(convnext.forward_features(images)))
    assert torch.equal(encoder.pyramid(images)[-1], convnext.forward_features(images))
    mlp = timm.create_model('inception_next_atto').eval()  # its classifier has a norm after a linear layer
    assert torch.equal(DenseEncoder(mlp, (64, 64))(images), mlp.forward_features(images))
    mamba = timm.create_model('test_mambaout').eval()  # channels last
    expected = mamba.head.norm(mamba.forward_features(images)).permute(0, 3, 1, 2)
    assert torch.equal(DenseEncoder(mamba, (64, 64))(images), expected)


def test_class_tokens_are_left_out():
    vit = timm.create_model('deit_tiny_distilled_patch16_224', depth=2).eval()
    images = torch.randn(1, 3, 224, 224)
    tokens = vit.forward_features(images)
    assert tokens.shape[1] == 198
    assert torch.equal(DenseEncoder(vit, (224, 224))(images).flatten(2).transpose(1, 2), tokens[:, 2:])


def test_last_convolutions_belong_to_the_last_map():
    encoder = DenseEncoder(timm.create_model('test_efficientnet'), (64, 64))
    assert encoder.width != encoder.channels[-1] and not any('conv_head' in name for name in encoder.unused)
    assert set(copy.deepcopy(encoder).unused) == {'classifier.weight', 'classifier.bias'}
