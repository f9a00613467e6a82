"""The method: masks, targets, loss, reconstruction, sizes, compilation; and its interfaces."""
import copy

import pytest
import torch
import torch._dynamo

from pretrain.masking import draw_visible, normalise, patchify, unpatchify
from pretrain.spark import build_spark
from tests.conftest import randomise


def small(**changes):
    arguments = {'model': 'your_convnet', 'input_size': (32, 48), 'decoder_width': 16, **changes}
    return build_spark(arguments.pop('model'), **arguments)


def test_masks_have_the_same_count_everywhere_and_every_cell_its_turn():
    spark = build_spark('test_resnet', input_size=224, decoder_width=32)
    visible = spark.draw_visible(2000, torch.Generator().manual_seed(0))
    assert visible.shape == (2000, 20) == (2000, round(49 * 0.4))
    assert (visible.diff(dim=1) > 0).all()
    share = torch.bincount(visible.flatten(), minlength=49) / 2000
    assert share.sub(20 / 49).abs().max() < 0.05
    again = spark.draw_visible(2000, torch.Generator().manual_seed(0))
    other = spark.draw_visible(2000, torch.Generator().manual_seed(1))
    assert torch.equal(visible, again) and not torch.equal(visible, other)
    some = torch.tensor([7, 1999, 0])
    assert torch.equal(spark.draw_visible(2000, torch.Generator().manual_seed(0), some), visible[some])


def test_loss_is_the_squared_error_of_normalised_hidden_cells():
    spark = small().double()
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    visible = spark.draw_visible(2)
    output = torch.randn_like(images)
    errors = []
    for b in range(2):
        for cell in set(range(24)) - set(visible[b].tolist()):
            y, x = cell // 6 * 8, cell % 6 * 8
            target, got = images[b, :, y:y + 8, x:x + 8], output[b, :, y:y + 8, x:x + 8]
            target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6) ** 0.5
            errors.append(((got - target) ** 2).mean())
    loss = spark.loss(images, output, visible)
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-12, atol=0)


def test_cut_and_paste_are_inverse():
    images = torch.randn(3, 2, 32, 48)
    cells = patchify(images, 8)
    assert cells.shape == (3, 24, 128)
    assert torch.equal(cells[1, 7].view(2, 8, 8), images[1, :, 8:16, 8:16])
    assert torch.equal(unpatchify(cells, (4, 6), 8), images)


def test_normalised_cells_have_no_mean_and_their_own_deviation_is_taken_out():
    cells = 3 + 2 * torch.randn(2, 5, 48, dtype=torch.float64)
    normalised, mean, deviation = normalise(cells)
    torch.testing.assert_close(normalised.mean(2), torch.zeros(2, 5, dtype=torch.float64))
    torch.testing.assert_close(normalised.var(2), torch.ones(2, 5, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(normalised * deviation + mean, cells)


def test_what_an_image_s_mask_is_does_not_depend_on_which_rows_are_asked_for():
    whole = draw_visible(6, 9, 4, torch.Generator().manual_seed(3))
    part = draw_visible(6, 9, 4, torch.Generator().manual_seed(3), rows=slice(2, 4))
    assert torch.equal(part, whole[2:4])


def test_the_light_decoder_ends_at_the_finest_level():
    """Everything that trains gets a gradient; a network of one level is told what to do."""
    assert build_spark('resnet10t', 64, decoder_width=32, decoder='light').dense_decoder.strides == [32, 16, 8, 4]
    spark = small(decoder='light', input_size=(32, 64)).train()
    assert spark.encoder.reductions == (2, 4, 8) and spark.dense_decoder.strides == [8, 4, 2]
    images, visible = torch.randn(2, 3, 32, 64), spark.draw_visible(2)
    assert spark.reconstruct(images, visible).shape == spark.predict(images, visible).shape == images.shape
    spark(images, visible).backward()
    assert all(p.grad is not None and p.grad.any() for name, p in spark.named_parameters() if 'encoder.cnn.' not in name)
    assert {name for name, p in spark.encoder.cnn.named_parameters() if p.grad is None} == set(spark.encoder.unused)
    with pytest.raises(ValueError, match='no other than that of stride 4: take the decoder unet'):
        build_spark(OneLevel(), 32, decoder_width=16, levels=['1'], decoder='light')
    with pytest.raises(ValueError, match="unet or light, not 'heavy'"):
        small(decoder='heavy')


class OneLevel(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 8, 3, 2, 1))


def test_hidden_pixels_reach_the_loss_through_the_target_only():
    spark = randomise(small()).eval()
    images, visible = torch.randn(2, 3, 32, 48), spark.draw_visible(2)
    seen = spark.is_visible(visible)
    other = unpatchify(torch.where(seen, patchify(images, 8), 1e3 * torch.randn(2, 24, 192)), (4, 6), 8)
    for a, b in zip(spark.encode(images, visible), spark.encode(other, visible)):
        assert torch.equal(a, b)
    geometry = spark.geometry(images, visible)
    a, b = (spark.decode(spark.densify(spark.encoder(x, geometry), geometry), geometry) for x in (images, other))
    assert torch.equal(a, b)


def test_reconstruction_keeps_the_visible_and_has_the_scale_of_the_input():
    spark = randomise(small()).eval()
    images, visible = 5 + 3 * torch.randn(2, 3, 32, 48), spark.draw_visible(2)
    picture = spark.reconstruct(images, visible)
    seen = spark.is_visible(visible)
    assert torch.equal(patchify(picture, 8) * seen, patchify(images, 8) * seen)
    output = spark.predict(images, visible)
    normalised = (picture.unfold(2, 8, 8).unfold(3, 8, 8) - images.unfold(2, 8, 8).unfold(3, 8, 8).mean((1, 4, 5), True)) \
        / (images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).var(3)
           + 1e-6).sqrt()[:, None, :, :, None, None]
    hidden = ~seen.view(2, 1, 4, 6, 1, 1)
    torch.testing.assert_close(normalised * hidden, output.unfold(2, 8, 8).unfold(3, 8, 8) * hidden, rtol=1e-4, atol=1e-4)


