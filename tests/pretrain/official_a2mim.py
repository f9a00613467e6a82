"""Weights, networks and batches of the golden files of the authors' A2MIM program."""
import json

import timm
import torch

from pretrain.a2mim import build_a2mim
from tests.pretrain.official import GOLDEN, fill, official_value

LOSSES = {  # of the golden networks, as tests/golden describes them by the recipes' names
    'resnet26': {},
    'convnext_tiny': {'fourier': 'none'},
    'vit': {'token': 'residual', 'spatial_loss': 'l1', 'fourier_weight': 0.1, 'fourier_visible': 0.0},
}


def golden(model):
    return json.loads((GOLDEN / f'a2mim_{model}_96.json').read_text())


def a2mim_value(name, shape):
    """The value of an entry of the official state dict in the golden files."""
    if name == 'backbone.mask_token':
        return 0.5 * fill(name, shape)
    if name.endswith(('gamma', '.gamma_1', '.gamma_2')):
        return 0.5 + 0.1 * fill(name, shape)
    return official_value(name, shape)


def official_state(want):
    return {name: a2mim_value(name, shape) for name, shape in want['keys'].items()}


def our_state(want):
    """The same values under our names."""
    state = {}
    for name, value in official_state(want).items():
        if name.startswith('neck.'):
            state['decoder.' + name.rpartition('.')[2]] = value
        elif name in ('backbone.mask_token', 'backbone.mask_gamma'):
            ours = {'mask_token': 'encoder.mask_token', 'mask_gamma': 'encoder.mask_gain'}[name.partition('.')[2]]
            state[ours] = value.reshape(1, -1, 1, 1)
        else:
            state['encoder.cnn.' + want['timm'][name]] = value
    return state


def network(model):
    """timm's network of a golden file."""
    if model != 'vit':
        return timm.create_model(model)
    return timm.models.beit.Beit(img_size=96, patch_size=16, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2,
                                 init_values=0.1, use_abs_pos_emb=True, use_rel_pos_bias=True, num_classes=0,
                                 global_pool='')


def loaded(model):
    """(the golden file, A2MIM in float64 with its weights, images, visible)."""
    want = golden(model)
    size = want['input_size']
    a2mim = build_a2mim(network(model), input_size=size, mask_ratio=want['mask_ratio'], **LOSSES[model]).double()
    missing, unexpected = a2mim.load_state_dict(our_state(want), strict=False)
    assert not unexpected and all(key.startswith(('encoder.cnn.fc.', 'encoder.cnn.head.fc.')) for key in missing)
    images = fill('input', (want['batch'], 3, size, size))
    return want, a2mim, images, torch.tensor(want['visible'])


def close(tensor, expected, rel=1e-9):
    """Whether the shape and the sums of a tensor are those of a golden file, relative to that of absolute values."""
    assert list(tensor.shape) == expected['shape']
    sums = tensor.sum().item(), tensor.abs().sum().item()
    assert abs(sums[0] - expected['sum']) <= rel * expected['abs_sum']
    assert abs(sums[1] - expected['abs_sum']) <= rel * expected['abs_sum']
    assert abs(tensor.square().sum().item() - expected['sq_sum']) <= rel * expected['sq_sum']
