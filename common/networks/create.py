"""Networks by name: those of timm, and those that a user registers with timm."""
import difflib
import inspect

import timm
import torch
from timm.layers import DropPath
from torchvision.ops import StochasticDepth

from common import convvit  # noqa: F401  (registers its networks with timm)
from common.networks import vits  # noqa: F401  (registers them with timm)


def create_cnn(name, in_chans=3, drop_path=None, pretrained=False, num_classes=None, input_size=None):
    """Create a timm network by its name.

    Args:
        drop_path: rate of stochastic depth; 0 for none, also of a network that has no such option. None leaves the
            network's own.
        pretrained: whether timm downloads its weights.
        num_classes: outputs of the classifier. None leaves the network's own.
        input_size: (height, width) of the images in pixels, or one number. Only networks that are made for
            images of one size, as transformers with learned positions are, look at it. None leaves the network's own.

    Raises ValueError for an unknown name, with the nearest ones, and for a drop path that the network does not have.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split('.')[0], timm.list_models(), n=5, cutoff=0.5)
        hint = f'; the nearest names are {", ".join(near)}' if near else '; see timm.list_models()'
        raise ValueError(f'no network is called "{name}" in timm {timm.__version__}, pretrain/models or the module '
                         f'of --register{hint}')
    arguments = {'in_chans': in_chans}
    if num_classes is not None:
        arguments['num_classes'] = num_classes
    arguments |= size_arguments(name, input_size, arguments)
    if drop_path == 0 and not can_create(name, drop_path_rate=0.0, **arguments):
        drop_path = None
    try:
        if drop_path is None:
            return timm.create_model(name, pretrained=pretrained, **arguments)
        return timm.create_model(name, pretrained=pretrained, drop_path_rate=drop_path, **arguments)
    except TypeError as error:
        if drop_path is not None and can_create(name, **arguments):
            raise ValueError(f'{name} has no drop path (stochastic depth): leave drop_path out') from error
        if timm.model_entrypoint(name.split('.')[0]).__module__.startswith('timm.'):
            raise
        raise ValueError(f'the function that is registered as {name} does not take what it is called with ({error}): it must '
                         'have **kwargs, among them in_chans and num_classes, as in pretrain/models/custom.py') from error
    except RuntimeError as error:  # timm's error for an unknown tag after the dot of a name
        raise ValueError(f'timm cannot make {name}: {error}') from error


def network_of(model, in_chans, drop_path, size):
    """The network of a timm name, as `create_cnn` makes it, or the module that was given instead of a name.

    Raises ValueError for a module that is frozen, as nothing of it would be trained.
    """
    if isinstance(model, str):
        return create_cnn(model, in_chans, drop_path, input_size=size)
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(f'{type(model).__name__} is frozen: none of its parameters requires a gradient. Call '
                         'requires_grad_(True) on it')
    return model


def size_arguments(name, input_size, arguments):
    """Return the argument that makes a network for images of a size, {} if it takes them without one.

    arguments: the others that it is made with. Raises ValueError for a size that it cannot be made for.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    if size is None or not may_have_one_size(name, tuple(size)) or takes_size(name, size, arguments):
        return {}
    given = {'img_size': size[0] if size[0] == size[1] else tuple(size)}
    try:
        without_values(lambda: timm.create_model(name, **arguments, **given))
    except TypeError:
        return {}  # It has no such argument.
    except Exception as error:  # whatever the constructor of a network can raise
        raise ValueError(f'{name} cannot be made for images of {size[0]}x{size[1]} ({type(error).__name__} '
                         f'{error}): give another --input_size') from error
    return given


def is_made_for_one_size(name, size, in_chans=3):
    """Whether timm makes a network for images of one size, as it is for (height, width), and it takes no others as well."""
    height, width = size
    return bool(size_arguments(name, (2 * height, 2 * width), {'in_chans': in_chans}))


def module_of(name):
    """Return the name of the module that registers a network which timm itself has not, else None."""
    module = timm.model_entrypoint(name).__module__
    return None if module.split('.')[0] == 'timm' else module


def may_have_one_size(name, size):
    """Whether a network may take images of one size alone, and that is another one.

    timm says so of its own networks; of a user's network it is assumed if its function takes img_size.
    """
    declared = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if declared is None or declared.input_size is None:
        return 'img_size' in inspect.signature(timm.model_entrypoint(name.split('.')[0])).parameters
    return bool(declared.fixed_input_size) and tuple(declared.input_size[1:]) != size


def takes_size(name, size, arguments):
    """Whether a network, as it is made without a size, takes images of one as well as if it was made for them.

    It does not where it has timm's `set_input_size`, by which it keeps something for one size. Where it can be
    made on the meta device, nothing is computed.
    """
    try:
        cnn = without_values(lambda: timm.create_model(name, **arguments)).eval()
    except Exception:  # It cannot be made at all, which is not for its size.
        return True
    try:
        with torch.no_grad():
            cnn(torch.zeros(1, arguments['in_chans'], *size, device=next(cnn.parameters()).device))
    except Exception:  # whatever a network can raise
        return False
    return not hasattr(cnn, 'set_input_size')


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


def warn_of_normalisation(name, normalisation):
    """A sentence if timm's weights of a network are for images that were normalised in another way; None if not.

    normalisation: (mean, std) of each channel.
    """
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or len(config.mean) != len(normalisation[0]):
        return None
    theirs = {'mean': config.mean, 'std': config.std}
    if all(max(abs(a - b) for a, b in zip(values, own)) < 1e-3 for values, own in zip(theirs.values(), normalisation)):
        return None
    given = ' '.join(f'--{option}={",".join(f"{value:g}" for value in values)}' for option, values in theirs.items())
    return f"timm's weights of {name} are for images that are normalised in another way: give {given}"


def try_size(cnn, name, size, in_chans=3, option='--img_size'):
    """Run a network on an image of a size (height, width).

    Returns its output, in evaluation mode. Raises ValueError if it cannot take such, which says that another value of
    `option` may help.
    """
    mode = cnn.training
    image = torch.zeros(1, in_chans, *size, device=next(cnn.parameters()).device)
    try:
        with torch.no_grad():
            out = cnn.eval()(image)
    except Exception as error:  # whatever a network can raise
        raise ValueError(f'{name} cannot take images of {size[0]}x{size[1]} ({error}): give another '
                         f'{option}') from error
    cnn.train(mode)
    return out


def drop_path_of(network):
    """The largest rate of stochastic depth in a network, in words."""
    rates = [module.drop_prob or 0 for module in network.modules() if isinstance(module, DropPath)]
    rates += [module.p for module in network.modules() if isinstance(module, StochasticDepth)]  # torchvision's
    largest = max(rates, default=0)
    return f'up to {largest:g}' if largest else 'none'
