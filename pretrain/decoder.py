"""The light decoder: a UNet's upward path, from the smallest map to the image (SparK, section 3.2).

This is its plain form. On the CPU the same numbers are computed by pretrain/accelerated/decoder.py.
"""
import torch.nn.functional as F
from torch import nn

from common.recompute import checkpointed


class UNetBlock(nn.Module):
    """Double the side: (B, cin, H, W) -> (B, cout, 2H, 2W)."""

    def __init__(self, cin, cout):
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(cin, cin, kernel_size=4, stride=2, padding=1)
        self.conv = nn.Sequential(
            nn.Conv2d(cin, cin, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(cin),
            nn.ReLU6(inplace=True),
            nn.Conv2d(cin, cout, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(cout))

    def forward(self, x):
        return self.conv(self.up_sample(x))


class LightDecoder(nn.Module):
    """SparK's UNet decoder: blocks that double the side and halve the width, then a 1x1 convolution.

    The paper calls it light, the official code LightDecoder. Both values of the option `decoder` use it: 'unet' ends at
    stride 1, 'light' at the encoder's finest level.

    stride: the encoder's total stride, a power of two. width: channels of the smallest map. out_chans: of the
    image. finest: the stride at which the blocks end, a power of two; above 1, each position becomes as many
    pixels each way. `strides` and `widths` (channels) are those of the maps in front of each block and, last,
    of the projection. Raises ValueError if the width cannot be halved that often, or there is nothing to double.
    """

    def __init__(self, stride, width=768, out_chans=3, finest=1):
        super().__init__()
        if stride <= finest:
            raise ValueError('decoder light goes up to the finest level of the pyramid, and this network has '
                             f'no other than that of stride {stride}: take the decoder unet')
        blocks = (stride // finest).bit_length() - 1
        if width % 2 ** blocks:
            raise ValueError(f'decoder_width {width} cannot be halved {blocks} times, once for each doubling '
                             f'up from a stride of {stride}: give a multiple of {2 ** blocks}, such as '
                             f'{max(width >> blocks, 1) << blocks}')
        self.strides = [stride // 2 ** i for i in range(blocks + 1)]
        self.widths = [width // 2 ** i for i in range(blocks + 1)]
        self.dec = nn.ModuleList(UNetBlock(cin, cout) for cin, cout in zip(self.widths, self.widths[1:]))
        self.proj = nn.Conv2d(self.widths[-1], out_chans * finest ** 2, kernel_size=1)
        self.recomputes = False  # whether each block is computed again in the backward pass
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
        """Densified maps -> the image, (B, out_chans, H, W).

        levels: maps by stride, (B, widths[i], ., .) for strides[i]; that of the smallest map at least.
        """
        x, finest = 0, self.strides[-1]
        for stride, block in zip(self.strides, self.dec):
            if stride in levels:
                x = x + levels[stride]
            x = checkpointed(block, x, enabled=self.recomputes)
        if finest in levels:
            x = x + levels[finest]
        x = self.proj(x)
        return F.pixel_shuffle(x, finest) if finest > 1 else x
