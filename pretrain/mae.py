"""MAE: a masked autoencoder for vision transformers (He et al., CVPR 2022, arXiv 2111.06377, section 3).

    mae = build_mae('vit_base_patch16_224')
    loss = mae(images)               # hide 75 % of the patches, encode the others, decode, compare
    loss.backward()
    mae.encoder.cnn.state_dict()     # the pretrained network, with timm's keys

The transformer sees the tokens of visible patches alone (vit_encoder.py). Masks, decoder and loss are in
masked_autoencoder.py, where the legend is.
"""
import torch
from torch import nn

import pretrain.models  # noqa: F401  (registers your own networks with timm)
from common.networks.create import network_of
from common.recompute import checkpointed
from pretrain import masking
from pretrain.masked_autoencoder import MaskedAutoencoder, sincos_pos_embed, with_prefix
from pretrain.vit_encoder import ViTEncoder, check_vit


class MAE(MaskedAutoencoder):
    """Mask, encode, decode, compare. encoder: ViTEncoder. The other arguments are those of MaskedAutoencoder."""

    def latent(self, images, visible):
        """images, visible -> the class token, if there is one, and the tokens of visible patches, (B, . + k, width)."""
        geometry = self.geometry(images, visible)
        return checkpointed(self.encoder, images, geometry, enabled=self.recomputed == 'all')

    def encode(self, images, visible):
        """images, visible -> [(B, width, h, w)]: what the decoder reads of the patches, hidden ones 0."""
        masking.check_indices(visible, self.cells, len(images))
        tokens = self.latent(images, visible)[:, self.num_prefix:]
        return [self.geometry(images, visible).to_canvas(tokens.transpose(1, 2)[..., None])]

    def pyramid(self, images, visible=None):
        """The one feature map of the network, as `encode` has it, or of the whole image."""
        return self.encoder.pyramid(images) if visible is None else self.encode(images, visible)


def build_mae(model, input_size=224, mask_ratio=0.75, drop_path=None, in_chans=3, decoder_width=512, decoder_depth=8,
              decoder_heads=16, decoder_mlp_ratio=4, norm_pix=True, masks_per_image=1):
    """MAE around a vision transformer.

    Args:
        model: a timm name such as 'vit_base_patch16_224', whose weights are initialised as MAE does it, or timm's
            VisionTransformer, whose weights stay. The network is changed in place: it is resized to input_size, and its
            position embedding is replaced by fixed sines and cosines.
        input_size: pixels, an int or (height, width), a multiple of the side of a patch.
        drop_path: None leaves the network's own default.

    The others as for MaskedAutoencoder. Raises ValueError, which names what would work.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    vit = network_of(model, in_chans, drop_path, size)
    check_vit(vit, size, in_chans)
    if isinstance(model, str):
        initialise(vit)
    set_sincos_pos_embed(vit, size)
    mae = MAE(ViTEncoder(vit, size, in_chans), mask_ratio=mask_ratio, decoder_width=decoder_width,
              decoder_depth=decoder_depth, decoder_heads=decoder_heads, decoder_mlp_ratio=decoder_mlp_ratio,
              norm_pix=norm_pix, masks_per_image=masks_per_image)
    return mae.train()  # also a module that was in evaluation mode


@torch.no_grad()
def initialise(vit):
    """Initialise a vision transformer as MAE does: linear layers and the patch embedding Xavier uniform, the tokens in front of
    the patches from a normal distribution.
    """
    for layer in vit.blocks.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.flatten(1))
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)


@torch.no_grad()
def set_sincos_pos_embed(vit, size):
    """Resize a vision transformer to images of a size (height, width), in place, and set its position embedding to sines
    and cosines that are not trained.

    That of the class token and of registers is zero. Raises ValueError for a network whose width is no multiple of 4.
    """
    if vit.embed_dim % 4:
        raise ValueError(f'fixed positions need a width that is a multiple of 4; that of {type(vit).__name__} is '
                         f'{vit.embed_dim}: give a network of another width')
    if vit.patch_embed.img_size != size:
        vit.set_input_size(size)
    num_prefix = vit.pos_embed.shape[1] - vit.patch_embed.num_patches
    positions = sincos_pos_embed(vit.patch_embed.grid_size, vit.embed_dim)
    vit.pos_embed.copy_(with_prefix(positions, num_prefix))
    vit.pos_embed.requires_grad_(False)
