"""Files of OpenMMLab's libraries and of those built on them, such as the official A2MIM.

There the network is below 'backbone.', its classifier beside it, 'head.fc.', and what pretraining adds below
'neck.'. ResNets have torchvision's and timm's names, ConvNeXts and ViTs names of their own. A run with an
average of the weights (EMA) keeps a second copy of each, under a name without dots.

Functions take a flat dictionary (`unwrap`) and return a new one. They look at the names alone.
"""
import re

from timm.models import beit, convnext
from torch import nn

# What masked pretraining keeps in the network itself: A2MIM's token with its gain, SimMIM's and BEiT's token.
TOKENS = ('mask_token', 'mask_gamma')
CLASSIFIER = 'head.fc.'
# Layers of a block of a ConvNeXt: OpenMMLab's name -> timm's.
CONVNEXT_LAYERS = {'depthwise_conv': 'conv_dw', 'pointwise_conv1': 'mlp.fc1', 'pointwise_conv2': 'mlp.fc2',
                   'norm': 'norm', 'gamma': 'gamma'}
# Parts of a block of a ViT, likewise.
VIT_LAYERS = {'ln1': 'norm1', 'ln2': 'norm2', 'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2'}
NOT_LOADED = 'relative_position_index'  # a buffer of ViTs, which is computed from the size of the images


def from_openmmlab(state, cnn):
    """Rename the entries of a ConvNeXt or ViT from OpenMMLab's names to those of a timm network.

    Other entries, and those for another network, come back as they were.
    """
    if isinstance(cnn, convnext.ConvNeXt) and any('.depthwise_conv.' in key for key in state):
        own = cnn.state_dict()
        renamed = {convnext_to_timm(key): value for key, value in state.items()}
        return {key: like(own[key], value) if key in own else value for key, value in renamed.items()}
    if isinstance(cnn, beit.Beit) and any(key.startswith('layers.0.ln1.') for key in state):
        norms = final_norms(state, cnn)
        return {vit_to_timm(key, norms): value for key, value in state.items() if not key.endswith(NOT_LOADED)}
    return state


def to_openmmlab(state):
    """Rename the entries of a ConvNeXt or of a ViT (timm's Beit) from timm's names to OpenMMLab's.

    The classifier, which OpenMMLab keeps outside of the network, is left as it was.
    """
    rename = vit_from_timm if any(key.startswith('blocks.0.') for key in state) else convnext_from_timm
    return {rename(key): value for key, value in state.items()}


def like(own, value):
    """Give a weight of a 1x1 convolution or a linear layer the shape of another one with the same values.

    Libraries make the layers of a ConvNeXt's block as the one or the other.
    """
    same = own.shape[:2] == value.shape[:2] and own.numel() == value.numel()
    return value.reshape(own.shape) if same and own.ndim >= 2 else value


def convnext_to_timm(key):
    """Rename an entry of a ConvNeXt from OpenMMLab's name to timm's."""
    downsampling = re.fullmatch(r'downsample_layers\.(\d)\.(.+)', key)
    if downsampling:
        stage, inner = downsampling.groups()
        return f'stem.{inner}' if stage == '0' else f'stages.{stage}.downsample.{inner}'
    block = re.fullmatch(r'stages\.(\d)\.(\d+)\.(\w+)(.*)', key)
    if block and block[3] in CONVNEXT_LAYERS:
        stage, number, layer, parameter = block.groups()
        return f'stages.{stage}.blocks.{number}.{CONVNEXT_LAYERS[layer]}{parameter}'
    return re.sub(r'^norm3\.', 'head.norm.', key)


