"""The light decoder: a UNet's upward path, from the smallest map to the image (SparK, section 3.2)."""
from torch import nn

from pretrain.fused import enlarge, norm_conv
from pretrain.recompute import run


class UNetBlock(nn.Module):
    """(B, cin, H, W) -> (B, cout, 2H, 2W), but for its last layer, a norm, which whoever comes next applies."""

    def __init__(self, cin, cout):
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(cin, cin, kernel_size=4, stride=2, padding=1)
        self.conv = nn.Sequential(
            nn.Conv2d(cin, cin, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(cin), nn.ReLU6(inplace=True),
            nn.Conv2d(cin, cout, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        """conv[:4](up_sample(x))"""
        return norm_conv(enlarge(x, self.up_sample, self.conv[0]), self.conv[1], self.conv[3])


class LightDecoder(nn.Module):
    """log2(stride) blocks that double the side and halve the width, then a 1x1 convolution to the image.

    stride: the encoder's total stride, a power of two. width: channels of the smallest map. out_chans: of the image.
    `widths` are the channels in front of each block and, last, in front of the projection.
    Raises ValueError if the width cannot be halved that often.
    """

    def __init__(self, stride, width=768, out_chans=3):
        super().__init__()
        blocks = stride.bit_length() - 1
        if width % stride:
            raise ValueError(f'decoder_width {width} cannot be halved {blocks} times, once for each doubling up to a '
                             f'stride of {stride}: give a multiple of {stride}, such as {max(width // stride, 1) * stride}')
        self.strides = [stride // 2 ** i for i in range(blocks)]
        self.widths = [width // 2 ** i for i in range(blocks + 1)]
        self.dec = nn.ModuleList(UNetBlock(cin, cout) for cin, cout in zip(self.widths, self.widths[1:]))
        self.proj = nn.Conv2d(self.widths[-1], out_chans, kernel_size=1)
        self.recomputes = False  # each block in the backward pass, see recompute.py
        self.initialise()

    def initialise(self):
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if getattr(module, 'bias', None) is not None:
                nn.init.zeros_(module.bias)

    def forward(self, levels):
        """levels: densified maps by stride, (B, widths[i], ., .) for strides[i], the first at least -> (B, out_chans, H, W)."""
        x, norm = levels[self.strides[0]], None
        for stride, block in zip(self.strides, self.dec):
            if norm is not None:
                x = norm(x) + levels[stride] if stride in levels else norm(x)
            x, norm = run(block, x, again=self.recomputes), block.conv[4]
        return norm_conv(x, norm, self.proj, clipped=False)
