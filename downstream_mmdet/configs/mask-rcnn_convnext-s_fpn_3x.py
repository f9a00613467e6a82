"""Mask R-CNN on ConvNeXt-S: as -B; the paper does not have it."""
_base_ = ['./mask-rcnn_convnext-b_fpn_3x.py']

model = dict(backbone=dict(arch='convnext_small', init_cfg=dict(checkpoint='convnext_small_1kpretrained.pth')),
             neck=dict(in_channels=[96, 192, 384, 768]))
