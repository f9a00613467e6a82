"""Published recipes of fine-tuning, as options: those of a paper for its networks, and those that --recipe names.

Those of networks are SparK's, and for ConvViTs ConvMAE's (Gao et al., NeurIPS 2022). The named recipes are what the
authors of A2MIM (Li et al., ICML 2023) and of ConvMAE fine-tuned and probed with. They are for weights of any
method, and each states every option in which it differs from the defaults.
"""
CONVNEXT = {'batch_size': 4096, 'epochs': 400, 'warmup_epochs': 20.0, 'opt': 'adamw', 'base_lr': 2e-4,
            'layer_decay': 0.7, 'weight_decay': 0.01, 'mixup': 0.8, 'repeats': 3, 'drop_path': 0.3,
            'ema': 0.9999}
RESNET = {'batch_size': 2048, 'epochs': 300, 'warmup_epochs': 5.0, 'opt': 'lamb', 'base_lr': 2e-3,
          'layer_decay': 0.7, 'weight_decay': 0.02, 'mixup': 0.1, 'repeats': 0, 'drop_path': 0.05,
          'ema': 0.9999}
DEEPER_RESNET = {**RESNET, 'base_lr': 1e-3, 'layer_decay': 0.8, 'drop_path': 0.2}
CONVVITS = 'convvit_small', 'convvit_base', 'convvit_large', 'convvit_huge'
# ConvMAE's, by its authors' instructions (arXiv 2205.03892), which derive from MAE's program for base networks.
MAE = {'batch_size': 1024, 'epochs': 100, 'warmup_epochs': 5.0, 'opt': 'adamw', 'base_lr': 5e-4, 'lr_schedule': 'mae',
       'final_lr': 1e-6, 'weight_decay': 0.05, 'layer_decay': 0.65, 'drop_path': 0.1, 'augment': 'rand-m9-mstd0.5-inc1',
       'erase': 0.25, 'repeats': 0, 'crop': 0.875, 'mixup': 0.8, 'cutmix': 1.0, 'smoothing': 0.1, 'loss': 'ce', 'ema': 0.0,
       'head_std': 2e-5}
RECIPES = {
    'convnext_small': CONVNEXT,
    'convnext_base': {**CONVNEXT, 'base_lr': 1e-4, 'drop_path': 0.4},
    'convnext_large': {**CONVNEXT, 'base_lr': 1e-4, 'drop_path': 0.5, 'epochs': 200, 'warmup_epochs': 10.0,
                       'weight_decay': 0.02},
    'convnext_large at 384 px': {**CONVNEXT, 'base_lr': 6e-5, 'drop_path': 0.5, 'epochs': 200,
                                 'batch_size': 1024, 'ema': 0.99995},
    'resnet50': RESNET,
    'resnet101': DEEPER_RESNET,
    'resnet152': DEEPER_RESNET,
    'resnet200': DEEPER_RESNET,
    **dict.fromkeys(CONVVITS, MAE),
}

# ResNet strikes back (Wightman et al. 2021, arXiv 2110.00476). base_lr is the peak rate for 256 images: the peaks at
# 2,048 images are 5e-3 and 8e-3.
RSB_A2 = {'batch_size': 2048, 'epochs': 300, 'warmup_epochs': 5.0, 'opt': 'lamb', 'base_lr': 6.25e-4,
          'final_lr': 1e-6, 'lr_by_epoch': True, 'clip_grad': 1.0, 'weight_decay': 0.02, 'layer_decay': 1.0,
          'augment': 'rand-m7-n2-mstd0.5-inc1', 'erase': 0.0, 'repeats': 3, 'crop': 0.95,
          'mixup': 0.1, 'cutmix': 1.0, 'smoothing': 0.0, 'loss': 'bce_sum',
          'ema': 0.0, 'ema_warmup': 0.0, 'head_std': 0.01}
RSB_A3 = {**RSB_A2, 'epochs': 100, 'base_lr': 1e-3, 'augment': 'rand-m6-n2-mstd0.5-inc1', 'repeats': 0,
          'input_size': 160, 'test_size': 224}
