"""Where in a file of weights a network is: below which prefix, in which of the file's dictionaries.

The network is found by its own names, so that the file may have any layout. What fits is decided strictly.
"""
from collections import Counter
from dataclasses import dataclass, replace

from common.networks.autoencoders import remark, sort_out
from common.networks.comparison import Comparison, compare_entries, describe_misfit
from common.networks.input_channels import adapted_conv, input_convs
from common.networks.keys import beginnings, below, is_below, is_within, label_of, of_weights, places_of
from common.networks.openmmlab import TOKENS, join_classifier, without_flat_averages
from common.networks.positions import resized_positions
from common.networks.renaming import spellings, to_timm
from common.words import first_of


@dataclass(frozen=True)
class Network:
    """A network in a file.

    entries: {key: tensor} under the network's own names. prefix: what stands before its names in the file.
    beside: names of what else the file holds. adapted: {key: channels in the file} of the convolutions that
    were adapted to the channels of the images. notes: sentences on what else was done with the file.
    comparison: of the entries with the module that they are for. left_out: keys below the prefix that the module
    has no use for.
    """
    entries: dict
    prefix: str
    beside: tuple
    adapted: dict
    notes: tuple
    comparison: Comparison
    left_out: tuple = ()

    def is_beside(self, name, others):
        """Whether it is called `name` in a larger module that has the `others`, a set of names, too.

        name: the end of its prefix, such as 'backbone.cnn.'.
        """
        prefix = self.prefix.rpartition('/')[2]
        outer = prefix.removesuffix(name)
        labels = (*self.beside, *(label_of(prefix + key, prefix) for key in self.left_out))
        return prefix.endswith(name) and others <= {label.removeprefix(outer) for label in labels}


def find_cnn(cnn, state, may_miss=(), **given):
    """Find a timm network in a flat dictionary, under any names that are known. As `find_network`.

    The mask token of a pretraining, which some libraries keep in the network, is left out, and so is the decoder of
    MAE and ConvMAE, which their files have beside the layers of the network.
    """
    def prepare(state):
        return join_classifier(state, cnn)

    def convert(entries):
        return to_timm(entries, cnn)

    def separate(entries):
        return sort_out(entries, cnn)

    return find_network(cnn, state, may_miss, prepare=prepare, separate=separate, convert=convert, names=spellings(cnn),
                        extras=TOKENS, **given)


def find_network(module, state, may_miss=(), *, prepare=None, separate=None, convert=None, names=None, extras=(),
                 path='the given object', which=None, channels=None, adapt=False):
    """Find the network in a flat dictionary of tensors (`unwrap`) that fits a module strictly.

    It is looked for below every prefix that stands before the module's names in the file; what is beside it
    is left out. Where several networks fit, weights are taken rather than their average (EMA), and a network
    rather than another one whose prefix begins with its own. Positions of a transformer that are for images of
    another size are resized.

    Args:
        may_miss: names of parameters; see `compare_entries`.
        prepare: function that moves entries in the flat dictionary to below the prefix of the network.
        separate: function of the entries below a prefix that returns (entries, keys that are left out, sentences).
        convert: function of a dictionary that renames entries to the module's names. None if they have them.
        names: what the entries may be called in the file. None for the module's own names.
        extras: names in the file that are left out, where the module has none of these names.
        path: how messages name the file.
        which: words of the prefix of the network that is meant.
        channels: of the images.
        adapt: whether weights of convolutions over images of other channels are adapted.

    Returns a Network. Raises ValueError if none fits, or if several do.
    """
    state, num_averages = without_flat_averages(state)
    state = prepare(state) if prepare else state
    own = module.state_dict()
    extras = tuple(key for key in extras if key not in own)
    tried = {}
    failure = None
    for prefix in candidates(state, own if names is None else names, len(own), path, which):
        try:
            entries, left_out, notes = separate(below(state, prefix)) if separate else (below(state, prefix), (), ())
            entries = {key: value for key, value in entries.items() if key not in extras}
            entries = convert(entries) if convert else entries
        except ValueError as error:
            failure = failure or error
            continue
        beside = tuple(label_of(prefix + key, prefix) for key in extras
                       if prefix + key in state and key not in left_out)
        network = adapted_network(module, entries, channels if adapt else None, may_miss)
        tried[prefix] = replace(network, prefix=prefix, beside=beside, left_out=left_out, notes=(*notes, *network.notes))
    if not tried:
        raise failure
    fitting = fitting_networks(module, state, tried, may_miss)
    if not fitting:
        most_frequent = next(iter(tried.values()))
        raise ValueError(explain(module, most_frequent, state, channels, adapt))
    network = fitting[preferred(list(fitting), path)]
    if num_averages:
        note = f'{num_averages} copies ema_* are left out, since the plain keys hold the average of the weights'
        return replace(network, notes=(*network.notes, note))
    return network


