"""Layer-wise learning rates: which layer a parameter belongs to, from the stem (0) to the classifier.

The networks of the paper follow the paper's rule; others timm's own layer groups (`group_matcher`), and
networks that have none the order of their modules. The last norm of a vision transformer is in the layer of the
classifier, as in BEiT and MAE; timm has it in that of the last block. Layers of a ConvViT are counted as by the
authors of ConvMAE: all in front of the transformer is the first one.

The authors of ConvNeXt count by stages where they train on ADE20K (`by_stages`), and by layers elsewhere: the stem and
all downsampling layers are layer 0, the stages are layers 1 to 4, and the head is as far above as by layers, 7 or 13.
So the last stage of a ConvNeXt-S has 0.9 ** 9 of the head's learning rate, at a decay of 0.9, and 0.9 by layers.
"""
import timm.models.convnext
import timm.models.resnet
from timm.models import group_parameters
from torch import nn

from common.convvit import ConvViT
from common.training.optim import is_exempt

# a group, layers 2 and 3
BLOCKS = {(3, 4, 6, 3): (2, 3), (3, 4, 23, 3): (2, 3), (3, 8, 36, 3): (4, 4), (3, 24, 36, 3): (4, 4)}


def layers_of(cnn, by_stages=False):
    """({parameter name: layer}, number of the last layer, whose rule that is): layers count from 0, the stem.

    by_stages: count as the authors of ConvNeXt do on ADE20K. Raises ValueError for another network than a ConvNeXt.
    """
    if by_stages:
        if not isinstance(cnn, timm.models.convnext.ConvNeXt):
            raise ValueError('--layer_decay_by=stages is a rule for ConvNeXts, and this network is none: give '
                             '--layer_decay_by=layers')
        return (*_convnext_by_stages(cnn), "the paper's, by stages")
    if isinstance(cnn, timm.models.resnet.ResNet):
        depths = tuple(len(getattr(cnn, f'layer{i}')) for i in (1, 2, 3, 4))
        if depths in BLOCKS and type(cnn.layer1[0]) is timm.models.resnet.Bottleneck:
            return (*_resnet(cnn, depths, *BLOCKS[depths]), "the paper's")
    if isinstance(cnn, timm.models.convnext.ConvNeXt):
        return (*_convnext(cnn), "the paper's")
    if hasattr(cnn, 'group_matcher'):
        layers = group_parameters(cnn, cnn.group_matcher(coarse=False), reverse=True)
        last = max(layers.values())
        if is_transformer(cnn):
            layers |= {name: last for name in layers if name.startswith('norm.')}
        return layers, last, "ConvMAE's" if isinstance(cnn, ConvViT) else "timm's"
    return (*_in_order(cnn), 'the order of its modules')


def is_transformer(network):
    """Whether a network is a vision transformer of one width: patches, then equal blocks."""
    return all(hasattr(network, name) for name in ('patch_embed', 'blocks', 'embed_dim'))


def without_decay(network):
    """Return the names of parameters of a vision transformer or a ConvViT that get no weight decay by the network's
    own word: the class token and what was learned of positions. Empty for other networks.
    """
    is_asked = is_transformer(network) or isinstance(network, ConvViT)
    return set(network.no_weight_decay()) if is_asked and hasattr(network, 'no_weight_decay') else set()


def _resnet(cnn, depths, group2, group3):
    before3 = 2 + -(-depths[1] // group2)
    last = before3 + -(-depths[2] // group3)

    def layer(name):
        part, _, rest = name.partition('.')
        block = int(rest.split('.')[0]) if part.startswith('layer') else 0
        return {'layer1': 1, 'layer2': 2 + block // group2, 'layer3': before3 + block // group3, 'layer4': last,
                'fc': last + 1}.get(part, 0)
    return {name: layer(name) for name, _ in cnn.named_parameters()}, last + 1


def _convnext(cnn):
    last = _convnext_last(cnn)

    def layer(name):
        parts = name.split('.')
        if parts[0] == 'stem':
            return 0
        if parts[0] != 'stages':
            return last + 1
        stage, is_block = int(parts[1]), parts[2] == 'blocks'
        return (1, 2, 3 + int(parts[3]) // 3 if is_block else 3, last)[stage]
    return {name: layer(name) for name, _ in cnn.named_parameters()}, last + 1


def _convnext_by_stages(cnn):
    last = _convnext_last(cnn) + 1

    def layer(name):
        parts = name.split('.')
        if parts[0] == 'stem':
            return 0
        if parts[0] != 'stages':
            return last
        return int(parts[1]) + 1 if parts[2] == 'blocks' else 0
    return {name: layer(name) for name, _ in cnn.named_parameters()}, last


def _convnext_last(cnn):
    """The layer of a ConvNeXt's last stage, by layers."""
    return 6 if len(cnn.stages[2].blocks) <= 9 else 12


def _in_order(cnn):
    """Each child, and each item of a child that is a list, is a layer."""
    lists = {name for name, child in cnn.named_children() if isinstance(child, (nn.ModuleList, nn.Sequential))}
    keys = {name: '.'.join(name.split('.')[:2 if name.split('.')[0] in lists else 1]) for name, _ in cnn.named_parameters()}
    order = {key: i for i, key in enumerate(dict.fromkeys(keys.values()))}
    return {name: order[key] for name, key in keys.items()}, len(order) - 1


def default_decay(last):
    """0.7, as for a ResNet-50; nearer to 1 for a network of more layers, so that its stem has a ResNet-50's
    share, 0.7 ** 7.
    """
    return 0.7 ** (7 / max(last, 7))


def parameter_groups(cnn, weight_decay, layer_decay, by_stages=False):
    """Groups for an optimiser, one for each layer with and without weight decay; `lr_scale` is decay ** (last
    - layer). by_stages: see `layers_of`.
    """
    layers, last, _ = layers_of(cnn, by_stages)
    exempt = without_decay(cnn)
    groups = {}
    for name, parameter in cnn.named_parameters():
        if parameter.requires_grad:
            decays = not is_exempt(name, parameter) and name not in exempt
            group = groups.setdefault((layers[name], decays), {
                'params': [], 'weight_decay': weight_decay if decays else 0.0, 'decays': decays,
                'lr_scale': layer_decay ** (last - layers[name])})
            group['params'].append(parameter)
    return [groups[key] for key in sorted(groups)]


def table(cnn, layer_decay, by_stages=False):
    """The layers, for a person: which parameters are in each, and at what share of the learning rate.

    by_stages: see `layers_of`.
    """
    layers, last, rule = layers_of(cnn, by_stages)
    names = {}
    for name, layer in layers.items():
        names.setdefault(layer, []).append(name)
    rows = [f'  {layer:3}  x {layer_decay ** (last - layer):.4f}  {len(members):4} tensors  {members[0]} ... {members[-1]}'
            for layer, members in sorted(names.items())]
    return '\n'.join([f'layers ({rule}), the share of the learning rate of each at a decay of '
                      f'{layer_decay:.4g}:', *rows])
