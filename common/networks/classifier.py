"""The classifier of a network: which parameters it has, and how many classes one in a file tells apart."""
import torch
from torch import nn

from common.networks.autoencoders import with_linear_classifier
from common.networks.create import create_cnn, without_values
from common.networks.keys import below, is_within, places_of
from common.networks.openmmlab import join_classifier
from common.networks.renaming import spellings, to_timm


def classifier_entries(model, in_chans=3):
    """Return the names of the entries of a timm network whose first side is the number of classes.

    They are found by making the network for two and for three classes. Empty if it has none.
    """
    def shapes(num_classes):
        cnn = create_cnn(model, in_chans, num_classes=num_classes)
        return {key: value.shape for key, value in cnn.state_dict().items()}

    def entries():
        of_two, of_three = shapes(2), shapes(3)
        return tuple(key for key, shape in of_two.items()
                     if shape and shape[0] == 2 and of_three[key][0] == 3)

    try:
        return without_values(entries)
    except Exception:  # whatever a user's network can raise, which may take no number of classes
        return ()


def num_classes_in(state, cnn, classifier, which=None):
    """Return the number of classes that the classifier in a flat dictionary tells apart.

    None if an entry of the classifier is missing there, or if they differ in their numbers. classifier: names
    of its entries. which: words of the prefix of the network that is meant; the most frequent one if None.
    """
    state = join_classifier(state, cnn)
    prefixes = [prefix for prefix in places_of(state, spellings(cnn))
                if which is None or is_within(which, prefix)]
    if not prefixes:
        return None
    entries, _ = with_linear_classifier(to_timm(below(state, prefixes[0]), cnn), cnn)
    numbers = {entries[key].shape[0] if key in entries and entries[key].ndim else None for key in classifier}
    number = numbers.pop() if len(numbers) == 1 else None
    return number or None


def head_parameters(cnn, size, in_chans=3):
    """Return the names of the parameters of modules that `forward_features` does not call.

    They are the classifier's, and those of layers right before it. A module that is not called counts as used if
    the module that it is a part of is called: attention may take the weights of its layers itself, as in BEiT.
    Of a network without `forward_features` they are those of its last linear layer. size: (height, width) of
    images that the network takes.
    """
    if hasattr(cnn, 'forward_features'):
        used = modules_of_features(cnn, torch.zeros(1, in_chans, *size, device=next(cnn.parameters()).device))
        uncalled = {name: module for name, module in cnn.named_modules() if name and module not in used}
        head = [module for name, module in uncalled.items() if '.' not in name or name.rpartition('.')[0] in uncalled]
    else:
        head = [module for module in cnn.modules() if isinstance(module, nn.Linear)][-1:]
    ids = {id(parameter) for module in head for parameter in module.parameters(recurse=False)}
    return [name for name, parameter in cnn.named_parameters() if id(parameter) in ids]


@torch.no_grad()
def modules_of_features(cnn, image):
    """Return the set of the modules that `forward_features` calls."""
    called = set()

    def note(module, _):
        called.add(module)

    handles = [module.register_forward_pre_hook(note) for module in cnn.modules()]
    mode = cnn.training
    try:
        cnn.eval().forward_features(image)
    finally:
        cnn.train(mode)
        for handle in handles:
            handle.remove()
    return called
