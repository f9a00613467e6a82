"""The check of networks: what it proves about timm's, and that it can fail."""
import json
import re
import subprocess
import sys
import warnings

import pytest
import timm
import torch
import torchvision
from timm.models.convmixer import ConvMixer
from timm.models.selecsls import SelecSls
from torch import nn
from torch.nn import functional as F

from pretrain.a2mim import build_a2mim
from pretrain.a2mim_check import check_a2mim
from pretrain.check import ZeroPadding, check, main
from pretrain.convmae import build_convmae
from pretrain.mae import build_mae
from pretrain.spark import build_spark
from pretrain.sparse import coverage, on_plane, rules
from pretrain.sparse.compare import VisibleRectangles
from pretrain.sparse.geometry import Geometry
from tests.conftest import ROOT

# Every rule, and every kind of block: SAME padding, scaled and standardised convolutions, blur and padding modules, functional
# pools and pads (hgnet, ghostnet), nearest upsampling, 5-D tensors (SK), channels last, gates.
SPAN = '''
    test_resnet test_byobnet test_convnext test_efficientnet_gn test_efficientnet_evos test_efficientnet_ln
    test_mambaout test_nfnet mobilenetv3_small_050 regnety_002 cs3darknet_focus_s ghostnet_050
    ese_vovnet19b_slim_dw hgnetv2_b0 skresnet18 hrnet_w18_small poolformer_s12 convnextv2_atto
    tf_mobilenetv3_small_minimal_100 resnetblur18 legacy_seresnet18
'''.split()
# CondConv, and what else has its own way of writing what SPAN has too.
MORE = '''
    selecsls42 resnetv2_50x1_bit resnetv2_50d_frn resnetv2_50d_gn vgg11 vgg11_bn densenet121 densenetblur121d dpn48b
    rdnet_tiny repvit_m1 res2next50 rexnet_100 fastvit_t8 xception41 starnet_s050 cspnext_tiny dla46x_c fasternet_t0
    lowformer_e1 hardcorenas_b lcnetv2_small inception_next_atto repghostnet_050 resnet18 resnet50 convnext_zepto_rms
    mobilenetv2_035 mobileone_s1 resnetaa34d convformer_s18 legacy_xception inception_v4 inception_resnet_v2
    tf_efficientnet_cc_b0_4e ghostnetv2_100 ghostnetv3_050 hgnet_tiny focalnet_tiny_srf tresnet_m tf_mixnet_s
    resnest14d gcresnext26ts eca_resnext26ts inception_v3
'''.split()
# Attention over all visible positions: its kinds, and a transformer with a pyramid.
HYBRIDS = 'swiftformer_xs efficientvit_b0 pvt_v2_b0'.split()
MORE_HYBRIDS = 'caformer_s18 fastvit_sa12 swiftformer_s mobilenetv4_hybrid_medium convvit_small'.split()
KNOWN = set(timm.list_models())  # the lowest version lacks some


@pytest.mark.parametrize('name', [*SPAN, *(pytest.param(name, marks=pytest.mark.slow) for name in HYBRIDS)])
def test_network_is_exact(name):
    if name not in KNOWN or not hasattr(timm.create_model(name), 'forward_intermediates'):
        pytest.skip(f'timm {timm.__version__} has no {name}, or no way to its feature maps')
    report = check(name)
    assert report.ok, str(report)
    assert report.worst < 1e-8 or 'computes in float32' in str(report)


@pytest.mark.slow
@pytest.mark.parametrize('name', MORE + MORE_HYBRIDS)
def test_more_networks_are_exact(name):
    test_network_is_exact(name)


# -- networks of one's own --------------------------------------------------------------------------------------------

class Stage(nn.Module):
    """What people write: pads, pools and interpolates in the forward itself."""

    def __init__(self, cin, cout):
        super().__init__()
        self.down, self.norm = nn.Conv2d(cin, cout, 3, stride=2), nn.GroupNorm(2, cout)
        self.conv = nn.Conv2d(cout, cout, 3, padding=1)

    def forward(self, x):
        x = self.down(F.pad(x, (0, 1, 0, 1)))
        low = F.interpolate(self.conv(F.avg_pool2d(x, 2)), scale_factor=2)
        return F.relu(self.norm(self.conv(x) + low)) + F.max_pool2d(x, 3, stride=1, padding=1)


