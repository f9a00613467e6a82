"""Frozen features of labelled images, computed once, for k-NN and the linear probe."""
from dataclasses import dataclass
from pathlib import Path

import torch

from common.cli import option
from common.config import ImageOptions, require
from common.distributed import this_process
from common.feature_maps import pooled_features
from common.images.augmented import Augmented
from common.images.datasets import not_looked_at
from common.images.loading import naming_the_file
from common.images.survey import warn_of
from common.live_line import LiveLine
from common.networks.create import create_cnn, try_size, warn_of_normalisation
from common.networks.load import load_classifier
from common.networks.users import USERS_NETWORKS, register
from common.seeds import seed_for
from common.training.run import autocast, loading_processes
from downstream_imagenet.data import evaluation_transform, labelled_once
from downstream_imagenet.labelled import labelled_images


@dataclass(frozen=True)
class Options(ImageOptions):
    """What a user decides: images, a network, where its weights come from. Raises ValueError."""

    weights: str = option(None, "file of weights: ours, official, timm's or torchvision's, or of a "
                          "fine-tuned run", 'weights', ('finetune_from',), str)
    random: bool = option(False, 'no weights: the untrained network, as a baseline', 'weights')
    timm: bool = option(False, "timm's own (supervised) weights, as a baseline", 'weights')

    data_path: str = option(None, "a folder in ImageNet's layout: train/ and val/ with a folder a class, or with "
                            'tars that have a folder a class inside; with --val_fraction one such folder is '
                            'enough', 'data', parse=str)
    val_path: str = option(None, 'folder or tar of validation images; val/, valid/ or validation/ in data_path '
                           'if not given', 'data', parse=str)
    num_classes: int = option(None, 'counted if not given', 'data', parse=int)
    label_fraction: float = option(1.0, 'share of the training images of each class that are used', 'data')
    crop: float = option(None, 'share of an image in the crop; 0.95 if not given, from 384 px on all', 'data',
                         parse=float)
    batch_size: int = option(64, 'images at a time', 'machine', ('bs',))
    register: str = option(USERS_NETWORKS, 'module in which your own networks are registered with timm',
                           'method', parse=str)

    augmentation = 'none'

    def __post_init__(self):
        super().__post_init__()
        require((self.weights is not None) + self.random + self.timm == 1,
                'say which weights: one of --weights=FILE, --random and --timm')
        require(0 < self.label_fraction <= 1,
                f'label_fraction must be more than 0 and at most 1, not {self.label_fraction}')
        require(self.crop is None or 0 < self.crop <= 1,
                f'crop must be more than 0 and at most 1, not {self.crop}')

    @property
    def evaluated_size(self):
        return self.size

    @property
    def source(self):
        """What the weights are, in words."""
        if self.random:
            return 'random weights'
        return "timm's weights" if self.timm else str(Path(self.weights).name)


@dataclass(frozen=True)
class Features:
    """The features x (N, C) float32 and classes y (N,) of the training and the validation images, on the device.

    classes: the names of the classes.
    """
    x: torch.Tensor
    y: torch.Tensor
    val_x: torch.Tensor
    val_y: torch.Tensor
    classes: list


def compute(options, dataset=None, val_dataset=None, say=print):
    """The Features of all images, each centre-cropped once, by the network in evaluation mode.

    dataset, val_dataset: data sets of (image, class), for training and validation; those of the options if not given.
    say: called with texts for the user. Raises ValueError for images, weights and options that cannot be used.
    """
    register(options.register)
    images, val, classes = labelled_images(options, dataset, val_dataset)
    for warning in warn_of(images, options):
        say(f'warning: {warning}')
    cnn = network(options, say)
    ranks = this_process()
    cnn = cnn.to(ranks.device, memory_format=torch.channels_last).eval()
    say(f'{options.model}, {options.source}: features of {len(images):,} training and {len(val):,} '
        f'validation images of {len(classes)} classes')
    notes = not_looked_at(images, val, 'validation')
    if notes:
        say(notes.strip())
    augmented = [Augmented(each, evaluation_transform(options), options.normalisation, labelled=True,
                           stand_ins=False) for each in (images, val)]
    line = LiveLine(say)
    with naming_the_file(*augmented), line.counting('features, training', len(images)) as count:
        x, y = features_of(cnn, augmented[0], len(classes), options, ranks, line.say, count)
        count.start('features, validation', len(val))
        val_x, val_y = features_of(cnn, augmented[1], len(classes), options, ranks, line.say, count)
    return Features(x, y, val_x, val_y, classes)


def network(options, say):
    """The network of the options, with their weights, on the CPU. Raises ValueError."""
    torch.manual_seed(seed_for('weights', options.seed))
    cnn = create_cnn(options.model, options.in_chans, input_size=options.size)
    try_size(cnn, options.model, options.size, options.in_chans)
    if not options.random:
        source = 'timm' if options.timm else options.weights
        loaded = load_classifier(cnn, source, options.model, options.size, options.in_chans,
                                 options.adapt_input_conv)
        say(f'{options.source}: {loaded}')
        if options.timm and (said := warn_of_normalisation(options.model, options.normalisation)):
            say(f'warning: {said}')
    return cnn


@torch.no_grad()
def features_of(cnn, augmented, number, options, ranks, say, count=None):
    """The features (N, C) float32 and classes (N,) of the images that can be read; number: of classes. count:
    a Count of the images, if given.
    """
    features = []
    labels = []
    workers = loading_processes(options, ranks)
    for x, classes in labelled_once(augmented, number, options.batch_size, workers, ranks, say, count=count):
        with autocast(options, ranks):
            features.append(pooled_features(cnn, x).float())
        labels.append(classes)
    if not features:
        raise ValueError('none of the images can be read')
    return torch.cat(features), torch.cat(labels)


def accuracy(scores, classes):
    """(top-1, top-5) in percent, given scores (N, K) and classes (N,)."""
    is_right = scores.topk(min(5, scores.shape[1]), dim=1).indices == classes[:, None]
    top1 = is_right[:, 0].float().mean().item()
    top5 = is_right.any(1).float().mean().item()
    return 100 * top1, 100 * top5
