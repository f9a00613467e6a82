"""Wrong readings of ConvMAE change the loss of the golden file: each is tried, and the right one beside them."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain import masking
from tests.pretrain.test_convmae_golden import loaded


@pytest.fixture(scope='module')
def case():
    want, convmae, images = loaded('convmae_small_224')
    return want, convmae, images, torch.tensor(want['visible'])


def with_eps(names, eps):
    """A function that changes the eps of norms whose names begin with one of `names`."""
    def change(convmae):
        for name, module in convmae.named_modules():
            if isinstance(module, nn.LayerNorm) and name.removeprefix('encoder.cnn.').startswith(names):
                assert module.eps != eps
                module.eps = eps
    return change


def with_tanh(convmae):
    for module in convmae.modules():
        if isinstance(module, nn.GELU):
            module.approximate = 'tanh'


def with_swapped_positions(convmae):
    for table in (convmae.encoder.cnn.pos_embed, convmae.decoder_pos_embed):
        table.data = table.data.unflatten(1, (14, 14)).transpose(1, 2).flatten(1, 2)


def with_channels_first(convmae):
    convmae.as_images = convmae.unpatchify


def without_linear(convmae):
    convmae.encoder.cnn.patch_embed4 = nn.Identity()


def without_decoder_positions(convmae):
    convmae.decoder_pos_embed.zero_()


def with_biased_variance(convmae):
    def targets(images):
        cells = convmae.patchify(images)
        deviation = (cells.var(2, keepdim=True, correction=0) + 1e-6).sqrt()
        return (cells - cells.mean(2, keepdim=True)) / deviation, None, None
    convmae.targets = targets


def with_sum_behind_the_norm(convmae):
    def latent(images, visible):
        *earlier, last = convmae.encoder(images, convmae.geometry(images, visible))
        sums = sum(convmae.get_submodule(name)(strip) for name, strip in zip(convmae.fusions, earlier))
        return convmae.norm(last.flatten(2).transpose(1, 2)) + sums.flatten(2).transpose(1, 2)
    convmae.latent = latent


READINGS = {
    'eps of convolutions': with_eps(('patch_embed', 'blocks1', 'blocks2'), 1e-6),
    'eps of the last norm': with_eps('norm', 1e-5), 'eps of the transformer': with_eps('blocks3', 1e-5),
    'eps of the decoder': with_eps('decoder', 1e-5), 'GELU by tanh': with_tanh,
    'sum after the norm': with_sum_behind_the_norm, 'rows and columns': with_swapped_positions,
    'biased variance': with_biased_variance, 'channels first': with_channels_first, 'no patch_embed4': without_linear,
    'no decoder positions': without_decoder_positions,
}


@pytest.mark.parametrize('reading', READINGS)
@torch.no_grad()
def test_a_wrong_reading_is_seen(case, reading):
    want, convmae, images, visible = copy.deepcopy(case)
    assert convmae(images, visible).item() == pytest.approx(want['loss_norm_pix'], rel=1e-10)
    READINGS[reading](convmae)
    assert convmae(images, visible).item() != pytest.approx(want['loss_norm_pix'], rel=1e-9)


def dense_latent(convmae, images, visible, mask_at):
    """The latent as the original computes it: the convolutions of the whole image, multiplied by the map of visible
    positions at one place of each block.

    mask_at: 'attn' (in front of the 5x5, which is right), 'conv1' (in front of the 1x1 before it), or 'nowhere'.
    """
    net = convmae.encoder.cnn
    seen = masking.is_visible(visible, convmae.cells).view(len(images), 1, *convmae.encoder.grid).to(images.dtype)
    x, fused = images, 0
    for embed, blocks, name in ((net.patch_embed1, net.blocks1, 'stage1'), (net.patch_embed2, net.blocks2, 'stage2')):
        x = embed(x)
        mask = F.interpolate(seen, x.shape[2:])
        for block in blocks:
            y = block.norm1(x)
            y = block.conv1(y * mask if mask_at == 'conv1' else y)
            y = block.attn(y * mask if mask_at == 'attn' else y)
            x = x + block.conv2(y)
            x = x + block.mlp(block.norm2(x))
        fusion = convmae.get_submodule(f'{name}_output_decode')  # on whole maps an ordinary convolution
        fused = fused + F.conv2d(x, fusion.weight, fusion.bias, fusion.stride)
    x = net.patch_embed3(x)
    tokens = net.patch_embed4(x.flatten(2).transpose(1, 2)) + net.pos_embed

    def at_visible(tokens):
        return tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[2]))

    return convmae.norm(net.blocks3(at_visible(tokens)) + at_visible(fused.flatten(2).transpose(1, 2)))


@torch.no_grad()
def test_where_the_original_multiplies_by_the_mask(case):
    want, convmae, images, visible = case
    latents = {place: dense_latent(convmae, images, visible, place) for place in ('attn', 'conv1', 'nowhere')}
    losses = {place: convmae.loss(images, convmae.as_images(convmae.decode(latent, visible)), visible).item()
              for place, latent in latents.items()}
    torch.testing.assert_close(latents['attn'], convmae.latent(images, visible), rtol=1e-12, atol=1e-12)
    assert losses['attn'] == pytest.approx(want['loss_norm_pix'], rel=1e-10)
    assert losses['conv1'] != pytest.approx(want['loss_norm_pix'], rel=1e-4)
    assert losses['nowhere'] != pytest.approx(want['loss_norm_pix'], rel=1e-4)
