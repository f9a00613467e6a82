"""Keys of weight files: tensors in one flat dictionary, and where in it the names of a network are found.

In a flat dictionary (`unwrap`) a tensor that the file keeps in a dictionary inside of another one has the key
'outer/inner'. A prefix is what the file writes in front of the names of a network: '', or a text that ends
with '.', such as 'module.encoder.', or with '/' after the name of a dictionary, such as 'state_dict/'.
"""
import re
from collections import Counter

import torch

DEPTH = 5  # levels of nested dictionaries that are searched
# Names that torch.compile, FSDP and activation checkpointing write into the keys of a state_dict.
TORCH_WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
WRAPPER_INSIDE = re.compile(rf'(?<=\.)(?:{"|".join(TORCH_WRAPPERS)})\.')


def unwrap(content, path='the given object'):
    """Return {key: tensor} of all tensors that a file holds, in whatever dictionaries they are.

    Args:
        content: what was read from the file.
        path: how messages name the file.

    Raises ValueError if the file holds no tensors, and for a tensor that claims more values than are stored
    with it: a few bytes of a file can claim any shape, and the copy would fill the memory.
    """
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not the weights of a network')
    tensors = {}
    visited = set()

    def collect(dictionary, prefix, depth):
        visited.add(id(dictionary))
        for key, value in dictionary.items():
            if torch.is_tensor(value):
                tensors[f'{prefix}{key}'] = value
            # A dictionary of a hostile file may contain itself.
            elif isinstance(value, dict) and depth < DEPTH and id(value) not in visited:
                collect(value, f'{prefix}{key}/', depth + 1)

    collect(content, '', 1)
    if not tensors:
        raise ValueError(f'{path} holds no weights')
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f'{path} is refused: its {key} is no dense tensor, or of more values than are '
                             'stored with it')
    return tensors


def places_of(state, names):
    """Count below which prefixes a flat dictionary has how many of some names.

    Returns {prefix: number of keys that are this prefix followed by one of the names}, most frequent first.
    """
    counts = Counter()
    for key in state:
        folder, slash, rest = key.rpartition('/')
        words = rest.split('.')
        for i, word in enumerate(words):
            if word not in TORCH_WRAPPERS and without_wrappers('.'.join(words[i:])) in names:
                counts[f'{folder}{slash}' + ''.join(f'{word}.' for word in words[:i])] += 1
    return dict(counts.most_common())


def without_wrappers(key):
    """Return a key without the names that torch's wrappers put into the middle of it."""
    return WRAPPER_INSIDE.sub('', key)


def below(state, prefix):
    """Return the entries whose keys begin with a prefix, without the prefix and without torch's wrappers."""
    return {without_wrappers(key[len(prefix):]): value for key, value in state.items()
            if is_below(key, prefix)}


def is_below(key, prefix):
    """Whether a key begins with a prefix and names an entry of the same dictionary."""
    return key.startswith(prefix) and '/' not in key[len(prefix):]


def is_average(prefix):
    """Whether a prefix names an exponential moving average of weights, as 'ema' and 'model_ema' do."""
    return any('ema' in word.split('_') for word in re.split('[./]', prefix))


def of_weights(prefixes):
    """Return the prefixes that name no average, or all of them if each names one."""
    return [prefix for prefix in prefixes if not is_average(prefix)] or list(prefixes)


def is_within(which, prefix):
    """Whether the words of `which`, such as 'a.b', stand in a prefix one after the other."""
    return f'.{which.replace("/", ".").strip(".")}.' in f'.{prefix.replace("/", ".")}'


def network_with(state, layers, path):
    """Return the entries of the one network in a flat dictionary that has a layer with one of some names.

    Weights are preferred to their average. If there is no such network, all entries are returned, without the
    dictionaries that they are in.

    Raises ValueError if there are several.
    """
    prefixes = of_weights(places_of(state, layers))
    if len(prefixes) > 1:
        raise ValueError(f'{path} holds several networks, under {" and ".join(prefixes[:4])}: save the state_dict of '
                         'one alone')
    if not prefixes:
        return {key.rpartition('/')[2]: value for key, value in state.items()}
    return below(state, prefixes[0])


def label_of(key, prefix):
    """Return how to name, for a person, what a key belongs to that is not below a prefix.

    This is the outermost dictionary of the key if it is another one than that of the prefix; otherwise the
    words of the key up to the first in which it differs from the prefix.
    """
    folder, _, key = key.rpartition('/')
    own_folder, _, own = prefix.rpartition('/')
    if folder != own_folder:
        return folder.split('/')[0] if folder else key.split('.')[0]
    words = key.split('.')
    own_words = own.split('.')[:-1]
    num_shared = 0
    while num_shared < min(len(words) - 1, len(own_words)) and words[num_shared] == own_words[num_shared]:
        num_shared += 1
    return '.'.join(words[:num_shared + 1])


def beginnings(state):
    """Return what the keys of a flat dictionary begin with, for a message.

    These are what all keys share and the next word, with the number of keys, such as 'model.backbone.' (60),
    'model.head.' (2).
    """
    split = [re.findall(r'[^./]*[./]|[^./]+$', key) for key in state]
    longest = min(len(words) for words in split) - 1
    num_shared = 0
    while num_shared < longest and len({words[num_shared] for words in split}) == 1:
        num_shared += 1
    counts = Counter(''.join(words[:num_shared + 1]) for words in split)
    shown = ', '.join(f"'{text}' ({count})" for text, count in counts.most_common(5))
    return shown + f' and {len(counts) - 5} others' * (len(counts) > 5)
