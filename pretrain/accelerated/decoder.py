"""The decoder's forward with fewer operations, and with less to keep for the backward pass.

The same numbers as LightDecoder.forward (pretrain/decoder.py), up to rounding. Measured: docs/speed.md, "The
decoder"; `python -m benchmarks.profile`.
"""
import torch
import torch.nn.functional as F

from common.recompute import checkpointed
from pretrain.accelerated.densify import FilledMap
from pretrain.accelerated.gradients import MatchLayout
from pretrain.accelerated.norms import norm_conv

# The two layers are merged where the small map has at least so many positions (H*W) for each of its channels. Below that,
# making the merged kernel in each step costs more than it saves. Measured with batches of 8: docs/speed.md, "The decoder";
# `python -m benchmarks.profile`. The batch does not count, so that a step does the same operations with any batch.
LEAST_POSITIONS = 2.5
ENDS = (0, -1)  # the first and the last line or column of a map
CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))


def decode(decoder, levels):
    """decoder(levels), of a LightDecoder; the first level may be a FilledMap.

    Each block leaves out its last norm. Before the next block that norm runs by itself, and the level of this stride is
    added, if there is one. Before the last 1x1 convolution, norm and convolution are one operation (`norm_conv`), unless a
    level is added between them.
    """
    finest = decoder.strides[-1]
    x, norm = levels[decoder.strides[0]], None
    for stride, block in zip(decoder.strides, decoder.dec):
        if norm is not None:
            x = norm(x)
            if stride in levels:
                x = x + levels[stride]
        x = checkpointed(block, x, enabled=decoder.recomputes, forward=decode_block)
        norm = block.conv[4]
    if finest in levels:
        x = decoder.proj(norm(x) + levels[finest])
    else:
        x = norm_conv(x, norm, decoder.proj, clipped=False)
    return F.pixel_shuffle(x, finest) if finest > 1 else x


def decode_block(block, x):
    """block(x), of a UNetBlock, without its last norm: block.conv[:4](block.up_sample(x))."""
    return norm_conv(enlarge(x, block.up_sample, block.conv[0]), block.conv[1], block.conv[3])


def enlarge(x, up, conv):
    """conv(up(x)), of a transposed convolution k4 s2 p1 and a 3x3 one without bias: (B, C, H, W) -> (B, C', 2H, 2W).

    Nothing stands between the two, so that they are one linear map. A FilledMap goes through one and then the other.
    """
    if isinstance(x, FilledMap):
        return conv(x.convolve(up))
    if x.shape[2] * x.shape[3] < LEAST_POSITIONS * x.shape[1]:
        return conv(up(x))
    return merged(x, up, conv)


def merged(x, up, conv):
    """`enlarge` as one 3x3 convolution of the small map to four times the channels: the four places a position becomes.

    This saves the transposed convolution and the map between the two. At the borders it is not the same: `conv` pads that
    map with zeros, while the merged kernel acts as if the map went on beyond its border. What this adds is computed for
    each of the four borders (`beyond`), and subtracted. Corners are subtracted twice, so they are added once (`Placed`).
    """
    up_weight, conv_weight = MatchLayout.apply(up.weight), MatchLayout.apply(conv.weight)
    with torch.autocast(x.device.type, enabled=False):
        # Along one axis, out[2j + a] sums x[j + d] * up[a - 2d + t] * conv[t] over d in (-1, 0, 1) and t in
        # (0, 1, 2).
        kernel = F.conv2d(up_weight, conv_weight, padding=2)  # (C, C', 6, 6), at a - 2d + 2
        kernel = kernel.unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4)
        kernel = kernel.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)
        bias = (conv_weight.sum((2, 3)) @ up.bias).repeat(4)

    first_line, last_line, first_column, last_column = Borders.apply(x)
    top = beyond(first_line, up_weight[:, :, 0], conv_weight[:, :, 0], up.bias)
    bottom = beyond(last_line, up_weight[:, :, -1], conv_weight[:, :, -1], up.bias)
    left = beyond(first_column, up_weight[:, :, :, 0], conv_weight[:, :, :, 0], up.bias)
    right = beyond(last_column, up_weight[:, :, :, -1], conv_weight[:, :, :, -1], up.bias)
    corners = []
    for i, j in CORNERS:
        line = first_line if i == 0 else last_line
        place = F.linear(line[:, :, j], up_weight[:, :, i, j].t(), up.bias)
        corners.append(F.linear(place, conv_weight[:, :, i, j]))
    places = F.conv2d(x, kernel, bias, padding=1)
    return Placed.apply(places, top, bottom, left, right, torch.stack(corners))


def beyond(line, up_line, conv_line, bias):
    """What comes from a line beyond the border: (B, C, W), (C, M, 4), (C', M, 3), (M,) -> (B, C', 2W)."""
    with torch.autocast(line.device.type, enabled=False):
        kernel = F.conv1d(up_line, conv_line, padding=2)
        bias = conv_line.sum(2) @ bias
    return F.conv_transpose1d(line, kernel, bias, stride=2, padding=2)


class Borders(torch.autograd.Function):
    """(B, C, H, W) -> its first and last line (B, C, W), and its first and last column (B, C, H).

    Their gradients make one map, where autograd would make one for each.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x[:, :, 0].clone(), x[:, :, -1].clone(), x[:, :, :, 0].clone(), x[:, :, :, -1].clone()

    @staticmethod
    def backward(ctx, *grads):
        B, C, H, W = ctx.shape
        total = grads[0].new_zeros(B, H, W, C).permute(0, 3, 1, 2)
        for i, grad_line, grad_column in zip(ENDS, grads[:2], grads[2:]):
            total[:, :, i] += grad_line
            total[:, :, :, i] += grad_column
        return total


class Placed(torch.autograd.Function):
    """(B, 4C, H, W), the channels of four places in rows -> (B, C, 2H, 2W), less what came from beyond the border.

    top, bottom (B, C, 2W), left, right (B, C, 2H); corners (4, B, C), in the order of CORNERS, were in two of them.
    """

    @staticmethod
    def forward(ctx, places, top, bottom, left, right, corners):
        B, C, H, W = places.shape
        out = places.permute(0, 2, 3, 1).reshape(B, H, W, 2, 2, C // 4).transpose(2, 3)
        out = out.reshape(B, 2 * H, 2 * W, C // 4).permute(0, 3, 1, 2)
        out[:, :, 0] -= top
        out[:, :, -1] -= bottom
        out[:, :, :, 0] -= left
        out[:, :, :, -1] -= right
        for corner, (i, j) in zip(corners, CORNERS):
            out[:, :, i, j] += corner
        return out.data

    @staticmethod
    def backward(ctx, grad):
        B, C, H, W = grad.shape
        grad_places = grad.permute(0, 2, 3, 1).reshape(B, H // 2, 2, W // 2, 2, C).transpose(2, 3)
        grad_places = grad_places.reshape(B, H // 2, W // 2, 4 * C).permute(0, 3, 1, 2)
        grad_corners = torch.stack([grad[:, :, i, j] for i, j in CORNERS])
        grad_lines = -grad[:, :, 0], -grad[:, :, -1], -grad[:, :, :, 0], -grad[:, :, :, -1]
        return grad_places, *grad_lines, grad_corners
