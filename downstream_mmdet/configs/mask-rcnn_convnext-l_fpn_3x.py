"""Mask R-CNN on ConvNeXt-L: as -B; the paper does not have it."""
_base_ = ['./mask-rcnn_convnext-b_fpn_3x.py']

model = dict(backbone=dict(arch='convnext_large', init_cfg=dict(checkpoint='convnext_large_1kpretrained.pth')),
             neck=dict(in_channels=[192, 384, 768, 1536]))