class Own(nn.Module):
    """Stride 4, with an unusual middle and no contract but what its forward returns."""

    def __init__(self, middle=None):
        super().__init__()
        self.stem, self.body, self.middle = Stage(3, 8), Stage(8, 12), middle or nn.Identity()
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        return {'fine': x, 'coarse': self.middle(self.body(x))}


class Classifier(Own):
    feature_info = [{'module': 'stem'}, {'module': 'middle'}]

    def forward(self, x):
        return self.head(super().forward(x)['coarse'].mean((2, 3)))


@pytest.mark.parametrize(('network', 'levels'), [
    (Own, None), (Classifier, None), (Classifier, ['stem', 'middle']), (Classifier, ['middle']),
    pytest.param(torchvision.models.resnet18, ['layer1', 'layer2', 'layer3', 'layer4'], marks=pytest.mark.slow),
    (torchvision.models.resnet18, ['layer1', 'layer3', 'layer4']),  # no stride 8
    (torchvision.models.mobilenet_v3_small, ['features.1', 'features.3', 'features.8', 'features.12']),
])
def test_own_networks_are_exact_and_train(network, levels):
    torch.manual_seed(0)
    report = check(network(), levels=levels)
    assert report.ok, str(report)
    spark = build_spark(network(), 64, decoder_width=32, levels=levels)
    spark(torch.randn(2, 3, 64, 64)).backward()
    assert set(spark.encoder.unused) == {key for key, p in spark.encoder.cnn.named_parameters() if p.grad is None}
    network().load_state_dict(spark.encoder.cnn.state_dict())  # strict
    if network is Classifier and levels == ['middle']:  # a level that is missing is left out of the decoder's sums
        assert spark.encoder.reductions == (4,) and 'no feature map of stride 2' in str(report)


@pytest.mark.parametrize('middle', [
    nn.AvgPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2, 1),
    nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), 0.7), nn.AvgPool2d(3, 2)),
    nn.Sequential(nn.ConstantPad2d(1, -2.0), nn.MaxPool2d(3, 2)), nn.Conv2d(12, 4, (1, 5), padding=(0, 2)),
    nn.Conv2d(12, 12, 3, padding='same', dilation=2, groups=3), nn.Conv2d(12, 4, 3, 2, 1, padding_mode='replicate'),
    nn.ConvTranspose2d(12, 4, 4, 2, 1), nn.PixelUnshuffle(2),
    nn.Sequential(nn.Conv2d(12, 4, 2, 2), nn.PixelShuffle(2), nn.Upsample(scale_factor=1, mode='nearest')),
], ids=str)
def test_windows_of_all_kinds_are_exact(middle):
    report = check(Own(middle))
    assert report.ok, str(report)


def test_an_encoder_of_segmentation_models_is_exact():
    smp = pytest.importorskip('segmentation_models_pytorch', reason='segmentation_models_pytorch is not installed')
    report = check(smp.encoders.get_encoder('resnet18', weights=None))
    assert report.ok and 'strides 4, 8, 16, 32' in str(report), str(report)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['efficientnet_b0', 'convnext_tiny', 'regnet_y_400mf'])
def test_torchvisions_networks_are_exact(name):
    levels = {'regnet_y_400mf': ['stem', *(f'trunk_output.block{i}' for i in (1, 2, 3, 4))],
              'convnext_tiny': [f'features.{i}' for i in (1, 3, 5, 7)],
              'efficientnet_b0': [f'features.{i}' for i in (1, 2, 3, 5, 8)]}[name]
    report = check(getattr(torchvision.models, name)(), levels=levels)
    assert report.ok, str(report)


class Drawing(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x) if self.training else x


