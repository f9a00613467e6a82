"""Mask R-CNN on ConvNeXt-T: as -B with half as many layers and less drop path (ConvNeXt's 0.4); the paper does not have it."""
_base_ = ['./mask-rcnn_convnext-b_fpn_3x.py']

model = dict(backbone=dict(arch='convnext_tiny', drop_path_rate=0.4,
                           init_cfg=dict(checkpoint='convnext_tiny_1kpretrained.pth')),
             neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=6))
