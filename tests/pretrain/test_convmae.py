"""ConvMAE: identities that need no golden numbers."""
import copy

import pytest
import torch

from common.convvit import ConvViT
from pretrain.convmae import Fusion, build_convmae
from pretrain.masked_autoencoder import sincos_pos_embed
from pretrain.masking import normalise
from tests.pretrain.official_convmae import table


def small(input_size=(64, 96), **arguments):
    """A small ConvMAE in float64. 4 x 6 cells."""
    net = ConvViT(input_size, widths=(8, 12, 16), depths=(1, 1, 2), heads=2, num_classes=0)
    decoder = {'decoder_width': 16, 'decoder_depth': 2, 'decoder_heads': 2}
    return build_convmae(net, input_size, **decoder | arguments).double()


@pytest.fixture(scope='module')
def convmae():
    torch.manual_seed(0)
    return small()


def batch(images=3, size=(64, 96)):
    return torch.randn(images, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_with_all_cells_visible_it_is_the_plain_network(convmae):
    images = batch()
    visible = torch.arange(convmae.cells).expand(3, -1)
    for masked, plain in zip(convmae.encode(images, visible), convmae.pyramid(images), strict=True):
        torch.testing.assert_close(masked, plain, rtol=1e-12, atol=1e-12)
    plain = convmae.encoder.cnn.forward_features(images)
    torch.testing.assert_close(convmae.encode(images, visible)[-1].flatten(2).transpose(1, 2), plain, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_order_of_visible_cells_changes_nothing(convmae):
    images = batch()
    visible = convmae.draw_visible(3, torch.Generator().manual_seed(2))
    order = torch.randperm(visible.shape[1], generator=torch.Generator().manual_seed(3))
    one = convmae.decode(convmae.latent(images, visible), visible)
    other = convmae.decode(convmae.latent(images, visible[:, order]), visible[:, order])
    assert not torch.equal(order, order.sort().values)
    torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_losses_of_known_predictions(convmae):
    images = batch()
    visible = convmae.draw_visible(3, torch.Generator().manual_seed(2))
    values = 3 * 16 * 16
    zeros = images.new_zeros(3, convmae.cells, values)
    nothing = convmae.loss(images, convmae.as_images(zeros), visible).item()
    assert nothing == pytest.approx((values - 1) / values, rel=1e-4)  # up to the eps

    def in_the_order_of_the_file(cells):
        return cells.unflatten(2, (3, 16, 16)).permute(0, 1, 3, 4, 2).flatten(2)

    target, _, _ = normalise(convmae.patchify(images))
    perfect = in_the_order_of_the_file(target)
    assert convmae.loss(images, convmae.as_images(perfect), visible).item() == 0
    torch.testing.assert_close(convmae.as_images(perfect), convmae.unpatchify(target), rtol=0, atol=0)
    wrong_where_visible = torch.where(convmae.is_visible(visible), perfect + 5, perfect)
    assert convmae.loss(images, convmae.as_images(wrong_where_visible), visible).item() == 0
    wrong_where_hidden = torch.where(convmae.is_visible(visible), perfect, perfect + 5)
    assert convmae.loss(images, convmae.as_images(wrong_where_hidden), visible).item() == pytest.approx(25)


def test_contrast_and_brightness_of_cells_are_no_part_of_the_target(convmae):
    images = batch()
    visible = convmae.draw_visible(3, torch.Generator().manual_seed(2))
    prediction = torch.randn(3, convmae.cells, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    cells = convmae.patchify(images)
    contrast = 1 + torch.rand(*cells.shape[:2], 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    other = convmae.unpatchify(cells * contrast + contrast)
    losses = [convmae.loss(each, convmae.as_images(prediction), visible).item() for each in (images, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # up to the eps


def test_several_masks_an_image_show_each_cell_once_and_give_the_mean_loss():
    convmae = small(masks_per_image=4)
    images = batch()
    visible = convmae.draw_masks(3, torch.Generator().manual_seed(2))
    assert visible.shape == (3, 4, 6)
    assert torch.equal(visible.flatten(1).sort(1).values, torch.arange(24).expand(3, -1))
    assert (visible.diff(dim=2) > 0).all()
    rows = convmae.draw_masks(3, torch.Generator().manual_seed(2), rows=slice(1, 2))
    assert torch.equal(rows, visible[1:2])
    losses = [convmae(images, visible[:, group]) for group in range(4)]
    assert convmae(images, visible).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-12)
    convmae(images).backward()  # draws by itself


@pytest.mark.parametrize('arguments, words', [
    ({'masks_per_image': 3}, 'masks_per_image 3'),
    ({'masks_per_image': 0}, 'masks_per_image must be 1 or more, not 0'),
    ({'decoder_heads': 0}, 'decoder_heads and decoder_depth 1 or more'),
    ({'mask_ratio': 0.5, 'masks_per_image': 4}, 'Give a mask_ratio of'),
    ({'input_size': 48, 'masks_per_image': 4}, 'masks_per_image 4'),
    ({'mask_ratio': 0.999}, 'mask_ratio 0.999 leaves 0'),
    ({'input_size': 100}, 'multiple'),
    ({'input_size': (64, 90)}, 'multiple'),
])
def test_what_does_not_fit_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        small(**arguments)


def test_a_network_without_attention_is_refused():
    with pytest.raises(ValueError, match='no attention over all positions.*--method=spark'):
        build_convmae('test_convnext', input_size=128)


def test_positions_are_fixed_and_of_the_images_grid(convmae):
    net = convmae.encoder.cnn
    assert not net.pos_embed.requires_grad
    torch.testing.assert_close(net.pos_embed, table((4, 6), 16), rtol=0, atol=0)
    torch.testing.assert_close(sincos_pos_embed((2, 5), 12).double(), table((2, 5), 12), rtol=0, atol=0)
    large = sincos_pos_embed((14, 14), 768)[0].double()
    assert large.sum().item() == pytest.approx(69594.4938, abs=1e-2)
    assert large[1, [0, 384, 576]].tolist() == pytest.approx([0.84147, 0, 1], abs=1e-5)
    assert large[14, [0, 384]].tolist() == pytest.approx([0, 0.84147], abs=1e-5)


def test_every_trained_parameter_gets_a_gradient(convmae):
    convmae = copy.deepcopy(convmae).placed('cpu')
    convmae(batch()).backward()
    trained = [name for name, parameter in convmae.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if convmae.get_parameter(name).grad is None] == []
    fixed = {name for name, parameter in convmae.named_parameters() if not parameter.requires_grad}
    assert fixed == {'encoder.cnn.pos_embed', 'encoder.cnn.fc_norm.weight', 'encoder.cnn.fc_norm.bias'}


@pytest.mark.parametrize('side', [1, 2, 4])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_a_fusion_is_a_convolution_of_whole_cells(side, memory_format):
    fusion = Fusion(4, 6, side, side, dtype=torch.float64)
    strip = torch.randn(3, 4, 5 * side, side, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    tensors = [strip, *fusion.parameters()]
    want, got = torch.nn.functional.conv2d(strip, fusion.weight, fusion.bias, side), fusion(strip)
    weights = torch.randn_like(want)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad((out * weights).sum(), tensors) for out in (got, want)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('what', ['decoder', 'all'])
def test_what_is_computed_again_changes_nothing(convmae, what):
    images, visible = batch(), convmae.draw_visible(3, torch.Generator().manual_seed(2))
    again = copy.deepcopy(convmae)
    again.recompute(what)
    gradients = []
    for network in (copy.deepcopy(convmae), again):
        network(images, visible).backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_the_decoders_weights_are_drawn_as_mae_draws_them():
    torch.manual_seed(0)
    convmae = build_convmae(ConvViT(64, widths=(32, 48, 96), depths=(1, 1, 1), heads=4), 64)
    for layer in (convmae.decoder_pred, convmae.decoder_blocks[0].mlp.fc1, convmae.encoder.cnn.patch_embed4,
                  convmae.encoder.cnn.blocks3[0].attn.qkv):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max().item() <= bound and not layer.bias.any()
    conv = convmae.encoder.cnn.patch_embed3.proj
    bound = (6 / (96 + 48 * 4)) ** 0.5
    assert 0.95 * bound < conv.weight.abs().max().item() <= bound and conv.bias.any()
    conv = convmae.stage1_output_decode
    assert 0.95 < conv.weight.abs().max().item() * (32 * 16) ** 0.5 <= 1
    assert convmae.mask_token.std().item() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
def test_positions_and_tokens_keep_their_precision_under_autocast():
    """With bf16's eight bits of a number, neighbouring positions are the same in some dimensions."""
    convmae = small().float()
    images, visible = batch().float(), convmae.draw_visible(3, torch.Generator().manual_seed(2))
    seen = []
    handles = [module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
               for module in (*convmae.decoder_blocks, *convmae.encoder.cnn.blocks3)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        convmae(images, visible)
    for handle in handles:
        handle.remove()
    assert seen == [torch.float32] * 4
