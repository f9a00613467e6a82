"""What is on the feature pyramid in semantic segmentation: UPerNet, a lighter head, and an auxiliary one.

B: images; K: classes; h w: height and width of the pyramid's first level, a quarter of the image's with most
networks. Maps go from large to small.
"""
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from timm.layers import LayerNorm2d
from torch import nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

FPN_CHANNELS = 256  # of the pyramid of the lighter head


class UPerNetHead(nn.Module):
    """UPerNet (Xiao et al., ECCV 2018): pyramid pooling over the last map, a feature pyramid, and its fusion.

    It is segmentation_models_pytorch's decoder, which computes what MMSegmentation's does.

    widths: channels of the maps, two or more. channels: of all that is inside. map_norm: whether there is a
    LayerNorm on each map, as the authors of ConvNeXt and Swin have it. out_channels: of its output.
    """

    def __init__(self, widths, channels, map_norm=False):
        super().__init__()
        # The library's decoder passes over the first two of the maps that it is given, those of strides 1 and 2.
        self.decoder = UPerNetDecoder([0, 0, *widths], len(widths) + 1, channels)
        initialize_decoder(self.decoder)
        if not map_norm:
            self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in widths)
        self.out_channels = channels

    def forward(self, maps):
        """[(B, width, ...)] -> (B, channels, h, w)."""
        return self.decoder([None, None, *maps])


class FPNHead(nn.Module):
    """A light head: a feature pyramid (Lin et al., CVPR 2017) whose levels are enlarged to the first one and added.

    The arguments are those of UPerNetHead.
    """

    def __init__(self, widths, channels, map_norm=False):
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(width) if map_norm else nn.Identity() for width in widths)
        self.fpn = FeaturePyramidNetwork(list(widths), FPN_CHANNELS)
        self.convolutions = nn.ModuleList(Conv2dNormActivation(FPN_CHANNELS, channels, 3) for _ in widths)
        self.out_channels = channels

    def forward(self, maps):
        """[(B, width, ...)] -> (B, channels, h, w)."""
        maps = [norm(one) for norm, one in zip(self.norms, maps)]
        levels = self.fpn({str(level): one for level, one in enumerate(maps)}).values()
        levels = [convolution(one) for convolution, one in zip(self.convolutions, levels)]
        size = levels[0].shape[2:]
        return sum(F.interpolate(one, size, mode='bilinear') for one in levels)


def classifier(channels, classes, dropout):
    """(B, channels, h, w) -> logits (B, K, h, w): whole channels are dropped, then a linear layer at each place."""
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))


def auxiliary_head(width, channels, classes, dropout):
    """The fully convolutional head (Long et al., CVPR 2015) on one map that helps in training alone.

    One 3x3 convolution, and a classifier. width: channels of the map.
    """
    return nn.Sequential(Conv2dNormActivation(width, channels, 3), classifier(channels, classes, dropout))


class ExtraLevel(nn.Module):
    """A level of twice the stride, for networks whose last map has stride 16: (B, C, h, w) -> (B, C, ...).

    A 3x3 convolution of stride 2 without padding, BatchNorm and GELU, as ConvMAE has it for ADE20K.
    """

    def __init__(self, channels):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, 2)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        if min(x.shape[2:]) < 3:  # Images of fewer than three patches a side would leave no place.
            x = F.pad(x, [0, max(0, 3 - x.shape[3]), 0, max(0, 3 - x.shape[2])])
        return F.gelu(self.norm(self.convolution(x)))
