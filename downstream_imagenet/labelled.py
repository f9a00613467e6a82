"""The images with classes that the options of a program name, or that are given in code: to train on, and to measure on."""
from pathlib import Path

import numpy as np

from common.images.held_out import with_held_out
from common.images.splits import is_tar
from common.start import said_if_long
from downstream_imagenet.class_folders import find_labelled, labelled_files
from downstream_imagenet.data import all_labels, check_labelled, check_same_classes, class_names, share_of
from downstream_imagenet.layout import training_source, validation_source


def labelled_images(options, dataset=None, val_dataset=None):
    """(training images, validation images, names of the classes) of the options, with their shares of both.

    dataset, val_dataset: data sets of (image, class) instead of the paths in the options. Raises ValueError for
    images that cannot be used.
    """
    images, val = dataset, val_dataset
    if dataset is None:
        with said_if_long(f'Looking for images in {options.data_path or options.dataset}'):
            images, val = find_labelled(options.data_path, options.val_path, options.dataset, options.in_chans,
                                        options.reading, options.val_fraction is not None)
    if val is None and options.val_fraction is None:
        raise ValueError('give a val_dataset beside dataset, or val_fraction=0.1: an accuracy needs images that are not '
                         'trained on')
    classes = class_names(images, options.num_classes)
    check_labelled(images, options, len(classes))
    images, val = with_part(images, val, options)
    check_same_classes(val, classes)
    check_labelled(val, options, len(classes), augmented=False)
    return share_of(images, options.label_fraction, options.seed), val, classes


def with_part(images, val, options):
    """(training images, validation images): those that are given, or with val_fraction a share of each class."""
    if options.val_fraction is None:
        return images, val
    return with_held_out(images, val, options.val_fraction, options.seed, np.array(all_labels(images)))


def measured_folder(options, classes):
    """The validation images of the folders or tars that the options name. Raises ValueError.

    classes: the names, in the order of the network's outputs.
    """
    if options.val_fraction is None:
        source = validation_source(options.data_path, options.val_path)
        return labelled_files(source, options.in_chans, classes, options.reading)
    source = training_source(options.data_path, options.val_path, True)
    images = labelled_files(source, options.in_chans, classes, options.reading)
    return with_part(images, None, options)[1]


def held_out_of_run(options, folder):
    """The images of a folder or a tar that a run held out, by its options, as image files. Raises ValueError."""
    if options.val_fraction is None:
        raise ValueError('this network was not trained with --val_fraction, so that no images were held out by it: leave '
                         '--held_out away, and name the images')
    if options.dataset is not None:
        raise ValueError(f'this network was trained with --dataset={options.dataset}, and --held_out is for images in folders '
                         'and tars: leave it out, and name the images')
    if folder is None or not Path(folder).is_dir() and not is_tar(folder):
        known = 'the run does not name it' if folder is None else f'there is no {folder}'
        raise ValueError(f'--held_out needs the folder or the tar that the run was trained on, its --data_path, and {known}')
    images = labelled_files(training_source(folder, None, True), options.in_chans, reading=options.reading)
    return with_part(images, None, options)[1]
