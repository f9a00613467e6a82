"""How a run departs from its paper's run, in words: texts for the start message, one for each kind of difference."""
import dataclasses

# Names of numbers, and what a person calls them.
NUMBERS = {'batch_size': 'batches of', 'epochs': 'epochs', 'peak_lr': 'peak learning rate',
           'warmup': 'epochs of warm-up'}


def differing(options, published, names):
    """How settled options differ from the paper's: at most one text on batch, epochs and rate, and one on the rest.

    names: of the options that are compared besides. A drop path of None is that of the network alone, 0 for a paper's.
    """
    own, published = (dataclasses.replace(one, drop_path=one.drop_path or 0.0) for one in (options, published))
    numbers = [(word, f'{getattr(own, name):,g}', f'{getattr(published, name):,g}') for name, word in NUMBERS.items()]
    return [*in_one_text(numbers), *in_one_text([(name, getattr(own, name), getattr(published, name)) for name in names])]


def in_one_text(compared):
    """The differences among (name, value, the paper's value) in one text, in a list; an empty one if there are none."""
    texts = [f'{name} {value} ({"chosen there" if usual is None else f"not {usual}"})'
             for name, value, usual in compared if value != usual]
    return [', '.join(texts)] if texts else []


def other_network(model, published):
    """That a network is none of the paper's, in a list; an empty one if it is. published: names without timm's tags."""
    return [] if model.split('.')[0] in published else [f'{model} is none of the networks of the paper']


def other_precision(precision, published):
    """That a precision is not the paper's, in a list; an empty one if it is, or if the paper's is not known (None)."""
    return [] if published in (None, precision) else [f'{precision} (not {published})']
