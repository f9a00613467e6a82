"""A part of a data set that is held out: never trained on, for where there is no folder of such images.

Which images it has is a function of a seed and of their names alone. It is therefore the same after a resume, on any
number of ranks, in every program, and with any version of NumPy and torch. Of other images, others are held out.
"""
import hashlib
import os
import sys
from itertools import chain

import numpy as np

from common.images.datasets import Share, whole_of
from common.images.files import ImageFiles

NAMES_AT_A_TIME = 2 ** 16  # names that are in memory as Python's objects


def with_held_out(images, held_out, fraction, seed, labels=None):
    """(training images, held-out images): those that are given, or a part of the training images.

    images: a map-style data set. held_out: another one, or None if there is none. fraction: the share of the images
    to hold out; None for none.

    labels: the class of each image, (N,). If given, the same share of every class is held out, at least one image of
    it, but none of a class that has a single one. If not, round(fraction * N) images are held out, at least one.
    Images of one name, as a list may have them, are not parted.

    Raises ValueError if there are held-out images besides, or if none would be left to train on or to hold out.
    """
    if fraction is None:
        return images, held_out
    if held_out is not None:
        where = getattr(whole_of(held_out), 'root', f'in a data set ({type(held_out).__name__})')
        raise ValueError(f'--val_fraction={fraction:g} holds out a part of the training images, and there are held-out '
                         f'images already, {where}: leave --val_fraction out to use those, or take them away')
    is_held_out = chosen(keys_of(images, seed), fraction, labels)
    if is_held_out.all() or not is_held_out.any():
        what = 'none to hold out, since each class has a single image' if labels is not None else 'none to train on'
        raise ValueError(f'--val_fraction={fraction:g} of {len(images):,} images leaves {what}: give more images, or '
                         'another --val_fraction')
    training = part_of(images, np.flatnonzero(~is_held_out), labels)
    part = part_of(images, np.flatnonzero(is_held_out), labels)
    if isinstance(part, ImageFiles):
        part.forget_left_out()  # The training images tell of it.
    return training, part


def chosen(keys, fraction, labels=None):
    """Which images are held out, (N,) bool: those with the smallest keys (N,), of all of them or of each class."""
    is_held_out = np.zeros(len(keys), bool)
    for places in groups_of(len(keys), labels):
        number = max(1, round(fraction * len(places)))
        if labels is not None:
            number = min(number, len(places) - 1)
        if number:
            is_held_out[places] = keys[places] <= np.sort(keys[places])[number - 1]
    return is_held_out


def groups_of(number, labels):
    """The places of the images that are divided together: all of them, or those of each class."""
    if labels is None:
        return [np.arange(number)]
    labels = np.asarray(labels)
    order = np.argsort(labels, kind='stable')
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def keys_of(images, seed):
    """A number for each image of a data set, (N,) uint64: the beginning of the SHA-256 of the seed and its name."""
    start = f'held out, {seed}: '.encode()

    def key(name):
        return int.from_bytes(hashlib.sha256(start + name).digest()[:8], 'big')

    return np.fromiter(map(key, names_of(images)), np.uint64, len(images))


def names_of(images):
    """The name of each image in bytes: its path below the data set's folder, else what `name` says, else its number."""
    if isinstance(images, ImageFiles):
        some = (images.paths[first:first + NAMES_AT_A_TIME].tolist() for first in range(0, len(images), NAMES_AT_A_TIME))
        return (path.replace(os.fsencode(os.sep), b'/') for path in chain.from_iterable(some))
    name = getattr(images, 'name', None)
    return (os.fsencode(str(name(index) if callable(name) else index)) for index in range(len(images)))


def part_of(images, places, labels=None):
    """The images of a data set at some places: image files as a data set of their kind, others as a Share."""
    if isinstance(images, ImageFiles):
        return images.subset(places)
    return Share(images, places, None if labels is None else np.asarray(labels)[places])


def warn_of_division(options, then):
    """Warn where the images that --val_fraction holds out of those of --eval are not those that the run held out.

    then: the options of the run, as a dictionary.
    """
    fraction, seed = then.get('val_fraction'), then.get('seed')
    if options.val_fraction is not None and (fraction, seed) != (options.val_fraction, options.seed):
        given = 'without --val_fraction' if fraction is None else f'with --val_fraction={fraction:g} --seed={seed}'
        print(f'warning: {options.eval} was trained {given}: if these are the same images, it has seen some of those '
              'that it is measured on', file=sys.stderr)
