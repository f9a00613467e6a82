"""A pretrained network read back: from a run folder, one of its files, or a file of the official release.

    saved = read_saved('output_my_run')     # or a file, such as res50_withdecoder_1kpretrained_spark_style.pth
    saved.network.reconstruct(images, saved.network.draw_visible(len(images)))

A run, and a file of weights that a run has written at its end, say with which method they were pretrained. Of another
file it is the method that is given, or the one of which it holds a whole network, or else that of the network's authors
(ConvViT's and MAE's), or else SparK. Files of
downstream_imagenet and downstream_coco, and other files of weights, are read too, for what is done with an encoder.
"""
import dataclasses
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch

from common.images.augmented import CentreCrop, as_input
from common.images.files import SeveralFiles, check_channels
from common.images.pixels import as_channels
from common.images.survey import warn_of
from common.networks.classifier import classifier_entries, num_classes_in
from common.networks.create import create_cnn
from common.networks.guess import guess_model
from common.networks.keys import unwrap
from common.networks.load import Loaded, load_found, read_weights
from common.networks.origin import origin_of
from common.reliability.checkpoint import is_run
from common.words import printable
from pretrain.config import PretrainingOptions
from pretrain.masked_network import ENCODER, MaskedNetwork
from pretrain.methods import DEFAULT, METHODS, Method, method_of, options_of
from pretrain.results.read_log import read_log

MAY_DIFFER = ('mask_ratio', 'max_pixels')  # options that may be given another value than the run had
# Options that the log of a run says of a file beside it, and `Method.encoder_options`.
OF_NETWORK = ('name', 'model', 'input_size', 'mask_ratio', 'cell_size', 'in_chans', 'mean', 'std', 'pixel_range',
              'interpolation')
OF_ENCODERS = {'convvit': 'convmae', 'vit': 'mae'}  # the first word of a network's name -> the method of its authors
LARGE = 4096  # pixels; a network is tried on two images of its size when it is built


