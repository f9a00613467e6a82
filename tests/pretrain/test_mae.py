"""MAE for timm's vision transformers: the identities that prove it, since there are no golden numbers of it here."""
import copy
import math

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from pretrain.mae import build_mae
from pretrain.masking import normalise

DECODER = {'decoder_width': 32, 'decoder_depth': 2, 'decoder_heads': 4}
VALUES = 3 * 16 * 16  # of a cell


def small(size=(64, 96), **changes):
    """A MAE in float64 around a small transformer with a class token and a register, of 24 cells; 6 are visible."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=size, patch_size=16, embed_dim=32, depth=2, num_heads=2, reg_tokens=1, num_classes=5,
                            **changes)
    return build_mae(vit, size, **DECODER).double()


def batch(mae, images=3, seed=1):
    """Images, and visible cells of them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 3, *mae.input_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64), mae.draw_visible(images, generator)


def with_cells(mae, images, cells, where):
    """The images, with other values (B, L, VALUES), or a number, in the cells where (B, L, 1) is True."""
    return mae.unpatchify(torch.where(where, torch.as_tensor(cells, dtype=images.dtype), mae.patchify(images)))


def in_order_of_file(cells):
    """Values of cells in the order channel, row, column -> row, column, channel."""
    return cells.unflatten(2, (3, 16, 16)).permute(0, 1, 3, 4, 2).flatten(2)


# -- what is seen -----------------------------------------------------------------------------------------------------

def test_hidden_pixels_change_nothing_of_what_is_read_and_predicted():
    mae = small()
    images, visible = batch(mae)
    latent, prediction = mae.latent(images, visible), mae.predict(images, visible)
    assert latent.shape == (3, 2 + 6, 32) and prediction.shape == images.shape
    other = with_cells(mae, images, math.nan, ~mae.is_visible(visible))
    assert torch.equal(mae.latent(other, visible), latent) and torch.equal(mae.predict(other, visible), prediction)
    assert not torch.equal(mae.latent(images * 1.01, visible), latent)


def test_with_all_cells_visible_the_decoder_reads_the_tokens_of_the_network():
    mae = small()
    images, _ = batch(mae)
    latent = mae.latent(images, torch.arange(24).expand(3, -1))
    torch.testing.assert_close(latent, mae.encoder.cnn.forward_features(images), rtol=0, atol=1e-12)


def test_the_order_of_visible_cells_changes_nothing():
    mae = small()
    images, visible = batch(mae)
    shuffled = visible[:, torch.randperm(6)]
    one, other = (mae.decode(mae.latent(images, cells), cells) for cells in (visible, shuffled))
    torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


def test_the_class_token_is_read_by_the_decoder():
    mae = small()
    images, visible = batch(mae)
    latent = mae.latent(images, visible)
    other = latent.clone()
    other[:, 0] = 0
    assert not torch.allclose(mae.decode(other, visible), mae.decode(latent, visible), atol=1e-6)


def test_maps_of_whole_and_of_masked_images():
    mae = small()
    images, visible = batch(mae)
    whole, = mae.pyramid(images)
    masked, = mae.pyramid(images, visible)
    assert whole.shape == masked.shape == (3, 32, 4, 6)
    seen = mae.is_visible(visible)[..., 0].view(3, 1, 4, 6)
    assert not (masked * ~seen).any() and (masked.abs().sum(1, keepdim=True) > 0).eq(seen).all()


# -- the loss -----------------------------------------------------------------------------------------------------------

def test_a_prediction_of_zeros_scores_the_share_of_the_unbiased_variance():
    mae = small()
    images, visible = batch(mae)
    zeros = torch.zeros(3, 24, VALUES, dtype=images.dtype)
    assert mae.loss(images, mae.as_images(zeros), visible).item() == pytest.approx((VALUES - 1) / VALUES, abs=1e-5)


def test_a_prediction_of_the_target_scores_zero_and_visible_cells_do_not_count():
    mae = small()
    images, visible = batch(mae)
    target = in_order_of_file(normalise(mae.patchify(images))[0])
    assert mae.loss(images, mae.as_images(target), visible).item() < 1e-20
    seen = mae.is_visible(visible)
    wrong_where_visible = target.where(~seen, torch.tensor(100.0).double())
    assert mae.loss(images, mae.as_images(wrong_where_visible), visible).item() < 1e-20
    wrong_where_hidden = target.where(seen, target + 1)
    assert mae.loss(images, mae.as_images(wrong_where_hidden), visible).item() == pytest.approx(1)


