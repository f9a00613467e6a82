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
        theirs = contents.create(saved, checkpoint_path=str(path))
        line = f"timm.create_model({made}, checkpoint_path='{path}')"
        how = 'strictly'
    require_given(saved, read_plain(path))
    require_given(saved, {key: value for key, value in theirs.state_dict().items() if key in saved.weights})
    verify.require_same_network(saved, theirs, 'timm')
    return [f'{path}: read by {line}, {how}; {verify.what_is_same(saved)}']


def require_given(saved, state):
    """As in verify.py, without the empty tensors of a classifier of no classes."""
    verify.require_given(saved, {key: value for key, value in state.items() if value.numel()}, 'timm')