def adapted_network(module, entries, channels, may_miss):
    """Return the Network of entries that have the module's names, made for its images.

    channels: of the images, to which convolutions are adapted. None to leave these as they are.
    """
    convs = {} if channels is None else input_convs(module, entries, channels)
    entries = {**entries, **{key: adapted_conv(entries[key], channels) for key in convs}}
    entries, notes = resized_positions(module, entries)
    return Network(entries, '', (), convs, notes, compare_entries(module, entries, may_miss))


def candidates(state, names, num_entries, path, which):
    """Return the prefixes below which a network with so many entries may be, most frequent first.

    They have at least half as many of its names below them as the most frequent one. Raises ValueError if
    there is no prefix with the words of `which`.
    """
    counts = places_of(state, names)
    if which is not None:
        counts = {prefix: count for prefix, count in counts.items() if is_within(which, prefix)}
        if not counts:
            raise ValueError(f'{path} has no such network under "{which}". The keys of the file begin with '
                             f'{beginnings(state)}')
    elif 4 * max(counts.values(), default=0) < num_entries:
        # It is another network. The error is to say how all of it differs, so its largest dictionary is compared.
        folder, _ = Counter(key.rpartition('/')[0] for key in state).most_common(1)[0]
        return [f'{folder}/' if folder else '']
    most = max(counts.values())
    return [prefix for prefix, count in counts.items() if 2 * count >= most]


def fitting_networks(module, state, tried, may_miss):
    """Return those of the tried networks that fit, {prefix: Network}, with what is beside them.

    Unexpected entries are allowed if they are another complete network, below a prefix within that of this one.
    """
    complete = {prefix: network for prefix, network in tried.items()
                if not network.comparison.missing and not network.comparison.mismatched}
    fitting = {}
    for prefix, network in complete.items():
        inner = tuple(other[len(prefix):] for other in complete
                      if other != prefix and other.startswith(prefix))
        unexpected = network.comparison.unexpected
        if not all(key.startswith(inner) for key in unexpected):
            continue
        entries = {key: value for key, value in network.entries.items() if key not in unexpected}
        others = [key for key in state if not is_below(key, prefix) or key[len(prefix):].startswith(inner)]
        labels = (*network.beside, *(label_of(key, prefix) for key in others))
        comparison = compare_entries(module, entries, may_miss)
        fitting[prefix] = replace(network, entries=entries, beside=tuple(dict.fromkeys(labels)),
                                  comparison=comparison)
    return fitting


def preferred(prefixes, path):
    """Return the prefix of the network that is meant. Raises ValueError if that is not clear."""
    weights = of_weights(prefixes)
    outermost = [prefix for prefix in weights if all(other.startswith(prefix) for other in weights)]
    outermost = outermost or weights
    if len(outermost) == 1:
        return outermost[0]
    ways = [prefix.rpartition('/')[2].rstrip('.') for prefix in outermost]
    if any(sum(is_within(way, prefix) for prefix in outermost) > 1 for way in ways):
        ways = [prefix.replace('/', '.').rstrip('.') for prefix in outermost]
    raise ValueError(f'{path} holds {len(outermost)} networks that fit, under {" and ".join(ways[:4])}: say '
                     f'which is meant, as in FILE:{ways[0]}')


def explain(module, network, state, channels, adapt):
    """Return the message for a network that does not fit."""
    comparison = network.comparison
    convs = input_convs(module, network.entries, channels)
    only_convs_differ = convs and set(comparison.mismatched) == set(convs) \
        and not comparison.missing and not comparison.unexpected
    if only_convs_differ and not adapt:
        given_channels = next(iter(convs.values()))
        return (f'the weights are for images of {given_channels} channels, the network is for {channels} '
                f'({first_of(list(convs), 4)}): with --adapt_input_conv they are adapted as timm does')
    text = describe_misfit(module, network.entries, comparison)
    text += f'\n  The keys of the file begin with {beginnings(state)}'
    if network.prefix:
        text += f"; the network was looked for below '{network.prefix}'"
    hint = remark(module, comparison.unexpected)
    if hint:
        text += f'\n  {hint}'
    if comparison.mismatched and adapt:
        text += (f'\n  --adapt_input_conv adapts convolutions in one group over the {channels} channels of '
                 'the image itself, no other layers')
    return text
