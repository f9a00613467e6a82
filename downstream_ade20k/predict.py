"""Segment images with a trained network: pictures with the classes over the image, and masks of their ids.

    python -m downstream_ade20k.predict --weights=output_my_segmenter/resnet50_ade20k_last.pth IMAGE ...

IMAGE may also be a folder. What is found is in output_my_segmenter/predictions/, unless --out names another folder.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import os
from pathlib import Path

import numpy as np
import torch

from common.cli import errors_in_one_sentence, expanded, reader_may_leave
from common.distributed import distributed
from common.images.files import SeveralFiles
from common.images.finding import find_files
from common.live_line import LiveLine
from common.networks.users import USERS_NETWORKS, register
from common.prediction import PredictionTable, options_of_file, prediction_parser, readable, to_predict_with
from common.training.run import autocast
from common.words import number_and_first_of, printable
from downstream_ade20k.checkpoints import read_segmenter, restore
from downstream_ade20k.config import Options
from downstream_ade20k.drawing import accuracy, as_ids, drawn, largest_first, shares_of
from downstream_ade20k.evaluation import whole_view
from downstream_ade20k.inference import Inference
from downstream_ade20k.legend import percent
from downstream_ade20k.masks import read_mask

NAMED = 3  # classes of an image that are named on the terminal, at most


@torch.no_grad()
def predict(weights, sources, out, masks=None, which='model', say=print, module=USERS_NETWORKS):
    """Segment images; returns what is in predictions.json.

    For each image the folder gets <number>_<name>.png, a picture of its classes (drawing.py), and
    <number>_<name>_mask.png, which has the size of the image and the ids of the data set. predictions.json says
    for each image which files these are, which share of the pixels (0 to 1) each class has, and which share is
    right, if that is known.

    weights: a checkpoint of a segmentation run. sources: files and folders. out: the folder.
    masks: a folder of true masks, which are drawn beside the predictions; None for none. See `masks_of`.
    which: 'model', or 'ema' for the average of the weights, if the file has one.
    say: called with texts for the user.
    module: in which the user's own networks are registered. The one that the file names is not imported,
        since that would run code.

    Raises ValueError for files that cannot be used. Images that cannot be read are left out, and warned of.
    """
    content = read_segmenter(weights)
    options = options_of_file(content, Options, weights)
    line = LiveLine(say)
    with distributed() as ranks, line.counting('segmented') as count:
        register(module)
        images = SeveralFiles(sources, options.in_chans, options.reading)
        truths = masks_of(images, masks, line) if masks is not None else {}
        options, models, classes = restore(content, options)
        model = to_predict_with(models, which, weights, ranks.device)
        table = PredictionTable(images, out, line)
        count.start('segmented', len(images))
        for number, image in readable(images, options, line, count):
            mask = segmented(model, image, options, ranks)
            truth = truth_of(truths.get(number), mask.shape, classes, options, line)
            path = table.path(number)
            result = written(path, image, mask, classes, truth)
            table.add(number, [result], f'{in_words(result)}, {path}.png')
        return table.write('image')


def masks_of(images, folder, line):
    """Return the paths of the true masks of images, {number of the image: path}; those without one are warned of.

    The mask of photos/street/a.jpg is the PNG street/a.png in the folder, or else a.png.

    images: an ImageFiles. line: a LiveLine. Raises ValueError if there is no such folder, or no mask in it.
    """
    if not os.path.isdir(folder):
        raise ValueError(f'there is no folder of masks {folder}')
    found = {os.path.splitext(path)[0]: Path(folder, path) for path in find_files(folder, ('.png',))}
    masks, missing = {}, []
    for number in range(len(images)):
        parts = Path(images.name(number)).with_suffix('').parts
        names = (os.path.join(*parts[start:]) for start in range(len(parts)))
        name = next((name for name in names if name in found), None)
        if name is None:
            missing.append(images.name(number))
        else:
            masks[number] = found[name]
    if not masks:
        raise ValueError(f'{folder} has no mask of these images, a PNG of the same name: for '
                         f'{images.name(0)} it would be {Path(images.name(0)).stem}.png')
    if missing:
        line.say(f'warning: there is no mask in {folder} of {number_and_first_of(missing)}')
    return masks


def truth_of(path, shape, classes, options, line):
    """Return the true mask of an image, class numbers (h, w); None if there is none that can be used.

    path: of its file, or None. shape: (h, w) of the image. line: a LiveLine, which tells of what does not fit.
    """
    if path is None:
        return None
    try:
        values = read_mask(path, classes, options.reading.max_pixels)
        if values.shape != shape:
            raise ValueError(f'it is {values.shape[1]}x{values.shape[0]}, the image {shape[1]}x{shape[0]}')
        return classes.numbers(values)
    except Exception as error:  # A damaged file can make a reader raise anything.
        line.say(f'warning: the mask {path} cannot be used ({error}): the prediction is drawn without it')
        return None


def segmented(model, image, options, ranks):
    """Return the class of each pixel of an image (C, h, w), int16 (h, w), as it is measured by --eval."""
    tensor, _ = whole_view(options)(image, None, options.normalisation)
    with autocast(options, ranks):
        found = Inference.of(options).classes(model, tensor[None].to(ranks.device), image.shape[1:])
    return found.cpu().numpy().astype(np.int16)


def written(path, image, mask, classes, truth):
    """Write the picture and the mask of an image, `path` with an ending each. Returns what predictions.json says.

    image: (C, h, w). mask, truth: class numbers (h, w); the truth may be None.
    """
    picture = Path(f'{path}.png')
    ids = Path(f'{path}_mask.png')
    drawn(image, mask, classes, truth).save(picture)
    as_ids(mask, classes).save(ids)
    shares = shares_of(mask, len(classes))
    there = [{'id': classes.ids[number], 'name': classes.names[number], 'share': float(shares[number])}
             for number in largest_first(shares)]
    result = {'picture': picture.name, 'mask': ids.name, 'classes': there}
    return result if truth is None else {**result, 'accuracy': accuracy(mask, truth)}


def in_words(result):
    """Return what was found in an image as a text: 'road 41.2 %, sky 20.9 %'."""
    there = result['classes']
    texts = [f'{printable(one["name"])} {percent(one["share"])}' for one in there[:NAMED]]
    if len(there) > NAMED:
        texts.append(f'{len(there) - NAMED} more')
    if result.get('accuracy') is not None:
        texts.append(f'{percent(result["accuracy"])} right')
    return ', '.join(texts)


@reader_may_leave()
def main(argv=None):
    parser = prediction_parser('downstream_ade20k.predict', __doc__.splitlines()[0],
                               '<model>_ade20k_last.pth, _best.pth or _best_ema.pth of a run')
    parser.add_argument('--masks', help='folder of true masks, PNGs with the names of the images, which are drawn '
                                        'beside the predictions')
    args = parser.parse_args(expanded(argv))
    with errors_in_one_sentence():
        which = 'ema' if args.ema else 'model'
        out = args.out or Path(args.weights).parent / 'predictions'
        predict(args.weights, args.images, out, args.masks, which, module=args.register)


if __name__ == '__main__':
    main()
