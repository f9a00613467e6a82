"""What a pretraining left behind, read back: a run folder, one of its files, or a file of the official release.

    saved = read_saved('output_my_run')      # or resnet50_1kpretrained.pth, res50_withdecoder_1kpretrained_spark_style.pth
    saved.spark.reconstruct(images, saved.spark.draw_visible(len(images)))

Files of downstream_imagenet and other files of weights are read too, for what is done with an encoder.
"""
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch

from common.cli import numbers
from common.config import size
from common.images.augmented import CentreCrop, as_input
from common.images.files import SeveralFiles, check_channels
from common.images.look import warn_of
from common.images.pixels import as_channels
from common.networks.classifier import classifier_entries, num_classes_in
from common.networks.create import create_cnn
from common.networks.guess import guess_model
from common.networks.keys import unwrap
from common.networks.load import Loaded, load_found, read_weights
from common.reliability.checkpoint import is_run
from pretrain.config import Options
from pretrain.results.read_log import read_log
from pretrain.spark import SparK, build_spark
from pretrain.spark_weights import decoder_width, encoder_entries, find_init, is_in_whole

MAY_DIFFER = ('mask_ratio', 'max_pixels')  # from what a run had
LARGE = 4096  # pixels; the network is tried on two images of its size when it is built


@dataclass(frozen=True)
class Saved:
    """A pretrained network and what is known of it.

    spark: in evaluation mode, on the CPU. model: the network's name. options: of the run, or what was given and guessed.
    has_decoder: whether the file had one; if not, the decoder is untrained. step, images: of the run, None if
    they are not known. path: the file. folder: the run's, None if the file stands alone.
    loaded: what was read of the file. weights: its entries for the network, under timm's names; what is not among them is
    drawn in spark. head: the names of the classifier's entries. has_classifier: whether the file holds a trained
    classifier and all that it needs. is_encoder: whether it is from a training that does not train the classifier.
    classes: their names, if the file tells them.
    """
    spark: SparK
    options: Options
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
        return self.options.model

    @property
    def name(self):
        """What to call it in a picture: the run's name, else the file's."""
        return self.options.name or self.path.stem

    def prepare(self, image):
        """A PIL image or a tensor (C, h, w), uint8 or float -> (1, C, H, W): its middle, normalised. Raises ValueError."""
        if not torch.is_tensor(image):
            check_channels(self.options.in_chans)
            image = as_channels(image, self.options.in_chans, self.options.reading, upright=True)
        image = as_input(CentreCrop(self.spark.encoder.input_size)(image), self.options.normalisation)
        if not image.isfinite().all():
            raise ValueError('it holds NaN or infinite values')
        return image[None]

    def each(self, sources, say=print):
        """(number, file, (1, C, H, W)) of the images of files and folders; what cannot be read is said and left out.

        Raises ValueError for a file or folder that is not there, and if none of the images can be read.
        """
        images, read = SeveralFiles(sources, self.options.in_chans, self.options.reading), 0
        if images.notes:
            say(f'not looked at  {images.notes}')
        for warning in warn_of(images, self.options):
            say(f'warning: {warning}')
        for number in range(len(images)):
            try:
                image = self.prepare(images[number])
            except Exception as error:  # whatever a file can do to a reader
                say(f'unreadable image {images.name(number)} ({type(error).__name__}: {error}): it is left out')
                continue
            read += 1
            yield number, images.name(number), image
        if not read:
            raise ValueError('none of the images can be read')

    def require_decoder(self):
        """Raise a ValueError if there is nothing to reconstruct with."""
        if not self.has_decoder:
            raise ValueError(f'{self.path} holds an encoder without its decoder, which cannot reconstruct: give the run folder '
                             'or its *_still_pretraining.pth, or a *_withdecoder_1kpretrained_spark_style.pth')


