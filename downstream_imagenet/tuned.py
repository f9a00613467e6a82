"""A fine-tuned classifier, read back from its run folder, from a file of it, or from a file of weights."""
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from common.networks.classifier import classifier_entries, num_classes_in
from common.networks.create import create_cnn
from common.networks.guess import guess_model
from common.networks.keys import unwrap
from common.networks.origin import origin_of
from common.reliability.checkpoint import read_plain
from downstream_imagenet.classifier import Classifier, build_classifier, load_trained
from downstream_imagenet.config import Options
from downstream_imagenet.evaluation import options_and_classes

LARGE = 4096  # pixels; the network is tried on an image of its size when it is built
REMEDY = 'fine-tune it first (python -m downstream_imagenet.main --finetune_from=FILE)'


@dataclass(frozen=True)
class Tuned:
    """A trained classifier and what is known of it.

    model: a Classifier or LinearProbe in evaluation mode, on the CPU. options: of the run, or what was given
    and guessed. classes: the names, in the order of the outputs. named_by: where the names are from, for a
    person. path: the file.
    """
    model: Classifier
    options: Options
    classes: list
    named_by: str
    path: Path


def read_tuned(source, ema=False, classes=None, **given):
    """Read a fine-tuned classifier.

    Args:
        source: a run folder or a file. Of a folder the best weights are read, or their average where its
            top-1 was higher.
        ema: read the average of the weights, of a folder or of a *_last.pth.
        classes: a text file of names, one a line, instead of those in the file.
        given: options (model, input_size, crop, in_chans, mean, std) that the file does not say. None counts
            as not given.

    Returns Tuned. Raises ValueError if there is no trained classifier.
    """
    path, content = find(Path(source), ema)
    config, names = options_and_classes(content, path)
    weights = content['model'] if config and isinstance(content.get('model'), dict) else content
    if ema and not path.stem.endswith('_best_ema'):
        if not isinstance(content.get('ema'), dict):
            raise ValueError(f'{path} holds no average of the weights (EMA): leave --ema out')
        weights = content['ema']
    state = unwrap(weights, path)
    refuse_pretrained(state, config, path, origin_of(content))
    given = {name: value for name, value in given.items() if value is not None}
    options = options_of_run(config, given, path) if config else options_of_weights(state, given, path)
    longest = max(*options.size, *options.evaluated_size)
    if longest > LARGE and 'input_size' not in given:
        raise ValueError(f'{path} says that its images are {longest} px large, more than {LARGE}: it is refused')
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        num_classes = number_of_classes(state, options, path)
        model = build_classifier(options, num_classes)
    load_trained(model, weights, options, path)
    names, named_by = names_of_classes(num_classes, classes, names, config, path)
    return Tuned(model.eval(), options, names, named_by, path)


def find(source, ema):
    """Find and read the file that is meant by a run folder or a file.

    Returns (path, content), where the content is a dictionary. Raises ValueError.
    """
    if not source.is_dir():
        content = read_plain(source)
        return source, content if isinstance(content, dict) else {'model': content}
    kinds = ('best_ema',) if ema else ('best', 'best_ema')
    found = [path for kind in kinds for path in sorted(source.glob(f'*_1kfinetuned_{kind}.pth'))]
    found = found or sorted(source.glob('*_1kfinetuned_last.pth'))  # a run before its first evaluation
    if not found:
        if any(source.glob('*_1kpretrained.pth')) or any(source.glob('*_still_pretraining.pth')):
            raise ValueError(f'{source} is a pretraining run, without a trained classifier: {REMEDY}')
        raise ValueError(f'{source} is no run folder of downstream_imagenet: it holds no '
                         '*_1kfinetuned_best.pth')
    if len({path.name.split('_1kfinetuned_')[0] for path in found}) > 1:
        raise ValueError(f'{source} holds several networks: give one of its files, such as {found[0]}')
    contents = {path: read_plain(path) for path in found}
    for path, content in contents.items():
        if not isinstance(content, dict):
            raise ValueError(f'{path} is damaged: it does not hold what a run writes')
    best = max(found, key=lambda path: top1_of(contents[path]))  # the first of those that are equal
    return best, contents[best]


def top1_of(content):
    """Return the accuracy that a run wrote into a file, -1 if there is none."""
    value = content.get('top1')
    return value if isinstance(value, (int, float)) else -1.0