def test_what_the_check_cannot_compare_it_says():
    assert 'draws random numbers in training, in its module "middle" (Drawing)' in check(Own(Drawing())).refused
    assert 'meta device' in check(Own().to('meta')).refused
    assert 'cell_size -8' in check(Own(), cell_size=-8).refused and '(64,)' in check(Own(), input_size=(64,)).refused
    report = check('resnetblur18', input_size=(64, 64))
    assert not report.ok and 'three cells each way' in str(report)
    assert check('densenet121', input_size=64).ok  # a rectangle of a single cell
    report = check(Own(nn.Sequential(nn.Conv2d(12, 12, 2, 2), nn.InstanceNorm2d(12))), input_size=16, cell_size=8)
    assert not report.ok and 'ValueError: Expected more than 1 spatial element' in str(report)


class Shift(nn.Module):
    """A column to the right, by a function of its own."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], 3)


class RuledShift(Shift):
    forward = on_plane(Shift.forward)


class Roll(nn.Module):
    """Takes from the other border, which a rectangle has elsewhere than the image: wrong, and equal on strips of all cells."""

    @on_plane
    def forward(self, x):
        return torch.roll(x, 1, 3)


class Steep(nn.Module):
    """A parameter whose gradient is not finite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 6))

    def forward(self, x):
        return x + (self.weight - self.weight).abs().sqrt().sum()


def test_a_rule_of_ones_own_makes_a_layer_exact():
    assert '"middle" (Shift) cuts, joins or runs along the image plane' in check(Own(Shift())).refused
    report = check(Own(RuledShift()))
    assert report.ok, str(report)
    x = torch.randn(1, 12, 4, 4)
    assert torch.equal(RuledShift()(x), Shift()(x))
    compiled = torch.compile(RuledShift(), backend='eager', fullgraph=True)
    assert torch.equal(compiled(x), Shift()(x))


class MeanInside(nn.Module):
    @on_plane
    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True)


class TwoWindows(nn.Module):
    """The second window sees what the first one gave at hidden positions, which the dense network does not have."""

    @on_plane
    def forward(self, x):
        return F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 3, 1, 1)


@pytest.mark.parametrize('odd', [Roll, MeanInside, TwoWindows])
def test_a_rule_that_is_wrong_where_cells_are_hidden_is_refused(odd):
    said = rf'is wrong where cells are hidden \(the first wrong output is that of "middle" \({odd.__name__}\)'
    with pytest.raises(ValueError, match=said):
        build_spark(Own(odd()), input_size=64, decoder_width=32)
    assert re.search(said, check(Own(odd())).refused)


def test_what_cannot_be_copied_or_trained_is_refused():
    def weight_norm():
        with warnings.catch_warnings(action='ignore'):
            network = Own(nn.utils.weight_norm(nn.Conv2d(12, 12, 1)))
        network(torch.ones(1, 3, 16, 16))
        return network

    assert 'cannot be copied' in check(weight_norm()).refused and 'cannot be copied' in check_a2mim(weight_norm()).refused
    with pytest.raises(ValueError, match='Own is frozen: none of its parameters requires a gradient'):
        build_spark(Own().requires_grad_(False), input_size=64, decoder_width=32)


def test_a_module_in_evaluation_mode_trains():
    decoder = {'decoder_width': 32, 'decoder_depth': 1, 'decoder_heads': 4}
    for network in (build_spark(Own().eval(), input_size=64, decoder_width=32), build_a2mim(Own().eval(), input_size=64),
                    build_convmae(timm.create_model('test_convvit').eval(), 128, **decoder),
                    build_mae(timm.create_model('test_vit').eval(), 64, **decoder)):
        assert all(module.training for module in network.modules())


def test_what_is_wrong_is_named():
    report = check(Own(Steep()))
    assert not report.ok and re.search(r'WRONG  \(d\) every parameter .* not middle.weight', str(report))


# -- the check can fail: rules broken on purpose ----------------------------------------------------------------------

def wrong_fill(plane, function, input, *args, **kwargs):
    return plane.run(lambda canvas: function(canvas, *args, **kwargs), input, 0.3)


def counts_hidden(plane, function, input, *args, **kwargs):
    return plane.run(lambda canvas: function(canvas, *args, **kwargs), input)


