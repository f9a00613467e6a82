"""Weights, networks and batches of the golden files of the authors' ConvMAE and FastConvMAE programs."""
import json
import math

import torch

from common.convvit import ConvViT
from tests.pretrain.official import GOLDEN, fill


def golden(name):
    """The content of a golden file: 'convmae_small_224', 'convmae_base_224' or 'fastconvmae_small_224'."""
    return json.loads((GOLDEN / f'{name}.json').read_text())


def table(grid, width):
    """The fixed positions, computed by a double loop: float32 values in float64, (1, h*w, width)."""
    rows = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            frequencies = [10000 ** (-j / (width / 4)) for j in range(width // 4)]
            rows.append([function(place * f) for place in (x, y) for function in (math.sin, math.cos)
                         for f in frequencies])
    return torch.tensor(rows, dtype=torch.float64).float().double()[None]


def convmae_value(name, shape):
    """The value of an entry of the official state dict in the golden files."""
    if name in ('pos_embed', 'decoder_pos_embed'):
        side = math.isqrt(shape[1])
        return table((side, side), shape[2])
    if name == 'mask_token':
        return 0.5 * fill(name, shape)
    if len(shape) == 1:
        return (1 if name.endswith('.weight') else 0) + 0.1 * fill(name, shape)
    return fill(name, shape) * math.sqrt(2 / math.prod(shape[1:]))


def official_state(keys):
    """keys: {name: shape}, as golden files have them. Returns {name: tensor}."""
    return {name: convmae_value(name, tuple(shape)) for name, shape in keys.items()}


def convvit(want, num_classes=0):
    """The ConvViT of a golden file."""
    made = want['constructor']
    return ConvViT(want['input_size'], made['embed_dim'], made['depth'], made['num_heads'], made['mlp_ratio'],
                   num_classes=num_classes)


def golden_images(want):
    """The normalised images of a golden file: each patch has a contrast and a brightness of its own."""
    batch, side = want['batch'], want['input_size']
    patches = side // 16
    contrast = each(fill('contrast', (batch, 1, patches, patches)))
    brightness = each(fill('brightness', (batch, 3, patches, patches)))
    return fill('input', (batch, 3, side, side)) * (1 + 0.5 * contrast) + brightness


def each(values):
    """Every value of a map (B, C, h, w), repeated over its 16 x 16 pixels."""
    return values.repeat_interleave(16, 2).repeat_interleave(16, 3)


def close(tensor, expected, rel=1e-10):
    """Whether the shape and the sums of a tensor are those of a golden file.

    Of sums the error is relative to abs_sum / sqrt(number of values).
    """
    assert list(tensor.shape) == expected['shape']
    scale = expected['abs_sum'] / math.sqrt(tensor.numel())
    assert abs(tensor.sum().item() - expected['sum']) <= rel * scale
    assert abs(tensor.abs().sum().item() - expected['abs_sum']) <= rel * expected['abs_sum']
    assert abs(tensor.square().sum().item() - expected['sq_sum']) <= rel * expected['sq_sum']
