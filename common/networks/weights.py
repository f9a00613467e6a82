"""Networks by name, and every weight file that is read: ours, official SparK's, timm's, torchvision's.

All files are read with `weights_only=True`. Where in a file the network is, under which keys and in which of its dictionaries,
is found by the network's own names (`find_network`). Renaming is done by functions on plain dictionaries; loading is strict,
with the exceptions written here.
"""
import difflib
import importlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models import adapt_input_conv, convnext, densenet
from torch import nn

from common.reliability.checkpoint import read_plain

OURS, OFFICIAL = 'encoder.cnn.', 'sparse_encoder.sp_cnn.'  # where the CNN sits in a whole SparK, ours and the official
OFFICIAL_UNUSED = frozenset({'imn_m', 'imn_s', 'norm_black'})
DEPTH = 5  # dictionaries in dictionaries that are looked into
TORCH_WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')  # names that torch puts into keys
INSIDE = re.compile(rf'(?<=\.)(?:{"|".join(TORCH_WRAPPERS)})\.')


@dataclass(frozen=True)
class Loaded:
    """What a load did.

    matched: keys that were loaded. missing: keys of the network that the file lacks. left_out: keys of the file that were not
    loaded, such as a classifier for other classes. prefix: what the keys of the file begin with. beside: what the file holds
    besides the network. adapted: sentences on convolutions that were adapted to the channels of the images.
    """
    matched: tuple
    missing: tuple
    left_out: tuple
    prefix: str = ''
    beside: tuple = ()
    adapted: tuple = ()

    def __str__(self):
        prefix = self.prefix.rpartition('/')[2]
        parts = [f'matched {len(self.matched)} entries, missing {some(self.missing)}, left out {some(self.left_out)}']
        if prefix:
            parts.append(f"the keys begin with '{prefix}', which is left out")
        if self.beside:
            parts.append(f'the file holds {some(self.beside, counted=False)} besides, not loaded')
        return '; '.join([*parts, *self.adapted])


def some(names, count=4, counted=True):
    """Some of several names, for a person: '5 (a, b, c, d, ...)', or 'a, b, c, d, ...'."""
    shown = ', '.join(names[:count]) + (', ...' if len(names) > count else '')
    return f'{len(names)}' + f' ({shown})' * bool(names) if counted else shown


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


def read_weights(source):
    """(content, path, which) of FILE, or of FILE:KEY where KEY says which of several networks in it is meant, else None.

    KEY: what the network's keys begin with, or the name of the dictionary that holds it, such as ema. Raises ValueError.
    """
    path, _, which = str(source).rpartition(':')
    if not which or Path(source).exists() or not Path(path).is_file():
        path, which = source, None
    return read_plain(path), path, which


def unwrap(content, path='the given object'):
    """{key: tensor} of all tensors that a file held; of a dictionary in a dictionary the key is 'outer/inner'.

    Raises ValueError if there are none, and for tensors of more values than are stored, which a few bytes of
    a file can claim to be of any size.
    """
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not the weights of a network')
    tensors, seen = {}, set()

    def collect(part, where, depth):
        seen.add(id(part))
        for key, value in part.items():
            if torch.is_tensor(value):
                tensors[f'{where}{key}'] = value
            elif isinstance(value, dict) and depth < DEPTH and id(value) not in seen:  # it may hold itself
                collect(value, f'{where}{key}/', depth + 1)

    collect(content, '', 1)
    if not tensors:
        raise ValueError(f'{path} holds no weights')
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f'{path} is refused: its {key} is no dense tensor, or of more values than are stored with it')
    return tensors


def places_of(state, names):
    """{prefix: number of keys in state that are this prefix and one of the names}, the most frequent first.

    prefix: '' or a text that ends with '.', or with '/' behind the name of a dictionary.
    """
    found = Counter()
    for key in state:
        folder, slash, rest = key.rpartition('/')
        parts = rest.split('.')
        for i, part in enumerate(parts):
            if part not in TORCH_WRAPPERS and INSIDE.sub('', '.'.join(parts[i:])) in names:
                found[f'{folder}{slash}' + ''.join(f'{one}.' for one in parts[:i])] += 1
    return dict(found.most_common())


def below(state, prefix):
    """The part of a state_dict whose keys begin with the prefix, without it and what torch's wrappers put into them."""
    return {INSIDE.sub('', key[len(prefix):]): value for key, value in state.items()
            if key.startswith(prefix) and '/' not in key[len(prefix):]}


def is_average(prefix):
    """Whether what lies below a prefix calls itself an exponential moving average of weights (ema, model_ema, ...)."""
    return any('ema' in part.split('_') for part in re.split('[./]', prefix))


