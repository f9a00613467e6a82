"""A network for semantic segmentation: any timm CNN, its measured feature pyramid, and a head on it.

B C H W: images; K: classes; h w: sides of the pyramid's first level. Nothing about the network is declared: the
strides and the channels of its maps are measured (common/pyramid.py).
"""
import torch.nn.functional as F
from torch import nn

from common.pyramid import leave_untrained, levels_of, step_of_sizes
from downstream_ade20k.classes import IGNORE
from downstream_ade20k.heads import ExtraLevel, FPNHead, UPerNetHead, auxiliary_head, classifier

AUXILIARY_CHANNELS = 256
AUXILIARY_STRIDE = 16  # of the map that the auxiliary head is on: the third level of most networks


class Backbone(nn.Module):
    """A CNN and the levels of its pyramid: (B, C, H, W) -> [(B, width, H / stride, W / stride)], large to small.

    A network whose last level has stride 16, such as a ConvViT, gets one of stride 32 (ExtraLevel). Raises
    ValueError for a network with fewer than two levels, or whose maps do not halve.

    strides, widths: of the levels. is_extended: whether the last one is the added one. size_step: of which the sides
    of an image must be multiples.
    """

    def __init__(self, cnn, in_chans=3):
        super().__init__()
        self.cnn = cnn
        self.levels = levels_of(cnn, in_chans)
        self.size_step = step_of_sizes(cnn, self.levels.strides[-1], in_chans)
        self.strides, self.widths = self.levels.strides, self.levels.widths
        self.is_extended = self.levels.ends_early
        if self.is_extended:
            self.extra = ExtraLevel(self.widths[-1])
            self.strides += (2 * self.strides[-1],)
            self.widths += (self.widths[-1],)
        if len(self.strides) < 2:
            raise ValueError(f'{type(cnn).__name__} has maps of stride {self.strides[0]} alone: segmentation needs two '
                             'strides or more. Give another --model')

    def forward(self, images):
        maps = self.levels.maps(self.cnn, images)
        return [*maps, self.extra(maps[-1])] if self.is_extended else maps


class Segmenter(nn.Module):
    """forward(images (B, C, H, W), masks (B, H, W)) -> loss, a 0-dim tensor; scores(images) -> (B, K, H, W).

    cnn: a timm network with its weights. classes: their number. head: 'upernet' or 'fpn' (heads.py).
    head_channels: of the head. map_norm: whether there is a LayerNorm on each map in front of it.
    aux_weight: of the loss of the auxiliary head; 0 for none. dropout: share of the channels in front of the
    classifiers that are dropped. frozen: the CNN is not trained, and stays in evaluation mode; frozen_bn: its
    BatchNorms alone.
    """

    def __init__(self, cnn, classes, head='upernet', in_chans=3, head_channels=512, map_norm=False, aux_weight=0.4,
                 dropout=0.1, frozen=False, frozen_bn=False):
        super().__init__()
        self.backbone, self.frozen, self.aux_weight = Backbone(cnn, in_chans), frozen, aux_weight
        self.unused = leave_untrained(self.backbone, self.backbone, in_chans, frozen, frozen_bn)
        widths, strides = self.backbone.widths, self.backbone.strides
        self.head = (UPerNetHead if head == 'upernet' else FPNHead)(widths, head_channels, map_norm)
        self.classifier = classifier(self.head.out_channels, classes, dropout)
        self.auxiliary = None
        if aux_weight:
            self.auxiliary_level = strides.index(AUXILIARY_STRIDE) if AUXILIARY_STRIDE in strides else len(strides) - 2
            self.auxiliary = auxiliary_head(widths[self.auxiliary_level], AUXILIARY_CHANNELS, classes, dropout)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.backbone.cnn.eval()
        return self

    def forward(self, images, masks):
        maps = self.backbone(images)
        loss = pixel_loss(self.classifier(self.head(maps)), masks)
        if self.auxiliary is not None:
            loss = loss + self.aux_weight * pixel_loss(self.auxiliary(maps[self.auxiliary_level]), masks)
        return loss

    def scores(self, images):
        """The logits of images of any size, (B, K, H, W) in float32.

        As in MMSegmentation, images are not padded, unless they are smaller than the largest stride or the network
        does not take them.
        """
        height, width = images.shape[2:]
        down, right = (self.missing(side) for side in (height, width))
        padded = F.pad(images, [0, right, 0, down])
        logits = enlarged(self.classifier(self.head(self.backbone(padded))), padded.shape[2:])
        return logits[..., :height, :width]

    def missing(self, side):
        """Pixels by which a side of an image is too short for the network."""
        least, step = self.backbone.strides[-1], self.backbone.size_step
        return max(least - side, 0) if step == 1 else -side % step


def enlarged(logits, size):
    """Logits (B, K, h, w) at a size (H, W), in float32."""
    return F.interpolate(logits.float(), tuple(size), mode='bilinear', align_corners=False)


def pixel_loss(logits, masks):
    """Cross-entropy of logits (B, K, h, w), enlarged to the masks (B, H, W), over their pixels.

    The mean is over all pixels, of which ignored ones count as 0, as in MMSegmentation. So the loss of a batch is
    the mean of the losses of its parts, whatever is ignored in them, and it is finite where all is.
    """
    logits = enlarged(logits, masks.shape[1:])
    return F.cross_entropy(logits, masks.long(), ignore_index=IGNORE, reduction='sum') / masks.numel()
