"""Published recipes for ADE20K, as options, by the names of networks.

* ConvNeXt: Liu et al. 2022, "A ConvNet for the 2020s" (arXiv 2201.03545), as the files upernet_convnext_*_ss.py in
  semantic_segmentation/configs/convnext of github.com/facebookresearch/ConvNeXt have it.
* ResNet: MMSegmentation 0.x, configs/upernet/upernet_r50_512x512_160k_ade20k.py and upernet_r101_512x512_160k_ade20k.py.
* ConvViT: ConvMAE, Gao et al. 2022 (arXiv 2205.03892), by its authors' instructions.

All of them train UperNet for 160,000 iterations of 16 images, without clipping and without an average of the weights.
What is the same in all of them is a default of config.py. No torch is loaded, but for a network without a recipe.
"""
import math

from common.networks.users import USERS_NETWORKS, register

# What is chosen when the number of images is known (downstream_ade20k/recipe.py).
CHOSEN = ('recipe', 'batch_size', 'iterations', 'warmup_iterations', 'val_every', 'base_lr', 'lr', 'accum')

EVALUATIONS = 10  # of a run, where the iterations between them are not given
FARTHEST = 3  # times that the iterations between evaluations may be more or fewer than a tenth of a run
WARMUP_START = 1e-6  # share of the learning rate at the first iteration, in all recipes with a warm-up
BATCH = 16  # images, for which base_lr is the peak learning rate
LENGTH = {'batch_size': BATCH, 'iterations': 160_000, 'val_every': 16_000}
ADAMW = {'opt': 'adamw', 'base_lr': 1e-4, 'weight_decay': 0.05, 'power': 1.0, 'end_lr': 0.0, 'warmup_iterations': 1500}
SGD = {'opt': 'sgd', 'base_lr': 0.01, 'weight_decay': 5e-4, 'power': 0.9, 'end_lr': 1e-4, 'warmup_iterations': 0,
       'layer_decay': 1.0, 'layer_decay_by': 'layers'}
CONVNEXT = {**LENGTH, **ADAMW, 'layer_decay': 0.9, 'layer_decay_by': 'stages', 'drop_path': 0.4, 'head_channels': 512,
            'map_norm': True, 'input_size': 512, 'slide': True}
RESNET = {**LENGTH, **SGD, 'drop_path': None, 'head_channels': 512, 'map_norm': False, 'input_size': 512, 'slide': False}
CONVMAE = {**LENGTH, **ADAMW, 'layer_decay': 0.75, 'layer_decay_by': 'layers', 'drop_path': 0.2, 'head_channels': 768,
           'map_norm': False, 'input_size': 512, 'slide': True}
CONVVITS = 'convvit_small', 'convvit_base', 'convvit_large', 'convvit_huge'
RECIPES = {
    'convnext_tiny': CONVNEXT,
    'convnext_small': {**CONVNEXT, 'drop_path': 0.3},
    'convnext_base': CONVNEXT,
    # These two were published with ImageNet-22k and at 640 pixels only.
    'convnext_large': {**CONVNEXT, 'input_size': 640},
    'convnext_xlarge': {**CONVNEXT, 'input_size': 640, 'base_lr': 8e-5},
    'resnet50': RESNET,
    'resnet101': RESNET,
    **dict.fromkeys(CONVVITS, CONVMAE),
}
# Of --head=fpn: Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", and MMSegmentation's _base_/models/fpn_r50.py.
FPN = {'head_channels': 128}
OTHERS = {**CONVNEXT, 'layer_decay_by': 'layers', 'drop_path': 0.1, 'slide': False}  # of networks of any other kind
STEM = 0.9 ** 7  # share of the learning rate that AdamW trains the stem of ConvNeXt-T with, and of networks of OTHERS


def recipe(given):
    """{name: value} of the options that a model's recipe sets, but for those that are CHOSEN later.

    given: {name: value} of the options that a user gave. With --eval nothing is set: the file holds what its run had.
    Raises ValueError for a model that timm does not know.
    """
    if given.get('eval') is not None:
        return {}
    register(given.get('register', USERS_NETWORKS))
    options = recipe_of(given.get('model', 'resnet50'), given.get('opt'))
    if given.get('head') == 'fpn':
        options = {**options, **FPN}
    return {name: value for name, value in options.items() if name not in CHOSEN}