def test_every_parameter_that_trains_gets_a_gradient():
    spark = randomise(small())
    spark(torch.randn(2, 3, 32, 48)).backward()
    without = {name for name, p in spark.named_parameters() if p.grad is None}
    assert without == {f'encoder.cnn.{name}' for name in spark.encoder.unused} == {'encoder.cnn.head.weight',
                                                                                    'encoder.cnn.head.bias'}


@pytest.mark.parametrize('changes', [
    {'in_chans': 1}, {'in_chans': 5}, {'cell_size': 16}, {'input_size': 64, 'cell_size': 32, 'mask_ratio': 0.75},
    {'model': 'test_resnet', 'input_size': (64, 128), 'decoder_width': 64},
    {'model': 'test_resnet', 'input_size': 128, 'cell_size': 64, 'decoder_width': 32},
])
def test_sizes_channels_and_cells(changes):
    spark = small(**changes).double()
    (h, w), (height, width), cell = spark.encoder.grid, spark.encoder.input_size, spark.encoder.cell_size
    assert (h * cell, w * cell) == (height, width)
    images, visible = torch.randn(2, spark.encoder.in_chans, height, width, dtype=torch.float64), spark.draw_visible(2)
    loss = spark(images, visible)
    loss.backward()
    assert loss.ndim == 0 and loss.dtype == torch.float64 and loss.isfinite()
    assert spark.reconstruct(images, visible).shape == images.shape
    pyramid = spark.encode(images, visible)
    assert [tuple(x.shape[1:]) for x in pyramid] == [
        (c, height // s, width // s) for c, s in zip(spark.encoder.channels, spark.encoder.reductions)]
    for x in pyramid:
        side = x.shape[2] // h
        hidden = ~spark.is_visible(visible)[..., 0].view(2, 1, h, 1, w, 1)
        assert not (x.view(2, -1, h, side, w, side) * hidden).any()


def test_the_decoder_has_the_paper_sizes():
    spark = build_spark('resnet18')
    assert spark.dense_decoder.widths == [768, 384, 192, 96, 48, 24]
    assert [p.weight.shape[2] if hasattr(p, 'weight') else 0 for p in spark.densify_projs] == [1, 3, 3, 3]
    same = build_spark('test_convnext', input_size=64, decoder_width=64)
    assert isinstance(same.densify_projs[0], torch.nn.Identity) == (same.encoder.channels[-1] == 64)
    assert all(token.abs().max() <= 0.02 for token in spark.mask_tokens)


def test_own_module_and_given_drop_path():
    own = build_spark('your_convnet', input_size=32).encoder.cnn
    assert build_spark(own, input_size=32, decoder_width=16)(torch.randn(1, 3, 32, 32)).isfinite()
    spark = build_spark('test_convnext', input_size=64, drop_path=0.5)
    assert max(m.drop_prob for m in spark.modules() if hasattr(m, 'drop_prob')) == pytest.approx(0.5)


@pytest.mark.slow
def test_a_network_that_pads_in_its_forward_is_compiled_around():
    torch._dynamo.reset()
    spark = randomise(build_spark('hgnetv2_b0', input_size=64, decoder_width=32)).eval()
    images, visible = torch.randn(2, 3, 64, 64), spark.draw_visible(2)
    assert spark.encoder.uncompiled and not build_spark('test_resnet', input_size=64, decoder_width=32).encoder.uncompiled
    torch.testing.assert_close(torch.compile(spark)(images, visible), spark(images, visible))


@pytest.mark.parametrize(('changes', 'word'), [
    ({'model': 'resnet5O'}, 'resnet50'), ({'mask_ratio': 0.999}, 'give 0.042 to 0.958'),
    ({'decoder_width': 20}, 'multiple of 8'), ({'model': 'vgg11', 'input_size': 224, 'drop_path': 0.1}, 'no drop path'),
    ({'model': 'vit_tiny_patch16_224', 'input_size': 224}, 'is a plain transformer.*--method=mae'),
    ({'cell_size': 12}, 'cell_size 12'),
])
def test_mistakes_are_named_with_what_would_work(changes, word):
    with pytest.raises(ValueError, match=word):
        small(**changes)


def test_wrong_visible_and_images_are_refused():
    spark, images = small(), torch.randn(2, 3, 32, 48)
    for visible in (torch.tensor([[0, 24], [0, 1]]), torch.tensor([[1, 0], [0, 1]]), torch.tensor([[-1, 0], [0, 1]]),
                    torch.tensor([[1, 1], [0, 1]]), torch.empty(2, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match='from 0 to 23'):
            spark.encode(images, visible)
    with pytest.raises(ValueError, match=r'LongTensor \(B, k\) with B = 2'):
        spark(images, torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match='LongTensor'):
        spark(images, torch.rand(2, 3))
    with pytest.raises(ValueError, match=r'\(3, 32, 48\)'):
        spark(torch.randn(2, 3, 48, 32))


def test_a_deep_copy_is_independent():
    spark = randomise(small()).eval()
    images, visible = torch.randn(2, 3, 32, 48), spark.draw_visible(2)
    want, other = spark(images, visible), copy.deepcopy(spark)
    with torch.no_grad():
        for parameter in spark.parameters():
            parameter.zero_()
    assert torch.equal(other(images, visible), want)
