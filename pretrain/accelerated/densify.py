"""Densify without the work that is the same everywhere: at 60 % hidden, most positions of a level hold the same token.

The same numbers as the plain form in pretrain/spark.py (a canvas with tokens, and the layer's own
convolution), up to rounding. Measured: docs/speed.md, "Densify"; `python -m benchmarks.profile`.
"""
import torch
import torch.nn.functional as F

from pretrain.accelerated.convolutions import SMALL_CELL
from pretrain.accelerated.gradients import MatchLayout, as_table, with_zero_row


class FilledMap:
    """A feature map whose hidden positions all hold the same token, kept as its strip and its token.

    geometry: an accelerated Geometry. strip (B, C, k*p, p). token (1, C, 1, 1).
    """

    def __init__(self, geometry, strip, token):
        self.geometry = geometry
        self.strip = strip
        self.token = token

    def project(self, layer):
        """layer(the whole map): a FilledMap for nn.Identity and a 1x1 convolution, else as `convolve`."""
        if isinstance(layer, torch.nn.Identity) or layer.kernel_size == (1, 1):
            return FilledMap(self.geometry, layer(self.strip), layer(self.token))
        return self.convolve(layer)

    def convolve(self, layer):
        """layer(the whole map): (B, C', H, W), of a 3x3 convolution that keeps the size, or a transposed one
        k4 s2 p1.

        The map is a sum of two: the token at every position, and (visible feature - token) at visible positions, which is
        zero elsewhere. A convolution is linear, so its result is the sum of both results. That of the token is the same at
        each position but at the borders, and is computed once (`overlay_constant`). That of the differences is computed
        for visible cells alone; each of them reaches the positions around it too (`Overlaid`).
        """
        strip, weight = self.strip, MatchLayout.apply(layer.weight)
        token = self.token.view(1, -1).to(strip.dtype)
        p, stride = strip.shape[3], layer.stride[0]
        is_transposed = isinstance(layer, torch.nn.ConvTranspose2d)
        # (C, C', k, k): what a position gives to the k x k positions around it.
        spread = weight if is_transposed else weight.flip(2, 3).transpose(0, 1)
        matrix = spread.permute(2, 3, 1, 0).flatten(0, 2)  # (k*k*C', C)
        table = as_table(strip) - token
        if p >= SMALL_CELL and not is_transposed:
            side = p
            cells = table.view(-1, p, p, table.shape[1]).permute(0, 3, 1, 2)
            squares = as_table(F.conv_transpose2d(cells, spread))
            from_token = F.linear(token, matrix)
        else:
            side = stride
            squares, from_token = F.linear(torch.cat([table, token]), matrix).split([len(table), 1])
        out_channels = spread.shape[1]
        squares = squares.reshape(-1, out_channels)
        sources, targets = self.geometry.tables.overlaps(p * stride, side)
        out = Overlaid.apply(squares, sources, targets)

        h, w = self.geometry.grid
        height, width = h * p * stride, w * p * stride
        everywhere = overlay_constant(from_token.view(-1, out_channels), stride, height, width)
        everywhere = everywhere + layer.bias.view(-1, 1, 1)
        return out.view(-1, height, width, out_channels).permute(0, 3, 1, 2) + everywhere.to(out.dtype)


def overlay_constant(square, stride, height, width):
    """The same square at every position, overlapping ones added up: (k*k, C) -> (1, C, height, width).

    There is a square of k x k, k = stride + 2, every `stride` positions each way; the outermost begin one
    position beyond the border.
    """
    kernel = stride + 2
    least = [min(side, 3 * stride) for side in (height, width)]  # first, inner and last positions
    number = least[0] * least[1] // stride ** 2
    out = F.fold(square.t().reshape(1, -1, 1).expand(-1, -1, number), least, kernel, padding=1, stride=stride)
    for dim, side in ((2, height), (3, width)):
        if side > 3 * stride:  # between the borders each is like the next
            first, inner, last = out.chunk(3, dim)
            repeats = [1] * 4
            repeats[dim] = side // stride - 2
            out = torch.cat([first, inner.repeat(repeats), last], dim)
    return out.to(memory_format=torch.channels_last)


class Overlaid(torch.autograd.Function):
    """Squares that overlap, added up where they lie: (squares*P*P, C) -> (B*h*p*w*p, C), a canvas as a table.

    sources, targets: see `Tables.overlaps`.
    """

    @staticmethod
    def forward(ctx, squares, sources, targets):
        ctx.save_for_backward(targets)
        return F.embedding_bag(sources, with_zero_row(squares), mode='sum', padding_idx=len(squares))

    @staticmethod
    def backward(ctx, grad):
        targets, = ctx.saved_tensors
        return with_zero_row(grad).index_select(0, targets), None, None
