"""Detectors: from the options of a run, and from the files that runs wrote."""
import dataclasses

import torch

from common.networks.create import create_cnn
from common.networks.load import load_classifier, load_strictly
from common.pyramid import SIDE, levels_of
from common.reliability.checkpoint import read_plain
from common.seeds import seed_for
from common.training.same_run import refuse_other_model
from downstream_coco.config import NOT_GIVEN
from downstream_coco.detector import Detector


def build_detector(options, classes, masks, load=True):
    """(a Detector, what was loaded into its CNN or None): the weights of --finetune_from, unless told not to.

    classes: their number, without the background. masks: whether it finds masks. Raises ValueError.
    """
    torch.manual_seed(seed_for('weights', options.seed))
    cnn, loaded = create_cnn(options.model, options.in_chans, options.drop_path), None
    if load and options.finetune_from and not options.eval:
        levels_of(cnn, options.in_chans)  # refuses a network without a pyramid, before its weights are read
        loaded = load_classifier(cnn, options.finetune_from, options.model, (SIDE, SIDE), options.in_chans,
                                 options.adapt_input_conv)
    return Detector(cnn, classes, masks, options.in_chans, options.fpn_channels, options.head_channels, options.mask_layers,
                    options.rois, options.detections, options.freeze, options.frozen_bn), loaded


def read_detector(path):
    """What a run of this program wrote. Raises ValueError for any other file."""
    content = read_plain(path)
    kinds = {'config': dict, 'model': dict, 'categories': list, 'masks': bool}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()) or not all(
            isinstance(one, dict) and one.keys() >= {'id', 'name'} for one in content['categories']):
        raise ValueError(f'{path} holds no detector of downstream_coco')
    return content


def restore(content, options):
    """(options, a Detector for each of the file's weights, its categories, whether it finds masks).

    The network's options are those of the file. So are those of its images, and how many objects are found in one, unless
    they were given. Raises ValueError for another network, see `refuse_other_model`, and for weights that do not fit.
    """
    refuse_other_model(options, content['config'].get('model'))
    fixed = {name: value for name, value in content['config'].items() if name in
             ('model', 'in_chans', 'fpn_channels', 'head_channels', 'mask_layers', 'rois', 'freeze', 'frozen_bn', 'drop_path')}
    fixed |= {name: content['config'].get(name, NOT_GIVEN.get(name)) for name in
              ('input_size', 'long_side', 'detections', 'mean', 'std', 'pixel_range') if getattr(options, name) is None}
    options, models = dataclasses.replace(options, **fixed, finetune_from=None), {}
    for which, state in (('model', content['model']), ('ema', content.get('ema'))):
        if state is not None:
            models[which], _ = build_detector(options, len(content['categories']), content['masks'])
            load_strictly(models[which], state)
    return options, models, content['categories'], content['masks']