def test_brightness_and_contrast_of_a_cell_change_nothing_up_to_the_eps():
    mae = small()
    images, visible = batch(mae)
    prediction = torch.randn(3, 24, VALUES, dtype=images.dtype)
    factors, shifts = (0.5 + torch.rand(2, 3, 24, 1, dtype=images.dtype))
    other = with_cells(mae, images, factors * mae.patchify(images) + shifts, ~mae.is_visible(visible))
    losses = [mae.loss(x, mae.as_images(prediction), visible).item() for x in (images, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != losses[1]


def test_the_loss_is_that_of_a_prediction():
    mae = small().eval()
    images, visible = batch(mae)
    errors = mae.cell_errors(images, mae.predict(images, visible))
    hidden = ~mae.is_visible(visible)[..., 0]
    assert mae(images, visible).item() == pytest.approx(errors[hidden].mean().item(), rel=1e-12)


def test_several_masks_an_image_are_the_mean_of_one_each():
    mae = small()
    images, _ = batch(mae)
    visible = torch.stack([torch.randperm(24).view(4, 6).sort(1).values for _ in images])
    each = torch.stack([mae(images, visible[:, i]) for i in range(4)])
    torch.testing.assert_close(mae(images, visible), each.mean(), rtol=1e-12, atol=0)


# -- training -----------------------------------------------------------------------------------------------------------

def test_every_parameter_that_is_trained_gets_a_gradient():
    mae = small().placed(torch.device('cpu'))
    trained = {name for name, p in mae.named_parameters() if p.requires_grad}
    fixed = {'encoder.cnn.pos_embed', 'encoder.cnn.head.weight', 'encoder.cnn.head.bias'}
    assert {name for name, _ in mae.named_parameters()} - trained == fixed
    images, visible = batch(mae)
    mae(images, visible).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for name, p in mae.named_parameters() if name in trained)


@pytest.mark.parametrize('what', ['decoder', 'all'])
def test_what_is_computed_again_gives_the_same_gradients(what):
    found = []
    for recompute in ('none', what):
        mae = small(drop_path_rate=0.5).train()
        mae.recompute(recompute)
        images, visible = batch(mae)
        torch.manual_seed(2)
        mae(images, visible).backward()
        found.append([p.grad for p in mae.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_training_reduces_the_loss_on_new_images():
    """Images that grow brighter in one direction, which a visible cell tells and a hidden one has."""
    mae = small().float()

    def ramps(generator, images):
        across, down = torch.randn(2, images, 3, 1, 1, generator=generator)
        return across * torch.linspace(-1, 1, 96) + down * torch.linspace(-1, 1, 64)[:, None]

    held_out = torch.Generator().manual_seed(5)
    images, visible = ramps(held_out, 32), mae.draw_visible(32, held_out)
    generator, optimizer = torch.Generator().manual_seed(6), torch.optim.AdamW(mae.parameters(), 3e-3)
    assert mae(images, visible).item() > 0.95
    for _ in range(60):
        optimizer.zero_grad()
        mae(ramps(generator, 16), mae.draw_visible(16, generator)).backward()
        optimizer.step()
    assert mae(images, visible).item() < 0.9


# -- the network --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'size'), [('test_vit', (64, 96)), ('test_vit2', (64, 64)), ('test_vit3', (96, 64))])
def test_the_exported_network_is_timms(name, size):
    mae = build_mae(name, size, **DECODER).eval()
    torch.nn.init.normal_(mae.encoder.cnn.patch_embed.proj.bias)
    other = timm.create_model(name, img_size=size).eval()
    other.load_state_dict(mae.encoder.cnn.state_dict(), strict=True)
    images = torch.randn(2, 3, *size)
    assert torch.equal(other.forward_features(images), mae.encoder.cnn.forward_features(images))


@pytest.mark.parametrize(('name', 'in_front'), [('test_vit', 1), ('deit3_small_patch16_224', 0)])
def test_positions_are_the_fixed_table_and_zeros_in_front(name, in_front):
    cnn = build_mae(name, (64, 96), **DECODER).encoder.cnn
    table, frequency = cnn.pos_embed, 10_000 ** (-1 / (cnn.embed_dim / 4))
    assert table.shape == (1, in_front + 24, cnn.embed_dim) and not table.requires_grad
    assert not table[:, :in_front].any()
    quarter, right, below = cnn.embed_dim // 4, table[0, in_front + 1], table[0, in_front + 6]
    assert right[1].item() == pytest.approx(math.sin(frequency)) and right[2 * quarter:3 * quarter].abs().max() == 0
    assert below[2 * quarter].item() == pytest.approx(math.sin(1)) and below[:quarter].abs().max() == 0


def test_a_network_by_name_is_drawn_as_mae_draws_it():
    torch.manual_seed(0)
    cnn = build_mae('test_vit2', 64, **DECODER).encoder.cnn
    for weight, inputs in ((cnn.blocks[0].mlp.fc1.weight, 64), (cnn.patch_embed.proj.weight, VALUES)):
        bound = math.sqrt(6 / (inputs + len(weight)))
        assert 0.98 * bound < weight.abs().max() <= bound and abs(weight.mean()) < 0.05 * bound
    assert not cnn.blocks[1].attn.qkv.bias.any() and 0.01 < cnn.reg_token.std() < 0.03


def test_a_given_network_keeps_its_weights_and_is_made_for_the_size():
    vit = timm.create_model('test_vit')
    before = copy.deepcopy(vit.state_dict())
    mae = build_mae(vit, (64, 96), **DECODER)
    assert mae.encoder.cnn is vit and vit.patch_embed.grid_size == mae.encoder.grid == (4, 6)
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items() if key != 'pos_embed')


@pytest.mark.parametrize(('model', 'arguments', 'words'), [
    ('resnet18', {}, '--method=convmae for hybrids.*--method=a2mim for any other transformer.*--method=spark for CNNs'),
    ('test_vit', {'input_size': (64, 100)}, 'the width 100 is no multiple of 16'),
    ('test_vit', {'input_size': 16}, 'one at least must be visible'),
    ('test_vit', {'mask_ratio': 1.0}, 'one at least must be visible'),
    ('test_vit', {'masks_per_image': 3}, 'masks_per_image 3'),
    ('test_vit', {'decoder_heads': 5}, 'decoder_width'),
    ('vit_tiny_r_s16_p8_224', {}, 'without a stem'),
    (VisionTransformer(64, 16, embed_dim=30, depth=1, num_heads=2), {'input_size': 64}, 'multiple of 4.*is 30'),
    ('vit_tinny_patch16_224', {}, 'vit_tiny_patch16_224'),
])
def test_what_does_not_fit_is_refused(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        build_mae(model, **{'input_size': 96, **DECODER, **arguments})