def on_the_strip(plane, function, *args, **kwargs):
    return function(*args, **kwargs)


def leaks_below(plane, function, input, *args, **kwargs):
    """Hidden positions hold the strip's mean."""
    return plane.run(lambda canvas: function(canvas, *args, **kwargs), input, input.detach().mean().item())


@pytest.mark.parametrize(('function', 'rule', 'network', 'fault'), [
    (F.max_pool2d, wrong_fill, 'test_resnet', '"maxpool" (MaxPool2d)'),
    (F.avg_pool2d, counts_hidden, 'poolformer_s12', '"stages.0.blocks.0.token_mixer.pool" (AvgPool2d)'),
    (torch.conv2d, on_the_strip, 'test_resnet', '"conv1.0" (Conv2d)'),
    (torch.conv2d, leaks_below, 'test_convnext', '"stages.0.blocks.0.conv_dw" (Conv2d)'),
    (F.pad, on_the_strip, 'hgnetv2_b0', '"stem.stem2a.conv" (Conv2d)'),
])
def test_a_broken_rule_is_named(monkeypatch, function, rule, network, fault):
    assert check(network).ok
    monkeypatch.setattr(rules, 'TORCH_RULES', ((function, rule), *rules.TORCH_RULES))
    report = check(network)
    assert not report.ok and fault in str(report), str(report)


def test_a_network_that_remembers_its_image_is_found(monkeypatch):
    """What enters beside the strip: the sum of the hidden pixels."""
    to_strip = Geometry.to_strip

    def leak(self, canvas):
        strip = to_strip(self, canvas)
        hidden = (canvas - self.to_canvas(strip)).sum((1, 2, 3), keepdim=True)
        return strip + hidden if canvas.shape[1] == 3 else strip
    monkeypatch.setattr(Geometry, 'to_strip', leak)
    assert 'WRONG  (c) hidden pixels' in str(check('test_resnet'))


# -- what is refused --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'words'), [
    ('edgenext_xx_small', '"stages.1.blocks.1.pos_embd" (PositionalEncodingFourier) cuts, joins or runs'),
    ('mobilevit_xxs', '"stages.4.1" (MobileVitBlock) interpolates'), ('mobilevitv2_050', '(MobileVitV2Block) interpolates'),
    ('efficientvit_m0', '"stages.0.blocks.0.mixer.m.attn.dws.0.conv" (Conv2d) has a window over a tensor'),
    ('vit_tiny_patch16_224', 'VisionTransformer is a plain transformer'),
    ('mixer_s32_224', "doesn't match model"),
    pytest.param('nextvit_small', 'does not give what it gives on an image of these', marks=pytest.mark.slow),
    pytest.param('visformer_tiny', "doesn't match model", marks=pytest.mark.slow),
    pytest.param('maxvit_rmlp_pico_rw_256', '(PartitionAttentionCl) cannot run on a strip', marks=pytest.mark.slow),
    pytest.param('coat_tiny', "doesn't match model", marks=pytest.mark.slow),
    pytest.param('convmixer_768_32', 'no power of two' if hasattr(ConvMixer, 'forward_intermediates') else 'no feature pyramid',
                 marks=pytest.mark.slow),
])
def test_what_is_no_cnn_is_refused(name, words):
    report = check(name)
    assert not report.ok and words in report.refused, str(report)
    assert '--method=a2mim' in report.refused or name.startswith('convmixer')


def test_ghostnets_choose_their_cells():
    with pytest.raises(ValueError, match=r'64 px \(cells of 64 px, not 32, since its module "blocks.8.0.ghost1".*192 or 256'):
        build_spark('ghostnetv2_100', 224)
    with pytest.raises(ValueError, match='give a larger cell_size'):
        build_spark('ghostnetv2_100', 256, cell_size=32)


@pytest.mark.skipif(not hasattr(SelecSls, 'forward_intermediates'), reason='this timm gives no way to its feature maps')
def test_selecsls_drops_a_level_where_the_image_does_not_fit():
    dropped = build_spark('selecsls42', 224, decoder_width=32).encoder
    assert (dropped.stride, dropped.reductions) == (32, (4, 8, 16, 32)) and 'stride 64 is left out' in str(dropped.notes[0])
    assert build_spark('selecsls42', 128, decoder_width=64).encoder.stride == 64


