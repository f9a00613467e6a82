"""ConvViT, the network of ConvMAE: two stages of convolutions and a transformer (Gao et al., NeurIPS 2022, arXiv
2205.03892).

    net = ConvViT(input_size=224)                 # or timm.create_model('convvit_base')
    logits = net(images)                          # (B, 1000)
    maps = net.forward_intermediates(images, intermediates_only=True)    # strides 4, 8, 16

An image is cut into patches of 4 pixels, which are merged two by two in front of the second and of the third stage.
The first two stages are depthwise convolutions on maps, the third is attention over all patches of 16 pixels, to
which learned positions are added. The classifier reads the mean of the last patches.

Names of submodules and parameters are those of the authors' weight files.

Legend: B batch, (H, W) image, (h, w) grid of patches of 16 pixels, L = h*w, C1, C2, C3 widths of the stages.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ConvMlp, DropPath, LayerNorm2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import nn

PATCH = 16  # pixels, side of a patch in front of the transformer
STRIDES = 4, 2, 2  # of the three patch embeddings
CONV_EPS, EPS = 1e-5, 1e-6  # of LayerNorm: in patch embeddings and convolution blocks; everywhere else


class PatchEmbed(nn.Module):
    """A convolution whose windows do not overlap, LayerNorm over channels, GELU: (B, C, H, W) -> (B, C', H/s, W/s)."""

    def __init__(self, in_chans, width, stride):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, stride, stride)
        self.norm = LayerNorm2d(width, eps=CONV_EPS)

    def forward(self, x):
        return F.gelu(self.norm(self.proj(x)))


