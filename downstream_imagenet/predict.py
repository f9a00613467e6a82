"""Classify images with a fine-tuned network: the most probable classes of each, as text, table and picture.

    python -m downstream_imagenet.predict output_my_tune photos/ --out=predictions.csv
    python -m downstream_imagenet.predict weights.pth cat.jpg --model=resnet50 --classes=names.txt --top=3

Images are prepared as the run prepared them to measure its accuracy. The picture is beside the table; without a
table it is predictions.png in the folder of the run.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import argparse
import csv
import dataclasses
import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.cli import errors_in_one_sentence, expanded, numbers, reader_may_leave
from common.config import size
from common.distributed import this_process
from common.images.augmented import Augmented
from common.images.files import ImageFiles, SeveralFiles
from common.images.finding import image_endings
from common.images.loading import each_once, naming_the_file
from common.images.reading import AS_IT_IS
from common.images.shards import TarShards, is_sharded
from common.images.survey import warn_of
from common.images.timeout import at_most
from common.live_line import LiveLine
from common.networks.users import USERS_NETWORKS, register
from common.reliability.checkpoint import write_atomically
from common.training.device import to_device
from common.training.run import autocast, loading_processes
from common.words import counted, printable
from downstream_imagenet.data import evaluation_transform
from downstream_imagenet.labelled import held_out_of_run
from downstream_imagenet.sheet import sheet_of
from downstream_imagenet.tuned import read_tuned

MAX_ON_SHEET = 60  # images


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, [(name, probability)], the most probable one first."""
    path: str
    classes: list


class Unlabelled(SeveralFiles):
    """The images of files, folders, tars and lists, as they are stored (see ImageFiles): (image, number).

    sources: paths, or ImageFiles. A list is a text file with one path a line, from list_root on, or from the
    list's own folder if that is None. A file is taken as a list if its name does not end as an image's and it
    holds text. Tars in a folder are read if there are no images in it. Raises ValueError.
    """

    def __init__(self, sources, in_chans=3, list_root=None, reading=AS_IT_IS):
        super().__init__([], in_chans, reading)
        self.parts = [images_of(source, in_chans, list_root, reading) for source in sources]
        self.left_out = sum((part.left_out for part in self.parts), Counter())
        self.starts = np.cumsum([0, *map(len, self.parts)])  # the number of each part's first image
        self.paths = np.array([os.fsencode(part.name(i)) for part in self.parts for i in range(len(part))])
        if not len(self.paths):
            raise ValueError('there are no images: give files, folders, tars or lists of them')

    def opened(self, index):
        place = int(np.searchsorted(self.starts, index, 'right')) - 1
        return self.parts[place].opened(index - int(self.starts[place]))

    def is_to_turn(self, image, index):
        return False

    def __getitem__(self, index):
        return super().__getitem__(index), index


def images_of(source, in_chans, list_root, reading):
    """The ImageFiles of one of the sources of Unlabelled. Raises ValueError."""
    if isinstance(source, ImageFiles):
        return source
    if is_text(Path(source)):
        return ImageFiles(source, in_chans, list_root, reading)
    if is_sharded(source):
        return TarShards(source, in_chans, reading)
    return SeveralFiles([source], in_chans, reading)


def is_text(path):
    """Whether a file is a list of paths, by its name and its first bytes."""
    if not path.is_file() or path.name.lower().endswith(image_endings()):
        return False
    try:
        with open(path, 'rb') as file:
            start = file.read(4096)
        whole_lines = start[:start.rfind(b'\n') + 1 or None]  # a character of the last line may be cut in two
        whole_lines.decode()
    except (OSError, UnicodeDecodeError):
        return False
    return b'\0' not in start


