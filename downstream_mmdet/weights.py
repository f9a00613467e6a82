"""Weights of a ConvNeXt, of any kind, under timm's keys. Needs nothing of MMDetection.

    python weights.py FILE convnext_base        # can this file be the backbone's? Exits with 1 and one sentence if not
"""
import sys
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import timm
from timm.models.convnext import checkpoint_filter_fn

from common.networks.keys import network_with, unwrap
from common.reliability.checkpoint import read_plain

FIRST = {'stages.0.blocks.0.conv_dw.weight', 'stages.0.0.dwconv.weight'}  # a layer of every ConvNeXt: timm's name, its authors'


def convnext(arch, drop_path_rate=0.0, layer_scale=None):
    """A timm ConvNeXt. Raises ValueError for another network.

    layer_scale: its value at the start; timm's if None.
    """
    if not timm.is_model(arch) or not arch.startswith('convnext'):
        raise ValueError(f'arch is the timm name of a ConvNeXt, such as convnext_base, not {arch}')
    scale = {} if layer_scale is None else {'ls_init_value': layer_scale}
    return timm.create_model(arch, drop_path_rate=drop_path_rate, **scale)


def read(path, cnn):
    """A file's tensors under timm's keys, without the classifier: SparK's encoder or whole run, official style, fine-tuned.

    Read with `weights_only=True`. Raises ValueError.
    """
    state = network_with(unwrap(read_plain(path), path), FIRST, path)
    if any(key.startswith('downsample_layers.') for key in state):  # the ConvNeXt authors' names; timm ships the renaming
        state = checkpoint_filter_fn(dict(state), cnn)
    return {key: value for key, value in state.items() if not key.startswith(('head.', 'norm_pre.'))}


def load(module, path, cnn):
    """Fill the stem and the stages of a module from a file; the number of tensors. Raises ValueError if any does not fit."""
    state = read(path, cnn)
    own = {key: value for key, value in module.state_dict().items() if not key.startswith(('norm', 'head.'))}
    wrong = [f'{key} is missing' for key in own if key not in state]
    wrong += [f'{key} is too much' for key in state if key not in own]
    wrong += [f'{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}' for key in own
              if key in state and state[key].shape != own[key].shape]
    if wrong:
        raise ValueError(f'{path} does not hold the weights of this ConvNeXt: {wrong[0]}, and {len(wrong) - 1} more')
    module.load_state_dict(state, strict=False)  # strict above; the norms of the outputs are new
    return len(state)


if __name__ == '__main__':
    try:
        network = convnext(sys.argv[2])
        print(f'{load(network, sys.argv[1], network)} entries of {sys.argv[2]}')
    except (IndexError, ValueError) as error:
        sys.exit(f'error: {error if isinstance(error, ValueError) else "python weights.py FILE ARCH"}')
