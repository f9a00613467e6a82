"""Cascade Mask R-CNN on ConvNeXt-B: MMDetection's base model with this backbone and schedule."""
_base_ = ['mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', './schedule_3x.py']

model = dict(backbone=dict(_delete_=True, type='TimmConvNeXt', arch='convnext_base', drop_path_rate=0.5, layer_scale=1.0,
                           init_cfg=dict(type='Pretrained', checkpoint='convnext_base_1kpretrained.pth')),
             neck=dict(in_channels=[128, 256, 512, 1024]))
