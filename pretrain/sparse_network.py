"""What SparK, ConvMAE and MAE have in common: a network that sees the visible cells alone, and the loss on hidden cells."""
from common.networks.norms import check_batch
from pretrain import masking
from pretrain.masked_network import MaskedNetwork
from pretrain.sparse.geometry import Geometry


class SparseNetwork(MaskedNetwork):
    """A masked network whose encoder runs on strips of visible cells (pretrain/sparse/geometry.py).

    accelerated: whether the forms of pretrain/accelerated compute. The numbers are the same up to rounding. None: on
    the CPU alone (see Geometry).
    """

    def __init__(self):
        super().__init__()
        self.accelerated = None

    def geometry(self, images, visible):
        """Where the visible cells lie. Raises ValueError if `visible` is no LongTensor (B, k), or for a batch that the
        norms cannot take.
        """
        masking.check_visible(visible, len(images))
        check_batch(self, images, self.single_valued)
        return Geometry(visible, self.encoder.grid, self.accelerated, self.encoder.cell_size)

    def loss(self, images, reconstruction, visible):
        """Mean error of hidden cells, 0-dim: by default the mean squared error on their targets, in the images' precision.

        reconstruction: (B, C, H, W), on the scale of `targets`. At least one cell must be hidden, or the result is NaN.
        """
        hidden = ~masking.is_visible(visible, self.cells)
        error = self.cell_errors(images, reconstruction) * hidden
        return error.sum() / (len(images) * (self.cells - visible.shape[1]))

    def encode(self, images, visible):
        """images, visible -> the pyramid, small stride to large: (B, C_i, H_i, W_i), hidden positions 0.

        It runs in the mode that the caller set: in train mode running statistics are updated.
        """
        masking.check_indices(visible, self.cells, len(images))
        geometry = self.geometry(images, visible)
        return [geometry.to_canvas(strip) for strip in self.encoder(images, geometry)]

    def pyramid(self, images, visible=None):
        """The feature maps, small stride to large: as `encode` has them, or of the whole image."""
        return self.encoder(images) if visible is None else self.encode(images, visible)