def read_saved(source, adapt_input_conv=False, **given):
    """Read a run folder, a file of it, an official file, a fine-tuned network or other weights. Raises ValueError.

    source: a path, or FILE:KEY where KEY says which of several networks in a file is meant, such as ema.
    adapt_input_conv: whether weights for images of other channels are adapted. given: options of pretraining (model,
    input_size, mask_ratio, in_chans, mean, std, ...) that the file does not tell.
    """
    content, path, which = read_weights(find(source))
    path = Path(path)
    config = content.get('config') if isinstance(content, dict) else None
    is_tuned = isinstance(config, dict) and 'finetune_from' in config  # by a program of downstream_*
    if is_run(content, path) and not is_tuned:
        return of_run(content, path, which, given)
    state, log = unwrap(content, path), log_of(path)
    names = ('name', 'model', 'input_size', 'mask_ratio', 'cell_size', 'in_chans', 'levels', 'mean', 'std', 'pixel_range',
             'target')
    beside = {name: log.config[name] for name in names if name in log.config} if log else {}
    if is_tuned:
        of_images = ('model', 'in_chans', 'mean', 'std') + ('input_size',) * ('fpn_channels' not in config)
        beside = {name: config[name] for name in of_images if config.get(name) is not None}
    if given.get('in_chans') not in (None, beside.get('in_chans')):
        beside = {name: value for name, value in beside.items() if name not in ('mean', 'std')}
    config = {**beside, **{name: value for name, value in given.items() if value is not None}}
    model = config.pop('model', None) or guess(path, state)
    options = Options(**{'name': path.stem, **config, 'model': model,
                         'decoder_width': decoder_width(state) or config.get('decoder_width', Options.decoder_width)})
    check_size(path, options, given)
    head = classifier_entries(model, options.in_chans)
    spark = build(options, lambda cnn: num_classes_in(state, cnn, head, which) if head else None)
    module, network, may_miss = find_init(spark, state, path, which, adapt_input_conv)
    loaded = load_found(module, network, may_miss)
    weights = encoder_entries(network, loaded)
    is_whole = weights.keys() >= {key for key in spark.encoder.cnn.state_dict() if not key.endswith('num_batches_tracked')}
    is_encoder = bool(log or '_1kpretrained' in path.name or module is spark or uses_features(network))
    names = content.get('classes') if is_tuned else None
    names = tuple(map(str, names)) if isinstance(names, list) else None
    return Saved(spark.eval(), options, module is spark, None, None, path, log and log.folder, loaded, weights, head,
                 bool(head) and is_whole and not is_encoder, is_encoder, names)


def uses_features(network):
    """Whether a CNN in a file was part of a whole SparK, a detector or a linear probe, which do not train its classifier."""
    is_in_detector = network.is_beside('backbone.cnn.', {'backbone.fpn'})
    is_in_probe = network.is_beside('cnn.', {'norm', 'fc'})
    return is_in_whole(network) or is_in_detector or is_in_probe


def of_run(content, path, which, given):
    """Read what a run saved. What is given and differs from the run is refused, but for what MAY_DIFFER."""
    config, state = content['config'], content['model']
    if not isinstance(config, dict) or not config.keys() >= {'model', 'mask_ratio', 'decoder_width'}:
        raise ValueError(f'{path} is no pretraining run: it says nothing of a mask or a decoder')
    if not isinstance(state, dict) or not all(isinstance(content.get(name), int) for name in ('step', 'images')):
        raise ValueError(f'{path} is damaged: it does not hold weights, step and images as a run does')
    wrong = [f'{name} is {config.get(name)} there, not {value}' for name, value in given.items()
             if value is not None and name not in MAY_DIFFER and config.get(name) != value]
    if wrong:
        raise ValueError(f'{path} is of another network ({"; ".join(wrong)}): leave that away, a run says itself what it is')
    known = {name: value for name, value in config.items() if name in Options.__dataclass_fields__}
    changed = {name: given[name] for name in MAY_DIFFER if given.get(name) is not None}
    try:
        options = Options(**{**known, **changed})
    except TypeError as error:
        raise ValueError(f'{path} is damaged: its options are not those of a run ({error})') from error
    state = unwrap(state, path)
    if decoder_width(state) != options.decoder_width:  # before a network of any size is built
        raise ValueError(f'{path} is damaged: its decoder has not the {options.decoder_width} channels that it says')
    check_size(path, options, given)
    spark = build(options)
    module, network, may_miss = find_init(spark, state, path, which)
    loaded, log = load_found(module, network, may_miss), log_of(path)
    return Saved(spark.eval(), options, module is spark, content['step'], content['images'], path, log and log.folder, loaded,
                 encoder_entries(network, loaded), classifier_entries(options.model, options.in_chans))


