"""Weights of a ConvNeXt, of any kind, under timm's keys. Needs nothing of MMDetection.

    python weights.py FILE convnext_base        # can this file be the backbone's? Exits with 1 and one sentence if not
"""
import os
import re
import sys
import zipfile

import timm
import torch
from timm.models.convnext import checkpoint_filter_fn

FIRST = r'stages\.0\.(0\.dwconv|blocks\.0\.conv_dw)\.weight$'  # a layer of every ConvNeXt


def convnext(arch, drop_path_rate=0.0, layer_scale=None):
    """A timm ConvNeXt. Raises ValueError for another network.

    layer_scale: its value at the start; timm's if None.
    """
    if not timm.is_model(arch) or not arch.startswith('convnext'):
        raise ValueError(f'arch is the timm name of a ConvNeXt, such as convnext_base, not {arch}')
    scale = {} if layer_scale is None else {'ls_init_value': layer_scale}
    return timm.create_model(arch, drop_path_rate=drop_path_rate, **scale)


def check_archive(path):
    """Raise a ValueError for a file that unpacks to more than it is: torch stores tensors as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                raise ValueError('it unpacks to more than it is')


def tensors_of(content, path):
    """{key: tensor} of all dictionaries in a file's content; in a dictionary within one the key is outer/inner."""
    state, seen = {}, set()

    def collect(part, where):
        seen.add(id(part))
        for key, value in part.items():
            if torch.is_tensor(value):
                state[f'{where}{key}'] = value
            elif isinstance(value, dict) and where.count('/') < 4 and id(value) not in seen:  # it may hold itself
                collect(value, f'{where}{key}/')

    if isinstance(content, dict):
        collect(content, '')
    for key, value in state.items():
        if value.layout != torch.strided or value.is_meta or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f'{path} is refused: its {key} is no dense tensor, or of more values than are stored with it')
    if not state:
        raise ValueError(f'{path} holds no weights')
    return state


def network_in(state, path):
    """The entries of the ConvNeXt in a file, without what their keys begin with (module., encoder.cnn., ...).

    The first layer says where it is. Weights are taken rather than their average (EMA); of several networks none.
    """
    found = [key[:match.start()] for key in state if (match := re.search(rf'(?:^|(?<=[./])){FIRST}', key))]
    prefixes = [prefix for prefix in found if not re.search(r'(^|[./_])ema[./_]', prefix)] or found
    if len(prefixes) > 1:
        raise ValueError(f'{path} holds several networks, under {" and ".join(prefixes[:4])}: save the state_dict of one alone')
    if not prefixes:
        return {key.rpartition('/')[2]: value for key, value in state.items()}
    return {re.sub(r'(?<=\.)_orig_mod\.', '', key[len(prefixes[0]):]): value for key, value in state.items()
            if key.startswith(prefixes[0]) and '/' not in key[len(prefixes[0]):]}


def read(path, cnn):
    """A file's tensors under timm's keys, without the classifier: SparK's encoder or whole run, official style, fine-tuned.

    Read with `weights_only=True`. Raises ValueError.
    """
    try:
        check_archive(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise ValueError(f'cannot read {path}: {error.strerror}') from error
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f'{path} is damaged, or no file of weights: '
                         f'{f"{type(error).__name__} {error}".splitlines()[0]}') from error
    state = network_in(tensors_of(content, path), path)
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
