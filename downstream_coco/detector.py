"""Mask R-CNN and Faster R-CNN (torchvision's) on a feature pyramid of any timm CNN.

B C H W: images, padded to a common size; N objects of an image. Nothing about the network is declared: the
strides and the channels of its maps are measured.
"""
import math

import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from common.pyramid import leave_untrained, levels_of, step_of_sizes


class Pyramid(nn.Module):
    """A CNN and a feature pyramid on its maps: (B, C, H, W) -> {level: (B, channels, H / stride, W / stride)}.

    The last map of each stride from 4 on, 2 where there is no other. If the last one has stride 16, as with networks
    that end in a transformer, the largest values of each 2x2 of it are a map of stride 32. The feature pyramid has one
    more, pooled from its last. Parameters that these maps do not depend on are frozen. Raises ValueError for a network
    whose maps do not halve, or that takes images of one size only.

    is_pooled: whether the last of `strides` is not the network's own. size_step: of which the sides of an image must be
    multiples.
    """

    def __init__(self, cnn, in_chans=3, channels=256):
        super().__init__()
        self.cnn = cnn
        self.levels = levels_of(cnn, in_chans)
        strides, widths = self.levels.strides, self.levels.widths
        self.size_step = step_of_sizes(cnn, strides[-1], in_chans)
        self.is_pooled = self.levels.ends_early
        self.strides = (*strides, 2 * strides[-1]) if self.is_pooled else strides
        widths += widths[-1:] * self.is_pooled
        self.fpn = FeaturePyramidNetwork(list(widths), channels, LastLevelMaxPool())
        self.out_channels = channels  # torchvision asks for it

    def maps(self, images):
        maps = self.levels.maps(self.cnn, images)
        return [*maps, F.max_pool2d(maps[-1], 2)] if self.is_pooled else maps

    def forward(self, images):
        maps = self.fpn({str(level): one for level, one in enumerate(self.maps(images))})
        # torchvision makes anchors in the precision of the maps
        return {name: one.float() for name, one in maps.items()}


def roi_align(strides, size):
    """torchvision's, told the strides of its maps: it would guess them from its first batch, wrongly for small images."""
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], size, 2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pool


class FullRPNHead(RPNHead):
    """torchvision's, its outputs in fp32: under bf16 boxes of hundreds of pixels would be rounded to whole
    ones and worse.
    """

    def forward(self, maps):
        return tuple([one.float() for one in part] for part in super().forward(maps))


class FullBoxPredictor(FastRCNNPredictor):
    def forward(self, x):
        return tuple(one.float() for one in super().forward(x))


class FullMaskPredictor(MaskRCNNPredictor):
    def forward(self, x):
        return super().forward(x).float()


class Detector(nn.Module):
    """forward(images (B, C, H, W), targets) -> loss, a 0-dim tensor; detect(images, sizes, originals) -> objects.

    cnn: a timm network with its weights. classes: their number, without the background. masks: Mask R-CNN,
    else Faster R-CNN.
    rois: proposals of an image that the heads are trained on; detections: objects that are found in one, at most.
    frozen: the CNN is not trained, and stays in evaluation mode; frozen_bn: its BatchNorms alone. Anchors are
    8 strides wide.
    """

    def __init__(self, cnn, classes, masks=True, in_chans=3, channels=256, head_channels=1024, mask_layers=4, rois=512,
                 detections=100, frozen=False, frozen_bn=False):
        super().__init__()
        self.backbone, self.frozen = Pyramid(cnn, in_chans, channels), frozen
        self.unused = leave_untrained(self.backbone, lambda images: self.backbone(images).values(), in_chans, frozen,
                                      frozen_bn)
        strides = (*self.backbone.strides, 2 * self.backbone.strides[-1])
        anchors = AnchorGenerator(tuple((8 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides))
        given = {'rpn_anchor_generator': anchors, 'rpn_head': FullRPNHead(channels, 3),
                 'box_roi_pool': roi_align(self.backbone.strides, 7), 'box_head': TwoMLPHead(channels * 7 ** 2, head_channels),
                 'box_predictor': FullBoxPredictor(head_channels, classes + 1), 'box_batch_size_per_image': rois,
                 'box_detections_per_img': detections}
        if masks:
            parts = MaskRCNN(self.backbone, **given, mask_roi_pool=roi_align(self.backbone.strides, 14),
                             mask_head=MaskRCNNHeads(channels, (channels,) * mask_layers, 1),
                             mask_predictor=FullMaskPredictor(channels, channels, classes + 1))
        else:
            parts = FasterRCNN(self.backbone, **given)
        self.rpn, self.roi_heads = parts.rpn, parts.roi_heads

    @property
    def stride(self):
        """Images are padded to a multiple of this."""
        return max(32, self.backbone.strides[-1], self.backbone.size_step)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.backbone.cnn.eval()
        return self

    def forward(self, images, targets):
        return sum(self.losses(images, targets).values())

    def losses(self, images, targets):
        """{name: 0-dim tensor}: objectness and boxes of the proposals, classes and boxes (and masks) of the objects."""
        sizes, features = [one['size'] for one in targets], self.backbone(images)
        proposals, first = self.rpn(ImageList(images, sizes), features, targets)
        _, second = self.roi_heads(features, proposals, sizes, targets)
        return {**first, **second}

    def detect(self, images, sizes, originals):
        """[{'boxes' (N, 4) in the originals' pixels, 'labels' (N,), 'scores' (N,), 'masks' (N, 1, 28, 28) in the boxes}].

        sizes, originals: (height, width) of each image without its padding, and as it was before it was resized.
        """
        features = self.backbone(images)
        proposals, _ = self.rpn(ImageList(images, sizes), features)
        found, _ = self.roi_heads(features, proposals, sizes)
        for one, size, original in zip(found, sizes, originals):
            one['boxes'] = resize_boxes(one['boxes'], size, original)
        return found