def size_of_crops(given):
    """{'input_size': pixels}, where the recipe for a model by its own name sets it; else {}. Nothing is made to see it.

    given: as of `recipe`.
    """
    if given.get('eval') is not None:
        return {}
    own = RECIPES.get(given.get('model', 'resnet50').split('.')[0])
    return {'input_size': own['input_size']} if own else {}


def recipe_of(model, opt=None):
    """All options of the recipe for a model, by its own name or by its kind. Raises ValueError for a model that timm
    does not know.

    opt: 'adamw' or 'sgd', if it is given. Where the recipe has the other one, what depends on the optimiser is
    replaced: learning rate, its curve, weight decay and layer decay. A network without a recipe for its name and this
    optimiser is made, to look at it; only that loads torch.
    """
    own = RECIPES.get(model.split('.')[0])
    if own and opt in (None, own['opt']):
        return own
    network, has_drop_path = network_to_look_at(model)
    options = own or of_kind(network, has_drop_path)
    if opt in (None, options['opt']):
        return options
    return {**options, **SGD} if opt == 'sgd' else {**options, **ADAMW, **layers_of_kind(network)}


def of_kind(network, has_drop_path):
    """The recipe for a network by its kind: that of ResNet-50 for other ResNets, of ConvMAE for other ConvViTs, else
    OTHERS.
    """
    from timm.models.resnet import ResNet  # here, as it needs torch

    from common.convvit import ConvViT
    if isinstance(network, ResNet):
        return RESNET
    if isinstance(network, ConvViT):
        return CONVMAE
    drop_path = OTHERS['drop_path'] if has_drop_path else None
    return {**OTHERS, 'drop_path': drop_path, 'map_norm': not has_batchnorm(network), **layers_of_kind(network)}


def layers_of_kind(network):
    """The options on layer decay of AdamW for a network by its kind.

    A network that is neither a ConvNeXt nor a ConvViT has its own layers, whose number varies, and such a decay that
    the stem has the share of the learning rate which that of ConvNeXt-T has.
    """
    from timm.models.convnext import ConvNeXt  # here, as it needs torch

    from common.convvit import ConvViT
    from common.training.layer_decay import layers_of
    if isinstance(network, ConvNeXt):
        recipe = CONVNEXT
    elif isinstance(network, ConvViT):
        recipe = CONVMAE
    else:
        _, last, _ = layers_of(network)
        recipe = {'layer_decay': round(STEM ** (1 / max(last, 7)), 4), 'layer_decay_by': 'layers'}
    return {name: recipe[name] for name in ('layer_decay', 'layer_decay_by')}


def has_batchnorm(network):
    """Whether a network has BatchNorms. Its maps are then of a scale that is about the same for all images."""
    from torch.nn.modules.batchnorm import _BatchNorm  # here, as it needs torch
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def network_to_look_at(model):
    """(a network by its timm name, whether it has drop path). Raises ValueError for a name that timm does not know."""
    from common.networks.create import create_cnn, without_values  # here, as it needs torch
    try:
        return without_values(lambda: create_cnn(model, drop_path=0.1)), True
    except ValueError:
        return without_values(lambda: create_cnn(model)), False


def nearest_divisor(number, wanted):
    """The divisor of a number that is nearest to another number, by their ratio."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return min(sorted([*small, *(number // divisor for divisor in small)]),
               key=lambda divisor: max(divisor / wanted, wanted / divisor))


def iterations_between_evaluations(iterations):
    """The divisor of the iterations of a run that is nearest to a tenth of them.

    Raises ValueError if it is far from a tenth, as it is for a prime number: the run would be measured and saved once,
    or after each iteration.
    """
    wanted = max(1, iterations / EVALUATIONS)
    nearest = nearest_divisor(iterations, wanted)
    if max(nearest / wanted, wanted / nearest) > FARTHEST:
        other = round(iterations / EVALUATIONS) * EVALUATIONS
        raise ValueError(f'the iterations between evaluations divide those of the run, and of {iterations} no divisor is near '
                         f'a tenth: give --iterations={other}, or the iterations between evaluations too, such as '
                         f'--val_every={nearest}')
    return nearest
