"""Layer-wise learning rates for MMEngine.

    optim_wrapper = dict(constructor='ConvNeXtLayerDecay', paramwise_cfg=dict(decay_rate=0.65, num_layers=12), ...)
"""
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from downstream_mmdet.layers import parameter_groups


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ConvNeXtLayerDecay(DefaultOptimWrapperConstructor):
    """num_layers: 12, or 6 for a ConvNeXt-T."""

    def add_params(self, params, module, **_):
        options = self.optimizer_cfg
        params += parameter_groups(module.named_parameters(), options['lr'], options['weight_decay'],
                                   self.paramwise_cfg['decay_rate'], self.paramwise_cfg['num_layers'])