RESNETS = {(2, 2, 2, 2, False): 'resnet18', (3, 4, 6, 3, False): 'resnet34', (2, 2, 2, 2, True): 'resnet26',
           (3, 4, 6, 3, True): 'resnet50', (3, 4, 23, 3, True): 'resnet101', (3, 8, 36, 3, True): 'resnet152',
           (3, 24, 36, 3, True): 'resnet200'}
CONVNEXTS = {(9, 96): 'convnext_tiny', (27, 96): 'convnext_small', (27, 128): 'convnext_base', (27, 192): 'convnext_large'}


FIRST_BLOCK = re.compile(r'layer1\.0\.conv1\.weight|stages\.0\.(?:0\.dwconv|blocks\.0\.conv_dw)\.weight')


def guess_model(state):
    """timm's name of the network whose tensors these are, for plain ResNets and ConvNeXts; None for others.

    state: under timm's or official names, behind any prefix. Loading says whether the guess is right.
    """
    first = next((key for key in state if FIRST_BLOCK.search(key)), None)
    if first is None:
        return None
    state = below(state, first[:FIRST_BLOCK.search(first).start()])
    blocks = [len({key.split('.')[1] for key in state if key.startswith(f'layer{stage}.')}) for stage in (1, 2, 3, 4)]
    if any(blocks):
        return RESNETS.get((*blocks, 'layer1.0.conv3.weight' in state))
    third = {match[1] for key in state if (match := re.match(r'stages\.2\.(?:blocks\.)?(\d+)\.(?:dwconv|conv_dw)\.', key))}
    first = next((state[key] for key in ('stages.0.0.dwconv.weight', 'stages.0.blocks.0.conv_dw.weight') if key in state), None)
    return CONVNEXTS.get((len(third), len(first))) if first is not None else None


