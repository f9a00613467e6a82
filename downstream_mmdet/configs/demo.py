"""Mask R-CNN on ConvNeXt-Atto for the drawn data set of common.demo_world: small heads, 128 px, minutes on a CPU."""
_base_ = ['./mask-rcnn_convnext-t_fpn_3x.py']

pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
model = dict(
    backbone=dict(arch='convnext_atto', drop_path_rate=0.0, init_cfg=dict(checkpoint=None)),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64), bbox_head=dict(in_channels=64, fc_out_channels=128),
        mask_roi_extractor=dict(out_channels=64), mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=1)),
    train_cfg=dict(rcnn=dict(sampler=dict(num=32))))
train_cfg = dict(max_epochs=100, val_interval=100)
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
                   dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=100, T_max=100, convert_to_iter_based=True)]
optim_wrapper = dict(clip_grad=dict(max_norm=10.0), paramwise_cfg=dict(decay_rate=1.0),
                     optimizer=dict(lr=2e-3, weight_decay=0.01))
default_hooks = dict(checkpoint=dict(interval=50), logger=dict(interval=2))
