"""Networks by name, and every weight file that is read: ours, official SparK's, timm's, torchvision's.

All files are read with `weights_only=True`. Renaming is done by functions on plain dictionaries; loading is strict, with
the exceptions written here.
"""
import difflib
import importlib
import re
from dataclasses import dataclass

import timm
import torch
from timm.models import convnext, densenet
from torch import nn

from common.checkpoint import read_plain

OURS, OFFICIAL = 'encoder.cnn.', 'sparse_encoder.sp_cnn.'  # where the CNN sits in a whole SparK, ours and the official
DETECTOR = 'backbone.cnn.'  # and in a detector of downstream_coco
OFFICIAL_UNUSED = frozenset({'imn_m', 'imn_s', 'norm_black'})
WRAPPERS = ('module', 'model', 'state_dict')


@dataclass(frozen=True)
class Loaded:
    """What a load did: keys that matched, keys of the network that the file lacks, keys of the file left out."""
    matched: tuple
    missing: tuple
    left_out: tuple

    def __str__(self):
        def names(keys):
            return f'{len(keys)}' + (f' ({", ".join(keys[:4])}{", ..." if len(keys) > 4 else ""})' if keys else '')
        return f'matched {len(self.matched)} entries, missing {names(self.missing)}, left out {names(self.left_out)}'


def register(module):
    """Import the module in which a user's networks are registered. Raises ValueError."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if module != 'pretrain.models':  # which may be left away
            raise ValueError(f'--register={module}: {error}') from error


def create_cnn(name, in_chans=3, drop_path=None, pretrained=False, num_classes=None):
    """A timm network by name. Raises ValueError with the nearest names, or if it knows no drop path."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split('.')[0], timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(f'no network is called "{name}" in timm {timm.__version__} or pretrain/models'
                         + (f'; the nearest names are {", ".join(near)}' if near else '; see timm.list_models()'))
    given = {} if drop_path is None else {'drop_path_rate': drop_path}
    given |= {} if num_classes is None else {'num_classes': num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **given)
    except TypeError as error:
        if drop_path is not None and 'drop_path_rate' in str(error):
            raise ValueError(f'{name} has no drop path (stochastic depth): leave drop_path out') from error
        raise
    except RuntimeError as error:  # an unknown tag behind the dot
        raise ValueError(f'timm cannot make {name}: {error}') from error


def unwrap(content, path='the given object'):
    """Find the state_dict in what a file held: it may sit under `module`, `model` or `state_dict`. Raises ValueError.

    So it does for tensors of more values than are stored, which a few bytes of a file can claim to be of any size.
    """
    for _ in WRAPPERS:  # at most: a dictionary may hold itself
        if not isinstance(content, dict):
            break
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not the weights of a network')
    tensors = {str(key).removeprefix('module.'): value for key, value in content.items() if torch.is_tensor(value)}
    if not tensors:
        raise ValueError(f'{path} holds no weights')
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f'{path} is refused: its {key} is no dense tensor, or of more values than are stored with it')
    return tensors


RESNETS = {(2, 2, 2, 2, False): 'resnet18', (3, 4, 6, 3, False): 'resnet34', (2, 2, 2, 2, True): 'resnet26',
           (3, 4, 6, 3, True): 'resnet50', (3, 4, 23, 3, True): 'resnet101', (3, 8, 36, 3, True): 'resnet152',
           (3, 24, 36, 3, True): 'resnet200'}
CONVNEXTS = {(9, 96): 'convnext_tiny', (27, 96): 'convnext_small', (27, 128): 'convnext_base', (27, 192): 'convnext_large'}


def guess_model(state):
    """timm's name of the network whose tensors these are, for plain ResNets and ConvNeXts; None for others.

    state: under timm's or official names, with or without a decoder. Loading says whether the guess is right.
    """
    for prefix in (OURS, OFFICIAL):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    blocks = [len({key.split('.')[1] for key in state if key.startswith(f'layer{stage}.')}) for stage in (1, 2, 3, 4)]
    if any(blocks):
        return RESNETS.get((*blocks, 'layer1.0.conv3.weight' in state))
    third = {match[1] for key in state if (match := re.match(r'stages\.2\.(?:blocks\.)?(\d+)\.(?:dwconv|conv_dw)\.', key))}
    first = next((state[key] for key in ('stages.0.0.dwconv.weight', 'stages.0.blocks.0.conv_dw.weight') if key in state), None)
    return CONVNEXTS.get((len(third), len(first))) if first is not None else None


