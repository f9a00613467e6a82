"""A ViT of A2MIM that is small enough for tests: import it, or give it as --register."""
from timm.models import register_model

from common.networks.vits import build_vit


@register_model
def small_vit(pretrained=False, img_size=64, **kwargs):
    """32 wide, 3 blocks of 4 heads, patches of 16 pixels."""
    return build_vit('beit_abs_small_patch16_224', pretrained, img_size=img_size, embed_dim=32, depth=3, num_heads=4, **kwargs)
