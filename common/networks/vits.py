"""The vision transformers of A2MIM, by name: BEiT's, with absolute and relative positions.

Each patch has a learned position, and each block a table of biases for the relative positions of two patches
(arXiv 2205.13943; the network is timm's Beit). They classify by the mean of the patches, which a LayerNorm
then normalises. As with timm's own, `img_size` makes them for images of another size.
"""
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import beit, build_model_with_cfg, generate_default_cfgs, register_model

CONFIG = {'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': None, 'fixed_input_size': True,
          'crop_pct': 0.9, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN,
          'std': IMAGENET_DEFAULT_STD, 'first_conv': 'patch_embed.proj', 'classifier': 'head'}
# timm reads this when the networks are registered. There are no weights to download.
default_cfgs = generate_default_cfgs({'beit_abs_small_patch16_224.untrained': CONFIG,
                                      'beit_abs_base_patch16_224.untrained': CONFIG,
                                      'beit_abs_large_patch16_224.untrained': CONFIG})


def build_vit(name, pretrained, **arguments):
    """Build timm's Beit with both kinds of positions; patches of 16 pixels."""
    fixed = {'patch_size': 16, 'use_abs_pos_emb': True, 'use_rel_pos_bias': True, 'init_values': 0.1}
    return build_model_with_cfg(beit.Beit, name, pretrained, pretrained_filter_fn=beit.checkpoint_filter_fn,
                                feature_cfg={'out_indices': 3, 'feature_cls': 'getter'}, **{**fixed, **arguments})


@register_model
def beit_abs_small_patch16_224(pretrained=False, **kwargs):
    """48.8 M parameters: 768 wide, 8 blocks of 8 heads."""
    shape = {'embed_dim': 768, 'depth': 8, 'num_heads': 8, 'mlp_ratio': 3}
    return build_vit('beit_abs_small_patch16_224', pretrained, **{**shape, **kwargs})


@register_model
def beit_abs_base_patch16_224(pretrained=False, **kwargs):
    """86.7 M parameters: 768 wide, 12 blocks of 12 heads."""
    shape = {'embed_dim': 768, 'depth': 12, 'num_heads': 12, 'mlp_ratio': 4}
    return build_vit('beit_abs_base_patch16_224', pretrained, **{**shape, **kwargs})


@register_model
def beit_abs_large_patch16_224(pretrained=False, **kwargs):
    """304.6 M parameters: 1024 wide, 24 blocks of 16 heads."""
    shape = {'embed_dim': 1024, 'depth': 24, 'num_heads': 16, 'mlp_ratio': 4}
    return build_vit('beit_abs_large_patch16_224', pretrained, **{**shape, **kwargs})
