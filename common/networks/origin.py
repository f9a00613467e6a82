"""What a file of weights says of its training: a note beside the tensors, which load_state_dict passes over.

It tells a network whose classifier was never trained from one whose classifier was, whatever the name of the file.
"""
from collections import OrderedDict

NOTE = 'pretraining'


def with_origin(state, method):
    """A state_dict with a note that it is from a masked pretraining, whose classifier was not trained.

    method: the name of the method of pretraining. The note is in the attribute _metadata, where torch's own state_dicts
    have the versions of modules.
    """
    noted = OrderedDict(state)
    noted._metadata = OrderedDict({'': {NOTE: method}})
    return noted


def origin_of(content):
    """The name of the method of pretraining that the content of a file is from; None if it does not say so."""
    of_modules = getattr(content, '_metadata', None)
    of_network = of_modules.get('') if isinstance(of_modules, dict) else None
    note = of_network.get(NOTE) if isinstance(of_network, dict) else None
    return note if isinstance(note, str) else None
