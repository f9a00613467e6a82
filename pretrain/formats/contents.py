"""What an export holds of a saved network, and the network anew for whoever reads it back."""
import warnings

import safetensors.torch
import timm

from common.networks.create import size_arguments, without_values
from common.reliability.checkpoint import save, write_atomically


def name_of(saved):
    """Return timm's name of a network without the tag of pretrained weights."""
    return saved.model.split('.')[0]


def entries_of(saved, classifier=True):
    """Return {key: tensor} that an export holds, under timm's names, in the precision of the given file.

    These are the file's entries for the network; without the classifier if the file has no trained one, or if
    it is not wanted.
    """
    left_out = () if classifier and saved.has_classifier else classifier_of(saved)
    return {key: value.contiguous() for key, value in saved.weights.items() if key not in left_out}


def classifier_of(saved):
    """Return the names of the given file's entries that a network of no classes has not: most often those of one layer."""
    if not saved.head:
        return ()
    others = without_values(lambda: create(saved, num_classes=0)).state_dict().keys() - set(saved.head)
    return tuple(key for key in saved.weights if key not in others)


def num_classes(saved):
    """Return how many classes an export tells apart: 0 without a trained classifier."""
    return saved.weights[saved.head[0]].shape[0] if saved.has_classifier else 0


def arguments_of(saved):
    """Return the arguments with which timm creates the network of an export, besides its name."""
    arguments = {}
    if saved.head:  # a network without a classifier may not take a number of classes
        arguments['num_classes'] = num_classes(saved)
    if saved.options.in_chans != 3:
        arguments['in_chans'] = saved.options.in_chans
    size = saved.network.encoder.input_size
    return arguments | size_arguments(name_of(saved), size, {'in_chans': saved.options.in_chans})


def create(saved, **more):
    """Create the network of an export anew, untrained. more: arguments besides those of `arguments_of`."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Initializing zero-element tensors')  # a linear layer of no classes
        return timm.create_model(name_of(saved), **{**arguments_of(saved), **more})


def missing_in(state, network):
    """Return the names of the entries of a network that a state_dict lacks."""
    return [key for key in network.state_dict()
            if key not in state and not key.endswith('num_batches_tracked')]


def write_state(path, state, licence=None):
    """Write a state_dict as safetensors, or in torch's format, as the name of the file says.

    licence: of the weights; safetensors have a place for it in their metadata.
    """
    if path.suffix == '.safetensors':
        metadata = {'format': 'pt'} if licence is None else {'format': 'pt', 'license': licence}
        data = safetensors.torch.save(state, metadata=metadata)
        write_atomically(path, lambda file: file.write(data))
    else:
        save(path, state)
