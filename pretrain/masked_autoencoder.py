"""What MAE and ConvMAE have in common: a transformer that reconstructs hidden cells from tokens of the visible ones.

The encoder sees the visible cells alone, and says of each what a token of some width holds. The decoder, a small
transformer, gets these and a learned token at each hidden cell, and predicts the pixels of every cell (He et al., CVPR
2022, arXiv 2111.06377, section 3). A cell is what these papers call a patch.

Legend: B batch, C channels, (H, W) image, (h, w) grid of cells, L = h*w, k visible cells an image, n masks an image,
N = C * cell_size ** 2 values of a cell, D width of the decoder. `visible` is a LongTensor (B, k): row-major indices of
the cells that the encoder sees, ascending.
"""
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import nn

from common.recompute import checkpointed
from pretrain import masking
from pretrain.masked_autoencoder_weights import load_official as load_official_mae
from pretrain.sparse_network import SparseNetwork

EPS = 1e-6  # of LayerNorm


class MaskedAutoencoder(SparseNetwork):
    """Mask, encode, decode, compare. A method says by `latent` how it encodes.

    Args:
        encoder: the last of its `channels` is the width of the tokens that `latent` returns. If it has
            `num_prefix_tokens` (timm's name), such as the class token of a ViT, these stand in front of the others.
        mask_ratio: share of hidden cells; round(L * (1 - mask_ratio)) are visible. (The original shows
            int(L * (1 - mask_ratio)): as many at the paper's 0.75, one less at about half of all ratios.)
        decoder_width, decoder_depth, decoder_heads, decoder_mlp_ratio: of the decoder's blocks.
        norm_pix: whether cells are predicted as they are after normalisation by their own mean and standard deviation,
            or else as pixels. (The authors' name; the attribute `target` is 'normalised' or 'pixels' accordingly.)
        masks_per_image: with how many masks a training step takes each image; where there are several, each cell is
            visible in exactly one. So it must be 1 / (1 - mask_ratio), and divide L.

    Raises ValueError for other values.

    The names of submodules and parameters are those of the authors' weight files.
    """

    def __init__(self, encoder, mask_ratio=0.75, decoder_width=512, decoder_depth=8, decoder_heads=16,
                 decoder_mlp_ratio=4, norm_pix=True, masks_per_image=1):
        super().__init__()
        if decoder_heads < 1 or decoder_width % decoder_heads or decoder_width % 4 or decoder_depth < 1:
            raise ValueError(f'decoder_width must be a multiple of decoder_heads and of 4, and decoder_heads and decoder_depth '
                             f'1 or more; they are {decoder_width}, {decoder_heads} and {decoder_depth}')
        self.encoder = encoder
        self.mask_ratio = mask_ratio
        self.target = 'normalised' if norm_pix else 'pixels'
        self.recomputed = 'none'
        self.cells = encoder.grid[0] * encoder.grid[1]
        self.visible_cells = round(self.cells * (1 - mask_ratio))
        masking.check_num_visible(self.visible_cells, self.cells, mask_ratio)
        check_masks(masks_per_image, self.visible_cells, encoder)
        self.masks_per_image = masks_per_image
        self.num_prefix = getattr(encoder, 'num_prefix_tokens', 0)  # such as the class token of a ViT
        self.single_valued = ()
        positions = sincos_pos_embed(encoder.grid, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width))
        self.register_buffer('decoder_pos_embed', with_prefix(positions, self.num_prefix))
        self.decoder_embed = nn.Linear(encoder.channels[-1], decoder_width)
        norm = partial(nn.LayerNorm, eps=EPS)
        self.decoder_blocks = nn.Sequential(*[
            Block(decoder_width, decoder_heads, decoder_mlp_ratio, qkv_bias=True, norm_layer=norm)
            for _ in range(decoder_depth)])
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, encoder.in_chans * encoder.cell_size ** 2)
        self.initialise_decoder()

    @property
    def notes(self):
        """What was found out about the encoder's network and is worth a line: sentences."""
        return self.encoder.notes

    def initialise_decoder(self):
        """Initialise linear layers as MAE does (Xavier uniform), and the mask token."""
        nn.init.normal_(self.mask_token, std=0.02)
        for layer in [self.decoder_embed, *self.decoder_blocks.modules(), self.decoder_pred]:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, images, visible=None):
        """images (B, C, H, W), normalised -> loss, 0-dim.

        visible: (B, k), or (B, n, k) for n masks an image, as a run gives it; drawn if not given.
        """
        if visible is None:
            visible = self.draw_masks(len(images)).to(images.device)
        if visible.ndim == 3:  # Each image is taken once with each of its masks.
            images = images.repeat_interleave(visible.shape[1], 0).contiguous(memory_format=torch.channels_last)
            visible = visible.flatten(0, 1)
        latent = self.latent(images, visible)
        return self.loss(images, self.as_images(self.decode(latent, visible)), visible)

    def draw_masks(self, batch, generator=None, rows=slice(None)):
        """The visible cells that a training step takes: (batch, k), or (batch, n, k) for several masks an image."""
        if self.masks_per_image == 1:
            return self.draw_visible(batch, generator, rows)
        return masking.draw_complementary(batch, self.cells, self.masks_per_image, generator, rows)

    def latent(self, images, visible):
        """What the decoder reads, (B, num_prefix + k, C): prefix tokens, then those of the visible cells.

        `visible` is ascending.
        """
        raise NotImplementedError

    def decode(self, latent, visible):
        """The prediction of each cell, visible ones too: (B, L, N), its N values in the order row, column, channel.

        latent: (B, num_prefix + k, C), of `latent`. visible: (B, k).
        """
        tokens = self.decoder_embed(latent)
        prefix, seen = tokens[:, :self.num_prefix], tokens[:, self.num_prefix:]
        index = visible[..., None].expand(-1, -1, seen.shape[2])
        # In the precision of the token: positions, and what blocks add to them, need more than bf16 has.
        cells = self.mask_token.expand(len(seen), self.cells, -1).scatter(1, index, seen.to(self.mask_token.dtype))
        x = torch.cat([prefix, cells], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = checkpointed(block, x, enabled=self.recomputed != 'none')
        return self.decoder_pred(self.decoder_norm(x[:, self.num_prefix:]))

    def as_images(self, prediction):
        """(B, L, N), as `decode` returns it -> (B, C, H, W).

        The authors' decoder_pred has the values of a cell in the order row, column, channel, and its weights are exchanged
        with their files; `unpatchify` takes channel, row, column.
        """
        p = self.encoder.cell_size
        return self.unpatchify(prediction.unflatten(2, (p, p, -1)).permute(0, 1, 4, 2, 3).flatten(2))

    def predict(self, images, visible):
        """What the decoder says of all cells, visible ones too: (B, C, H, W), on the scale of `targets`."""
        masking.check_indices(visible, self.cells, len(images))
        return self.as_images(self.decode(self.latent(images, visible), visible))

    def placed(self, device):
        """Itself on a device, as it trains: channels last, no gradients for what no feature depends on."""
        self.freeze_unused()
        return self.to(device, memory_format=torch.channels_last)

    def recompute(self, what):
        """Choose what the backward pass computes again instead of keeping it: 'none', 'decoder' or 'all'."""
        self.recomputed = what

    def load_official(self, state_dict):
        """Load a whole file of the authors' program, strictly. Raises ValueError."""
        load_official_mae(state_dict, self)


def check_masks(masks_per_image, visible_cells, encoder):
    """Raise ValueError unless so many masks of visible cells are all cells of an image, each once."""
    h, w = encoder.grid
    if masks_per_image < 1:
        raise ValueError(f'masks_per_image must be 1 or more, not {masks_per_image}')
    if masks_per_image > 1 and masks_per_image * visible_cells != h * w:
        raise ValueError(f'masks_per_image {masks_per_image}: so many masks of {visible_cells} visible cells are not the '
                         f'{h} x {w} = {h * w} cells of an image, each once. Give a mask_ratio of '
                         f'{1 - 1 / masks_per_image:g}, and an input_size whose number of cells is a multiple of '
                         f'{masks_per_image}')


def sincos_pos_embed(grid, width):
    """The 2-D sin-cos position embedding of a grid (h, w), float32 (1, h*w, width).

    The first half of the channels is of the column, the second of the row; in each half the sines come first. There are
    width / 4 frequencies, from 1 down to nearly 1 / 10,000, as in MAE and ConvMAE. width: a multiple of 4.
    """
    rows, columns = (torch.arange(side, dtype=torch.float64, device='cpu') for side in grid)
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64, device='cpu') / (width // 4))
    y, x = (place.flatten()[:, None] * frequencies for place in torch.meshgrid(rows, columns, indexing='ij'))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)[None].float()


def with_prefix(positions, num_prefix):
    """A position embedding (1, L, D) after zeros for prefix tokens, such as the class token: (1, num_prefix + L, D)."""
    return torch.cat([positions.new_zeros(1, num_prefix, positions.shape[2]), positions], 1)