A2MIM_CONVNEXT = {'batch_size': 4096, 'epochs': 300, 'warmup_epochs': 5.0, 'opt': 'adamw', 'base_lr': 2.5e-4,
                  'final_lr': 1e-6, 'weight_decay': 0.05, 'layer_decay': 1.0,
                  'augment': 'rand-m9-mstd0.5-inc1', 'erase': 0.25, 'repeats': 0, 'crop': 0.875,
                  'mixup': 0.8, 'cutmix': 1.0, 'smoothing': 0.1, 'loss': 'ce', 'ema': 0.9999, 'head_std': 0.01}
# The authors' file computes a peak rate of 1e-2 and says 1e-3 beside it. 2.5e-3 lies between the two.
A2MIM_VIT = {**A2MIM_CONVNEXT, 'batch_size': 1024, 'epochs': 100, 'warmup_epochs': 20.0, 'base_lr': 6.25e-4,
             'clip_grad': 5.0, 'layer_decay': 0.65, 'drop_path': 0.1, 'ema': 0.99996}
# The protocol of MoCo (He et al. 2020): features as they are, without a norm in front of the classifier.
LINEAR_PROBE = {'freeze': True, 'probe_norm': False, 'batch_size': 256, 'epochs': 100, 'warmup_epochs': 0.0,
                'opt': 'sgd', 'base_lr': 30.0, 'weight_decay': 0.0, 'drop_path': None, 'augment': 'none',
                'erase': 0.0, 'repeats': 0, 'crop': 0.875, 'mixup': 0.0, 'cutmix': 0.0, 'smoothing': 0.0,
                'loss': 'ce', 'ema': 0.0}
# ConvMAE's, by its authors' instructions, after MAE's (arXiv 2111.06377, appendix A.1). The features are normalised
# over their channels, then over the batch.
MAE_PROBE = {'freeze': True, 'probe_norm': True, 'batch_size': 4096, 'epochs': 90, 'warmup_epochs': 10.0, 'opt': 'lars',
             'base_lr': 0.1, 'lr_schedule': 'mae', 'weight_decay': 0.0, 'drop_path': None, 'augment': 'none',
             'crop_retries': False, 'erase': 0.0, 'repeats': 0, 'crop': 0.875, 'mixup': 0.0, 'cutmix': 0.0,
             'smoothing': 0.0, 'loss': 'ce', 'ema': 0.0}
NAMED = {'rsb_a2': RSB_A2, 'rsb_a3': RSB_A3, 'a2mim_convnext': A2MIM_CONVNEXT, 'a2mim_vit': A2MIM_VIT,
         'linear_probe': LINEAR_PROBE, 'mae': MAE, 'mae_probe': MAE_PROBE}
PROBES = 'linear_probe', 'mae_probe'
MAES = 'mae', 'mae_probe', *CONVVITS
NAMES = {'rsb_a2': 'all options of the procedure A2 for ResNets, ResNet strikes back (300 epochs)',
         'rsb_a3': 'all options of its procedure A3 (100 epochs, 160 px)',
         'a2mim_convnext': "those of A2MIM's authors for ConvNeXts (300 epochs)",
         'a2mim_vit': "those of A2MIM's authors for vision transformers (200, 100 and 150 epochs for small, base and large)",
         'linear_probe': 'those of a linear classifier on frozen features, with SGD',
         'mae': "those of ConvMAE's authors, which are MAE's for base networks (100 epochs)",
         'mae_probe': "those of ConvMAE's authors for a linear classifier on frozen features, with LARS (90 epochs)"}
LARGE = 384  # pixels of a side, from which on the recipes are others
DROP_SHARES = 0.6, 0.8  # of the epochs of a linear probe, after which its rate falls: 60 and 80 of 100

A2_DROP_PATH = {'resnet50': 0.05, 'resnet101': 0.1, 'resnet152': 0.15, 'resnet200': 0.2}
# Of the tiny and the large one A2MIM's authors say nothing: as in the paper of ConvNeXt (Liu et al. 2022).
CONVNEXT_DROP_PATH = {'convnext_tiny': 0.1, 'convnext_small': 0.4, 'convnext_base': 0.5, 'convnext_large': 0.5}
OF_VIT = {'small': {'epochs': 200, 'ema': 0.0}, 'base': {}, 'large': {'epochs': 150, 'repeats': 3}}


def published_recipe(model, input_size=224):
    """The name of the recipe of a model's paper, SparK's or ConvMAE's; None if there is none. input_size: in pixels,
    or (height, width).
    """
    name = without_tag(model)
    if name == 'convnext_large' and is_large(input_size):
        name = 'convnext_large at 384 px'
    return name if name in RECIPES else None