class ConvBlock(nn.Module):
    """A transformer block with a depthwise 5x5 convolution in the place of attention: (B, C, H, W), the same shape.

    The convolution is called `attn` in weight files.
    """

    def __init__(self, width, mlp_ratio, drop_path=0.0):
        super().__init__()
        self.norm1 = LayerNorm2d(width, eps=CONV_EPS)
        self.conv1 = nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.norm2 = LayerNorm2d(width, eps=CONV_EPS)
        self.mlp = ConvMlp(width, round(width * mlp_ratio), act_layer=nn.GELU)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x):
        x = x + self.drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvViT(nn.Module):
    """Two stages of convolutions, a transformer, and a classifier, in timm's contract.

    Args:
        input_size: of the images, pixels, an int or (height, width), multiples of 16. Images of other multiples of
            16 are taken as well: positions are resized for them.
        widths: channels of the three stages.
        depths: blocks of the three stages.
        heads: of attention.
        mlp_ratios: width of the hidden layer of a block's MLP, relative to the block's, of each stage.
        in_chans: channels of the images.
        num_classes: 0 for no classifier.
        global_pool: 'avg', the mean of all patches, which a LayerNorm then normalises, or '' for none: the classifier
            then reads every patch.
        drop_rate: of dropout in front of the classifier.
        drop_path_rate: of stochastic depth in the last block; it grows linearly from 0 in the first.

    Linear layers and the last patch embedding are drawn as in the pretraining (Xavier uniform, as in MAE), other
    convolutions as torch does; positions and the classifier from a normal distribution of deviation 0.02. (The authors'
    classifier, before it loads weights, draws linear layers like its head.) Raises ValueError for values that do not fit.
    """

    def __init__(self, input_size=224, widths=(256, 384, 768), depths=(2, 2, 11), heads=12, mlp_ratios=(4, 4, 4),
                 in_chans=3, num_classes=1000, global_pool='avg', drop_rate=0.0, drop_path_rate=0.0):
        super().__init__()
        if not len(widths) == len(depths) == len(mlp_ratios) == 3 or min(*widths, *depths) < 1:
            raise ValueError('widths, depths and mlp_ratios are three numbers each, of 1 or more: they are '
                             f'{widths}, {depths} and {mlp_ratios}')
        if heads < 1 or widths[2] % heads or widths[2] % 4:
            raise ValueError(f'heads must be 1 or more, and the last width a multiple of them and of 4: they are {heads} '
                             f'and {widths[2]}')
        self.num_classes = num_classes
        self.global_pool = check_pool(global_pool)
        self.num_features = self.head_hidden_size = self.embed_dim = widths[2]
        self.num_prefix_tokens = 0  # no class token
        self.grad_checkpointing = False
        self.grid = grid_of(input_size)
        self.feature_info = [{'num_chs': width, 'reduction': reduction, 'module': f'blocks{i}'}
                             for i, (width, reduction) in enumerate(zip(widths, (4, 8, 16)), 1)]

        last = max(sum(depths) - 1, 1)
        rates = [drop_path_rate * i / last for i in range(sum(depths))]
        stages = [rates[:depths[0]], rates[depths[0]:-depths[2]], rates[-depths[2]:]]
        self.patch_embed1, self.patch_embed2, self.patch_embed3 = (
            PatchEmbed(*shape) for shape in zip((in_chans, *widths), widths, STRIDES))
        self.patch_embed4 = nn.Linear(widths[2], widths[2])
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], widths[2]))
        self.blocks1, self.blocks2 = (
            nn.Sequential(*[ConvBlock(width, ratio, rate) for rate in stage])
            for width, ratio, stage in zip(widths, mlp_ratios, stages[:2]))
        self.blocks3 = nn.Sequential(*[
            Block(widths[2], heads, mlp_ratios[2], qkv_bias=True, drop_path=rate, norm_layer=partial(nn.LayerNorm, eps=EPS))
            for rate in stages[2]])
        self.fc_norm = nn.LayerNorm(widths[2], eps=EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(widths[2], num_classes) if num_classes else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Draw linear layers, the last patch embedding, positions and the classifier."""
        for layer in [self.patch_embed4, *self.blocks3.modules()]:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.patch_embed3.proj.weight.view(len(self.patch_embed3.proj.weight), -1))
        nn.init.normal_(self.pos_embed, std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, x):
        """(B, C, H, W) -> (B, num_classes). Raises ValueError for an image that is no multiple of 16 pixels."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x):
        """(B, C, H, W) -> (B, L, C3), the patches after the last block, row by row."""
        return self.attend(self.convolve(x)[-1]).flatten(2).transpose(1, 2)

    def convolve(self, x):
        """(B, C, H, W) -> the outputs of the two stages of convolutions, (B, C1, H/4, W/4) and (B, C2, H/8, W/8)."""
        grid_of(x.shape[2:])
        first = self.run(self.blocks1, self.patch_embed1(x))
        return first, self.run(self.blocks2, self.patch_embed2(first))

    def attend(self, x):
        """(B, C2, H/8, W/8) -> (B, C3, h, w): the transformer."""
        x = self.patch_embed3(x)
        size = x.shape[2:]
        tokens = self.patch_embed4(x.flatten(2).transpose(1, 2)) + self.positions(size)
        return self.run(self.blocks3, tokens).transpose(1, 2).unflatten(2, size)

    def positions(self, size):
        """The positions of a grid (h, w), (1, L, C3): the learned ones, resized where they are of another grid."""
        return self.pos_embed if tuple(size) == self.grid else resized(self.pos_embed, self.grid, size)

    def run(self, blocks, x):
        return checkpoint_seq(blocks, x) if self.grad_checkpointing and self.training else blocks(x)

    def forward_head(self, x, pre_logits=False):
        """(B, L, C3) -> (B, num_classes), or what the classifier would read, (B, C3)."""
        x = self.head_drop(self.fc_norm(x.mean(1) if self.global_pool else x))
        return x if pre_logits else self.head(x)

    def forward_intermediates(self, x, indices=None, norm=False, stop_early=False, output_fmt='NCHW',
                              intermediates_only=False):
        """The maps after the three stages, as timm's networks give them: (B, C_i, H_i, W_i), large to small.

        indices: which of them; None for all, a number for the last ones. norm, stop_early: no effect; there is no norm
        after a stage, and what no map needs is left out anyway. output_fmt: 'NCHW'. intermediates_only: return the maps
        alone, not (what forward_features returns, maps).
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt is NCHW, not {output_fmt}')
        wanted, last = feature_take_indices(3, indices)
        maps = [*self.convolve(x)]
        if last == 2 or not intermediates_only:
            maps.append(self.attend(maps[-1]))
        chosen = [maps[i] for i in wanted]
        return chosen if intermediates_only else (maps[-1].flatten(2).transpose(1, 2), chosen)

    # -- the rest of timm's contract ----------------------------------------------------------------------------

    def get_classifier(self):
        return self.head

    def reset_classifier(self, num_classes, global_pool=None):
        """Make another classifier, and pool in another way if global_pool is given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = check_pool(global_pool)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_input_size(self, img_size):
        """Be a network for images of another size, an int or (height, width): positions are resized once."""
        grid = grid_of(img_size)
        positions = self.positions(grid).detach().clone()
        self.pos_embed = nn.Parameter(positions, requires_grad=self.pos_embed.requires_grad)
        self.grid = grid

    def set_grad_checkpointing(self, enable=True):
        self.grad_checkpointing = enable

    def no_weight_decay(self):
        return {'pos_embed'}

    def group_matcher(self, coarse=False):
        """Layers as the authors count them: all in front of the transformer is the first one, a block of it is one, and
        the last norm is in that of the classifier.
        """
        return {'stem': r'^pos_embed|^patch_embed|^blocks[12]', 'blocks': r'^blocks3\.(\d+)'}

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True):
        """Take away what no map of `indices` needs, and the classifier. Returns the indices as numbers from 0."""
        wanted, last = feature_take_indices(3, indices)
        if last < 2:
            self.blocks3 = nn.Sequential()
            self.patch_embed3 = self.patch_embed4 = nn.Identity()
            self.pos_embed = None
        if last < 1:
            self.blocks2 = nn.Sequential()
        if prune_norm:
            self.fc_norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return wanted