@pytest.mark.parametrize(('levels', 'word'), [
    (['stem', 'nothing'], 'has no submodule "nothing"; at its top are stem, body'),
    (['stem', 'head'], 'head of Classifier gives'), ([], 'no submodule'), (['middle', 'stem'], 'from large to small'),
])
def test_wrong_levels_are_refused(levels, word):
    with pytest.raises(ValueError, match=word):
        build_spark(Classifier(), 64, levels=levels)
    with pytest.raises(ValueError, match='at its top are conv1, bn1'):
        build_spark(torchvision.models.resnet18(), 64)


# -- the command ------------------------------------------------------------------------------------------------------

def test_command_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(['test_resnet', '--input_size=128,96', '--cell_size=32'])
    out = capsys.readouterr().out
    assert not end.value.code and out.startswith('test_resnet: exact\n') and '4 x 3 in an image of 128 x 96' in out
    with pytest.raises(SystemExit) as end:
        main(['edgenext_xx_small'])
    assert end.value.code == 1 and 'PositionalEncodingFourier' in capsys.readouterr().out
    for wrong, word in ((['resnet5O'], 'resnet50'), (['test_resnet', '--input_size=a'], 'no number'), ([], 'give a model'),
                        (['test_resnet', '--all'], 'give a model')):
        with pytest.raises(SystemExit) as end:
            main(wrong)
        assert end.value.code and word in ''.join(capsys.readouterr())
    done = subprocess.run([sys.executable, '-m', 'pretrain.check', 'your_convnet'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'your_convnet: exact' in done.stdout, done.stderr


@pytest.mark.slow
def test_coverage_is_written_and_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    names = ['resnet50', 'test_resnet', 'convmixer_768_32', 'vit_tiny_patch16_224', 'edgenext_xx_small', 'mixer_s32_224']
    monkeypatch.setattr(coverage, 'TOO_LARGE', 22e6)
    monkeypatch.setattr(coverage, 'DOCS', tmp_path / 'docs')
    coverage.cover(check, 0, names)
    assert '6 networks were not looked at yet' in (tmp_path / 'docs/coverage.md').read_text()
    coverage.cover(check, 2, names)
    page = (tmp_path / 'docs/coverage.md').read_text()
    assert '1 of the 3 convolutional' in page and '| test_resnet | resnet | 0.5 | exact |' in page
    assert '| convmixer_768_32 | convmixer | 21.1 | refused |' in page
    assert '| resnet50 | resnet | 25.6 | as test_resnet |' in page and '| **all** | 3 | 1 |  | 1 | 1 |  |  |' in page
    assert '| edgenext_xx_small | edgenext | 1.3 | refused |  | EdgeNeXt its module "stages.1.blocks.1.pos_embd"' in page
    assert '| vision_transformer | 1 |  |  |  | 1 |  |  |' in page and 'mixer_s32' not in page and 'not looked at' not in page
    records = [json.loads(record) for record in (tmp_path / 'docs/coverage.jsonl').read_text().splitlines()]
    assert {record['name'] for record in records} == set(names)
    assert {record['verdict'] for record in records} == {'exact', 'refused', 'larger', 'left out'}
    capsys.readouterr()
    coverage.cover(check, 1, names)
    assert '0 networks of timm' in capsys.readouterr().out
    assert (tmp_path / 'docs/coverage.md').read_text() == page


def test_reflected_padding_is_zeros_beside_tables_that_are_cut():
    rectangles = VisibleRectangles((4, 4), [(1, 1), (1, 1)], (2, 2))
    maps, table = torch.randn(2, 3, 4, 4), torch.randn(1, 3, 8, 8)
    with ZeroPadding(rectangles):
        padded, total = F.pad(maps, (1, 1, 1, 1), mode='reflect'), maps + table
    assert torch.equal(padded, F.pad(maps, (1, 1, 1, 1)))
    assert torch.equal(total, maps + table[:, :, 2:6, 2:6])
