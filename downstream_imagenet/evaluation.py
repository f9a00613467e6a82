"""How a classifier is measured: its accuracy, with each image counted once; and --eval, which measures a file."""
import dataclasses
import sys

import torch
import torch.nn.functional as F

from common.images.augmented import Augmented
from common.images.datasets import notes_of
from common.images.held_out import warn_of_division
from common.images.loading import naming_the_file
from common.images.survey import warn_of
from common.live_line import LiveLine
from common.reliability.checkpoint import read_plain
from common.training.run import autocast, loading_processes
from common.words import counted
from downstream_imagenet.class_folders import find_labelled
from downstream_imagenet.classifier import build_classifier, load_trained
from downstream_imagenet.config import recipe
from downstream_imagenet.data import check_labelled, check_same_classes, class_names, evaluation_transform, labelled_once
from downstream_imagenet.labelled import measured_folder, with_part

MAX_EVAL_BATCH = 256  # images of an evaluation on a rank, at most


@torch.no_grad()
def evaluate(model, images, number, batch, ranks, autocast, workers=0, warn=print, go_on=None, count=None):
    """{'top1', 'top5' in percent, 'loss', 'images'} over a data set, each image once, on any number of ranks.

    model: a Classifier. images: an Augmented data set with labels of `number` classes; what cannot be read is
    left out, and warn(text) told. batch: images at a time on a rank. go_on() -> whether to go on with the
    next batch; if not, on some rank, None is returned. count: a Count of the images, if given.

    Raises ValueError, on all ranks, if no image can be read.
    """
    # without sync_bn the ranks' running statistics differ: rank 0's are those saved
    ranks.broadcast(model.buffers())
    mode = model.training
    model.eval()
    total = torch.zeros(4, dtype=torch.float64, device=ranks.device)
    for x, classes in labelled_once(images, number, batch, workers, ranks, warn, go_on, count):
        with autocast():
            logits = model.logits(x).float()
        total += counts(logits, classes)
    model.train(mode)
    if ranks.any(go_on is not None and not go_on()):
        return None
    top1, top5, loss, seen = ranks.all_reduce(total).tolist()
    if not seen:
        raise ValueError('none of the validation images can be read')
    return {'top1': 100 * top1 / seen, 'top5': 100 * top5 / seen, 'loss': loss / seen, 'images': int(seen)}


def counts(logits, classes):
    """Right at the first guess, within five, sum of the cross-entropies, number: float64 (4,)."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == classes[:, None]
    return torch.stack([right[:, 0].sum(), right.any(1).sum(), F.cross_entropy(logits, classes, reduction='sum'),
                        torch.tensor(len(classes), device=logits.device)]).double()


def options_and_classes(content, path):
    """(options, names of the classes or None) that a file's content names; ({}, None) for weights alone.

    Raises ValueError.
    """
    config, classes = content.get('config', {}), content.get('classes')
    if not isinstance(config, dict) or not isinstance(classes, list | None) or \
            not all(isinstance(name, str) for name in classes or ()):
        raise ValueError(f'{path} is no file of fine-tuning: its options or its classes are not as runs '
                         'write them')
    return config, classes


def as_in_training(options, then):
    """The options, with the network and the image settings of a run. A setting whose value is neither the default nor
    the recipe's was given by the user, and stays.

    then: the options of the run, as a dictionary.
    """
    default = {field.name: field.default for field in dataclasses.fields(options)}
    of_recipe = recipe({name: getattr(options, name) for name in ('model', 'recipe', 'input_size', 'test_size', 'register',
                                                                  'freeze')})
    names = ('model', 'input_size', 'test_size', 'in_chans', 'crop', 'mean', 'std', 'pixel_range')
    taken = {name: then[name] for name in names
             if name in then and getattr(options, name) in (default[name], of_recipe.get(name, default[name]))}
    if 'model' in taken:
        taken['drop_path'] = then.get('drop_path')  # The recipe of the default network has one.
    if 'input_size' not in taken:
        taken.pop('test_size', None)  # A size that is given now is that of the validation images.
    return dataclasses.replace(options, **taken)


def images_to_measure(options, classes, val_dataset=None):
    """(validation images, names of their classes).

    classes: those that the file names; None if it names none. val_dataset: a data set instead of the paths in the
    options. Raises ValueError for images of other classes.
    """
    if val_dataset is not None:
        if classes:
            check_same_classes(val_dataset, classes)
        return val_dataset, classes or class_names(val_dataset, options.num_classes)
    if classes and options.dataset is None:
        if not (options.val_path or options.data_path):
            raise ValueError('say where the images are: --val_path=DIR, or --data_path=DIR with val/ in it')
        return measured_folder(options, classes), classes
    images, val = find_labelled(options.data_path, options.val_path, options.dataset, options.in_chans, options.reading,
                                options.val_fraction is not None)
    found = class_names(images, options.num_classes)
    if classes and list(classes) != found:
        raise ValueError(f'{options.eval} tells {len(classes)} classes apart ({", ".join(classes[:3])}, '
                         f'...), the images have others ({", ".join(found[:3])}, ...)')
    return with_part(images, val, options)[1], found


def evaluate_file(options, ranks, val_dataset=None):
    """--eval: the accuracies of a run's file, of its best weights, or of any weights of this network with its classes.

    The classes are those that the file names, else those of the training images.
    """
    content = read_plain(options.eval)
    content = content if isinstance(content, dict) else {}
    then, classes = options_and_classes(content, options.eval)
    options = as_in_training(options, then)
    val, classes = images_to_measure(options, classes, val_dataset)
    check_labelled(val, options, len(classes), augmented=False)
    if ranks.is_main and notes_of(val):
        print(f'not looked at  {notes_of(val)}')
    for warning in warn_of(val, options) if ranks.is_main else ():
        print(f'warning: {warning}', file=sys.stderr)
    of_probe = {name: then[name] for name in ('freeze', 'probe_norm') if name in then}
    options = dataclasses.replace(options, **of_probe)
    for name in ('input_size', 'test_size', 'crop', 'mean', 'std', 'pixel_range'):
        if name in then and then[name] != getattr(options, name) and ranks.is_main:
            print(f'note: {name} was {then[name]} in training, and is {getattr(options, name)} here')
    if then and ranks.is_main:
        warn_of_division(options, then)
    watched = Augmented(val, evaluation_transform(options), options.normalisation, labelled=True, stand_ins=False,
                        timeout=options.read_timeout)
    model = build_classifier(options, len(classes)).to(ranks.device, memory_format=torch.channels_last)
    results = {}
    line = LiveLine(print if ranks.is_main else None)
    warn = line.say if ranks.is_main else print
    averaged = {'ema': content['ema']} if isinstance(content.get('ema'), dict) else {}
    for which, state in {'model': content, **averaged}.items():
        load_trained(model, state, options, options.eval)
        batch = min(max(options.batch_size // ranks.size, 1), MAX_EVAL_BATCH) if options.batch_size else MAX_EVAL_BATCH
        what = 'validation images' if which == 'model' else 'validation images (EMA)'
        with naming_the_file(watched), line.counting(what, len(val)) as count:
            results[which] = evaluate(model, watched, len(classes), batch, ranks, lambda: autocast(options, ranks),
                                      loading_processes(options, ranks), warn, count=count)
        if ranks.is_main:
            print(f'{which}: top-1 {results[which]["top1"]:.2f} %, top-5 {results[which]["top5"]:.2f} % on '
                  f'{counted(results[which]["images"], "image")}')
    return results