def spellings(cnn):
    """All names under which files may have the entries of a network: timm's, official SparK's, torchvision's old and new."""
    state = cnn.state_dict()
    names = set(state)
    if isinstance(cnn, convnext.ConvNeXt):
        names |= to_official(state).keys() | to_torchvision(state).keys()
    if isinstance(cnn, densenet.DenseNet):
        names |= {re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', key) for key in state}
    return names


def to_timm(state, cnn):
    """Any state_dict of a network, official or timm's or torchvision's, as the keys of that network in timm."""
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
            inner = 'layer_scale' if gamma else f'block.{parts.get(part, part)}.{what}'
            key, value = f'features.{2 * int(stage) + 1}.{number}.{inner}', value.view(-1, 1, 1) if gamma else value
        elif down:
            key = f'features.{2 * int(down[1])}.{down[2]}'
        else:
            key = key.replace('stem.', 'features.0.').replace('head.norm', 'classifier.0').replace('head.fc', 'classifier.2')
        renamed[key] = value
    return renamed


@dataclass(frozen=True)
class Comparison:
    """What differs between the entries of a network and those that are to be loaded; lists of keys.

    missing: of the network, not to be loaded. wrong: of another shape. strange: not in the network. left_out: of another shape
    or not in the network, in a place where anything may stand. lacking: all that are missing, where they may be missing too.
    """
    missing: list
    wrong: list
    strange: list
    left_out: list
    lacking: list

    def __len__(self):
        return len(self.missing) + len(self.wrong) + len(self.strange)


def compared(module, state, may_miss=()):
    """A Comparison. What belongs to the modules of the parameters in may_miss may be missing or of another shape."""
    own = module.state_dict()
    modules = {name.rpartition('.')[0] for name in may_miss}
    leaves = tuple(f'{name}.' for name in modules if name and not any(module.get_submodule(name).children()))

    def is_excused(key):
        return key in may_miss or key.rpartition('.')[0] in modules

    lacking = [k for k in own if k not in state and not k.endswith('num_batches_tracked')]
    differing = [k for k in own if k in state and own[k].shape != state[k].shape]
    others = [k for k in state if k not in own]  # such as the layers of another head in the place of the classifier
    return Comparison([k for k in lacking if not is_excused(k)], [k for k in differing if not is_excused(k)],
                      [k for k in others if not k.startswith(leaves)],
                      [k for k in differing if is_excused(k)] + [k for k in others if k.startswith(leaves)], lacking)


def misfit(module, state, found, more=''):
    """The ValueError that lists what differs: a few of each kind, with their shapes."""
    own = module.state_dict()
    kinds = ([f'missing: {k} {tuple(own[k].shape)}' for k in found.missing],
             [f'not in the network: {k} {tuple(state[k].shape)}' for k in found.strange],
             [f'{k} is {tuple(state[k].shape)}, the network has {tuple(own[k].shape)}' for k in found.wrong])
    shown = [line for lines in kinds for line in lines[:5]]
    if len(found) > len(shown):
        shown.append(f'... and {len(found) - len(shown)} more')
    return ValueError(f'the weights do not fit {type(module).__name__}, {len(found)} entries differ:\n  ' + '\n  '.join(shown)
                      + more)


def load_strictly(module, state, may_miss=()):
    """Load a state_dict; only what belongs to the modules of the parameters in may_miss may be missing or differ.

    Raises ValueError that lists what is missing, left over or of another shape; nothing is changed then.
    """
    found = compared(module, state, may_miss)
    if len(found):
        raise misfit(module, state, found)
    fitting = {k: v for k, v in state.items() if k not in found.left_out}
    module.load_state_dict(fitting, strict=False)  # strict above, but for what may be missing
    return Loaded(tuple(fitting), tuple(found.lacking), tuple(found.left_out))


def input_convs(module, state, channels):
    """{key: channels there} of the convolutions over the image that a state_dict has for other channels.

    Such a convolution has `channels` inputs, in one group, and another number of them in the state_dict. All else
    of it is alike. There are several where the image enters a network in several places. Empty if the state_dict
    has not the same number for all.
    """
    found = {}
    for key, value in module.state_dict().items():
        other = state.get(key)
        conv = module.get_submodule(key.rpartition('.')[0])
        if other is not None and isinstance(conv, nn.Conv2d) and conv.groups == 1 and conv.in_channels == channels \
                and value.ndim == other.ndim == 4 and value.shape[1] != other.shape[1] \
                and (value.shape[0], *value.shape[2:]) == (other.shape[0], *other.shape[2:]):
            found[key] = other.shape[1]
    return found if len(set(found.values())) == 1 else {}


def adapted_conv(weight, channels):
    """A convolution's weights (O, I, h, w) for images of I channels -> (O, channels, h, w), as timm adapts its own.

    For one channel they are summed; for more they are repeated, cut off, and scaled such that the outputs keep their size.
    """
    there = weight.shape[1]
    if there == 3:  # older versions of timm adapt no others
        return adapt_input_conv(channels, weight)
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // there), 1, 1)[:, :channels]
    return (repeated * (there / channels)).to(weight.dtype)


@dataclass(frozen=True)
class Network:
    """A network in a file: its entries under the network's names; what their keys begin with there; what is beside it.

    adapted: {key: channels there} of convolutions that were adapted to the channels of the images.
    """
    entries: dict
    prefix: str
    beside: tuple
    adapted: dict
    found: Comparison


def find_network(module, state, may_miss=(), *, convert=None, names=None, path='the given object', which=None, channels=None,
                 adapt=False):
    """The Network in a flat dictionary of tensors (`unwrap`) that fits a module strictly. Raises ValueError.

    It is looked for below every prefix that stands before the module's names in the file. What is beside it is
    left out. Where several fit, weights are taken rather than their average (EMA), and a network rather than one
    that stands below its prefix; if there are several still, that is an error.

    may_miss: as in `load_strictly`. names: what the entries may be called in the file; the module's own names if
    not given. convert(entries) renames them to the module's. which: words of the prefix of the network that is
    meant. channels: of the images. adapt: whether convolutions over images of other channels are adapted.
    """
    counts = places_of(state, set(module.state_dict()) if names is None else names)
    if which is not None:
        counts = {prefix: count for prefix, count in counts.items() if is_within(which, prefix)}
        if not counts:
            raise ValueError(f'{path} has no such network under "{which}". The keys of the file begin with '
                             f'{beginnings(state)}')
    elif 4 * max(counts.values(), default=0) < len(module.state_dict()):  # another network: say how all of it differs
        folder = Counter(key.rpartition('/')[0] for key in state).most_common(1)[0][0]
        counts = {f'{folder}/'.lstrip('/'): 0}
    most, tried, errors = max(counts.values()), {}, []
    for prefix, count in counts.items():
        if 2 * count < most:
            continue
        try:
            entries = convert(below(state, prefix)) if convert else below(state, prefix)
        except ValueError as error:
            errors.append(error)
            continue
        convs = input_convs(module, entries, channels) if adapt else {}
        entries |= {key: adapted_conv(entries[key], channels) for key in convs}
        tried[prefix] = Network(entries, prefix, (), convs, compared(module, entries, may_miss))
    complete = {prefix: one for prefix, one in tried.items() if not one.found.missing and not one.found.wrong}
    fitting = {}
    for prefix, one in complete.items():
        inner = tuple(other[len(prefix):] for other in complete if other != prefix and other.startswith(prefix))
        if all(key.startswith(inner) for key in one.found.strange):
            entries = {key: value for key, value in one.entries.items() if key not in one.found.strange}
            taken = {key for key in state if key.startswith(prefix) and '/' not in key[len(prefix):]
                     and not key[len(prefix):].startswith(inner)}
            beside = tuple(dict.fromkeys(label(key, prefix) for key in state if key not in taken))
            fitting[prefix] = Network(entries, prefix, beside, one.adapted, compared(module, entries, may_miss))
    raw = [prefix for prefix in fitting if not is_average(prefix)] or list(fitting)
    outer = [prefix for prefix in raw if all(other.startswith(prefix) for other in raw)] or raw
    if len(outer) == 1:
        return fitting[outer[0]]
    if outer:
        ways = [prefix.rpartition('/')[2].rstrip('.') for prefix in outer]
        if any(sum(is_within(way, prefix) for prefix in outer) > 1 for way in ways):
            ways = [prefix.replace('/', '.').rstrip('.') for prefix in outer]
        raise ValueError(f'{path} holds {len(outer)} networks that fit, under {" and ".join(ways[:4])}: say which '
                         f'is meant, as in FILE:{ways[0]}')
    if not tried:
        raise errors[0]
    best = next(iter(tried.values()))
    raise ValueError(explained(module, best, state, channels, adapt))


def explained(module, best, state, channels, adapt):
    """What to say of a Network that does not fit."""
    convs, found = input_convs(module, best.entries, channels), best.found
    if convs and not adapt and set(found.wrong) == set(convs) and not found.missing and not found.strange:
        return (f'the weights are for images of {next(iter(convs.values()))} channels, the network is for {channels} '
                f'({some(list(convs), counted=False)}): with --adapt_input_conv they are adapted as timm does')
    below = f"; the network was looked for below '{best.prefix}'" * bool(best.prefix)
    more = f'\n  The keys of the file begin with {beginnings(state)}{below}'
    if found.wrong and adapt:
        more += (f'\n  --adapt_input_conv adapts convolutions in one group over the {channels} channels of the image '
                 'itself, no other layers')
    return str(misfit(module, best.entries, found, more))


def is_within(which, prefix):
    """Whether the words of `which` (a.b) are some of the words of a prefix, one after the other."""
    return f'.{which.replace("/", ".").strip(".")}.' in f'.{prefix.replace("/", ".")}'


def label(key, prefix):
    """What to call a key that is beside a prefix: its words up to the first that differs, or its outermost dictionary."""
    (folder, _, key), (own_folder, _, own) = key.rpartition('/'), prefix.rpartition('/')
    if folder != own_folder:
        return folder.split('/')[0] if folder else key.split('.')[0]
    words, own = key.split('.'), own.split('.')[:-1]
    shared = next((i for i, (a, b) in enumerate(zip(words, own)) if a != b), min(len(words) - 1, len(own)))
    return '.'.join(words[:shared + 1])


def beginnings(state):
    """What the keys of a file begin with, for a person: 'model.backbone.' (60), 'model.head.' (2)."""
    split = [re.findall(r'[^./]*[./]|[^./]+$', key) for key in state]
    shared = 0
    while all(len(words) > shared + 1 for words in split) and len({words[shared] for words in split}) == 1:
        shared += 1
    counts = Counter(''.join(words[:shared + 1]) for words in split)
    shown = ', '.join(f"'{text}' ({count})" for text, count in counts.most_common(5))
    return shown + f' and {len(counts) - 5} others' * (len(counts) > 5)


def load_found(module, network, may_miss=()):
    """Load what `find_network` found for a module. Returns Loaded."""
    loaded, own = load_strictly(module, network.entries, may_miss), module.state_dict()
    adapted = tuple(f'{key} is adapted from images of {there} channels to {own[key].shape[1]}'
                    for key, there in network.adapted.items())
    return Loaded(loaded.matched, loaded.missing, loaded.left_out, network.prefix, network.beside, adapted)


def load_official_spark(state, spark):
    """Load a whole official SparK into ours; see SparK.load_official."""
    state = unwrap(state)
    if not any(OFFICIAL in key for key in state):
        raise ValueError(f'this is no whole official SparK: no key starts with {OFFICIAL}')
    may_miss = [OURS + name for name in spark.encoder.unused]
    return load_found(spark, find_spark(spark, state, may_miss), may_miss)


def find_spark(spark, state, may_miss, **given):
    """The Network of a whole SparK, ours or official, as in `find_network`."""
    cnn = spark.encoder.cnn
    rest = [key for key in spark.state_dict() if not key.startswith(OURS)]
    encoder = spellings(cnn)

    def convert(entries):
        entries = {key: value for key, value in entries.items() if key not in OFFICIAL_UNUSED}
        inside = {key.removeprefix(OFFICIAL): value for key, value in entries.items() if key.startswith(OFFICIAL)}
        return {**{OURS + key: value for key, value in to_timm(inside, cnn).items()},
                **{key: value for key, value in entries.items() if not key.startswith(OFFICIAL)}}

    names = {*rest, *(f'{prefix}{key}' for prefix in (OURS, OFFICIAL) for key in encoder)}
    return find_network(spark, state, may_miss, convert=convert, names=names, **given)


def find_cnn(cnn, state, may_miss=(), **given):
    """The Network of a CNN, under any names that are known, as in `find_network`."""
    return find_network(cnn, state, may_miss, convert=lambda entries: to_timm(entries, cnn), names=spellings(cnn), **given)


def classifier_of(model, in_chans=3):
    """Names of the entries whose shape depends on the number of classes, the first side; () if the network has none."""
    def shapes(number):
        return {key: value.shape for key, value in create_cnn(model, in_chans, num_classes=number).state_dict().items()}

    for device in ('meta', 'cpu'):  # not every timm can make every network on the meta device
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                one, other = shapes(2), shapes(3)
            return tuple(key for key, shape in one.items() if shape and shape[0] == 2 and other[key][0] == 3)
        except Exception:  # whatever a network of the user's can raise: it may take no number of classes
            continue
    return ()


def classes_in(state, cnn, classifier, which=None):
    """The number of classes that a file's classifier tells apart; None if it has no whole classifier of one number."""
    places = [prefix for prefix in places_of(state, spellings(cnn)) if which is None or is_within(which, prefix)]
    entries = to_timm(below(state, places[0]), cnn) if places else {}
    numbers = {entries[key].shape[0] if key in entries and entries[key].ndim else None for key in classifier}
    number = numbers.pop() if len(numbers) == 1 else None
    return number or None


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


def read_source(source, model, in_chans):
    """(tensors, path, which) of what weights are loaded from: a file's name, its content, or 'timm' for timm's own."""
    if isinstance(source, dict):
        return unwrap(source), 'the given object', None
    if source == 'timm':
        return timm_weights(model, in_chans), 'timm', None
    content, path, which = read_weights(source)
    return unwrap(content, path), path, which


def load_classifier(cnn, source, model, size, in_chans=3, adapt=False):
    """Fill a network with weights of any kind: a file's name, its content, or 'timm' for timm's own. Returns Loaded.

    Strict, but for the head: it may be missing, or be one for other classes. FILE:KEY says which of several networks in a file
    is meant. adapt: whether weights for images of other channels are adapted to in_chans. Raises ValueError, and changes
    nothing then.
    """
    state, path, which = read_source(source, model, in_chans)
    head = head_parameters(cnn, size, in_chans)
    return load_found(cnn, find_cnn(cnn, state, head, path=path, which=which, channels=in_chans, adapt=adapt), head)


def load_whole(module, content, path):
    """Fill a module with a content that holds all of it, under its own names. Raises ValueError."""
    return load_found(module, find_network(module, unwrap(content, path), path=path))


def load_init(spark, source, model=None, adapt=False):
    """Start from weights: a file of any kind, its content, or 'timm' for timm's own pretrained weights. Returns Loaded.

    A whole SparK, ours or official, fills encoder and decoder; any other file fills the encoder. So does a whole one for images
    of other channels with adapt, as in `load_classifier`: its decoder has other outputs.
    """
    return load_found(*find_init(spark, *read_source(source, model, spark.encoder.in_chans), adapt))


def find_init(spark, state, path='the given object', which=None, adapt=False):
    """What `load_init` takes from a flat dictionary of tensors: (module, Network, may_miss), as `load_found` asks for them."""
    encoder = spark.encoder
    network = find_cnn(encoder.cnn, state, encoder.unused, path=path, which=which, channels=encoder.in_chans, adapt=adapt)
    is_whole = any('dense_decoder.' in key for key in state) and not network.adapted
    if is_whole and (which is None or not is_within('cnn', which + '.')):
        may_miss = [OURS + name for name in encoder.unused]
        return spark, find_spark(spark, state, may_miss, path=path, which=which), may_miss
    return encoder.cnn, network, encoder.unused
