"""A2MIM: masked image modeling with a dense network (Li et al., ICML 2023, arXiv 2205.13943).

    a2mim = build_a2mim('resnet50')
    loss = a2mim(images)             # hide 60 % of the cells, run the whole image, reconstruct, compare
    loss.backward()
    a2mim.encoder.cnn.state_dict()   # the pretrained network, with timm's keys

Hidden pixels become the mean colour of their image, and deep in the network a learned token is added to the
features of hidden positions. One 1x1 convolution makes pixels of the last feature map. The loss compares pixels and
spectra (a2mim_loss.py). Token and convolution are thrown away afterwards.

Legend: B batch, C channels, (H, W) image, (h, w) grid of cells, L = h*w, k visible cells an image, R the total
stride of the network. `visible` is a LongTensor (B, k): row-major indices of the visible cells, ascending.
`hidden` (B, 1, h, w) is the same as a map, 1 where a cell is hidden.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

import pretrain.models  # noqa: F401  (registers your own networks with timm)
from common.networks.create import network_of
from common.networks.norms import check_batch, single_valued
from common.recompute import checkpointed
from common.sync_batchnorm import synchronise_batchnorm
from pretrain import masking
from pretrain.a2mim_loss import (
    ERRORS,
    FILLS,
    composite,
    error,
    focal_frequency_loss,
    mean_over_batch,
    spatial_loss,
    spectral_loss,
)
from pretrain.a2mim_weights import load_official as load_official_a2mim
from pretrain.dense.encoder import DenseEncoder
from pretrain.masked_network import MaskedNetwork
from pretrain.term_sums import TermSums


class A2MIM(MaskedNetwork):
    """Mask, encode, decode, compare.

    Args:
        encoder: DenseEncoder.
        mask_ratio: share of hidden cells; ceil(L * mask_ratio) are, and at least one is visible.
        image_fill: what hidden pixels become: 'mean', the mean of each channel of their image, or 'none', which
            leaves them as they are (SimMIM with a token at the first layer).
        spatial_loss: the error of a pixel: 'focal_l1', 'l1' or 'mse'.
        fourier: the loss on spectra: 'focal', 'spectral' or 'none'.
        fourier_weight: its weight; 0 is as 'none'.
        fourier_visible: the weight of the reconstruction at visible pixels, in the picture whose spectrum is compared.
        fourier_fill: what the rest of such a pixel is; see `composite`.
        fourier_group: images over which the focal loss averages spectra; None: those of a call. A run sets
            `group_means` instead, whose groups are the same for any number of ranks.

    Raises ValueError for other values.

    The names of submodules and parameters are a file format.
    """
    target = 'pixels'  # what is predicted, as the tools for pictures ask for it

    def __init__(self, encoder, mask_ratio=0.6, image_fill='mean', spatial_loss='focal_l1', fourier='focal',
                 fourier_weight=0.5, fourier_visible=1e-3, fourier_fill='mixed', fourier_group=None):
        super().__init__()
        for name, value, allowed in (('image_fill', image_fill, ('mean', 'none')),
                                     ('spatial_loss', spatial_loss, tuple(ERRORS)),
                                     ('fourier', fourier, ('focal', 'spectral', 'none')),
                                     ('fourier_fill', fourier_fill, FILLS)):
            if value not in allowed:
                raise ValueError(f'{name} is one of {", ".join(allowed)}, not {value!r}')
        if not 0 <= fourier_weight < math.inf or not 0 <= fourier_visible <= 1:
            raise ValueError('fourier_weight must be 0 or more, and fourier_visible lie between 0 and 1; they are '
                             f'{fourier_weight} and {fourier_visible}')
        if fourier_group is not None and fourier_group < 1:
            raise ValueError(f'fourier_group must be 1 or more, not {fourier_group}')
        self.encoder = encoder
        self.mask_ratio = mask_ratio
        self.image_fill = image_fill
        self.spatial_loss = spatial_loss
        self.fourier = fourier if fourier_weight else 'none'
        self.fourier_weight = fourier_weight
        self.fourier_visible = fourier_visible
        self.fourier_fill = fourier_fill
        self.fourier_group = fourier_group
        self.group_means = None  # of a run, see pretrain/fourier_groups.py
        self.recomputed = 'none'
        self.term_sums = TermSums(('spatial', 'frequency'))
        self.cells = encoder.grid[0] * encoder.grid[1]
        self.visible_cells = self.cells - math.ceil(self.cells * mask_ratio)
        masking.check_num_visible(self.visible_cells, self.cells, mask_ratio)
        self.decoder = nn.Conv2d(encoder.width, encoder.in_chans * encoder.stride ** 2, 1)
        nn.init.trunc_normal_(self.decoder.weight, std=0.02)
        nn.init.zeros_(self.decoder.bias)
        image = torch.zeros(1, encoder.in_chans, *encoder.input_size).to(encoder.mask_token)
        self.single_valued = tuple(f'encoder.{name}' for name in single_valued(encoder, lambda: encoder(image)))

    def forward(self, images, visible=None):
        """images (B, C, H, W), normalised; visible (B, k), as a run gives it, else drawn -> loss, 0-dim."""
        return self.terms(images, visible)['loss']

    def terms(self, images, visible=None):
        """The loss and what it is made of: {'loss', 'spatial', 'frequency'}, 0-dim each.

        frequency: before its weight; None where the loss has no such term. In training mode the terms are added to
        `term_sums` too.
        """
        if visible is None:
            visible = self.draw_visible(len(images)).to(images.device)
        hidden = self.hidden(images, visible)
        features = checkpointed(self.encoder, self.fill(images, hidden), hidden, enabled=self.recomputed == 'all')
        terms = self.losses(images, self.decode(features), hidden)
        if self.training:
            self.term_sums.add(terms)
        return terms

    def hidden(self, images, visible):
        """`visible` as a map of cells, (B, 1, h, w): 1 where a cell is hidden. Raises ValueError."""
        masking.check_visible(visible, len(images))
        check_batch(self, images, self.single_valued)
        hidden = ~masking.is_visible(visible, self.cells)
        return hidden.view(len(images), 1, *self.encoder.grid).to(images.dtype)

    def fill(self, images, hidden):
        """The images as the network takes them: hidden pixels are the mean of their image (all of it)."""
        if self.image_fill == 'none':
            return images
        return torch.where(self.hidden_pixels(hidden) > 0, images.mean((2, 3), keepdim=True), images)

    def decode(self, features):
        """The last map (B, width, H/R, W/R) -> the reconstruction, (B, C, H, W)."""
        return F.pixel_shuffle(self.decoder(features), self.encoder.stride)

    def losses(self, images, reconstruction, hidden):
        """As `terms`, in the images' precision, or in fp32 where that is lower."""
        dtype = torch.promote_types(images.dtype, torch.float32)  # spectra have no half precision
        images, y, hidden = images.to(dtype), reconstruction.to(dtype), self.hidden_pixels(hidden).to(dtype)
        spatial = spatial_loss(y, images, hidden, self.spatial_loss)
        if self.fourier == 'none':
            return {'loss': spatial, 'spatial': spatial, 'frequency': None}
        z = composite(y, images, hidden, self.fourier_visible, self.fourier_fill)
        if self.fourier == 'focal':
            frequency = focal_frequency_loss(z, images, self.group_mean(len(images)))
        else:
            frequency = spectral_loss(z, images, self.spatial_loss)
        return {'loss': spatial + self.fourier_weight * frequency, 'spatial': spatial, 'frequency': frequency}

    def group_mean(self, batch):
        """Return the function that averages residuals over groups of images, `mean` of `focal_frequency_loss`.

        In evaluation mode the images of a call are one group. Raises ValueError if fourier_group does not divide the batch.
        """
        if not self.training:
            return mean_over_batch
        if self.group_means is not None:
            return self.group_means
        if self.fourier_group is None:
            return mean_over_batch
        if batch % self.fourier_group:
            raise ValueError(f'fourier_group {self.fourier_group} does not divide the {batch} images of a step: '
                             'give a group that does, or None for all of them')
        return lambda values: values.unflatten(0, (-1, self.fourier_group)).mean(1)

    def hidden_pixels(self, hidden):
        """The mask of cells `hidden` (B, 1, h, w) as a mask of pixels, (B, 1, H, W): 1 where a pixel is hidden."""
        return F.interpolate(hidden, self.encoder.input_size, mode='nearest')

    # -- masks, pictures, files ------------------------------------------------------------------------------

    def encode(self, images, visible):
        """images, visible -> the last map (B, width, H/R, W/R), as the decoder reads it."""
        masking.check_indices(visible, self.cells, len(images))
        hidden = self.hidden(images, visible)
        return self.encoder(self.fill(images, hidden), hidden)

    def predict(self, images, visible):
        """What the decoder says of all cells, visible ones too: (B, C, H, W), on the scale of the input."""
        return self.decode(self.encode(images, visible))

    def masked(self, images, visible):
        """What the network sees of the images, (B, C, H, W)."""
        return self.fill(images, self.hidden(images, visible))

    def pyramid(self, images, visible=None):
        """The last feature map of each stride, small stride to large, of whole or of masked images."""
        if visible is None:
            return self.encoder.pyramid(images)
        hidden = self.hidden(images, visible)
        return self.encoder.pyramid(self.fill(images, hidden), hidden)

    def cell_errors(self, images, reconstruction):
        """(B, L): the spatial error of each cell, visible ones too."""
        errors = error((reconstruction.to(images.dtype) - images).abs(), self.spatial_loss)
        return self.patchify(errors).mean(2)

    def placed(self, device):
        """Itself on a device, as it trains: channels last, no gradients for what the last map does not depend on."""
        self.freeze_unused()
        self.to(device)
        for part in (self.encoder.cnn, self.decoder):  # not token and gain: DDP warns of their strides
            part.to(memory_format=torch.channels_last)
        return self

    def recompute(self, what):
        """Choose what the backward pass computes again instead of keeping it: 'none' or 'all'."""
        self.recomputed = what

    def load_official(self, state_dict):
        """Load a whole A2MIM of the authors' program, strictly. Raises ValueError."""
        load_official_a2mim(state_dict, self)