@torch.no_grad()
def predict(tuned, sources, top=5, out=None, sheet=None, batch_size=64, workers=None, list_root=None,
            say=print):
    """Classify images.

    Probabilities are the softmax of the network's outputs. An image that cannot be read is named, counted and left out.

    Args:
        tuned: the network, of `read_tuned`.
        sources: files, folders, tars and lists of images, or ImageFiles.
        top: how many classes there are in a Prediction.
        out: a CSV file to write, or None.
        sheet: a PNG file to write, with the first MAX_ON_SHEET images, or None.
        workers: processes that load images. None: by the number of cores.
        list_root: folder from which the paths of lists start.
        say: function of a text, for what is to be known.

    Returns a list of Predictions, in the order in which the images are named. Raises ValueError, also if none
    of the images can be read.
    """
    if top < 1:
        raise ValueError(f'--top is 1 or more, not {top}')
    options = dataclasses.replace(tuned.options, batch_size=batch_size, workers=workers)
    images = Unlabelled(sources, options.in_chans, list_root, options.reading)
    check_places(out, sheet, images)
    announce(tuned, images, options, top, say)
    line = LiveLine(say)
    unreadable = []

    def warn(text):
        unreadable.append(text)
        line.say(printable(text))

    found = {}
    with line.counting('classified', len(images)) as count:
        for number, prediction in classified(tuned, images, options, top, warn, count):
            found[number] = prediction
            texts = ', '.join(f'{name} {probability:.3f}' for name, probability in prediction.classes)
            line.say(printable(f'{prediction.path}: {texts}'))
    if not found:
        raise ValueError('none of the images can be read')
    if out is not None:
        write_table(out, list(found.values()))
        say(f'table: {out}')
    if sheet is not None:
        write_sheet(sheet, found, images, options.read_timeout)
        first = f', the first {MAX_ON_SHEET} of {len(found):,} images' if len(found) > MAX_ON_SHEET else ''
        say(f'pictures: {sheet}{first}')
    if unreadable:
        say(f'{len(unreadable):,} of {len(images):,} images cannot be read and are left out')
    return list(found.values())


def announce(tuned, images, options, top, say):
    """Say what is classified by what, and what of the images is not looked at."""
    if images.notes:
        say(f'not looked at  {printable(images.notes)}')
    for warning in warn_of(images, options):
        say(f'warning: {printable(warning)}')
    num_classes = len(tuned.classes)
    if top > num_classes:
        say(f'--top={top}: there are {num_classes} classes, all of them are shown')
    say(f'{printable(tuned.path)}: {options.model}, {num_classes} classes ({tuned.named_by}), '
        f'{counted(len(images), "image")}')


def classified(tuned, images, options, top, warn, count=None):
    """Yield (number of an image, its Prediction). warn: function of a text, for an unreadable image. count: a
    Count of the images, if given.
    """
    ranks = this_process()
    model = tuned.model.to(ranks.device, memory_format=torch.channels_last)
    prepared = Augmented(images, evaluation_transform(options), options.normalisation, labelled=True,
                         stand_ins=False, timeout=options.read_timeout)
    kept = min(top, len(tuned.classes))
    with naming_the_file(prepared):
        workers = loading_processes(options, ranks)
        for x, numbers in each_once(prepared, options.batch_size, workers, ranks, warn, count=count):
            with autocast(options, ranks):
                logits = model.logits(to_device(x, ranks.device)).float()
            probabilities, indices = logits.softmax(1).topk(kept)
            for number, row, best in zip(numbers.tolist(), probabilities.tolist(), indices.tolist()):
                classes = [(tuned.classes[index], probability) for index, probability in zip(best, row)]
                yield number, Prediction(images.name(number), classes)


def check_places(out, sheet, images):
    """Make the folders of the table and of the sheet. Raises ValueError for what cannot be written."""
    if sheet is not None and Path(sheet).suffix.lower() != '.png':
        raise ValueError(f'{sheet} is to be a PNG file: give --sheet a name that ends with .png')
    if out is not None and sheet is not None and os.path.realpath(out) == os.path.realpath(sheet):
        raise ValueError(f'the table and the picture cannot both be {out}: give another --sheet')
    for path in (Path(path) for path in (out, sheet) if path is not None):
        if path.is_dir():
            raise ValueError(f'{path} is a folder: give the name of a file')
        if is_among(path, images):
            raise ValueError(f'{path} is one of the images, and would be overwritten: give another name')
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f'cannot make the folder of {path}: {error}') from error
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f'nothing can be written into {path.parent}: give another folder')


def is_among(path, images):
    """Whether a file is one of the images, under whatever path."""
    names = (images.name(number) for number in range(len(images)))
    return path.exists() and any(path.samefile(name) for name in names
                                 if name.endswith(path.name) and os.path.exists(name))


def write_table(path, predictions):
    """Write a CSV file: path, and class and probability of each rank.

    It is UTF-8; bytes of a path that are not are written as escapes.
    """
    text = io.StringIO(newline='')
    table = csv.writer(text, lineterminator='\n')
    ranks = range(1, len(predictions[0].classes) + 1)
    table.writerow(['path', *(f'{column}_{rank}' for rank in ranks for column in ('class', 'probability'))])
    for prediction in predictions:
        row = [prediction.path]
        for name, probability in prediction.classes:
            row += [name, f'{probability:.6f}']
        table.writerow(row)
    write_atomically(path, lambda file: file.write(text.getvalue().encode('utf-8', 'backslashreplace')))