def to_timm(state, cnn):
    """Any state_dict of a network, ours, official or timm's, as the keys of that network in timm."""
    for prefix in (OURS, OFFICIAL, DETECTOR):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if any(key.startswith('cnn.') for key in state) and all(key.startswith(('cnn.', 'norm.', 'fc.')) for key in state):
        state = {key.removeprefix('cnn.'): value for key, value in state.items() if key.startswith('cnn.')}  # a linear probe
    if isinstance(cnn, densenet.DenseNet):  # files of torchvision, which renames them when it loads
        state = {re.sub(r'(denselayer\d+\.(?:norm|conv))\.([12])\.', r'\1\2.', key): value for key, value in state.items()}
    if any(key.startswith('downsample_layers.') for key in state):
        if not isinstance(cnn, convnext.ConvNeXt):
            raise ValueError(f'the weights are those of a ConvNeXt, the network is a {type(cnn).__name__}: '
                             'give the --model that they were made with')
        state = convnext.checkpoint_filter_fn(dict(state), cnn)  # timm ships the renaming
    if isinstance(cnn, convnext.ConvNeXt) and any(re.match(r'features\.1\.0\.block\.', key) for key in state):
        state = {torchvision_convnext(key): value.flatten() if 'layer_scale' in key else value for key, value in state.items()}
    return state


def torchvision_convnext(key):
    """torchvision's name of a ConvNeXt's parameter -> timm's. (torchvision's ResNets have timm's names.)"""
    inner = {'0': 'conv_dw', '2': 'norm', '3': 'mlp.fc1', '5': 'mlp.fc2'}
    block = re.fullmatch(r'features\.(\d)\.(\d+)\.(?:block\.(\d)\.(\w+)|(layer_scale))', key)
    if block:
        stage, number, part, what, scale = block.groups()
        return f'stages.{int(stage) // 2}.blocks.{number}.' + ('gamma' if scale else f'{inner[part]}.{what}')
    down = re.fullmatch(r'features\.(\d)\.(\d)\.(?:\d\.)?(\w+)', key)
    if down:
        stage, part, what = down.groups()
        return f'stem.{part}.{what}' if stage == '0' else f'stages.{int(stage) // 2}.downsample.{part}.{what}'
    return key.replace('classifier.0', 'head.norm').replace('classifier.2', 'head.fc')


def to_official(state):
    """timm's names of a ResNet or a ConvNeXt -> those of official SparK (the ConvNeXt authors'), without the classifier."""
    renamed = {}
    for key, value in state.items():
        block = re.fullmatch(r'stages\.(\d)\.blocks\.(\d+)\.(.+)', key)
        down = re.fullmatch(r'stages\.(\d)\.downsample\.(.+)', key)
        if block:
            stage, number, inner = block.groups()
            inner = inner.replace('conv_dw.', 'dwconv.').replace('mlp.fc', 'pwconv')
            key = f'stages.{stage}.{number}.{inner}'
        elif down:
            key = f'downsample_layers.{down[1]}.{down[2]}'
        elif key.startswith('stem.'):
            key = key.replace('stem.', 'downsample_layers.0.')
        if not key.startswith(('fc.', 'head.')):
            renamed[key] = value
    return renamed


def to_torchvision(state):
    """timm's names of a ResNet, ConvNeXt or DenseNet -> torchvision's."""
    if not any(key.startswith('stages.') for key in state):
        return dict(state)  # alike
    parts, renamed = {'conv_dw': '0', 'norm': '2', 'mlp.fc1': '3', 'mlp.fc2': '5'}, {}
    for key, value in state.items():
        block = re.fullmatch(r'stages\.(\d)\.blocks\.(\d+)\.(?:(.+)\.(\w+)|(gamma))', key)
        down = re.fullmatch(r'stages\.(\d)\.downsample\.(.+)', key)
        if block:
            stage, number, part, what, gamma = block.groups()
            inner = 'layer_scale' if gamma else f'block.{parts[part]}.{what}'
            key, value = f'features.{2 * int(stage) + 1}.{number}.{inner}', value.view(-1, 1, 1) if gamma else value
        elif down:
            key = f'features.{2 * int(down[1])}.{down[2]}'
        else:
            key = key.replace('stem.', 'features.0.').replace('head.norm', 'classifier.0').replace('head.fc', 'classifier.2')
        renamed[key] = value
    return renamed