@dataclass(frozen=True)
class Saved:
    """A pretrained network and what is known of it.

    network: in evaluation mode, on the CPU. method: by which it was pretrained, as far as that is known. options: of
    the run, or what was given and guessed. has_decoder: whether the file had one; if not, the decoder is untrained.
    step, images: of the run, None if they are not known. path: the file. folder: the run's, None if the file stands
    alone. loaded: what was read of the file. weights: {key: tensor}, its entries for the CNN, under timm's names;
    what is not among them is drawn in network. head: names of the entries of the classifier. has_classifier: whether
    the file holds a trained classifier and all that it needs. is_encoder: whether it is from a training that does not
    train the classifier. classes: their names, if the file has them.
    """
    network: MaskedNetwork
    method: Method
    options: PretrainingOptions
    has_decoder: bool
    step: int | None
    images: int | None
    path: Path
    folder: Path | None
    loaded: Loaded
    weights: dict = field(repr=False)
    head: tuple = ()
    has_classifier: bool = False
    is_encoder: bool = True
    classes: tuple | None = None

    @property
    def model(self):
        """The name of the network."""
        return self.options.model

    @property
    def unfinished(self):
        """A sentence, if the file is of a run that has not come to its end, else ''."""
        options = self.options
        if None in (self.step, self.images, options.batch_size, options.epochs):
            return ''
        steps = options.epochs * -(-self.images // options.batch_size)
        return f'the run is at step {self.step:,} of {steps:,}, its weights are not finished' if self.step < steps else ''

    @property
    def name(self):
        """What to call it in a picture: the name of the run, or that of the file."""
        return self.options.name or self.path.stem

    def prepare(self, image):
        """Cut an image to the network's size and normalise it.

        image: a PIL image or a tensor (C, h, w), uint8 or float. Returns (1, C, H, W). Raises ValueError.
        """
        if not torch.is_tensor(image):
            check_channels(self.options.in_chans)
            image = as_channels(image, self.options.in_chans, self.options.reading, upright=True)
        crop = CentreCrop(self.network.encoder.input_size, interpolation=self.options.interpolation)
        image = as_input(crop(image), self.options.normalisation)
        if not image.isfinite().all():
            raise ValueError('it holds NaN or infinite values')
        return image[None]

    def each(self, sources, say=print, count=None):
        """Yield (number, name, image (1, C, H, W)) of the images of files and folders.

        An image that cannot be read is left out, and named by say(text). count: a Count of the images, if
        given, whose total is set here. Raises ValueError for a file or folder that does not exist, and if
        none of the images can be read.
        """
        images = SeveralFiles(sources, self.options.in_chans, self.options.reading)
        if images.notes:
            say(f'not looked at  {images.notes}')
        for warning in warn_of(images, self.options):
            say(f'warning: {warning}')
        num_read = 0
        if count:
            count.set_total(len(images))
        for number in range(len(images)):
            if count:
                count.add(number - count.done)  # those before this one
            name = images.name(number)
            try:
                image = self.prepare(images[number])
            except Exception as error:  # whatever a damaged file makes its reader raise
                say(f'unreadable image {printable(name)} ({type(error).__name__}: {error}): it is left out')
                continue
            num_read += 1
            yield number, name, image
        if count:
            count.add(len(images) - count.done)
        if not num_read:
            raise ValueError('none of the images can be read')

    def require_decoder(self):
        """Raise a ValueError if there is nothing to reconstruct with."""
        if not self.has_decoder:
            raise ValueError(f'{self.path} holds an encoder without its decoder, which cannot reconstruct: '
                             f'give the run folder or its *_still_pretraining.pth, or {self.method.whole_file}')


def read_saved(source, adapt_input_conv=False, **given):
    """Read a run folder, a file of it, an official file, a fine-tuned network, or other weights.

    Args:
        source: a path, or FILE:KEY where KEY says which of several networks in a file is meant, such as ema.
        adapt_input_conv: whether weights for images of other channels are adapted.
        given: options of pretraining that the file does not say (method, model, input_size, mask_ratio, in_chans,
            mean, std, ...). None counts as not given.

    Returns Saved. Raises ValueError.
    """
    content, path, which = read_weights(find(source))
    path = Path(path)
    given = {name: value for name, value in given.items() if value is not None}
    if is_run(content, path) and downstream_config(content) is None:
        return read_run(content, path, which, given)
    return read_weights_alone(content, path, which, adapt_input_conv, given)


def find(source):
    """Return the file that a run folder is read from, or the source if it is no folder. Raises ValueError."""
    source = Path(source)
    if not source.is_dir():
        return source
    found = sorted(source.glob('*_still_pretraining.pth')) or sorted(source.glob('*_1kpretrained.pth'))
    if len(found) != 1:
        what = f'several networks: give one of its files, such as {found[0]}' if found else \
            'no *_still_pretraining.pth and no *_1kpretrained.pth'
        raise ValueError(f'{source} is no folder of one run: it holds {what}')
    return found[0]


def downstream_config(content):
    """Return the options of the downstream program that wrote a file, None if none did."""
    config = content.get('config') if isinstance(content, dict) else None
    return config if isinstance(config, dict) and 'finetune_from' in config else None


def read_run(content, path, which, given):
    """Read the checkpoint of a pretraining run. Raises ValueError."""
    method, options = options_of_run(content, path, given)
    state = unwrap(content['model'], path)
    for name, value in method.options_in_weights(state).items():  # before a network of any size is built
        if value != getattr(options, name):
            raise ValueError(f'{path} is damaged: it says {name}={getattr(options, name)}, and its weights have '
                             f'{"none" if value is None else value}')
    check_size(path, options, given)
    network = untrained(method, options, record=content.get('network'))
    module, found, may_miss = method.find_init(network, state, path, which)
    loaded = load_found(module, found, may_miss)
    log = log_of(path)
    return Saved(network.eval(), method, options, has_decoder=module is network, step=content['step'],
                 images=content['images'], path=path, folder=log.folder if log else None, loaded=loaded,
                 weights=encoder_entries(found, loaded),
                 head=classifier_entries(options.model, options.in_chans))


def options_of_run(content, path, given):
    """Return the method and the options of a checkpoint.

    Raises ValueError if the file is damaged, or if an option that is given, except MAY_DIFFER, is not the run's.
    """
    config = content['config']
    if not isinstance(config, dict) or not config.keys() >= {'model', 'mask_ratio'}:
        raise ValueError(f'{path} is no pretraining run: it says nothing of a mask')
    method = method_of(config, path)
    options_class = options_of(method.name).options
    if not isinstance(content['model'], dict) or not all(isinstance(content.get(name), int)
                                                         for name in ('step', 'images')):
        raise ValueError(f'{path} is damaged: it does not hold weights, step and images as a run does')
    config = {**config, 'method': method.name}
    differing = [f'{name} is {config.get(name)} there, not {value}' for name, value in given.items()
                 if name not in MAY_DIFFER and config.get(name) != value]
    if differing:
        raise ValueError(f'{path} is of another network ({"; ".join(differing)}): leave that away, a run '
                         'says itself what it is')
    known = {name: value for name, value in config.items() if name in options_class.__dataclass_fields__}
    changed = {name: given[name] for name in MAY_DIFFER if name in given}
    if 'mask_ratio' in changed and 'masks_per_image' in known:  # Several masks of a training step have one ratio alone.
        changed['masks_per_image'] = 1
    try:
        return method, options_class(**{**known, **changed})
    except TypeError as error:
        raise ValueError(f'{path} is damaged: its options are not those of a run ({error})') from error


def read_weights_alone(content, path, which, adapt, given):
    """Read a file of weights that is no checkpoint of a pretraining run. Raises ValueError."""
    state = unwrap(content, path)
    log = log_of(path)
    tuned = downstream_config(content)
    origin = origin_of(content)
    method = method_of_weights(state, path, origin, tuned, log, given)
    options = options_of_weights(method, state, path, tuned, log, given)
    check_size(path, options, given)
    head = classifier_entries(options.model, options.in_chans)
    is_guess = log is None and origin not in METHODS and 'method' not in given and not method.is_whole(state)
    with named_methods(method, is_guess):
        network = untrained(method, options, lambda cnn: num_classes_in(state, cnn, head, which) if head else None)
    module, found, may_miss = method.find_init(network, state, path, which, adapt)
    loaded = load_found(module, found, may_miss)
    weights = encoder_entries(found, loaded)
    own_keys = {key for key in network.encoder.cnn.state_dict() if not key.endswith('num_batches_tracked')}
    is_complete = own_keys <= weights.keys()
    is_encoder = (log is not None or origin is not None or '_1kpretrained' in path.name or module is network
                  or uses_features(found))
    classes = content.get('classes') if tuned is not None else None
    return Saved(network.eval(), method, options, has_decoder=module is network, step=None, images=None, path=path,
                 folder=log.folder if log else None, loaded=loaded, weights=weights, head=head,
                 has_classifier=bool(head) and is_complete and not is_encoder, is_encoder=is_encoder,
                 classes=tuple(map(str, classes)) if isinstance(classes, list) else None)


def likely_method(model):
    """Return the method of the authors of a network, if it is one of theirs, or DEFAULT. model: its name, or None."""
    return METHODS[OF_ENCODERS.get(str(model).split('_')[0], DEFAULT)]


def method_of_weights(state, path, origin, tuned, log, given):
    """Return the method of a file that is no checkpoint: of the log beside it, noted in it, given, of its tensors, or a
    likely one.

    origin: the name that is noted in the file, or None. log: of the run beside it, or None. tuned: options of the
    downstream program that wrote the file, or None. Raises ValueError if another one is given than the file is of.
    """
    whole = next((method for method in METHODS.values() if method.is_whole(state)), None)
    known = method_of(log.config, log.folder) if log else METHODS.get(origin, whole)
    if 'method' not in given:
        return known or likely_method(given.get('model') or (tuned or {}).get('model') or name_of(path, state))
    method = method_of(given)
    if known not in (None, method):
        raise ValueError(f'{path} is of {known.title}, not of {method.title}: leave --method={method.name} away')
    return method


@contextmanager
def named_methods(method, is_guess):
    """Around what a method may refuse: its error names the other methods, if that it is this one is a guess."""
    try:
        yield
    except ValueError as error:
        if not is_guess:
            raise
        others = ' or '.join(f'--method={name}' for name in METHODS if name != method.name)
        raise ValueError(f'{error}. If it was pretrained with another method than {method.title}, say so: '
                         f'{others}') from error


def options_of_weights(method, state, path, tuned, log, given):
    """Return the options for a file of weights: given, else known of the file, else guessed.

    tuned: options of the downstream program that wrote the file, or None. log: of the run beside it, or None.
    Raises ValueError if the network is not known.
    """
    known = {}
    if tuned is not None:
        names = ['model', 'in_chans', 'mean', 'std']
        if 'fpn_channels' not in tuned:  # a detector takes images of many sizes
            names.append('input_size')
        known = {name: tuned[name] for name in names if tuned.get(name) is not None}
    elif log is not None:
        known = {name: log.config[name] for name in (*OF_NETWORK, *method.encoder_options) if name in log.config}
    if 'in_chans' in given and given['in_chans'] != known.get('in_chans'):
        known = {name: value for name, value in known.items() if name not in ('mean', 'std')}
    told = {name: value for name, value in method.options_in_weights(state).items() if value is not None}
    values = {'name': path.stem, **told, **known, **given, 'method': method.name}
    values['model'] = values.get('model') or guess(path, state)
    options_class = options_of(method.name).options
    foreign = [f'--{name}' for name in values if name not in options_class.__dataclass_fields__]
    if foreign:
        raise ValueError(f'{", ".join(foreign)} is no option of {method.title}: leave it away, or say with --method=NAME '
                         f'by which method the network was pretrained')
    return options_class(**values)


def encoder_entries(found, loaded):
    """Return {key: tensor} of the CNN in a Network of `Method.find_init`, without entries that were not loaded."""
    entries = {key: value for key, value in found.entries.items() if key not in loaded.left_out}
    if any(key.startswith(ENCODER) for key in entries):
        return {key.removeprefix(ENCODER): value for key, value in entries.items() if key.startswith(ENCODER)}
    return entries


def uses_features(found):
    """Whether a CNN was part of a whole masked network, a detector or a probe: its classifier was not trained."""
    is_part_of_whole = any(method.is_part_of_whole(found) for method in METHODS.values())
    is_in_detector = found.is_beside('backbone.cnn.', {'backbone.fpn'})
    is_in_probe = found.is_beside('cnn.', {'norm', 'fc'})
    return is_part_of_whole or is_in_detector or is_in_probe


def check_size(path, options, given):
    """Raise a ValueError if a file asks for images that would fill the memory, and its user does not."""
    if max(options.size) > LARGE and 'input_size' not in given:
        raise ValueError(f'{path} says that its images are {max(options.size)} px large: if that is so, say '
                         'it too, with --input_size')


def untrained(method, options, num_classes=None, record=None):
    """Build a method's network with random weights, always the same; the caller's random numbers stay as they were.

    num_classes: function of the CNN that returns how many classes its classifier is to have, or None for its
    own number. record: of the network, from a checkpoint; it saves most of the time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        number = num_classes(create_cnn(options.model, options.in_chans)) if num_classes else None
        cnn = None
        if number is not None:
            cnn = create_cnn(options.model, options.in_chans, num_classes=number, input_size=options.size)
        network = method.build(dataclasses.replace(options, drop_path=None), record, cnn)
    network.recompute('none')
    return network


def log_of(path):
    """Return the log beside a file, if it is of the run that wrote it; None for a file that stands alone."""
    try:
        log = read_log(path.parent)
    except ValueError:
        return None
    model = log.config.get('model')
    return log if path.name in (f'{model}_still_pretraining.pth', f'{model}_1kpretrained.pth') else None


def guess(path, state):
    """Guess the network's name from the name of the file, or from its tensors. Raises ValueError."""
    name = name_of(path, state)
    if name is None:
        raise ValueError(f'{path} does not say which network it is: give --model=NAME')
    return name


def name_of(path, state):
    """As `guess`, None if it cannot be told."""
    named = path.name.split('_1kpretrained')[0].removesuffix(path.suffix).removesuffix('_timm')  # timm's export, or no ending
    return named if timm.is_model(named) else guess_model(state)
