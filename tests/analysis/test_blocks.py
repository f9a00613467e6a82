"""What counts as a block of a network, and the maps that blocks give."""
import pytest
import timm
import torch
from torch import nn

import pretrain.models  # noqa: F401  registers your_convnet
from analysis.blocks import as_maps, block_names, each_map, grid_of

IMAGE = (64, 64)


def places(cnn, size=IMAGE, pattern=None):
    """[(place, shape of the map)] of a network, and the blocks that give none."""
    found = []
    others = each_map(cnn.eval(), torch.rand(1, 3, *size), block_names(cnn, pattern),
                      lambda place, maps: found.append((str(place), tuple(maps.shape[1:]))))
    return found, others


@pytest.mark.parametrize(('model', 'blocks', 'maps'), [
    ('resnet18', 8, 9),  # timm's group_matcher; the stem's output too
    ('convnext_atto', 12, 13),  # lists called `blocks`
    ('mobilenetv2_050', 17, 18),  # lists inside a list
    ('regnety_002', 13, 14),  # numbered like s1.b1
    ('poolformerv2_s12', 12, 25),  # a mixer of tokens and an MLP in each block
    ('your_convnet', 3, 3),  # repeated blocks; nothing in front of the first
    pytest.param('vgg11_bn', 0, 6, marks=pytest.mark.slow),  # nothing but levels
])
def test_blocks_of_networks(model, blocks, maps):
    cnn = timm.create_model(model)
    assert len(block_names(cnn)) == blocks
    found, others = places(cnn)
    assert len(found) == maps and not others
    assert found[0][1][1] > found[-1][1][1] and all(shape[1] == shape[2] > 1 for _, shape in found)


def test_a_transformer_gives_its_tokens_behind_both_branches():
    cnn = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=2).eval()
    x = torch.rand(1, 3, 64, 64)
    maps = []
    each_map(cnn, x, block_names(cnn), lambda place, one: maps.append((str(place), one)))
    assert [name for name, _ in maps] == ['in front of blocks.0', 'blocks.0, attention', 'blocks.0', 'blocks.1, attention',
                                          'blocks.1']
    with torch.no_grad():
        tokens = cnn.norm_pre(cnn._pos_embed(cnn.patch_embed(x)))
        first = cnn.blocks[0]
        between = tokens + first.attn(first.norm1(tokens))
        behind = between + first.mlp(first.norm2(between))
    for (_, found), expected in zip(maps, (tokens, between, behind)):
        torch.testing.assert_close(found, expected[:, 1:].transpose(1, 2).reshape(1, 192, 4, 4))


def test_a_block_whose_norm_comes_behind_its_branch():
    """Swin v2: the residual sum after the attention is what the MLP gets."""
    cnn = timm.create_model('swinv2_tiny_window8_256', img_size=64, window_size=2, depths=(1, 1, 1, 1), embed_dim=24).eval()
    sums = []
    cnn.layers[0].blocks[0].mlp.register_forward_pre_hook(lambda _, inputs: sums.append(inputs[0]))
    found = {}
    each_map(cnn, torch.rand(1, 3, 64, 64), block_names(cnn), lambda place, maps: found.setdefault(str(place), maps))
    torch.testing.assert_close(found['layers.0.blocks.0, attention'].flatten(2), sums[0].flatten(1, -2).transpose(1, 2))
    assert found['layers.0.blocks.0'].shape == (1, 24, 16, 16)  # its maps are (B, h, w, C)


def test_a_pattern_names_other_blocks():
    cnn = timm.create_model('resnet18')
    assert block_names(cnn, 'layer?') == ['layer1', 'layer2', 'layer3', 'layer4']
    found, _ = places(cnn, pattern='layer?')
    assert [name for name, _ in found] == ['in front of layer1', 'layer1', 'layer2', 'layer3', 'layer4']
    with pytest.raises(ValueError, match=r'--blocks=stages\*: no submodule of ResNet is called so; at its top are conv1'):
        block_names(cnn, 'stages*')


def test_blocks_without_maps_are_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Inner(), Pooled())

        def forward(self, x):
            return self.blocks(x)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x)

    class Pooled(Inner):
        def forward(self, x):
            return x.mean((2, 3))

    found, others = places(Half())
    assert [name for name, _ in found] == ['blocks.0'] and others == ['blocks.1']
    with pytest.raises(ValueError, match='Half has no block whose output is a map of the image: name its blocks with --blocks'):
        each_map(Half(), torch.rand(1, 3, 8, 8), ['blocks'], lambda place, maps: None)


def test_layouts_of_maps():
    channels_last = torch.rand(2, 4, 6, 5)
    assert torch.equal(as_maps(channels_last, (64, 96)), channels_last.permute(0, 3, 1, 2))
    assert as_maps(torch.rand(2, 5, 4, 6), (64, 96)).shape == (2, 5, 4, 6)
    tokens = torch.rand(2, 26, 5)
    maps = as_maps(tokens, (64, 96), prefix=2)
    assert maps.shape == (2, 5, 4, 6) and torch.equal(maps[:, :, 1, 2], tokens[:, 2 + 6 + 2])
    assert as_maps(torch.rand(2, 17, 5), (64, 64)).shape == (2, 5, 4, 4)  # a class token that the network does not tell of
    assert as_maps(torch.rand(2, 7, 1, 1), (64, 64)) is None and as_maps(torch.rand(2, 7), (64, 64)) is None
    assert grid_of(12, (64, 64)) is None and grid_of(1, (64, 64)) is None and grid_of(24, (64, 96)) == (4, 6)
