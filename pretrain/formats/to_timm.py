"""--to=timm: a file for `timm.create_model(..., checkpoint_path=FILE)`."""
import timm

from common.reliability.checkpoint import read_plain
from common.words import number_and_first_of
from pretrain.formats import contents, verify


def write(saved, stem, suffix, licence):
    """Write the entries of a network under timm's names. See WRITERS in pretrain/export.py."""
    path = stem.with_suffix(suffix)
    theirs = contents.create(saved)
    no_classes = {key: value for key, value in theirs.state_dict().items() if not value.numel()}
    state = {**contents.entries_of(saved), **no_classes}
    contents.write_state(path, state, licence)
    arguments = ', '.join(f'{name}={value}' for name, value in contents.arguments_of(saved).items())
    made = repr(contents.name_of(saved)) + (f', {arguments}' if arguments else '')
    missing = contents.missing_in(state, theirs)
    if missing:
        timm.models.load_checkpoint(theirs, str(path), strict=False)
        line = f"timm.models.load_checkpoint(timm.create_model({made}), '{path}', strict=False)"
        how = (f'not strictly: the given file lacks {number_and_first_of(missing)}, which stay as timm '
               'initialises them')
    else:
        theirs = load(saved, path, made)
        line = f"timm.create_model({made}, checkpoint_path='{path}')"
        how = 'strictly'
    require_given(saved, read_plain(path))
    require_given(saved, {key: value for key, value in theirs.state_dict().items() if key in saved.weights})
    verify.require_same_network(saved, theirs, 'timm')
    return [f'{path}: read by {line}, {how}; {verify.what_is_same(saved)}']


def load(saved, path, made):
    """Return the network that timm makes and loads from a file. made: its name and arguments, for the message.

    Raises ValueError for a network of a user's own that timm makes for other images than the run's.
    """
    try:
        return contents.create(saved, checkpoint_path=str(path))
    except RuntimeError as error:
        height, width = saved.network.encoder.input_size
        raise ValueError(f'timm.create_model({made}) makes a network that these weights do not fit '
                         f'({str(error).splitlines()[-1].strip()}). If it is made for images of one size, have its function '
                         f'take img_size as an argument of this name, so that it can be made for {height}x{width}') from error


def require_given(saved, state):
    """As in verify.py, without the empty tensors of a classifier of no classes."""
    verify.require_given(saved, {key: value for key, value in state.items() if value.numel()}, 'timm')