def grid_of(size):
    """(h, w) of the patches of an image, an int or (height, width) in pixels. Raises ValueError."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < PATCH or width < PATCH or height % PATCH or width % PATCH:
        raise ValueError(f'the network takes images whose sides are multiples of {PATCH} pixels, not {height}x{width}')
    return height // PATCH, width // PATCH


def resized(positions, old, new):
    """Positions (1, h*w, C) of a grid `old` (h, w) for another one, `new`: a bicubic interpolation without a filter."""
    table = positions.transpose(1, 2).unflatten(2, tuple(old))
    return F.interpolate(table, tuple(new), mode='bicubic').flatten(2).transpose(1, 2)


def checkpoint_filter_fn(state, net):
    """What timm asks of a file's entries before it loads them: positions of a square grid are resized for the network."""
    positions = state.get('pos_embed')
    if positions is None or positions.shape == net.pos_embed.shape:
        return state
    side = math.isqrt(positions.shape[1])
    return {**state, 'pos_embed': resized(positions, (side, side), net.grid)} if side ** 2 == positions.shape[1] else state


def check_pool(global_pool):
    if global_pool not in ('avg', ''):
        raise ValueError(f"global_pool is 'avg' or '', not {global_pool!r}")
    return global_pool


# fixed_input_size: positions are of one size, though others are taken; timm then hands on the size that it is asked for.
CONFIG = {'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': None, 'fixed_input_size': True,
          'crop_pct': 0.875, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
          'first_conv': 'patch_embed1.proj', 'classifier': 'head'}
# timm reads this when the networks are registered. There are no weights to download.
NAMES = 'convvit_small', 'convvit_base', 'convvit_large', 'convvit_huge', 'test_convvit'
default_cfgs = generate_default_cfgs({f'{name}.untrained': CONFIG for name in NAMES})


def build_convvit(name, pretrained, **arguments):
    """ConvViT by timm's arguments, among which `img_size` is the size of the images."""
    def make(img_size=224, **arguments):
        return ConvViT(img_size, **arguments)

    feature_cfg = {'out_indices': (0, 1, 2), 'feature_cls': 'getter'}
    return build_model_with_cfg(make, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=feature_cfg,
                                **arguments)


@register_model
def convvit_small(pretrained=False, **kwargs):
    """22.3 M parameters. The shape fits the published number of parameters; the authors' code has the base one only."""
    shape = {'widths': (128, 256, 384), 'depths': (2, 2, 11), 'heads': 6}
    return build_convvit('convvit_small', pretrained, **{**shape, **kwargs})


@register_model
def convvit_base(pretrained=False, **kwargs):
    """85.4 M parameters: the published network."""
    return build_convvit('convvit_base', pretrained, **kwargs)


@register_model
def convvit_large(pretrained=False, **kwargs):
    """323.0 M parameters. The shape is inferred from the published number of parameters."""
    shape = {'widths': (384, 768, 1024), 'depths': (2, 2, 23), 'heads': 16, 'mlp_ratios': (8, 8, 4)}
    return build_convvit('convvit_large', pretrained, **{**shape, **kwargs})


@register_model
def convvit_huge(pretrained=False, **kwargs):
    """680.7 M parameters. The shape is inferred from the published number of parameters."""
    shape = {'widths': (768, 1024, 1280), 'depths': (2, 2, 31), 'heads': 16, 'mlp_ratios': (8, 8, 4)}
    return build_convvit('convvit_huge', pretrained, **{**shape, **kwargs})


@register_model
def test_convvit(pretrained=False, **kwargs):
    """1.1 M parameters: for tests and demonstrations, as timm's networks of such names are."""
    shape = {'widths': (32, 64, 128), 'depths': (1, 1, 4), 'heads': 4}
    return build_convvit('test_convvit', pretrained, **{**shape, **kwargs})
