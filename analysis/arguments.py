"""What both commands have on their command lines."""
import argparse

from analysis.images import Settings
from analysis.networks import asked
from common.cli import expanded, folder_for, numbers
from common.config import size
from common.networks.users import USERS_NETWORKS, register

NETWORKS = """A NETWORK is MODEL, a network of timm's or your own with random weights; MODEL=timm, with timm's
weights; or MODEL=FILE, with a file of weights: ours, the original's, timm's, torchvision's, or of a
fine-tuned run (FILE:KEY says which of several in it). Several networks go into one figure; --names=one,other
names them."""


def parser_of(program, about, images):
    """Return an argparse parser with the options of both commands.

    about: a description and commands, as lines. images: how many there are where --images is not given.
    """
    description = f'{about.strip()}\n\n{NETWORKS}'
    parser = argparse.ArgumentParser(program, description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('networks', metavar='NETWORK', nargs='+', help='MODEL, MODEL=timm or MODEL=FILE, as said above')
    add('--data_path', metavar='DIR', required=True,
        help='folder of images; its val/ is taken where it has one')
    add('--out', metavar='DIR', help='folder for the figure and its numbers (default: '
        f'output_{program.split(".")[1]}); the same command again goes on from what it holds')
    add('--names', metavar='ONE,OTHER', help='names of the networks in the figure, in their order')
    add('--images', type=int, default=images, help=f'how many images, drawn by --seed (default: {images})')
    add('--input_size', '--img_size', type=size, default=224, metavar='SIDE',
        help='side of an image in pixels, or height,width (default: 224)')
    add('--crop', type=float, default=0.875,
        help='share of an image that the centre crop shows (default: 0.875, which is 224 of 256 pixels)')
    add('--in_chans', type=int, default=3, help='channels of an image (default: 3)')
    add('--mean', type=numbers, help="of each channel, for normalisation; ImageNet's if not given")
    add('--std', type=numbers, help="of each channel, for normalisation; ImageNet's if not given")
    add('--pixel_range', type=numbers, metavar='FROM,TO', help='the values that become 0 and 1 in files of more than 8 bits, '
        'as the network was trained')
    add('--max_pixels', type=int, help="pixels of the largest image that is read; Pillow's limit if not given")
    add('--batch_size', '--bs', type=int, default=32,
        help='images that a network sees at a time (default: 32)')
    add('--workers', type=int, help='processes that load images; by the number of cores if not given')
    add('--seed', type=int, default=0, help='of all that is drawn (default: 0)')
    add('--register', default=USERS_NETWORKS, help='module in which your own networks are registered with '
        f'timm (default: {USERS_NETWORKS})')
    return parser


def parsed(parser, argv):
    return parser.parse_args(expanded(argv))


def common_parts(args, program):
    """Return (networks that are asked for, Settings, folder for results) of a command line. Raises ValueError."""
    register(args.register)
    sides = (args.input_size,) * 2 if isinstance(args.input_size, int) else args.input_size
    settings = Settings(args.data_path, args.images, sides, args.crop, args.in_chans, args.mean, args.std,
                        args.batch_size, args.workers, args.seed, args.pixel_range, args.max_pixels)
    names = None if args.names is None else [name.strip() for name in args.names.split(',')]
    return asked(args.networks, names), settings, folder_for(args.out or f'output_{program}')
