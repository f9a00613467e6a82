"""A small ResNet for small images: `--model=small_resnet`, of total stride 16 and 1.2 million parameters.

It is the first three stages of a ResNet with one basic block each (He et al., CVPR 2016), built by timm's
ByobNet. Its feature maps have strides 2, 4, 8 and 16. The stem is a 3x3 convolution and a pooling: there is
little to be gained from 7x7 in images of 64 to 96 px. benchmarks/evidence.py measures what pretraining is
worth with it.
"""
from timm.models import register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

WIDTHS_AND_STRIDES = (64, 1), (128, 2), (256, 2)


@register_model
def small_resnet(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    """timm passes the named arguments to every network; this one has no weights to load."""
    if pretrained:
        raise RuntimeError('small_resnet has no pretrained weights')
    stages = tuple(ByoBlockCfg(type='basic', d=1, c=width, s=stride) for width, stride in WIDTHS_AND_STRIDES)
    return ByobNet(ByoModelCfg(blocks=stages, stem_type='3x3', stem_pool='maxpool', stem_chs=32), **kwargs)
