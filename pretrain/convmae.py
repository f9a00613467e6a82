"""ConvMAE: masked pretraining of networks of convolutions and attention (Gao et al., NeurIPS 2022, arXiv 2205.03892).

    convmae = build_convmae('convvit_base')
    loss = convmae(images)               # hide 75 % of the cells, encode the others, fuse, decode, compare
    loss.backward()
    convmae.encoder.cnn.state_dict()     # the pretrained network, with its own keys

Convolutions run on visible cells, as in SparK, and attention runs over the tokens of visible cells, as in MAE. What
the stages of the network say of a cell is added up, and MAE's decoder reconstructs the hidden cells from that (masks,
decoder and loss are in masked_autoencoder.py). The original runs the convolutions over the whole image, and multiplies
by the mask in front of each 5x5; the numbers are the same.

Legend: as in masked_autoencoder.py. A strip (B, C_i, k*p, p) holds the visible cells of a stage (sparse/geometry.py),
each with p positions a side: 4, 2 and 1 in the stages of ConvViT.
"""
import torch
import torch.nn.functional as F
from torch import nn

import pretrain.models  # noqa: F401  (registers your own networks with timm)
from common.convvit import ConvViT
from common.networks.create import network_of
from common.recompute import checkpointed
from common.sync_batchnorm import synchronise_batchnorm
from pretrain.encoder import SparseEncoder
from pretrain.masked_autoencoder import EPS, MaskedAutoencoder, sincos_pos_embed
from pretrain.sparse.notes import NoteKind
from pretrain.sparse.pyramid import norms_of_one_value


class ConvMAE(MaskedAutoencoder):
    """Mask, encode, fuse, decode, compare.

    encoder: SparseEncoder of a network whose last stage is attention over all cells, with one token a cell. The other
    arguments are those of MaskedAutoencoder. Raises ValueError for other networks.
    """

    def __init__(self, encoder, **arguments):
        check_encoder(encoder)
        super().__init__(encoder, **arguments)
        encoder.prove_order(self.visible_cells)
        self.single_valued = tuple(f'encoder.{name}' for name in norms_of_one_value(encoder, self.visible_cells))
        self.norm = nn.LayerNorm(encoder.channels[-1], eps=EPS)
        self.fusions = []  # names of the convolutions that bring the earlier stages to the decoder
        for channels, stride in zip(encoder.channels[:-1], encoder.reductions[:-1]):
            p = encoder.cell_size // stride
            self.fusions.append(f'stage{len(self.fusions) + 1}_output_decode')
            self.add_module(self.fusions[-1], Fusion(channels, encoder.channels[-1], p, p))

    @property
    def notes(self):
        """Those of the encoder that concern ConvMAE, whose decoder needs no feature map of every stride."""
        return tuple(note for note in self.encoder.notes if note.kind is not NoteKind.STRIDE_WITHOUT_MAP)

    def latent(self, images, visible):
        """images, visible -> the sum of what all stages say of the visible cells, normalised: (B, k, width)."""
        geometry = self.geometry(images, visible)
        *earlier, last = checkpointed(self.encoder, images, geometry, enabled=self.recomputed == 'all')
        for name, strip in zip(self.fusions, earlier):
            last = last + self.get_submodule(name)(strip)
        return self.norm(last.flatten(2).transpose(1, 2))


class Fusion(nn.Conv2d):
    """A convolution whose windows are the cells of a strip: (B, C, k*p, p) -> (B, C', k, 1).

    In the memory of a strip a cell is one run of p*p*C numbers. So this is a 1x1 convolution with p*p*C channels, a
    product of large matrices, which takes half the time of the same convolution with windows on a CPU, or less.
    """

    def forward(self, strip):
        B, C, _, p = strip.shape
        cells = strip.permute(0, 2, 3, 1).reshape(B, -1, 1, p * p * C).permute(0, 3, 1, 2)
        weight = self.weight.permute(0, 2, 3, 1).reshape(-1, p * p * C, 1, 1)
        return F.conv2d(cells, weight, self.bias)


def check_encoder(encoder):
    """Raise ValueError for a network that ConvMAE does not fit."""
    name = type(encoder.cnn).__name__
    if not encoder.has_attention:
        raise ValueError(f'{name} has no attention over all positions by products of queries and keys, which '
                         '--method=convmae is for: give a ConvViT (convvit_base) or another hybrid (docs/coverage.md), or '
                         'pretrain it with --method=spark')
    if encoder.cell_size != encoder.stride:
        raise ValueError(f'--method=convmae has one token a cell, and {name}, whose total stride is {encoder.stride}, needs '
                         f'cells of {encoder.cell_size} px: pretrain it with --method=spark')


def build_convmae(model, input_size=224, mask_ratio=0.75, drop_path=None, in_chans=3, decoder_width=512,
                  decoder_depth=8, decoder_heads=16, decoder_mlp_ratio=4, norm_pix=True, masks_per_image=1,
                  sync_bn=False, record=None):
    """ConvMAE around a network of convolutions and attention.

    Args:
        model: a timm name such as 'convvit_base', a ConvViT, or another network that SparseEncoder takes. A ConvViT is
            changed in place: it is resized to input_size, and its position embedding is replaced by fixed sines and
            cosines. Other weights of a given network stay.
        input_size: pixels, an int or (height, width), a multiple of the network's total stride, which is the cell.
        drop_path: None leaves the network's own default.
        sync_bn: share all BatchNorm statistics between the ranks, which have as many images each.
        record: `convmae.encoder.record` of an earlier one, see SparseEncoder.

    The others as for MaskedAutoencoder. Raises ValueError, which names what would work.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    cnn = network_of(model, in_chans, drop_path, size)
    if isinstance(cnn, ConvViT):
        set_sincos_pos_embed(cnn, size)
    encoder = SparseEncoder(cnn, size, in_chans, record=record)
    convmae = ConvMAE(encoder, mask_ratio=mask_ratio, decoder_width=decoder_width, decoder_depth=decoder_depth,
                      decoder_heads=decoder_heads, decoder_mlp_ratio=decoder_mlp_ratio, norm_pix=norm_pix,
                      masks_per_image=masks_per_image)
    convmae = synchronise_batchnorm(convmae, equal_counts=True) if sync_bn else convmae
    return convmae.train()  # also a module that was in evaluation mode


@torch.no_grad()
def set_sincos_pos_embed(net, size):
    """Resize a ConvViT to images of a size (height, width), in place, and set its position embedding to sines and cosines
    that are not trained.
    """
    net.set_input_size(size)
    net.pos_embed.copy_(sincos_pos_embed(net.grid, net.embed_dim))
    net.pos_embed.requires_grad_(False)
