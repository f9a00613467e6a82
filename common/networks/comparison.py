"""What differs between the entries of a network and those that are to be loaded into it."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Lists of keys that differ between a network and the entries that are to be loaded.

    missing: keys of the network that are not to be loaded. mismatched: keys whose tensors have another shape.
    unexpected: keys that the network does not have. These three forbid a load.
    all_missing: missing keys, and those that may be missing. left_out: keys that may differ and that are not
    loaded: of another shape, or of another layer in the place of a classifier.
    """
    missing: list
    mismatched: list
    unexpected: list
    all_missing: list
    left_out: list

    @property
    def num_errors(self):
        """How many entries forbid a load."""
        return len(self.missing) + len(self.mismatched) + len(self.unexpected)


def compare_entries(module, state, may_miss=()):
    """Return the Comparison of a module with a state_dict.

    may_miss: names of parameters. Whatever belongs to their modules may be missing or of another shape, and
    in the place of such a module there may be other layers, as those of another classifier.
    """
    own = module.state_dict()
    free_modules = {name.rpartition('.')[0] for name in may_miss}
    free_layers = [name for name in free_modules if name and not any(module.get_submodule(name).children())]
    inside_free_layers = tuple(f'{name}.' for name in free_layers)

    def may_differ(key):
        return key in may_miss or key.rpartition('.')[0] in free_modules

    all_missing = [key for key in own if key not in state and not key.endswith('num_batches_tracked')]
    mismatched = [key for key in own if key in state and own[key].shape != state[key].shape]
    unexpected = [key for key in state if key not in own]
    left_out = [key for key in mismatched if may_differ(key)]
    left_out += [key for key in unexpected if key.startswith(inside_free_layers)]
    return Comparison(missing=[key for key in all_missing if not may_differ(key)],
                      mismatched=[key for key in mismatched if not may_differ(key)],
                      unexpected=[key for key in unexpected if not key.startswith(inside_free_layers)],
                      all_missing=all_missing, left_out=left_out)


def describe_misfit(module, state, comparison):
    """Return the message for entries that do not fit: up to five of each kind, with their shapes."""
    own = module.state_dict()
    missing = [f'missing: {key} {tuple(own[key].shape)}' for key in comparison.missing]
    unexpected = [f'not in the network: {key} {tuple(state[key].shape)}' for key in comparison.unexpected]
    mismatched = [f'{key} is {tuple(state[key].shape)}, the network has {tuple(own[key].shape)}'
                  for key in comparison.mismatched]
    shown = [*missing[:5], *unexpected[:5], *mismatched[:5]]
    if comparison.num_errors > len(shown):
        shown.append(f'... and {comparison.num_errors - len(shown)} more')
    return '\n  '.join([f'the weights do not fit {type(module).__name__}, {comparison.num_errors} entries '
                        'differ:',
                        *shown])
