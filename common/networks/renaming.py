"""The same network under other names: timm's, torchvision's, those of the authors of ConvNeXt, OpenMMLab's.

ResNets have the same names in all of them. Functions take a state_dict and return a new one. They
look at the names alone, so a state_dict of another network comes back as it was, except where a ValueError is mentioned.
"""
import re

from timm.models import beit, convnext, densenet

from common.networks.openmmlab import from_openmmlab, to_openmmlab

# Layers of a block of a ConvNeXt: timm's name -> the index in torchvision's nn.Sequential.
TORCHVISION_LAYERS = {'conv_dw': '0', 'norm': '2', 'mlp.fc1': '3', 'mlp.fc2': '5'}
TIMM_LAYERS = {index: name for name, index in TORCHVISION_LAYERS.items()}


def spellings(cnn):
    """Return all names that files may use for the entries of a network: those that `to_timm` renames."""
    state = cnn.state_dict()
    names = set(state)
    if isinstance(cnn, convnext.ConvNeXt):
        names |= to_authors(state).keys() | to_torchvision(state).keys() | to_openmmlab(state).keys()
    if isinstance(cnn, beit.Beit):
        names |= to_openmmlab(state).keys()
    if isinstance(cnn, densenet.DenseNet):
        names |= {re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', key) for key in state}
    return names


def to_timm(state, cnn):
    """Rename the entries of any known convention to those of a timm network.

    Raises ValueError for the names of a ConvNeXt's authors if the network is no ConvNeXt.
    """
    if isinstance(cnn, densenet.DenseNet):
        state = {from_old_densenet(key): value for key, value in state.items()}
    state = from_openmmlab(state, cnn)
    if any(key.startswith('downsample_layers.') for key in state):
        if not isinstance(cnn, convnext.ConvNeXt):
            raise ValueError(f'the weights are those of a ConvNeXt, the network is a {type(cnn).__name__}: '
                             'give the --model that they were made with')
        state = convnext.checkpoint_filter_fn(dict(state), cnn)  # timm has this renaming
    if isinstance(cnn, convnext.ConvNeXt) and any(key.startswith('features.1.0.block.') for key in state):
        # torchvision stores a layer scale as (C, 1, 1), timm as (C,).
        state = {from_torchvision_convnext(key): value.flatten() if 'layer_scale' in key else value
                 for key, value in state.items()}
    return state


def from_old_densenet(key):
    """Rename 'denselayer1.norm.1.weight', as in torchvision's older files, to 'denselayer1.norm1.weight'."""
    return re.sub(r'(denselayer\d+\.(?:norm|conv))\.([12])\.', r'\1\2.', key)


def from_torchvision_convnext(key):
    """Rename an entry of a ConvNeXt from torchvision's convention to timm's."""
    block = re.fullmatch(r'features\.(\d)\.(\d+)\.(?:block\.(\d)\.(\w+)|(layer_scale))', key)
    if block:
        index, number, layer, parameter, layer_scale = block.groups()
        inner = 'gamma' if layer_scale else f'{TIMM_LAYERS.get(layer, layer)}.{parameter}'
        return f'stages.{int(index) // 2}.blocks.{number}.{inner}'
    downsampling = re.fullmatch(r'features\.(\d)\.(\d)\.(?:\d\.)?(\w+)', key)
    if downsampling:
        index, layer, parameter = downsampling.groups()
        if index == '0':
            return f'stem.{layer}.{parameter}'
        return f'stages.{int(index) // 2}.downsample.{layer}.{parameter}'
    return key.replace('classifier.0', 'head.norm').replace('classifier.2', 'head.fc')


def to_authors(state):
    """Rename a ConvNeXt from timm's convention to its authors'; the head keeps timm's names."""
    renamed = {}
    for key, value in state.items():
        block = re.fullmatch(r'stages\.(\d)\.blocks\.(\d+)\.(.+)', key)
        downsampling = re.fullmatch(r'stages\.(\d)\.downsample\.(.+)', key)
        if block:
            stage, number, inner = block.groups()
            inner = inner.replace('conv_dw.', 'dwconv.').replace('mlp.fc', 'pwconv')
            key = f'stages.{stage}.{number}.{inner}'
        elif downsampling:
            key = f'downsample_layers.{downsampling[1]}.{downsampling[2]}'
        elif key.startswith('stem.'):
            key = key.replace('stem.', 'downsample_layers.0.')
        renamed[key] = value
    return renamed


def to_torchvision(state):
    """Rename a ResNet, ConvNeXt or DenseNet from timm's convention to torchvision's."""
    is_convnext = any(key.startswith('stages.') for key in state)
    if not is_convnext:
        return dict(state)  # the names are the same
    renamed = {}
    for key, value in state.items():
        if re.fullmatch(r'stages\.\d\.blocks\.\d+\.gamma', key):
            value = value.view(-1, 1, 1)  # (C,) -> (C, 1, 1), as torchvision stores it
        renamed[to_torchvision_convnext(key)] = value
    return renamed


def to_torchvision_convnext(key):
    """Rename an entry of a ConvNeXt from timm's convention to torchvision's."""
    block = re.fullmatch(r'stages\.(\d)\.blocks\.(\d+)\.(?:(.+)\.(\w+)|(gamma))', key)
    if block:
        stage, number, layer, parameter, gamma = block.groups()
        inner = 'layer_scale' if gamma else f'block.{TORCHVISION_LAYERS.get(layer, layer)}.{parameter}'
        return f'features.{2 * int(stage) + 1}.{number}.{inner}'
    downsampling = re.fullmatch(r'stages\.(\d)\.downsample\.(.+)', key)
    if downsampling:
        return f'features.{2 * int(downsampling[1])}.{downsampling[2]}'
    for here, there in (('stem.', 'features.0.'), ('head.norm', 'classifier.0'), ('head.fc', 'classifier.2')):
        key = key.replace(here, there)
    return key
