"""SparK: masked image modeling with any CNN (Tian et al., ICLR 2023, arXiv 2301.03580, section 3).

    spark = build_spark('resnet50')
    loss = spark(images)             # hide 60 % of the cells, encode the others, reconstruct, compare
    loss.backward()
    spark.encoder.cnn.state_dict()   # the pretrained network, with timm's keys

A cell is what the paper calls a patch: a square of pixels, 32 x 32 for a ResNet-50, that is visible or hidden as a whole.

Legend: B batch, C channels, (H, W) image, (h, w) grid of cells, L = h*w, k visible cells an image, p the side of a cell on
a feature map: cell size / stride of the map. `visible` is a LongTensor (B, k): row-major indices of the cells that the
encoder sees, ascending.
"""
import torch
from timm.layers import LayerNorm2d
from torch import nn

import pretrain.models  # noqa: F401  (registers your own networks with timm)
from common.networks.create import network_of
from common.recompute import checkpointed
from common.sync_batchnorm import synchronise_batchnorm
from pretrain import masking
from pretrain.accelerated.decoder import decode as decode_accelerated
from pretrain.accelerated.densify import FilledMap
from pretrain.decoder import LightDecoder
from pretrain.encoder import SparseEncoder
from pretrain.spark_weights import load_official as load_official_spark
from pretrain.sparse.pyramid import norms_of_one_value
from pretrain.sparse_network import SparseNetwork