def build_a2mim(model, input_size=224, mask_ratio=0.6, drop_path=None, cell_size=None, in_chans=3, token_at=None,
                token='gain', image_fill='mean', spatial_loss='focal_l1', fourier='focal', fourier_weight=0.5,
                fourier_visible=1e-3, fourier_fill='mixed', fourier_group=None, sync_bn=False):
    """A2MIM around a network.

    Args:
        model: a timm name, or an nn.Module that keeps timm's contract.
        input_size: pixels, an int or (height, width), a multiple of the cell.
        drop_path: None leaves the network's own default.
        cell_size: side of a cell in pixels, a multiple of the network's total stride; None: the smallest one from 32 on.
        token_at: the name of the submodule after which the token is added; None: see pretrain/dense.
        token: what becomes of the features of hidden positions: 'gain' (they are multiplied by a learned gain),
            'residual' (they stay) or 'replace' (they are left out).
        sync_bn: share all BatchNorm statistics between the ranks, which have as many images each.

    The others as for A2MIM; the defaults are those of ResNet-50. Raises ValueError, which names what would work.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if len(size) != 2:
        raise ValueError(f'input_size is a side or (height, width), not {input_size}')
    cnn = network_of(model, in_chans, drop_path, size)
    encoder = DenseEncoder(cnn, size, in_chans, cell_size, token, token_at)
    a2mim = A2MIM(encoder, mask_ratio, image_fill, spatial_loss, fourier, fourier_weight, fourier_visible,
                  fourier_fill, fourier_group).train()  # also a module that was in evaluation mode
    return synchronise_batchnorm(a2mim, equal_counts=True) if sync_bn else a2mim
