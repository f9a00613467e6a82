"""Networks by name: those of timm, and those that a user registers with timm."""
import difflib

import timm
import torch
from timm.layers import DropPath


def create_cnn(name, in_chans=3, drop_path=None, pretrained=False, num_classes=None):
    """Create a timm network by its name.

    Args:
        drop_path: rate of stochastic depth. None leaves the network's own.
        pretrained: whether timm downloads its weights.
        num_classes: outputs of the classifier. None leaves the network's own.

    Raises ValueError for an unknown name, with the nearest ones, and for a drop path that the network does
    not have.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split('.')[0], timm.list_models(), n=5, cutoff=0.5)
        hint = f'; the nearest names are {", ".join(near)}' if near else '; see timm.list_models()'
        raise ValueError(f'no network is called "{name}" in timm {timm.__version__} or pretrain/models{hint}')
    arguments = {'in_chans': in_chans}
    if num_classes is not None:
        arguments['num_classes'] = num_classes
    try:
        if drop_path is None:
            return timm.create_model(name, pretrained=pretrained, **arguments)
        return timm.create_model(name, pretrained=pretrained, drop_path_rate=drop_path, **arguments)
    except TypeError as error:
        if drop_path is not None and can_create(name, **arguments):
            raise ValueError(f'{name} has no drop path (stochastic depth): leave drop_path out') from error
        raise
    except RuntimeError as error:  # timm's error for an unknown tag behind the dot of a name
        raise ValueError(f'timm cannot make {name}: {error}') from error


def can_create(name, **arguments):
    """Whether timm can create a network with these arguments."""
    try:
        without_values(lambda: timm.create_model(name, **arguments))
    except Exception:  # whatever the constructor of a user's network can raise
        return False
    return True


def without_values(create):
    """Return what create() returns, made for its shapes alone; the caller's random numbers stay as they were.

    It is made on the meta device, which takes neither time nor memory, or on the CPU where the network or its
    version of timm does not allow that.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device('meta'):
                return create()
        except Exception:  # whatever a network can raise
            with torch.device('cpu'):
                return create()


def timm_weights(model, in_chans=3):
    """Return timm's own pretrained weights of a network, a state_dict.

    Raises ValueError if there are none, or if they cannot be downloaded.
    """
    try:
        return create_cnn(model, in_chans=in_chans, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"timm's pretrained weights of {model} cannot be had: {error}") from error


def try_size(cnn, name, size, in_chans=3, option='--img_size'):
    """Run a network on an image of a size (height, width).

    Raises ValueError if it cannot take such, which says that another value of `option` may help.
    """
    mode = cnn.training
    image = torch.zeros(1, in_chans, *size, device=next(cnn.parameters()).device)
    try:
        with torch.no_grad():
            cnn.eval()(image)
    except Exception as error:  # whatever a network can raise
        raise ValueError(f'{name} cannot take images of {size[0]}x{size[1]} ({error}): give another '
                         f'{option}') from error
    cnn.train(mode)


def drop_path_of(network):
    """The largest rate of stochastic depth in a network, in words."""
    rates = [module.drop_prob or 0 for module in network.modules() if isinstance(module, DropPath)]
    largest = max(rates, default=0)
    return f'up to {largest:g}' if largest else 'none'