def load_strictly(module, state, may_miss=()):
    """Load a state_dict; only what belongs to the modules of the parameters in may_miss may be missing or differ.

    Raises ValueError that lists what is missing, left over or of another shape; nothing is changed then.
    """
    own = module.state_dict()
    excused = {name.rpartition('.')[0] for name in may_miss}

    def is_excused(key):
        return key in may_miss or key.rpartition('.')[0] in excused

    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    left_out = [k for k in wrong if is_excused(k)]
    missing = [k for k in own if k not in state and not k.endswith('num_batches_tracked')]
    problems = [f'missing: {k}' for k in missing if not is_excused(k)]
    problems += [f'not in the network: {k}' for k in state if k not in own]
    problems += [f'{k} is {tuple(state[k].shape)}, the network has {tuple(own[k].shape)}'
                 for k in wrong if not is_excused(k)]
    if problems:
        more = f'\n  ... and {len(problems) - 12} more' if len(problems) > 12 else ''
        raise ValueError(f'the weights do not fit {type(module).__name__}, {len(problems)} entries differ:\n  '
                         + '\n  '.join(problems[:12]) + more)
    fitting = {k: v for k, v in state.items() if k not in left_out}
    module.load_state_dict(fitting, strict=False)  # strict above, but for what may be missing
    return Loaded(tuple(fitting), tuple(missing), tuple(left_out))


def load_official_spark(state, spark):
    """Load a whole official SparK into ours; see SparK.load_official."""
    state = {k: v for k, v in unwrap(state).items() if k not in OFFICIAL_UNUSED}
    if not any(key.startswith(OFFICIAL) for key in state):
        raise ValueError(f'this is no whole official SparK: no key starts with {OFFICIAL}')
    cnn = to_timm(state, spark.encoder.cnn)
    rest = {k: v for k, v in state.items() if not k.startswith(OFFICIAL)}
    return load_strictly(spark, {**{OURS + k: v for k, v in cnn.items()}, **rest},
                         may_miss=[OURS + name for name in spark.encoder.unused])


def timm_weights(model, in_chans=3):
    """timm's own pretrained weights of a network. Raises ValueError if there are none, or no way to them."""
    try:
        return create_cnn(model, in_chans=in_chans, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"timm's pretrained weights of {model} cannot be had: {error}") from error


def try_size(cnn, name, size, in_chans=3):
    """Raise a ValueError if a network cannot take images of this size."""
    mode, like = cnn.training, next(cnn.parameters())
    try:
        with torch.no_grad():
            cnn.eval()(torch.zeros(1, in_chans, *size, device=like.device))
    except Exception as error:  # whatever a network can raise
        raise ValueError(f'{name} cannot take images of {size[0]}x{size[1]} ({error}): give another --img_size') from error
    cnn.train(mode)


def head_parameters(cnn, size, in_chans=3):
    """Names of the parameters that `forward_features` does not use: the classifier, and what stands right before it."""
    called, last = set(), [module for module in cnn.modules() if isinstance(module, nn.Linear)][-1:]
    if hasattr(cnn, 'forward_features'):
        handles = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in cnn.modules()]
        mode = cnn.training
        with torch.no_grad():
            cnn.eval().forward_features(torch.zeros(1, in_chans, *size, device=next(cnn.parameters()).device))
        cnn.train(mode)
        for handle in handles:
            handle.remove()
        outside = [module for module in cnn.modules() if module not in called and module is not cnn]
    else:
        outside = last
    inside = {id(p) for module in outside for p in module.parameters(recurse=False)}
    return [name for name, parameter in cnn.named_parameters() if id(parameter) in inside]


def load_classifier(cnn, source, model, size, in_chans=3):
    """Fill a network with weights of any kind: a file's name, its content, or 'timm' for timm's own. Returns Loaded.

    Strict, but for the head: it may be missing, or be one for other classes. Raises ValueError, and changes nothing then.
    """
    if isinstance(source, dict):
        state = unwrap(source)
    else:
        state = timm_weights(model, in_chans) if source == 'timm' else unwrap(read_plain(source), source)
    return load_strictly(cnn, to_timm(state, cnn), may_miss=head_parameters(cnn, size, in_chans))


def load_init(spark, source, model=None):
    """Start from weights: a file of any kind, its content, or 'timm' for timm's own pretrained weights. Returns Loaded.

    A whole SparK, ours or official, fills encoder and decoder; any other file fills the encoder.
    """
    if isinstance(source, dict):
        state = unwrap(source)
    else:
        state = timm_weights(model, spark.encoder.in_chans) if source == 'timm' else unwrap(read_plain(source), source)
    if any(key.startswith(OFFICIAL) for key in state) and any(key.startswith('dense_decoder.') for key in state):
        return load_official_spark(state, spark)
    if any(key.startswith(OURS) for key in state):
        return load_strictly(spark, state, may_miss=[OURS + name for name in spark.encoder.unused])
    return load_strictly(spark.encoder.cnn, to_timm(state, spark.encoder.cnn), may_miss=spark.encoder.unused)
