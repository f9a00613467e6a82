"""timm's ConvNeXt as a backbone of MMDetection: `type='TimmConvNeXt'`."""
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d

from downstream_mmdet.weights import convnext, load


@MODELS.register_module()
class TimmConvNeXt(BaseModule):
    """Images (B, 3, H, W) -> maps of strides 4, 8, 16 and 32, each after a LayerNorm of its own, as in ConvNeXt's detectors.

    arch: timm's name; parameters have timm's names. layer_scale: its value at the start; timm's if None (a ConvNeXt V2 has
    none). init_cfg: dict(type='Pretrained', checkpoint=FILE) for weights of any kind
    that downstream_mmdet.weights reads, None for random ones. Raises ValueError if they do not fit.
    """

    def __init__(self, arch='convnext_base', drop_path_rate=0.0, layer_scale=None, init_cfg=None):
        super().__init__(init_cfg)
        self.arch, cnn = arch, convnext(arch, drop_path_rate, layer_scale)
        self.stem, self.stages = cnn.stem, cnn.stages
        self.channels = [info['num_chs'] for info in cnn.feature_info]
        for i, channels in enumerate(self.channels):
            self.add_module(f'norm{i}', LayerNorm2d(channels))

    def init_weights(self):
        if self._is_init:
            return
        self._is_init = True
        file = (self.init_cfg or {}).get('checkpoint')
        if file:
            count = load(self, file, convnext(self.arch))
            print_log(f'{file}: {count} tensors of {self.arch}, all of stem and stages', 'current')

    def forward(self, x):
        x, maps = self.stem(x), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            # mmcv's roi_align reads maps in channels-last order as if they were in the ordinary one, and returns nonsense.
            maps.append(getattr(self, f'norm{i}')(x).contiguous())
        return tuple(maps)
