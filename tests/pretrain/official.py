"""Weights and names of the official implementation, whose numbers stand in tests/golden."""
import math
import zlib
from pathlib import Path

import torch

GOLDEN = Path(__file__).parents[1] / 'golden'


def fill(name, shape):
    """Reproducible values of zero mean and unit variance, a formula over a name."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    h = zlib.crc32(name.encode()) % 9973
    u = torch.sin(12.9898 * i + torch.tensor(78.233, dtype=torch.float64) * h) * 43758.5453
    return ((u - u.floor() - 0.5) * math.sqrt(12)).view(shape)


def official_value(name, shape):
    if name.endswith('num_batches_tracked'):
        return torch.zeros(shape, dtype=torch.long)
    if name in ('imn_m', 'imn_s', 'norm_black'):
        return torch.zeros(shape, dtype=torch.float64)
    value = fill(name, shape)
    if name.endswith('running_var'):
        return 1 + 0.1 * value
    if name.endswith('.gamma'):
        return 0.5 + 0.1 * value
    if name.startswith('mask_tokens.'):
        return 0.02 * value
    if len(shape) == 1:
        return (1 if name.endswith('.weight') else 0) + 0.1 * value
    return value * math.sqrt(2 / math.prod(shape[1:]))


def official_name(name):
    """Our name of a parameter -> the official one."""
    if not name.startswith('encoder.cnn.'):
        return name
    name = name.removeprefix('encoder.cnn.')
    for ours, theirs in (('stem.', 'downsample_layers.0.'), ('conv_dw', 'dwconv'), ('mlp.fc', 'pwconv'),
                         ('.blocks.', '.')):
        name = name.replace(ours, theirs)
    if '.downsample.' in name and name.startswith('stages'):
        _, stage, _, rest = name.split('.', 3)
        name = f'downsample_layers.{stage}.{rest}'
    return 'sparse_encoder.sp_cnn.' + name
