"""SparK: masked image modeling with any CNN (Tian et al., ICLR 2023, arXiv 2301.03580, section 3).

    spark = build_spark('resnet50')
    loss = spark(images)             # hide 60 % of the cells, encode the others, reconstruct, compare
    loss.backward()
    spark.encoder.cnn.state_dict()   # the pretrained network, with timm's keys

Legend: B batch, C channels, (H, W) image, (h, w) grid of cells, L = h*w, k visible cells an image, p the side of a
cell at a stage. `visible` is a LongTensor (B, k): row-major indices of the cells that the encoder sees, ascending.
"""
import torch
from timm.layers import LayerNorm2d
from torch import nn

import pretrain.models  # noqa: F401  (registers your own networks with timm)
from common.networks.create import create_cnn
from common.networks.norms import refused, single_valued
from common.recompute import run
from pretrain.accelerated.fused import Filled
from pretrain.decoder import LightDecoder
from pretrain.encoder import SparseEncoder
from pretrain.masking import check_indices, check_num_visible, check_visible, cut, draw_visible, normalise, paste
from pretrain.spark_weights import load_official as load_official_spark
from pretrain.sparse.strips import Geometry


class SparK(nn.Module):
    """Mask, encode, densify, decode, compare.

    encoder: SparseEncoder. mask_ratio: share of hidden cells, at least one visible and one hidden (ValueError).
    decoder_width: channels of the decoder's smallest map. decoder: 'unet', the paper's, or 'light', which ends at the encoder's
    finest level and makes the pixels of each position there. target: what the decoder predicts: 'normalised', the paper's
    (each cell by its own mean and deviation), or 'pixels', as the network takes them. The attribute names below are a
    file format.
    """

    def __init__(self, encoder, mask_ratio=0.6, decoder_width=768, decoder='unet', target='normalised'):
        super().__init__()
        self.encoder, self.mask_ratio, self.target = encoder, mask_ratio, target
        self.recomputes = False
        self.cells = encoder.grid[0] * encoder.grid[1]
        self.visible_cells = round(self.cells * (1 - mask_ratio))
        check_num_visible(self.visible_cells, self.cells, mask_ratio)
        if decoder not in ('unet', 'light'):
            raise ValueError(f'decoder must be unet or light, not {decoder!r}')
        if target not in ('normalised', 'pixels'):
            raise ValueError(f'target must be normalised or pixels, not {target!r}')
        finest = encoder.reductions[0] if decoder == 'light' else 1
        self.dense_decoder = LightDecoder(encoder.stride, decoder_width, encoder.in_chans, finest)
        self.densify_norms, self.densify_projs = nn.ModuleList(), nn.ModuleList()
        self.mask_tokens = nn.ParameterList()
        for channels, stride in zip(reversed(encoder.channels), reversed(encoder.reductions)):
            i = (encoder.stride // stride).bit_length() - 1  # the decoder's block that begins at this stride
            width = self.dense_decoder.widths[i]
            self.densify_norms.append(nn.BatchNorm2d(channels) if encoder.norm == 'bn' else LayerNorm2d(channels))
            token = nn.init.trunc_normal_(torch.empty(1, channels, 1, 1), std=0.02, a=-0.02, b=0.02)
            self.mask_tokens.append(nn.Parameter(token))
            kernel = 1 if i == 0 else 3
            self.densify_projs.append(nn.Identity() if i == 0 and channels == width else
                                      nn.Conv2d(channels, width, kernel, padding=kernel // 2))
        self.single_valued = self.measure_norms()

    @property
    def input_size(self):
        """(height, width) of the images, in pixels."""
        return self.encoder.input_size

    @property
    def uncompiled(self):
        """Whether torch.compile leaves the encoder alone."""
        return self.encoder.uncompiled

    @torch.no_grad()
    def measure_norms(self):
        """Names of the norms that see a single value of each channel of an image: see common/networks/norms.py."""
        encoder, like = self.encoder, next(self.encoder.cnn.parameters())
        image = torch.zeros(1, encoder.in_chans, *encoder.input_size).to(like)
        geometry = Geometry(torch.arange(self.visible_cells, device=like.device)[None], encoder.grid)
        names = single_valued(encoder, lambda: encoder.pyramid(image, geometry))
        side = encoder.cell_size // encoder.stride
        of_densify = ('densify_norms.0',) * (self.visible_cells * side ** 2 == 1 and encoder.norm == 'bn')
        return tuple(f'encoder.{name}' for name in names) + of_densify

    def check_batch(self, images):
        """Refuse a single image where a norm would see a single value of each channel."""
        name = refused(self, self.single_valued) if len(images) == 1 and self.single_valued else None
        if name is not None:
            raise ValueError(f'{name} ({type(self.get_submodule(name)).__name__}) sees a single value of each channel in a '
                             'batch of one image, and that has no deviation: give two images or more at a time, or call '
                             'eval() where nothing is trained')

    def forward(self, images, visible=None):
        """images (B, C, H, W), normalised; visible (B, k), drawn if not given -> loss, a 0-dim tensor."""
        if visible is None:
            visible = self.draw_visible(len(images)).to(images.device)
        self.check_batch(images)
        geometry = self.geometry(images, visible)
        strips = run(self.encoder, images, geometry, again=self.recomputes)
        levels = self.densify(strips, geometry)
        reconstruction = self.dense_decoder(levels)
        return self.loss(images, reconstruction, geometry)

    def placed(self, device):
        """Itself on a device, as it trains: channels last, and without gradients for what the features do not depend on."""
        for name in self.encoder.unused:  # DDP waits for the gradient of everything that may have one
            self.encoder.cnn.get_parameter(name).requires_grad_(False)
        self.to(device)
        for part in (self.encoder, self.densify_projs, self.dense_decoder):  # mask tokens would only confuse DDP's strides
            part.to(memory_format=torch.channels_last)
        return self

    def recompute(self, what):
        """What `forward` does not keep for the backward pass, but computes again: 'none', 'decoder' or 'all'."""
        self.recomputes, self.dense_decoder.recomputes = what == 'all', what != 'none'

    def draw_visible(self, batch, generator=None, rows=slice(None)):
        """Uniformly random visible cells, the same number in every image: LongTensor (batch, k) on the CPU; some rows of it."""
        return draw_visible(batch, self.cells, self.visible_cells, generator, rows)

    def geometry(self, images, visible):
        check_visible(visible, len(images))
        return Geometry(visible, self.encoder.grid)

    def densify(self, strips, geometry):
        """Strips (B, C_i, k*p, p), large to small -> maps (B, widths[i], h*p, w*p), by stride (section 3.2), the smallest
        Filled."""
        levels = {}
        for i, (stride, strip) in enumerate(zip(reversed(self.encoder.reductions), reversed(strips))):
            filled, project = Filled(geometry, self.densify_norms[i](strip), self.mask_tokens[i]), self.densify_projs[i]
            levels[stride] = filled.pointwise(project) if i == 0 else filled.convolved(project)
        return levels

    def targets(self, images):
        """What the decoder is to predict of each cell; the means and deviations that make pixels of that: (B, L, .).

        With target 'pixels' the cells are predicted as they are: means are 0, and deviations 1.
        """
        cells = cut(images, self.encoder.cell_size)
        if self.target == 'normalised':
            return normalise(cells)
        zeros = cells.new_zeros(*cells.shape[:2], 1)
        return cells, zeros, zeros + 1

    def loss(self, images, reconstruction, geometry):
        """Mean squared error on the targets of hidden cells (section 3.3), in the images' precision."""
        target, _, _ = self.targets(images)
        predicted = cut(reconstruction.to(images.dtype), self.encoder.cell_size)
        error = (predicted - target).square().mean(dim=2)
        hidden = ~geometry.is_visible()
        return (error * hidden).sum() / (len(images) * (self.cells - geometry.visible.shape[1]))

    def encode(self, images, visible):
        """images, visible -> the pyramid, small stride to large: (B, C_i, H_i, W_i), hidden positions 0.

        Runs in the mode that the caller set: in train mode BatchNorm's running statistics are updated.
        """
        self.check_batch(images)
        geometry = self.geometry(images, visible)
        check_indices(visible, self.cells)
        return [geometry.to_canvas(strip) for strip in self.encoder(images, geometry)]

    def reconstruct(self, images, visible):
        """(B, C, H, W) on the scale of the input: the input where visible, elsewhere the decoder's output.

        Normalised cells are shown with the true cell's mean and deviation, as in the paper's figures; predicted pixels are
        shown as they are. Runs in the mode that the caller set, as `encode` does.
        """
        cell_size = self.encoder.cell_size
        predicted = cut(self.predict(images, visible).to(images.dtype), cell_size)
        _, mean, deviation = self.targets(images)
        is_visible = self.geometry(images, visible).is_visible()[..., None]
        cells = torch.where(is_visible, cut(images, cell_size), predicted * deviation + mean)
        return paste(cells, self.encoder.grid, cell_size)

    def predict(self, images, visible):
        """(B, C, H, W): what the decoder says of all cells, visible ones too; see `targets` for what that is."""
        self.check_batch(images)
        geometry = self.geometry(images, visible)
        check_indices(visible, self.cells)
        return self.dense_decoder(self.densify(self.encoder(images, geometry), geometry))

    def load_official(self, state_dict):
        """Load a whole official SparK (`*_withdecoder_1kpretrained_spark_style.pth`); ResNet or ConvNeXt keys.

        Strict: a ValueError lists what is missing, left over or of another shape. Only parameters that the features do
        not depend on may be missing.
        """
        load_official_spark(state_dict, self)


def build_spark(model, input_size=224, mask_ratio=0.6, drop_path=None, cell_size=None, in_chans=3,
                decoder_width=768, sync_bn=False, levels=None, decoder='unet', target='normalised'):
    """SparK around a CNN.

    model: a timm name, or an nn.Module: one that keeps timm's contract (`forward_intermediates`), one whose forward returns its
    feature maps, or any one with levels, the names of the submodules whose outputs are the pyramid, large to small.
    input_size: pixels, an int or (height, width), a multiple of the cell. drop_path: None leaves the network's own default.
    cell_size: None is the network's total stride R (2R where a layer needs it), else R times a power of two. sync_bn: share
    all BatchNorm statistics between the ranks. decoder: 'unet', the paper's, or 'light'. target: 'normalised', the
    paper's, or 'pixels'; see SparK.
    Raises ValueError, which names what would work.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    cnn = create_cnn(model, in_chans=in_chans, drop_path=drop_path) if isinstance(model, str) else model
    spark = SparK(SparseEncoder(cnn, size, in_chans, cell_size, levels), mask_ratio, decoder_width, decoder,
                  target)
    if sync_bn:
        from common.distributed import synchronise_batchnorm
        spark = synchronise_batchnorm(spark)
    return spark
