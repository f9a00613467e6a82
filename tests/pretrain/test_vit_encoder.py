"""The encoder of MAE gives the tokens of timm's own forward, of visible patches alone, and refuses other networks."""
import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from common.networks.create import create_cnn
from pretrain import masking
from pretrain.sparse.compare import VisibleRectangles, relative_error
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.proof import randomise_scales
from pretrain.vit_encoder import ViTEncoder

SMALL = {'patch_size': 16, 'embed_dim': 32, 'depth': 2, 'num_heads': 2}


def vit(size=(64, 96), **changes):
    torch.manual_seed(0)
    return VisionTransformer(img_size=size, **{**SMALL, **changes})


def exact(cnn, size=(64, 96), in_chans=3):
    """An encoder in float64 and evaluation mode, with random scales."""
    encoder = ViTEncoder(cnn, size, in_chans)
    with torch.no_grad():
        randomise_scales(cnn)
    return encoder.double().eval()


def images_for(encoder, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, encoder.in_chans, *encoder.input_size, dtype=torch.float64)


def masked(encoder, visible):
    return Geometry(visible, encoder.grid)


KINDS = {
    'class token': {},
    'fixed positions': {'weight_init': 'moco'},
    'registers': {'reg_tokens': 3, 'init_values': 1e-5},
    'positions of patches alone': {'no_embed_class': True, 'reg_tokens': 1},
    'norm in front': {'pre_norm': True},
    'mean': {'class_token': False, 'global_pool': 'avg'},
    'mean with one norm after the blocks': {'global_pool': 'avg', 'fc_norm': False},
    'pooled by attention': {'class_token': False, 'global_pool': 'map'},
    'any size': {'dynamic_img_size': True},
    'no last norm': {'final_norm': False},
    'patches of 8 px': {'patch_size': 8},
}


@pytest.mark.parametrize('kind', KINDS)
def test_all_patches_give_the_networks_own_tokens(kind):
    encoder = exact(vit(**KINDS[kind]))
    images = images_for(encoder)
    order = VisibleRectangles(encoder.grid, [(0, 0)] * 2, encoder.grid).geometry
    prefix, sorted_back = encoder.num_prefix_tokens, order.visible.argsort(1)[..., None]
    tokens = encoder(images, order)
    patches = tokens[:, prefix:].gather(1, sorted_back.expand(-1, -1, 32))
    own = encoder.cnn.forward_features(images)
    if kind == 'mean':
        assert isinstance(encoder.cnn.norm, nn.Identity) and encoder.notes
        own = encoder.cnn.fc_norm(own)
    assert relative_error([torch.cat([tokens[:, :prefix], patches], 1)], [own]) < 1e-12
    h, w = encoder.grid
    assert torch.equal(encoder(images), own)
    assert torch.equal(encoder.pyramid(images)[0], own[:, prefix:].transpose(1, 2).reshape(2, 32, h, w))


@pytest.mark.parametrize(('name', 'size'), [
    ('test_vit', (160, 64)), ('test_vit2', (96, 96)), ('test_vit3', (160, 160)), ('test_vit4', (64, 64)),
    pytest.param('deit_tiny_distilled_patch16_224', (96, 64), marks=pytest.mark.slow),
    pytest.param('vit_base_patch14_dinov2', (56, 84), marks=pytest.mark.slow),
    pytest.param('vit_base_patch16_clip_224', (64, 32), marks=pytest.mark.slow),
])
def test_networks_by_name(name, size):
    encoder = exact(create_cnn(name, input_size=size), size)
    images = images_for(encoder)
    tokens = encoder(images, masked(encoder, torch.arange(encoder.grid[0] * encoder.grid[1]).expand(2, -1)))
    own = encoder.cnn.forward_features(images)
    assert relative_error([tokens], [encoder.cnn.fc_norm(own) if encoder.notes else own]) < 1e-12


def test_hidden_patches_change_nothing_and_visible_ones_do():
    encoder = exact(vit(reg_tokens=1))
    images, visible = images_for(encoder), masking.draw_visible(2, 24, 6)
    shown = masking.is_visible(visible, 24)[..., None]
    other = masking.unpatchify(masking.patchify(images, 16).where(shown, torch.tensor(float('nan')).double()), encoder.grid, 16)
    tokens = encoder(images, masked(encoder, visible))
    assert tokens.shape == (2, 2 + 6, 32)
    assert torch.equal(encoder(other, masked(encoder, visible)), tokens)
    strip, = encoder.pyramid(images, masked(encoder, visible))
    assert torch.equal(strip, tokens[:, 2:].transpose(1, 2)[..., None])
    assert not torch.equal(encoder(images + 0.1, masked(encoder, visible)), tokens)


def test_the_order_of_the_visible_patches_is_that_of_the_tokens():
    encoder = exact(vit())
    images, visible, order = images_for(encoder), masking.draw_visible(2, 24, 6), torch.randperm(6)
    tokens = encoder(images, masked(encoder, visible))
    shuffled = encoder(images, masked(encoder, visible[:, order]))
    assert relative_error([shuffled[:, 1:]], [tokens[:, 1:][:, order]]) < 1e-12
    assert relative_error([shuffled[:, :1]], [tokens[:, :1]]) < 1e-12


