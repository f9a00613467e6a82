"""Segmenters: from the options of a run, and from the files that runs wrote."""
import dataclasses

import torch

from common.networks.create import create_cnn
from common.networks.load import load_classifier, load_strictly
from common.pyramid import levels_of
from common.reliability.checkpoint import read_plain
from common.seeds import seed_for
from common.training.same_run import refuse_other_model
from downstream_ade20k.classes import Classes
from downstream_ade20k.config import NOT_GIVEN
from downstream_ade20k.segmenter import Segmenter

OF_THE_NETWORK = ('model', 'in_chans', 'head', 'head_channels', 'map_norm', 'head_dropout', 'aux_weight', 'drop_path',
                  'freeze', 'frozen_bn')
# How images are read and measured: {option: others which, if one of them is given, make the file's value void}.
OF_THE_IMAGES = {'input_size': (), 'keep_size': ('short_side', 'long_side'), 'short_side': ('keep_size',),
                 'long_side': ('keep_size', 'short_side'), 'mean': (), 'std': (), 'pixel_range': (), 'slide': (),
                 'slide_stride': ('input_size',), 'test_scales': (), 'test_flip': ()}


def build_segmenter(options, classes, load=True):
    """(a Segmenter, what was loaded into its CNN or None): the weights of --finetune_from, unless told not to.

    classes: their number. Raises ValueError.
    """
    torch.manual_seed(seed_for('weights', options.seed))
    cnn, loaded = create_cnn(options.model, options.in_chans, options.drop_path), None
    if load and options.finetune_from and not options.eval:
        levels_of(cnn, options.in_chans)  # refuses a network without a pyramid, before its weights are read
        loaded = load_classifier(cnn, options.finetune_from, options.model, options.size, options.in_chans,
                                 options.adapt_input_conv)
    return Segmenter(cnn, classes, options.head, options.in_chans, options.head_channels, options.map_norm,
                     options.aux_weight, options.head_dropout, options.freeze, options.frozen_bn), loaded


def read_segmenter(path):
    """What a run of this program wrote. Raises ValueError for any other file."""
    content = read_plain(path)
    kinds = {'config': dict, 'model': dict, 'classes': dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f'{path} holds no segmenter of downstream_ade20k')
    return content


def restore(content, options):
    """(options, a Segmenter for each of the file's weights, its Classes). Raises ValueError.

    The network's options are those of the file; so are those of its images that are not given.
    """
    options, classes, models = restored_options(content['config'], options), Classes.from_data(content['classes']), {}
    for which, state in (('model', content['model']), ('ema', content.get('ema'))):
        if state is not None:
            models[which], _ = build_segmenter(options, len(classes))
            load_strictly(models[which], state)
    return options, models, classes


def restored_options(config, options):
    """The options with the network of a file, and with its images where they do not say otherwise.

    config: the options in the file, as a dictionary. Raises ValueError for another network, see `refuse_other_model`.
    """
    refuse_other_model(options, config['model'])
    found = {name: config[name] for name in OF_THE_NETWORK if name in config}
    for name, others in OF_THE_IMAGES.items():
        value = getattr(options, name)
        if value is None and not any(getattr(options, other) for other in others):
            value = config.get(name)
        found[name] = NOT_GIVEN.get(name) if value is None else value
    return dataclasses.replace(options, **found, finetune_from=None)
