"""The arguments by which the commands that read a network (reconstruct, export, ...) are told which one.

The options of a run are in pretrain/config.py, and those of each method in a file of its own (pretrain/options.py).
"""
from common.cli import numbers
from common.config import size
from common.networks.users import USERS_NETWORKS, register
from pretrain.methods import DEFAULT, METHODS, options_of
from pretrain.saved import read_saved


def add_network(parser, several=False):
    """Add the arguments that `network_of` reads. several: whether the command takes several networks."""
    parser.add_argument('source', metavar='RUN_OR_FILE', nargs='+' if several else None,
                        help='run folder, a file of it, of the official release, or of weights; FILE:KEY '
                             'says which of several networks in a file, such as ema')
    add = parser.add_argument_group(
        'network', 'for files that do not say it themselves; a run does').add_argument
    add('--model', help="timm's name of the network")
    add('--register', default=USERS_NETWORKS, help='module in which your own networks are registered with timm; the one '
        'that a run names is not imported by itself')
    add('--input_size', type=size, help='side of an image in pixels, or height,width')
    add('--in_chans', type=int, help='channels of an image')
    add('--adapt_input_conv', action='store_true', help='take weights for images of other channels too: the '
        'convolutions over the image are summed or repeated, as timm does')
    add('--mean', type=numbers, help="of each channel; ImageNet's if not given")
    add('--std', type=numbers, help="of each channel; ImageNet's if not given")
    add('--pixel_range', type=numbers, help='from,to: the values that become 0 and 1 in files of more than 8 '
                                            'bits')
    add('--max_pixels', type=int, help="of the largest image that is read; Pillow's limit if not given")
    add('--method', choices=METHODS, help='by which it was pretrained; if the file does not say it: convmae for a '
        f'convvit_*, mae for a vit_*, {DEFAULT} for any other network')
    for name, field in encoder_options().items():
        about = field.metadata
        add(f'--{name}', type=about['parse'], choices=about['choices'], help=about['help'])


def encoder_options():
    """{name: field of a class of options}: options of the methods' own that a file of an encoder does not say."""
    found = {}
    for method in METHODS.values():
        fields = options_of(method.name).options.__dataclass_fields__
        found.update({name: fields[name] for name in method.encoder_options})
    return found


def network_of(args, source=None, **more):
    """Read the network that the arguments of a command line name.

    Prints what was read if the file holds more than the network under its own names, or something was done with it.

    Args:
        args: what `parser.parse_args` returned.
        source: which one, if args.source is a list.
        more: further options of pretraining, as for `read_saved`.

    Returns Saved. Raises ValueError.
    """
    register(args.register)
    names = ('method', 'model', 'input_size', 'in_chans', 'mean', 'std', 'pixel_range', 'max_pixels', *encoder_options())
    given = {name: getattr(args, name) for name in names}
    saved = read_saved(source or args.source, adapt_input_conv=args.adapt_input_conv, **given, **more)
    loaded = saved.loaded
    if saved.step is None and (loaded.prefix or loaded.beside or loaded.adapted or loaded.notes):
        print(f'{saved.path}: {loaded}')
    return saved