def convnext_from_timm(key):
    """Rename an entry of a ConvNeXt from timm's name to OpenMMLab's."""
    block = re.fullmatch(r'stages\.(\d)\.blocks\.(\d+)\.(conv_dw|mlp\.fc[12]|norm|gamma)(.*)', key)
    if block:
        stage, number, layer, parameter = block.groups()
        there = next(name for name, own in CONVNEXT_LAYERS.items() if own == layer)
        return f'stages.{stage}.{number}.{there}{parameter}'
    key = re.sub(r'^stem\.', 'downsample_layers.0.', key)
    key = re.sub(r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.', key)
    return re.sub(r'^head\.norm\.', 'norm3.', key)


def vit_to_timm(key, norms):
    """Rename an entry of a ViT from OpenMMLab's name to that of timm's Beit. norms: see `final_norms`."""
    block = re.fullmatch(r'layers\.(\d+)\.(.+)', key)
    if not block:
        layer, _, parameter = key.partition('.')
        key = f'{norms[layer]}.{parameter}' if layer in norms else key
        return key.replace('patch_embed.projection.', 'patch_embed.proj.')
    number, inner = block.groups()
    return f'blocks.{number}.{renamed_layer(inner, VIT_LAYERS)}'


def vit_from_timm(key):
    """Rename an entry of timm's Beit to OpenMMLab's name."""
    block = re.fullmatch(r'blocks\.(\d+)\.(.+)', key)
    if not block:
        return re.sub(r'^(fc_)?norm\.', 'ln1.', key).replace('patch_embed.proj.', 'patch_embed.projection.')
    number, inner = block.groups()
    return f'layers.{number}.{renamed_layer(inner, {here: there for there, here in VIT_LAYERS.items()})}'


def renamed_layer(key, names):
    """Rename the layer at the beginning of a key. names: {a layer's name: its new one}."""
    layer = next((layer for layer in names if key.startswith(f'{layer}.')), None)
    return key if layer is None else names[layer] + key.removeprefix(layer)


def final_norms(state, cnn):
    """Return {OpenMMLab's name: timm's} of the norms after the last block of a ViT.

    'ln1' is over the tokens; 'ln2', where a file has it, over their mean, in front of the classifier. A network
    of timm has one of the two, and where it is the one over the mean, that starts as the pretrained norm over the tokens.
    """
    over_tokens = 'norm' if isinstance(cnn.fc_norm, nn.Identity) else 'fc_norm'
    if 'ln2.weight' in state:
        return {'ln1': 'norm', 'ln2': 'fc_norm'}
    return {'ln1': over_tokens}


def join_classifier(state, cnn):
    """Move a classifier from beside the network, 'head.fc.', to where timm has it: 'backbone.fc.'.

    It is moved if the network has a linear classifier of as many inputs, and the file has none inside of it.
    """
    name, inputs = linear_classifier(cnn)
    if name is None:
        return state
    moved = {}
    for key, value in state.items():
        outer = key.removesuffix(f'{CLASSIFIER}weight')
        if outer == key or outer[-1:] not in ('', '.', '/') or value.ndim != 2 or value.shape[1] != inputs:
            continue
        network = f'{outer}backbone.'
        if any(other.startswith(network) for other in state) and f'{network}{name}.weight' not in state:
            moved[f'{outer}{CLASSIFIER}'] = f'{network}{name}.'

    def renamed(key):
        for there, here in moved.items():
            if key.startswith(there):
                return here + key.removeprefix(there)
        return key

    return {renamed(key): value for key, value in state.items()} if moved else state


def linear_classifier(cnn):
    """Return (name, number of inputs) of a timm network's classifier, (None, 0) if it is no linear layer."""
    head = cnn.get_classifier() if hasattr(cnn, 'get_classifier') else None
    if not isinstance(head, nn.Linear):
        return None, 0
    return next(name for name, module in cnn.named_modules() if module is head), head.in_features


def without_flat_averages(state):
    """Leave out the second copies that a run with an average of the weights keeps.

    The copy of 'backbone.conv1.weight' is called 'ema_backbone_conv1_weight'. While such a run writes a file,
    the plain names hold the average and the copies what was trained, so the plain ones are what is wanted.

    Returns (the other entries, number of copies).
    """
    flattened = {key.replace('.', '_') for key in state}

    def is_copy(key):
        name = re.split('[./]', key)[-1]
        outer = key.removesuffix(name)
        return name.startswith('ema_') and (outer + name.removeprefix('ema_')).replace('.', '_') in flattened

    rest = {key: value for key, value in state.items() if not is_copy(key)}
    return rest, len(state) - len(rest)
