"""What the networks of all methods have in common: the trainer and the commands that read a run rely on it."""
import torch
from torch import nn

from pretrain import masking

ENCODER = 'encoder.cnn.'  # what the keys of the CNN begin with in a whole network of any method
FEW_CELLS = 25  # fewer in an image are warned of; those of the papers have 49


def check_image_size(images, encoder):
    """Raise ValueError unless images (B, C, H, W) are of the channels and the size for which an encoder was built."""
    if images.shape[1:] != (encoder.in_chans, *encoder.input_size):
        raise ValueError(f'images are {tuple(images.shape[1:])}, but this encoder was built for '
                         f'{(encoder.in_chans, *encoder.input_size)}: resize them, or build it for their size')


class MaskedNetwork(nn.Module):
    """A network around an encoder, that reconstructs the hidden cells of images.

    B, C, (H, W): images, normalised. L = h*w cells. `visible`: as in pretrain/masking.py.

    encoder: a module that has `cnn` (the network itself, with its own keys), `input_size` (height, width),
    `in_chans`, `cell_size` in pixels, `grid` (h, w), `stride` (total), `reductions` and `channels` of the pyramid,
    `unused` (names of the parameters of cnn that are not trained), `uncompiled` (whether torch.compile leaves it
    alone) and `pyramid(images, cnn=None)`: the feature maps of whole images, small stride to large, by itself or by
    another network with the same ones.

    Attributes that a method sets besides: cells and visible_cells (numbers, L and k), mask_ratio (share of hidden cells),
    target ('normalised', a cell by its own mean and standard deviation, or 'pixels'), single_valued (names of norms that see
    one value of each channel of an image), recomputed (what the backward pass computes again, see `recompute`).
    """

    @property
    def input_size(self):
        """(height, width) of the images, in pixels."""
        return self.encoder.input_size

    @property
    def uncompiled(self):
        """Whether torch.compile leaves the encoder alone."""
        return self.encoder.uncompiled

    def freeze_unused(self):
        """Take their gradients from the parameters of the encoder that are not trained: DDP would wait for them."""
        for name in self.encoder.unused:
            self.encoder.cnn.get_parameter(name).requires_grad_(False)

    def draw_visible(self, batch, generator=None, rows=slice(None)):
        """Visible cells, uniformly at random: LongTensor (batch, k) on the CPU, or some rows of it."""
        return masking.draw_visible(batch, self.cells, self.visible_cells, generator, rows)

    def draw_masks(self, batch, generator=None, rows=slice(None)):
        """As `draw_visible`, for a training step. A method that takes each image with n masks returns (batch, n, k)."""
        return self.draw_visible(batch, generator, rows)

    def is_visible(self, visible):
        """(B, L, 1) bool, True where a cell is visible; its last axis stands for the values of a cell, (B, L, N)."""
        return masking.is_visible(visible, self.cells)[..., None]

    def patchify(self, images):
        """(B, C, H, W) -> (B, L, .): the values of each cell."""
        return masking.patchify(images, self.encoder.cell_size)

    def unpatchify(self, cells):
        """The inverse of `patchify`."""
        return masking.unpatchify(cells, self.encoder.grid, self.encoder.cell_size)

    def reconstruct(self, images, visible):
        """(B, C, H, W) on the scale of the input: the input where visible, elsewhere what is predicted.

        Normalised cells are shown with the true cell's mean and standard deviation, as in SparK's figures; predicted pixels
        are shown as they are. It runs in the mode that the caller set, as `predict` does.
        """
        predicted = self.patchify(self.predict(images, visible).to(images.dtype))
        _, mean, deviation = self.targets(images)
        return self.unpatchify(torch.where(self.is_visible(visible), self.patchify(images), predicted * deviation + mean))

    def masked(self, images, visible):
        """(B, C, H, W): what the network sees, as an image; by default 0 where hidden."""
        return self.unpatchify(self.patchify(images) * self.is_visible(visible))

    def targets(self, images):
        """(B, L, .) each: what to predict of each cell, and the means and standard deviations that make pixels of it.

        That is the normalised cell, or the pixels themselves, whose mean is taken as 0, and whose standard deviation as 1.
        """
        cells = self.patchify(images)
        if self.target == 'normalised':
            return masking.normalise(cells)
        zeros = cells.new_zeros(*cells.shape[:2], 1)
        return cells, zeros, zeros + 1

    def pyramid(self, images, visible=None):
        """The feature maps, small stride to large, of whole images, or of what is visible of them."""
        raise NotImplementedError

    def predict(self, images, visible):
        """(B, C, H, W): what is predicted of all cells, visible ones too, on the scale of `targets`."""
        raise NotImplementedError

    def cell_errors(self, images, reconstruction):
        """(B, L): the error of each cell, visible ones too; by default the mean squared error on the targets, in the
        images' precision. Losses and pictures are made of this.
        """
        target, _, _ = self.targets(images)
        predicted = self.patchify(reconstruction.to(images.dtype))
        return (predicted - target).square().mean(dim=2)

    def recompute(self, what):
        """Choose what the backward pass computes again instead of keeping it: 'none', 'decoder' or 'all'.

        A method whose decoder is a single layer has no 'decoder'.
        """
        raise NotImplementedError

    def remarks_on_cells(self, remedy):
        """Sentences on an image that has few cells, or of which another share is hidden than was asked for.

        remedy: what gives an image more cells, as the object of "give".
        """
        hidden = self.cells - self.visible_cells
        share = hidden / self.cells
        if self.cells < FEW_CELLS:
            yield (f'an image has {self.cells} cells of {self.encoder.cell_size} px only, of which {hidden} '
                   f'({share:.0%}) are hidden: little of it can be learned from so few. Give {remedy}')
        elif abs(share - self.mask_ratio) > 0.02:
            yield f'{share:.0%} of the {self.cells} cells are hidden, since whole cells are, not {self.mask_ratio:.0%}'
