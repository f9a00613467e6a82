"""--to=torchvision: a file for `torchvision.models`."""
import torch
import torchvision
from torch import nn

from common.networks.renaming import to_timm, to_torchvision
from common.reliability.checkpoint import read_plain
from common.words import counted
from pretrain.formats import contents, verify

# Networks that are the same in timm and in torchvision, layer for layer.
NETWORKS = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnext50_32x4d',
            'resnext101_32x8d', 'resnext101_64x4d', 'wide_resnet50_2', 'wide_resnet101_2', 'convnext_tiny',
            'convnext_small', 'convnext_base', 'convnext_large', 'densenet121', 'densenet161', 'densenet169',
            'densenet201')


@torch.no_grad()
def write(saved, stem, suffix, licence):
    """Write the entries of a network under torchvision's names. See WRITERS in pretrain/export.py."""
    name = contents.name_of(saved)
    if name not in NETWORKS or saved.options.in_chans != 3:
        raise ValueError(f'torchvision has no {name} for images of '
                         f'{counted(saved.options.in_chans, "channel")} with the same layers as timm\'s; it '
                         f'has {", ".join(NETWORKS)}, for 3')
    path = stem.with_suffix(suffix)
    contents.write_state(path, to_torchvision(contents.entries_of(saved)), licence)
    state = read_plain(path)
    if saved.has_classifier:
        number = contents.num_classes(saved)
        theirs = torchvision.models.get_model(name, num_classes=number)
        lines = f'model = torchvision.models.{name}(num_classes={number})'
    else:
        theirs = torchvision.models.get_model(name)
        place = place_of_classifier(theirs, state)
        theirs.set_submodule(place, nn.Flatten())
        lines = f"model = torchvision.models.{name}(); model.set_submodule('{place}', torch.nn.Flatten())"
    theirs.load_state_dict(state)
    cnn = saved.network.encoder.cnn
    loaded = {key: value for key, value in theirs.state_dict().items() if key in state}
    verify.require_given(saved, to_timm(state, cnn), 'torchvision')
    verify.require_given(saved, to_timm(loaded, cnn), 'torchvision')
    images = verify.sample_images(saved)
    verify.require_same([own_output(saved, images, state)], [theirs.eval()(images)], 'torchvision')
    read = f"safetensors.torch.load_file('{path}')" if suffix == '.safetensors' else f"torch.load('{path}')"
    return [f'{path}: read by {lines}; model.load_state_dict({read}), strictly; {verify.what_is_same(saved)}']


def place_of_classifier(network, state):
    """Return the name of the submodule of torchvision's network to which a file has no weights."""
    last_key = list(network.state_dict())[-1]
    last = last_key.rpartition('.')[0]
    if last == 'classifier.2' and 'classifier.0.weight' not in state:
        return 'classifier'  # of a ConvNeXt, with the norm in front of it
    return last


def own_output(saved, images, state):
    """Return what torchvision's network is to give: logits, or the features that a classifier would get."""
    encoder = saved.network.encoder
    if saved.has_classifier:
        return encoder.cnn(images)
    pooled = encoder.pyramid(images)[-1].mean((2, 3))
    if 'classifier.0.weight' in state:  # the norm in front of the classifier of a ConvNeXt
        return nn.functional.layer_norm(pooled, pooled.shape[1:], state['classifier.0.weight'],
                                        state['classifier.0.bias'], 1e-6)
    return pooled