def write_sheet(path, found, images, timeout):
    """Write the first images of {number: Prediction}, with name and most probable class, as a PNG file.

    timeout: seconds after which an image that cannot be read is given up.
    """
    tiles = []
    for number, prediction in list(found.items())[:MAX_ON_SHEET]:
        try:
            with at_most(timeout):
                image = images[number][0]
        except Exception:  # it could be read a moment ago
            image = None
        name, probability = prediction.classes[0]
        label = f'{100 * probability:.0f} % {printable(name)}'
        tiles.append((image, printable(Path(prediction.path).name), label))
    picture = sheet_of(tiles)
    write_atomically(path, lambda file: picture.save(file, 'PNG'))


def parser():
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser('downstream_imagenet.predict', description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    add = parser.add_argument
    add('run', metavar='RUN', help='run folder of downstream_imagenet, a file of it, or a file of weights')
    add('images', metavar='IMAGES', nargs='*', help='images, folders or tars of them, or text files of paths')
    add('--top', type=int, default=5, help='classes shown for an image (default: 5)')
    add('--out', metavar='FILE.csv', help='a table of path, and class and probability of each rank; none if '
                                          'not given')
    add('--sheet', metavar='FILE.png', help=f'a picture of the first {MAX_ON_SHEET} images with their most '
        'probable classes; beside --out if not given, or predictions.png in the folder of the run')
    add('--no_sheet', action='store_true', help='without that picture')
    add('--ema', action='store_true', help='the average of the weights (EMA), of a run folder or of a '
        '*_last.pth; of a folder the better of both if not given')
    add('--held_out', action='store_true', help='classify only the images that the run held out (--val_fraction) of its '
        '--data_path, or of IMAGES, if that folder has moved')
    add('--classes', metavar='FILE', help="names of the classes, a text file with one a line, in the order "
        "of the network's outputs; those in the file if not given")
    add('--list_root', metavar='DIR', help='folder from which the paths of lists start; that of the list if '
                                           'not given')
    add('--batch_size', '--bs', type=int, default=64, help='images at a time (default: 64)')
    add('--workers', type=int, help='processes that load images; by the number of cores if not given')
    add('--register', default=USERS_NETWORKS, help='module in which your own networks are registered with '
        f'timm (default: {USERS_NETWORKS})')
    add = parser.add_argument_group('network', 'for files of weights; a run says it itself').add_argument
    add('--model', help="timm's name of the network")
    add('--input_size', '--img_size', type=size, help='side of an image in pixels, or height,width; 224 if '
                                                      'not given')
    add('--crop', type=float, help='share of an image that is looked at; 0.95 if not given, from 384 px on '
                                   'all')
    add('--in_chans', type=int, help='channels of an image; 3 if not given')
    add('--mean', type=numbers, help="of each channel; ImageNet's if not given")
    add('--std', type=numbers, help="of each channel; ImageNet's if not given")
    return parser


@reader_may_leave(ends=False)
def main(argv=None):
    args = parser().parse_intermixed_args(expanded(argv))
    if args.no_sheet and args.sheet is not None:
        parser().error('--no_sheet is for no picture: leave --sheet away')
    if args.held_out and len(args.images) > 1:
        parser().error('--held_out is for one folder, the --data_path of the run')
    if not args.held_out and not args.images:
        parser().error('say which images: files, folders, tars or lists of them; or --held_out')
    with errors_in_one_sentence():
        register(args.register)
        tuned = read_tuned(args.run, args.ema, args.classes, model=args.model, input_size=args.input_size,
                           crop=args.crop, in_chans=args.in_chans, mean=args.mean, std=args.std)
        beside = tuned.path.parent / 'predictions.png' if args.out is None else Path(args.out).with_suffix('.png')
        sheet = None if args.no_sheet else args.sheet or beside
        images = args.images
        if args.held_out:
            images = [held_out_of_run(tuned.options, images[0] if images else tuned.options.data_path)]
        predict(tuned, images, args.top, args.out, sheet, args.batch_size, args.workers, args.list_root)


if __name__ == '__main__':
    main()