def check_size(path, options, given):
    """Raise a ValueError if a file speaks of images that would fill the memory, and its user does not."""
    if max(options.size) > LARGE and given.get('input_size') is None:
        raise ValueError(f'{path} says that its images are {max(options.size)} px large: if that is so, say it too, with '
                         '--input_size')


def build(options, classes=None):
    """A SparK with drawn weights. classes(cnn) -> the number of classes that its CNN has, None for its own number."""
    with torch.random.fork_rng(devices=[]):  # what the file lacks is drawn: not from the caller's random numbers
        torch.manual_seed(0)
        number = classes and classes(create_cnn(options.model, options.in_chans))
        cnn = options.model if number is None else create_cnn(options.model, options.in_chans, num_classes=number)
        return build_spark(**options.network | {'drop_path': None, 'model': cnn})


def find(source):
    """The file that a run folder is read from, or the file itself. Raises ValueError."""
    source = Path(source)
    if source.is_dir():
        found = sorted(source.glob('*_still_pretraining.pth')) or sorted(source.glob('*_1kpretrained.pth'))
        if len(found) != 1:
            raise ValueError(f'{source} is no run folder: it holds {len(found) or "no"} *_still_pretraining.pth'
                             + (', give one of them' if found else ''))
        return found[0]
    return source


def log_of(path):
    """The log of the run that wrote a file, if it lies beside it; None for a file that stands alone."""
    try:
        log = read_log(path.parent)
    except ValueError:
        return None
    own = (f'{log.config.get("model")}_still_pretraining.pth', f'{log.config.get("model")}_1kpretrained.pth')
    return log if path.name in own else None


def guess(path, state):
    """The network's name by the file's, or by its tensors. Raises ValueError."""
    named = path.name.split('_1kpretrained')[0]
    if timm.is_model(named):
        return named
    guessed = guess_model(state)
    if guessed is None:
        raise ValueError(f'{path} does not say which network it is: give --model=NAME')
    return guessed


def add_network(parser, several=False):
    """The arguments that say which network, for `network_of`."""
    parser.add_argument('source', metavar='RUN_OR_FILE', help='run folder, a file of it, of the official release, or of '
                        'weights; FILE:KEY says which of several networks in a file, such as ema',
                        nargs='+' if several else None)
    about = parser.add_argument_group('network', 'for files that do not say it themselves; a run does')
    about.add_argument('--model', help="timm's name of the network")
    about.add_argument('--input_size', type=size, help='side of an image in pixels, or height,width')
    about.add_argument('--in_chans', type=int, help='channels of an image')
    about.add_argument('--adapt_input_conv', action='store_true', help='take weights for images of other channels too: the '
                       'convolutions over the image are summed or repeated, as timm does')
    about.add_argument('--mean', type=numbers, help="of each channel; ImageNet's if not given")
    about.add_argument('--std', type=numbers, help="of each channel; ImageNet's if not given")
    about.add_argument('--pixel_range', type=numbers, help='from,to: the values that become 0 and 1 in files of more than 8 '
                       'bits')
    about.add_argument('--max_pixels', type=int, help="of the largest image that is read; Pillow's limit if not given")
    about.add_argument('--levels', help='submodules whose outputs are the pyramid, with commas between')


def network_of(args, source=None, **more):
    """The network that a command line names; of several the one called source. Raises ValueError.

    Prints what was read, if the file holds more than the network under its own names.
    """
    saved = read_saved(source or args.source, model=args.model, input_size=args.input_size, in_chans=args.in_chans,
                       mean=args.mean, std=args.std, pixel_range=args.pixel_range, max_pixels=args.max_pixels,
                       levels=args.levels, adapt_input_conv=args.adapt_input_conv, **more)
    loaded = saved.loaded
    if saved.step is None and (loaded.prefix or loaded.beside or loaded.adapted):
        print(f'{saved.path}: {loaded}')
    return saved