def test_attention_is_over_visible_patches_alone():
    """The tokens are those of an image that consists of the visible patches, if positions are as there."""
    encoder, visible = exact(vit((64, 64)), (64, 64)), torch.tensor([[1, 2, 5, 6], [8, 9, 12, 13]])
    small = copy.deepcopy(encoder.cnn)
    images, corners = images_for(encoder), ((0, 16), (32, 0))
    tokens = encoder(images, masked(encoder, visible))
    for image, cells, (top, left), found in zip(images, visible, corners, tokens):
        small.patch_embed.set_input_size((32, 32))
        small.pos_embed = nn.Parameter(encoder.cnn.pos_embed[:, [0, *(cells + 1).tolist()]])
        own = small.forward_features(image[None, :, top:top + 32, left:left + 32])
        assert relative_error([found[None]], [own]) < 1e-12


def test_what_is_trained():
    encoder = ViTEncoder(vit(), (64, 96))
    assert set(encoder.unused) == {'head.weight', 'head.bias'} and encoder.left_out() == {'head': 33_000}
    assert encoder.grid == (4, 6) and encoder.reductions == (encoder.stride,) == (16,) and encoder.channels == (32,)
    encoder(torch.randn(2, 3, 64, 96), masked(encoder, masking.draw_visible(2, 24, 6))).sigmoid().sum().backward()
    assert {name for name, p in encoder.cnn.named_parameters() if p.grad is None} == set(encoder.unused)


def test_the_network_stays_as_it_was():
    cnn = vit(drop_path_rate=0.1)
    before, state = {key: value.clone() for key, value in cnn.state_dict().items()}, torch.get_rng_state()
    ViTEncoder(cnn, (64, 96))
    assert torch.equal(torch.get_rng_state(), state) and cnn.training
    assert before.keys() == cnn.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in cnn.state_dict().items())


def test_timms_checkpointing_gives_the_same_gradients():
    encoder = exact(vit()).train()
    images, geometry, found = images_for(encoder), masked(encoder, masking.draw_visible(2, 24, 6)), []
    for recomputes in (False, True):
        encoder.cnn.set_grad_checkpointing(recomputes)
        encoder.zero_grad()
        encoder(images, geometry).square().sum().backward()
        found.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# -- what is refused ----------------------------------------------------------------------------------------------------

class ByIndex(VisionTransformer):
    """Its forward depends on the place of a patch in the sequence, as rotary positions do."""

    def forward_features(self, x):
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        x = x * torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype)[None, :, None]
        return self.norm(self.blocks(x))


class Causal(nn.Module):
    """A block in which a token sees those in front of it alone."""

    def __init__(self, dim, **arguments):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.scale * x.cumsum(1)


@pytest.mark.parametrize(('network', 'words'), [
    (lambda: timm.create_model('resnet18'), 'give --method=convmae for hybrids.*a2mim for any other.*spark for CNNs'),
    (lambda: timm.create_model('test_efficientnet'), 'EfficientNet is none'),
    (lambda: create_cnn('convvit_small', input_size=(64, 96)), 'ConvViT is none'),
    (lambda: timm.create_model('beit_base_patch16_224', depth=1), 'Beit is none'),
    (lambda: timm.create_model('swin_tiny_patch4_window7_224', depths=(1, 1, 1, 1)), 'SwinTransformer is none'),
    (lambda: timm.create_model('vit_tiny_r_s16_p8_224', depth=1), 'without a stem of convolutions'),
    (lambda: vit(patch_size=(16, 32)), 'each square patch alone'),
    (lambda: vit(in_chans=1), 'takes images of 1 channels, not 3: make it with in_chans=3'),
    (lambda: vit((64, 64)), r'made for images of 64x64: call its set_input_size\(\(64, 96\)\)'),
    (lambda: vit((64, 90), patch_size=10), 'the height 64 is no multiple of 10'),
    (lambda: vit(pos_embed='none'), 'no position embedding'),
    (lambda: vit(patch_drop_rate=0.5), 'patch_drop_rate=0'),
    (lambda: vit(pos_drop_rate=0.1), 'pos_drop_rate=0'),
    (lambda: vit().to('meta'), 'meta device'),
    (lambda: ByIndex(img_size=(64, 96), **SMALL), 'ByIndex does not give its own tokens.*--method=a2mim'),
    (lambda: vit(block_fn=Causal), 'does not give its own tokens'),
])
def test_other_networks_are_refused(network, words):
    with pytest.raises(ValueError, match=words):
        ViTEncoder(network(), (64, 96))


def test_images_of_another_size_are_refused():
    encoder = ViTEncoder(vit(), (64, 96))
    for shape in ((1, 3, 96, 64), (1, 1, 64, 96)):
        with pytest.raises(ValueError, match='built for'):
            encoder(torch.zeros(shape), masked(encoder, torch.zeros(1, 3, dtype=torch.long)))
        with pytest.raises(ValueError, match='built for'):
            encoder.pyramid(torch.zeros(shape))


class WrongPositions(ViTEncoder):
    def prefix_and_positions(self, cnn):
        in_front, positions = super().prefix_and_positions(cnn)
        return in_front, positions.roll(1, 1)


class NoNormInFront(ViTEncoder):
    def visible_tokens(self, cnn, images, geometry):
        cnn = copy.copy(cnn)
        cnn._modules = {**cnn._modules, 'norm_pre': nn.Identity()}
        return super().visible_tokens(cnn, images, geometry)


class NoPrefix(ViTEncoder):
    def prefix_and_positions(self, cnn):
        in_front, positions = super().prefix_and_positions(cnn)
        return torch.zeros_like(in_front), positions


@pytest.mark.parametrize('wrong', [WrongPositions, NoNormInFront, NoPrefix])
def test_a_wrong_encoder_is_refused(wrong):
    with pytest.raises(ValueError, match='VisionTransformer does not give its own tokens'):
        wrong(vit(pre_norm=True), (64, 96))
