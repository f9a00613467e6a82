"""ViTs by name, networks that are made for images of one size, and positions for images of another."""
import pytest
import timm
import torch
from timm.models import beit, swin_transformer, vision_transformer

import tests.small_vit  # noqa: F401
from common.networks.create import create_cnn, try_size, without_values
from common.networks.load import load_classifier
from common.networks.positions import resized_positions
from common.networks.vits import default_cfgs
from tests.common.networks.test_weights import holds, randomised


@pytest.mark.parametrize('name, millions', [('small', 48.8), ('base', 86.7),
                                            pytest.param('large', 304.6, marks=pytest.mark.slow)])
def test_the_vits_have_the_papers_sizes(name, millions):
    vit = without_values(lambda: create_cnn(f'beit_abs_{name}_patch16_224'))
    assert sum(p.numel() for p in vit.parameters()) == pytest.approx(millions * 1e6, abs=5e4)
    assert isinstance(vit, beit.Beit) and vit.pos_embed.shape[1] == 197
    assert vit.blocks[0].attn.relative_position_bias_table.shape[0] == 27 ** 2 + 3
    assert f'beit_abs_{name}_patch16_224' in default_cfgs


def test_a_vit_has_the_start_values_of_the_paper():
    vit = create_cnn('small_vit')
    assert all((block.gamma_1 == 0.1).all() and (block.gamma_2 == 0.1).all() for block in vit.blocks)
    assert all((block.attn.relative_position_bias_table == 0).all() for block in vit.blocks)
    assert vit.blocks[0].norm1.eps == vit.fc_norm.eps == 1e-6
    rates = [getattr(block.drop_path1, 'drop_prob', 0) for block in create_cnn('small_vit', drop_path=0.1).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1])


@pytest.mark.parametrize('name', ['small_vit', 'vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224', 'coatnet_nano_cc_224'])
@pytest.mark.parametrize('size', [(96, 96), (64, 128)])
def test_transformers_are_made_for_the_images_of_a_run(name, size):
    if name.startswith(('swin', 'coatnet')) and size == (96, 96):
        size = (192, 192)
    try_size(create_cnn(name, input_size=size), name, size)
    with pytest.raises(ValueError, match=f'cannot take images of {size[0]}x{size[1]}'):
        try_size(create_cnn(name), name, size)


@pytest.mark.parametrize('name', ['test_resnet', 'convnext_atto', 'your_convnet', 'resnet50_clip'])
def test_other_networks_are_made_as_before(name):
    """Not a value and not a random number differs; the CLIP's pooling with positions takes images of any size."""
    made = []
    for arguments in ({}, {'input_size': (64, 96)}):
        torch.manual_seed(0)
        made.append((create_cnn(name, **arguments).state_dict(), torch.rand(1)))
    assert made[0][1] == made[1][1] and made[0][0].keys() == made[1][0].keys()
    assert all(torch.equal(value, made[1][0][key]) for key, value in made[0][0].items())


def test_a_size_that_a_network_cannot_be_made_for():
    with pytest.raises(ValueError, match='nest_tiny cannot be made for images of 64x128 .*--input_size'):
        create_cnn('nest_tiny', input_size=(64, 128))


# -- positions --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [(96, 96), (64, 128)])
@pytest.mark.parametrize('name', ['small_vit', 'vit_tiny_patch16_224'])
def test_positions_are_resized_as_timm_does(name, size):
    donor, cnn = create_cnn(name, num_classes=3), create_cnn(name, num_classes=3, input_size=size)
    state = randomised(donor)
    report = load_classifier(cnn, state, name, size)
    module = beit if name == 'small_vit' else vision_transformer
    assert holds(cnn, module.checkpoint_filter_fn(dict(state), cnn)) and not report.missing
    side = donor.patch_embed.grid_size[0]
    parts = 'the positions and 3 tables of relative positions are' if name == 'small_vit' else 'the positions are'
    assert f'{parts} resized from {side}x{side} patches to {size[0] // 16}x{size[1] // 16}' in str(report)
    again = create_cnn(name, num_classes=3, input_size=size)
    assert 'resized' not in str(load_classifier(again, cnn.state_dict(), name, size)) and holds(again, cnn.state_dict())


def test_windows_of_a_swin():
    donor, cnn = (timm.create_model('swin_tiny_patch4_window7_224', window_size=side, img_size=32 * side, depths=(1, 1, 1, 1),
                                    embed_dim=12, num_heads=(1, 1, 1, 1), num_classes=3) for side in (7, 4))
    state = randomised(donor)
    report = load_classifier(cnn, state, 'swin', (128, 128))
    expected = swin_transformer.checkpoint_filter_fn(dict(state), cnn)
    assert holds(cnn, expected) and '4 tables of relative positions are resized from 7x7 patches to 4x4' in str(report)


def test_positions_that_cannot_be_resized_stay_and_are_refused():
    cnn = create_cnn('small_vit', num_classes=3)
    state = randomised(create_cnn('small_vit', num_classes=3, input_size=(64, 96)))  # 4x6 patches: no file says so
    assert resized_positions(cnn, state)[1] == ()
    with pytest.raises(ValueError, match=r'pos_embed is \(1, 25, 32\), the network has \(1, 17, 32\)'):
        load_classifier(cnn, state, 'small_vit', (64, 64))
    for key, value in (('pos_embed', torch.ones(2, 37, 32)), ('pos_embed', torch.ones(1, 37, 8)), ('pos_embed', torch.ones(37)),
                       ('blocks.0.attn.relative_position_bias_table', torch.ones(124, 2))):
        assert resized_positions(cnn, {key: value}) == ({key: value}, ())
