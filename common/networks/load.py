"""Files of weights, read as plain data (`weights_only=True`) and loaded strictly.

What may be missing all the same is an argument of each function; what a load did is in its result, Loaded.
"""
from dataclasses import dataclass
from pathlib import Path

from common.networks.classifier import head_parameters
from common.networks.comparison import compare_entries, describe_misfit
from common.networks.create import timm_weights
from common.networks.find import find_cnn, find_network
from common.networks.keys import unwrap
from common.reliability.checkpoint import read_plain
from common.words import first_of, number_and_first_of


@dataclass(frozen=True)
class Loaded:
    """What a load did.

    matched: keys that were loaded. missing: keys of the network that the file lacks. left_out: keys of the
    file that were not loaded, such as a classifier for other classes. prefix: what the keys of the file begin
    with. beside: names of what else the file holds. adapted: sentences on convolutions that were adapted to
    the channels of the images. notes: other sentences on what was done with the file.
    """
    matched: tuple
    missing: tuple
    left_out: tuple
    prefix: str = ''
    beside: tuple = ()
    adapted: tuple = ()
    notes: tuple = ()

    def __str__(self):
        parts = [f'matched {len(self.matched)} entries, missing {number_and_first_of(self.missing)}, '
                 f'left out {number_and_first_of(self.left_out)}']
        prefix = self.prefix.rpartition('/')[2]
        if prefix:
            parts.append(f"the keys begin with '{prefix}', which is left out")
        if self.beside:
            parts.append(f'the file holds {first_of(self.beside, 4)} besides, not loaded')
        return '; '.join([*parts, *self.adapted, *self.notes])


def load_strictly(module, state, may_miss=()):
    """Load a state_dict strictly, except for the parameters in may_miss; see `compare_entries`.

    Returns Loaded. Raises ValueError that lists what is missing, left over or of another shape; then nothing
    has been changed.
    """
    comparison = compare_entries(module, state, may_miss)
    if comparison.num_errors:
        raise ValueError(describe_misfit(module, state, comparison))
    fitting = {key: value for key, value in state.items() if key not in comparison.left_out}
    module.load_state_dict(fitting, strict=False)  # the comparison above was strict
    return Loaded(tuple(fitting), tuple(comparison.all_missing), tuple(comparison.left_out))


def load_found(module, network, may_miss=()):
    """Load a Network that `find_network` found for a module. Returns Loaded."""
    loaded = load_strictly(module, network.entries, may_miss)
    own = module.state_dict()
    adapted = tuple(f'{key} is adapted from images of {channels} channels to {own[key].shape[1]}'
                    for key, channels in network.adapted.items())
    left_out = (*loaded.left_out, *network.left_out)
    return Loaded(loaded.matched, loaded.missing, left_out, network.prefix, network.beside, adapted, network.notes)


def load_classifier(cnn, source, model, size, in_chans=3, adapt=False):
    """Fill a network with weights of any kind, strictly except for its head.

    The head may be missing in the file, or be one for other classes.

    Args:
        source: FILE, FILE:KEY where KEY says which of several networks in the file is meant, the content of a
            file, or 'timm' for timm's own pretrained weights of `model`.
        size: (height, width) of images that the network takes.
        adapt: whether weights for images of other channels are adapted to in_chans.

    Returns Loaded. Raises ValueError; then nothing has been changed.
    """
    state, path, which = read_source(source, model, in_chans)
    head = head_parameters(cnn, size, in_chans)
    network = find_cnn(cnn, state, head, path=path, which=which, channels=in_chans, adapt=adapt)
    return load_found(cnn, network, head)


def load_whole(module, content, path):
    """Fill a module from the content of a file that has all of it, under its own names. Raises ValueError."""
    return load_found(module, find_network(module, unwrap(content, path), path=path))


def read_source(source, model, in_chans):
    """Read weights from a file, from the content of a file, or 'timm', which means timm's own for `model`.

    Returns ({key: tensor}, path, which), where `which` says which of several networks is meant, or None.
    """
    if isinstance(source, dict):
        return unwrap(source), 'the given object', None
    if source == 'timm':
        return timm_weights(model, in_chans), 'timm', None
    content, path, which = read_weights(source)
    return unwrap(content, path), path, which


def read_weights(source):
    """Read FILE, or FILE:KEY where KEY says which of several networks in it is meant.

    KEY is what the keys of the network begin with, or the name of the dictionary that holds it, such as ema.
    Returns (content, path, which), where `which` is KEY or None. Raises ValueError.
    """
    path, _, which = str(source).rpartition(':')
    if not which or Path(source).exists() or not Path(path).is_file():
        path, which = source, None
    return read_plain(path), path, which