class SparK(SparseNetwork):
    """Mask, encode, densify, decode, compare.

    encoder: SparseEncoder. mask_ratio: share of hidden cells; round(L * (1 - mask_ratio)) are visible, at least one and
    not all.
    decoder_width: channels of the decoder's smallest map. decoder: 'unet', the paper's, or 'light', which
    ends at the encoder's finest level and makes the pixels of each position there. target: what the decoder
    predicts: 'normalised', the paper's (each cell by its own mean and standard deviation), or 'pixels', as the network
    takes them. Raises ValueError for other values.

    Where `accelerated` is on (see SparseNetwork), the forms of pretrain/accelerated compute, instead of those in this
    file and in decoder.py.

    The names of submodules and parameters are a file format.
    """

    def __init__(self, encoder, mask_ratio=0.6, decoder_width=768, decoder='unet', target='normalised'):
        super().__init__()
        if decoder not in ('unet', 'light'):
            raise ValueError(f'decoder must be unet or light, not {decoder!r}')
        if target not in ('normalised', 'pixels'):
            raise ValueError(f'target must be normalised or pixels, not {target!r}')
        self.encoder = encoder
        self.mask_ratio = mask_ratio
        self.target = target
        self.recomputed = 'none'
        self.cells = encoder.grid[0] * encoder.grid[1]
        self.visible_cells = round(self.cells * (1 - mask_ratio))
        masking.check_num_visible(self.visible_cells, self.cells, mask_ratio)
        encoder.prove_order(self.visible_cells)
        finest = encoder.reductions[0] if decoder == 'light' else 1
        self.dense_decoder = LightDecoder(encoder.stride, decoder_width, encoder.in_chans, finest)
        self.densify_norms = nn.ModuleList()
        self.densify_projs = nn.ModuleList()
        self.mask_tokens = nn.ParameterList()
        for channels, stride in zip(reversed(encoder.channels), reversed(encoder.reductions)):
            width = self.dense_decoder.widths[self.dense_decoder.strides.index(stride)]
            norm = nn.BatchNorm2d if encoder.norm == 'bn' else LayerNorm2d
            self.densify_norms.append(norm(channels))
            token = nn.init.trunc_normal_(torch.empty(1, channels, 1, 1), std=0.02, a=-0.02, b=0.02)
            self.mask_tokens.append(nn.Parameter(token))
            is_smallest = stride == encoder.stride
            if is_smallest and channels == width:
                self.densify_projs.append(nn.Identity())
            else:
                kernel = 1 if is_smallest else 3
                self.densify_projs.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2))
        self.single_valued = tuple(self.single_valued_norms())

    def single_valued_norms(self):
        """Names of norms that see one value of each channel of an image; of densify, that of the smallest map."""
        yield from (f'encoder.{name}' for name in norms_of_one_value(self.encoder, self.visible_cells))
        values = self.visible_cells * (self.encoder.cell_size // self.encoder.stride) ** 2
        if values == 1 and self.encoder.norm == 'bn':
            yield 'densify_norms.0'

    def forward(self, images, visible=None):
        """images (B, C, H, W), normalised; visible (B, k), as a run gives it, else drawn -> loss, 0-dim."""
        if visible is None:
            visible = self.draw_visible(len(images)).to(images.device)
        geometry = self.geometry(images, visible)
        strips = checkpointed(self.encoder, images, geometry, enabled=self.recomputed == 'all')
        levels = self.densify(strips, geometry)
        reconstruction = self.decode(levels, geometry)
        return self.loss(images, reconstruction, visible)

    def placed(self, device):
        """Itself on a device, as it trains: channels last, no gradients for what no feature depends on."""
        self.freeze_unused()
        self.to(device)
        for part in (self.encoder, self.densify_projs, self.dense_decoder):  # not the mask tokens: DDP warns of their strides
            part.to(memory_format=torch.channels_last)
        return self

    def recompute(self, what):
        """Choose what the backward pass computes again instead of keeping it: 'none', 'decoder' or 'all'."""
        self.recomputed = what
        self.dense_decoder.recomputes = what != 'none'

    def densify(self, strips, geometry):
        """Strips (B, C_i, k*p, p), large to small -> {stride: map of all positions} (section 3.2).

        Visible features are normalised, hidden positions get the mask token, and a convolution brings both to
        the decoder's width at that stride, (B, ., h*p, w*p). densify_norms, mask_tokens and densify_projs are in the
        decoder's order: those of the smallest map come first. In the accelerated form that map is a FilledMap.
        """
        levels = {}
        for i, (stride, strip) in enumerate(zip(reversed(self.encoder.reductions), reversed(strips))):
            strip, token, project = self.densify_norms[i](strip), self.mask_tokens[i], self.densify_projs[i]
            if geometry.accelerated:
                levels[stride] = FilledMap(geometry, strip, token).project(project)
            else:
                levels[stride] = project(geometry.to_canvas(strip, fill=token))
        return levels

    def decode(self, levels, geometry):
        """Densified maps by stride -> the image, (B, C, H, W)."""
        if geometry.accelerated:
            return decode_accelerated(self.dense_decoder, levels)
        return self.dense_decoder(levels)

    def predict(self, images, visible):
        """What the decoder says of all cells, visible ones too: (B, C, H, W), on the scale of `targets`."""
        masking.check_indices(visible, self.cells, len(images))
        geometry = self.geometry(images, visible)
        return self.decode(self.densify(self.encoder(images, geometry), geometry), geometry)

    def load_official(self, state_dict):
        """Load a whole official SparK (`*_withdecoder_*_spark_style.pth`), strictly. Raises ValueError."""
        load_official_spark(state_dict, self)


def build_spark(model, input_size=224, mask_ratio=0.6, drop_path=None, cell_size=None, in_chans=3,
                decoder_width=768, sync_bn=False, levels=None, decoder='unet', target='normalised',
                record=None):
    """SparK around a CNN.

    model: a timm name, or an nn.Module: one that keeps timm's contract (`forward_intermediates`), one whose
    forward returns its feature maps, or any one with levels, the names of the submodules whose outputs are
    the pyramid, large to small, in a list or with commas between. input_size: pixels, an int or (height,
    width), a multiple of the cell.
    drop_path: None leaves the network's own default. cell_size: None is the network's total stride R (2R
    where a layer needs it), else R times a power of two. sync_bn: share all BatchNorm statistics between the
    ranks, which have as many images each. decoder, target: see SparK. record: `spark.encoder.record` of an
    earlier one, see SparseEncoder. Raises ValueError, which names what would work.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    cnn = network_of(model, in_chans, drop_path, size)
    encoder = SparseEncoder(cnn, size, in_chans, cell_size, levels, record)
    spark = SparK(encoder, mask_ratio, decoder_width, decoder, target).train()  # also a module that was in evaluation mode
    return synchronise_batchnorm(spark, equal_counts=True) if sync_bn else spark