def is_large(size):
    """Whether images of a size, a side in pixels or (height, width), count as large in all recipes."""
    return (min(size) if isinstance(size, (tuple, list)) else size) >= LARGE


def without_tag(model):
    """A timm name without the tag of pretrained weights after its dot."""
    return model.split('.')[0]


def relatives_recipe(cnn):
    """The name of the recipe for any other network: that of convvit_base for a ConvViT, ResNet-50's if most of its
    norms are BatchNorms, else ConvNeXt-S's.
    """
    from common.convvit import ConvViT  # here, as it needs torch
    if isinstance(cnn, ConvViT):
        return 'convvit_base'
    return 'resnet50' if is_mostly_batchnorm(cnn) else 'convnext_small'


def is_mostly_batchnorm(cnn):
    """Whether most norms of a network are BatchNorms."""
    from torch import nn  # here, so that options are checked without it
    norm_types = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    is_batchnorm = [isinstance(module, nn.modules.batchnorm._BatchNorm) for module in cnn.modules()
                    if isinstance(module, norm_types)]
    return sum(is_batchnorm) > len(is_batchnorm) / 2


def recipe_of(model, input_size=224):
    """(the name of the paper's recipe for a model or for its relative, its options). Raises ValueError for a name that
    timm does not know.

    A network that is not the paper's is made, to look at it; only this loads torch.
    """
    name = published_recipe(model, input_size)
    if name:
        return name, RECIPES[name]
    cnn, has_drop_path = network_to_look_at(model)
    name = relatives_recipe(cnn)
    if name == 'convvit_base':
        return name, RECIPES[name]
    drop_path = {'resnet50': 0.05, 'convnext_small': 0.1}[name] if has_drop_path else None
    return name, {**RECIPES[name], 'layer_decay': None, 'drop_path': drop_path}


def network_to_look_at(model):
    """(a network by its timm name, whether it has drop path). Raises ValueError for a name that timm does not know."""
    from common.networks.create import create_cnn
    try:
        # The network is made on the CPU, since some versions of timm cannot make every network on the meta device.
        return create_cnn(model, drop_path=0.1), True
    except ValueError:
        return create_cnn(model), False


def named_recipe(name, model):
    """The options of a recipe of NAMED for a network, as a dict. Raises ValueError for a vision transformer's
    recipe with another network, and for a name that timm does not know.
    """
    options = dict(NAMED[name])
    if name == 'a2mim_vit':
        return {**options, **OF_VIT[size_of_vit(model)]}
    if name in PROBES:
        return options
    of_model = {'rsb_a2': A2_DROP_PATH, 'rsb_a3': dict.fromkeys(A2_DROP_PATH, 0.0),
                'a2mim_convnext': CONVNEXT_DROP_PATH, 'mae': dict.fromkeys(CONVVITS, 0.1)}[name]
    of_others = {'rsb_a2': 0.05, 'rsb_a3': 0.0, 'a2mim_convnext': 0.1, 'mae': 0.1}[name]
    options['drop_path'] = drop_path_for(model, of_model, of_others)
    if name == 'rsb_a2' and without_tag(model) == 'resnet50':
        options |= {'ema': 0.9999, 'ema_warmup': 20.0}
    return options


def drop_path_for(model, of_model, of_others):
    """The rate of drop path for a network: by its name, else `of_others`; None for one without drop path."""
    if without_tag(model) in of_model:
        return of_model[without_tag(model)]
    return of_others if network_to_look_at(model)[1] else None


def size_of_vit(model):
    """'small', 'base' or 'large': which of the three transformers of A2MIM's authors a network is like.

    Theirs are 768 wide with 8 blocks, 768 with 12, and 1024 with 24. Raises ValueError for another network.
    """
    from common.networks.create import create_cnn, without_values
    from common.training.layer_decay import is_transformer
    network = without_values(lambda: create_cnn(model))
    if not is_transformer(network):
        raise ValueError(f'--recipe=a2mim_vit is for vision transformers, and {model} is none: give --recipe=rsb_a2 or '
                         'rsb_a3, or a2mim_convnext for a ConvNeXt')
    if network.embed_dim >= 1024:
        return 'large'
    return 'base' if network.embed_dim >= 768 and len(network.blocks) >= 12 else 'small'
