"""Data, augmentation and schedule of the paper's COCO experiments with ConvNeXts: 36 epochs, batch 16, AdamW."""
_base_ = ['mmdet::_base_/datasets/coco_instance.py', 'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['downstream_mmdet.convnext', 'downstream_mmdet.layer_decay'], allow_failed_imports=False)

sizes = [(side, 1333) for side in range(480, 801, 32)]  # short side, the most of the long one
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[
        [dict(type='RandomChoiceResize', scales=sizes, keep_ratio=True)],
        [dict(type='RandomChoiceResize', scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True),
         dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
         dict(type='RandomChoiceResize', scales=sizes, keep_ratio=True)]]),
    dict(type='PackDetInputs')]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))  # of each of 8 GPUs

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=36, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
                   dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.2)]
optim_wrapper = dict(type='OptimWrapper', constructor='ConvNeXtLayerDecay',
                     paramwise_cfg=dict(decay_rate=0.65, num_layers=12),
                     optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05))
auto_scale_lr = dict(enable=False, base_batch_size=16)
