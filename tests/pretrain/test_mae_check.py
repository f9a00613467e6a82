"""The check of networks for MAE and ConvMAE: what it proves, and that it can fail."""
import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from common.convvit import ConvViT
from pretrain.check import main
from pretrain.convmae import ConvMAE
from pretrain.mae import MAE
from pretrain.mae_check import check_mae
from pretrain.vit_encoder import ViTEncoder

SMALL = {'img_size': 64, 'patch_size': 16, 'embed_dim': 32, 'depth': 2, 'num_heads': 2}


def vit(**changes):
    return VisionTransformer(**{**SMALL, 'num_classes': 3, **changes})


def convvit():
    return ConvViT(64, widths=(8, 12, 16), depths=(1, 1, 2), heads=2, num_classes=3)


NETWORKS = {'mae': vit, 'convmae': convvit}


@pytest.mark.parametrize(('network', 'method'), [
    ('test_vit', 'mae'), ('test_vit3', 'mae'), (vit(global_pool='avg', reg_tokens=2, init_values=1e-5), 'mae'),
    (vit(patch_size=8, drop_path_rate=0.2, proj_drop_rate=0.1), 'mae'), (convvit(), 'convmae'),
    pytest.param('caformer_s18', 'convmae', marks=pytest.mark.slow),
    pytest.param('convvit_small', 'convmae', marks=pytest.mark.slow),
    pytest.param('deit_tiny_distilled_patch16_224', 'mae', marks=pytest.mark.slow),
])
def test_networks_fit(network, method):
    report = check_mae(network, method)
    assert report.ok and len(report.parts) == 6, str(report)
    assert report.worst < 1e-12


def test_the_page_of_a_vision_transformer():
    page = str(check_mae('test_vit2', 'mae', (64, 96), in_chans=4))
    for line in ('test_vit2: fits, with a note\n', 'one a cell, 64 channels, and 1 in front of them', 'strides 16; channels 64',
                 '16 px: 4 x 6 in an image of 64 x 96', 'not pretrained (head)', 'G with 75% hidden (0.2',
                 'fc_norm, normalises each token here', 'ok     (b) the decoder reads the tokens of the network',
                 'pixels not a bit', '148 of 148'):
        assert line in page, page


def test_the_page_of_a_convvit():
    page = str(check_mae(convvit(), 'convmae'))
    for line in ('ConvViT: fits\n', 'one a cell, 16 channels\n', 'strides 4, 8, 16; channels 8, 12, 16',
                 '16 px: 4 x 4 in an image of 64 x 64', 'not pretrained (fc_norm, head)',
                 'ok     (b) the decoder reads the sum of all stages, normalised', 'pixels not a bit'):
        assert line in page, page


@pytest.mark.parametrize(('network', 'method', 'arguments', 'words'), [
    ('resnet18', 'mae', {}, '--method=spark for CNNs'),
    (convvit(), 'mae', {}, '--method=convmae for hybrids'),
    ('test_resnet', 'convmae', {}, 'no attention over all positions'),
    ('test_vit', 'mae', {'input_size': 100}, 'give 96 or 112'),
    (convvit(), 'convmae', {'input_size': 100}, 'multiple'),
    ('test_vit', 'mae', {'input_size': (64,)}, 'a side or'),
    ('test_vit', 'mae', {'input_size': 16}, 'one at least must be visible'),
    ('vit_tinny_patch16_224', 'mae', {}, 'vit_tiny_patch16_224'),
    (vit().to('meta'), 'mae', {}, 'meta device'),
    (vit(in_chans=1), 'mae', {}, 'takes images of 1 channels'),
])
def test_what_does_not_fit_is_said(network, method, arguments, words):
    report = check_mae(network, method, **arguments)
    assert not report.ok and words in report.refused, str(report)


# -- the check can fail -----------------------------------------------------------------------------------------------

class Steep(Block):
    """A block with a parameter whose gradient is not finite."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return super().forward(x) * (1 + (self.weight - self.weight).abs().sqrt().sum())


class InTraining(VisionTransformer):
    """Its own forward is another one in training."""

    def forward_features(self, x):
        return super().forward_features(x) * (1.5 if self.training else 1)


class Unlike(VisionTransformer):
    """Has an entry more when it was built."""

    def set_input_size(self, *arguments, **named):
        super().set_input_size(*arguments, **named)
        self.count = len(getattr(self, 'extra', ()))
        self.register_buffer('extra', torch.zeros(self.count + 1))


@pytest.mark.parametrize(('network', 'words'), [
    (vit(block_fn=Steep), 'not encoder.cnn.blocks.0.weight, encoder.cnn.blocks.1.weight'),
    (InTraining(**SMALL), 'WRONG  (a) with all cells visible it is the plain network'),
    (InTraining(**SMALL), 'WRONG  (b) the decoder reads the tokens of the network'),
    (Unlike(**SMALL), "WRONG  (f) the keys are the network's own"),
])
def test_what_is_wrong_with_a_network_is_named(network, words):
    report = check_mae(network, 'mae')
    assert not report.ok and words in str(report), str(report)


@pytest.mark.parametrize(('method', 'kind'), [('mae', MAE), ('convmae', ConvMAE)])
def test_hidden_pixels_that_enter_are_found(monkeypatch, method, kind):
    latent = kind.latent
    monkeypatch.setattr(kind, 'latent', lambda self, images, visible: latent(self, images, visible) + 1e-9 * images.mean())
    report = check_mae(NETWORKS[method](), method)
    assert 'WRONG  (c) hidden pixels' in str(report) and 'ok     (d)' in str(report)


def test_tokens_that_depend_on_the_order_are_found(monkeypatch):
    visible_tokens = ViTEncoder.visible_tokens

    def in_order(self, cnn, images, geometry):
        tokens = visible_tokens(self, cnn, images, geometry)
        if tokens.shape[1] == 1 + 16:  # all cells: what the proof and the other questions look at
            return tokens
        return tokens * torch.arange(1, 1 + tokens.shape[1]).to(tokens)[None, :, None]

    monkeypatch.setattr(ViTEncoder, 'visible_tokens', in_order)
    assert 'WRONG  (c) hidden pixels, and the order of cells' in str(check_mae(vit(), 'mae'))


def test_a_sum_behind_the_norm_is_found(monkeypatch):
    def latent(self, images, visible):
        *earlier, last = self.encoder(images, self.geometry(images, visible))
        latent = self.norm(last.flatten(2).transpose(1, 2))
        for name, strip in zip(self.fusions, earlier):
            latent = latent + self.get_submodule(name)(strip).flatten(2).transpose(1, 2)
        return latent

    monkeypatch.setattr(ConvMAE, 'latent', latent)
    report = check_mae(convvit(), 'convmae')
    assert 'WRONG  (b) the decoder reads the sum of all stages' in str(report) and 'ok     (a)' in str(report)


# -- the command ------------------------------------------------------------------------------------------------------

def test_command_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(['test_vit', '--method=mae', '--input_size=64,96'])
    assert not end.value.code and '4 x 6 in an image of 64 x 96' in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(['test_resnet', '--method=convmae'])
    assert end.value.code == 1 and '--method=spark' in capsys.readouterr().out
    for wrong, word in ((['--method=mae', '--token_at=blocks'], '--token_at is of --method=a2mim'),
                        (['--method=convmae', '--levels=layer1'], '--levels and --all are of --method=spark'),
                        (['--method=mae', '--cell_size=32'], 'a cell of --method=mae is one token')):
        with pytest.raises(SystemExit) as end:
            main(['test_vit', *wrong])
        assert end.value.code == 2 and word in ''.join(capsys.readouterr())
