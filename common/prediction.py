"""What programs share that find something in images and draw it: their options, and how they read images."""
import argparse
import json
from pathlib import Path

import torch
from torchvision.transforms import functional as F

from common.cli import folder_for
from common.images.survey import warn_of
from common.networks.users import USERS_NETWORKS
from common.reliability.checkpoint import write_atomically
from common.words import counted, file_stem, printable


def prediction_parser(program, description, weights):
    """Return an argparse parser with the options that all of these programs have.

    program: the name of the module. description: one sentence. weights: what --weights names.
    """
    parser = argparse.ArgumentParser(program, description=description, allow_abbrev=False)
    parser.add_argument('images', nargs='+', help='images, or folders of them')
    parser.add_argument('--weights', required=True, help=weights)
    parser.add_argument('--out', help='folder for the pictures and predictions.json (default: predictions, '
                                      'in the folder of --weights)')
    parser.add_argument('--ema', action='store_true', help='the average of the weights in a *_last.pth')
    parser.add_argument('--register', default=USERS_NETWORKS,
                        help='module in which your own networks are registered with timm (default: '
                             f'{USERS_NETWORKS})')
    return parser


def options_of_file(content, options_class, path):
    """Return the options of the run that wrote a file, without what is loaded when a run begins or goes on.

    content: of the file; its 'config' may have names that options_class lacks. path: of the file.
    """
    known = options_class.__dataclass_fields__
    config = {name: value for name, value in content['config'].items() if name in known}
    return options_class(**{**config, 'resume': None, 'finetune_from': None, 'eval': str(path)})


def to_predict_with(models, which, path, device):
    """Return one of the models of a file, on a device and in evaluation mode.

    models: {'model': a module, 'ema': another}. which: 'model' or 'ema'. Raises ValueError if the file has no
    average of the weights.
    """
    if which not in models:
        raise ValueError(f'{path} holds no average of the weights (EMA)')
    return models[which].to(device, memory_format=torch.channels_last).eval()


class PredictionTable:
    """A folder of what is found in images: pictures, and predictions.json, a table of it.

    images: an ImageFiles. out: the folder, which is made. line: a LiveLine. rows: of the table, dictionaries.

    Raises ValueError if there can be no such folder.
    """

    def __init__(self, images, out, line):
        folder_for(out)
        self.images = images
        self.out = Path(out)
        self.line = line
        self.rows = []

    def path(self, number):
        """The path of an image's pictures, without an ending."""
        return self.out / f'{number:04}_{file_stem(self.images.name(number))}'

    def add(self, number, rows, text):
        """Add what was found in an image: rows, which get its name, and a text for the user."""
        name = self.images.name(number)
        self.rows += [{'file_name': name, **row} for row in rows]
        self.line.say(f'{printable(name)}: {text}')

    def write(self, what):
        """Write predictions.json, and return its rows. what: a row stands for one, such as 'object'."""
        path = self.out / 'predictions.json'
        write_atomically(path, lambda file: file.write(json.dumps(self.rows).encode()))
        self.line.say(f'{counted(len(self.rows), what)} in all, in {path}')
        return self.rows


def readable(images, options, line, count):
    """Yield (number, image (C, h, w)) of the images that can be read; others are warned of.

    Pixels that are unlike those that the run was trained on are warned of before.

    images: an ImageFiles. options: of the run. line: a LiveLine. count: a Count of the images that are done.
    """
    for warning in warn_of(images, options):
        line.say(f'warning: {warning}')
    for number in range(len(images)):
        count.add(number - count.done)  # those before this one
        try:
            image = images[number]
            image = image if torch.is_tensor(image) else F.pil_to_tensor(image)
        except Exception as error:  # A damaged file can make a reader raise anything.
            line.say(f'warning: {printable(images.name(number))} cannot be read ({error}): it is left out')
            continue
        yield number, image