def refuse_pretrained(state, config, path, origin):
    """Raise a ValueError for what is no classifier, though the network may have an untrained one.

    Every masked pretraining of a whole network has mask tokens beside it. origin: of the file (common/networks/origin.py).
    """
    has_mask_tokens = any('mask_token' in key for key in state)
    is_pretraining_run = 'mask_ratio' in config
    is_pretrained_encoder = origin is not None or not config and '_1kpretrained' in path.name
    if has_mask_tokens or is_pretraining_run or is_pretrained_encoder:
        raise ValueError(f'{path} is a pretrained network, without a trained classifier: {REMEDY}')
    if any('backbone.fpn.' in key for key in state):
        raise ValueError(f'{path} is a detector: python -m downstream_coco.predict reads it')
    if config and not config.keys() >= {'model', 'input_size', 'smoothing'}:
        raise ValueError(f'{path} is no file of fine-tuning: its options are not those of a run')


def options_of_run(config, given, path):
    """Return the Options of a run. Raises ValueError if something else was given."""
    known = {field.name: config[field.name] for field in fields(Options) if field.name in config}
    try:
        options = Options(**{**known, 'resume': None, 'finetune_from': None, 'eval': str(path)})
    except TypeError as error:
        raise ValueError(f'{path} is damaged: its options are not those of a run ({error})') from error
    differing = [f'{name} is {getattr(options, name)} there, not {value}' for name, value in given.items()
                 if getattr(options, name) != value]
    if differing:
        raise ValueError(f'{path} is of another run ({"; ".join(differing)}): leave that out, a run says '
                         'itself what it is')
    return options


def options_of_weights(state, given, path):
    """Return the Options for a file of weights; the network is guessed if not given. Raises ValueError."""
    model = given.get('model') or guess_model(state)
    if model is None:
        raise ValueError(f'{path} does not say which network it is: give --model=NAME')
    is_probe = 'fc.weight' in state and any(key.startswith('cnn.') for key in state)
    has_norm = 'norm.running_mean' in state
    return Options(**{**given, 'model': model, 'freeze': is_probe, 'probe_norm': has_norm or not is_probe,
                      'eval': str(path)})


def number_of_classes(state, options, path):
    """Return how many classes the classifier in a file tells apart. Raises ValueError if there is none."""
    if options.freeze:
        weight = state.get('fc.weight')
        number = len(weight) if weight is not None and weight.ndim == 2 else None
    else:
        cnn = create_cnn(options.model, options.in_chans)
        number = num_classes_in(state, cnn, classifier_entries(options.model, options.in_chans))
    if number is None:
        raise ValueError(f'{path} holds no classifier for {options.model}: {REMEDY}')
    return number


def names_of_classes(num_classes, file, names, config, path):
    """Return (names of the classes, where they are from).

    They are those of a text file if one is given, else `names`, which the weights' own file holds, else those
    of the folders of the training images. If none of these is there, the classes are numbered. Raises
    ValueError if the text file or the weights' own file has another number of names.
    """
    if file is not None:
        given = read_names(file)
        if len(given) != num_classes:
            raise ValueError(f'--classes={file} has {len(given)} names, the network in {path} tells '
                             f'{num_classes} classes apart: give one name a line, in the order of its '
                             'outputs')
        return given, f'named by {file}'
    if names is not None:
        if len(names) != num_classes:
            raise ValueError(f'{path} is damaged: it names {len(names)} classes, its network tells '
                             f'{num_classes} apart')
        return names, 'named by the file'
    folder = Path(config['data_path'], 'train') if isinstance(config.get('data_path'), str) else None
    if folder is not None and folder.is_dir():
        found = sorted(entry.name for entry in folder.iterdir()
                       if entry.is_dir() and not entry.name.startswith('.'))
        if len(found) == num_classes:
            return found, f'named by the folders in {folder}'
    numbers = [str(i) for i in range(num_classes)]
    return numbers, 'numbered, since the file does not name them; --classes=FILE does'


def read_names(file):
    """Return the lines of a text file, but for empty ones. Raises ValueError."""
    try:
        text = Path(file).read_text(encoding='utf-8-sig')  # with a byte order mark or without
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'--classes={file} cannot be read ({error}): give a text file in UTF-8, one name a '
                         'line') from error
    return [line.strip() for line in text.splitlines() if line.strip()]
