"""A ConvViT that is small enough for tests: import it, or give it as --register."""
from timm.models import register_model

from common.convvit import build_convvit


@register_model
def tiny_convvit(pretrained=False, img_size=64, **kwargs):
    """32, 48 and 96 wide, 1, 1 and 2 blocks, 4 heads."""
    shape = {'widths': (32, 48, 96), 'depths': (1, 1, 2), 'heads': 4}
    return build_convvit('convvit_small', pretrained, img_size=img_size, **{**shape, **kwargs})
