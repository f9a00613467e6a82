"""Images whose classes are the folders that they lie in, of folders or of tars (ImageNet's layout)."""
import os
from pathlib import Path

import numpy as np

from common.images.datasets import timm_dataset
from common.images.files import ImageFiles
from common.images.finding import find_files, folders_of, in_words, why_without_images
from common.images.reading import AS_IT_IS
from common.images.shards import TarShards, is_sharded
from common.images.splits import TAR_ENDINGS, validation_among
from common.words import first_of, printable
from downstream_imagenet.data import class_to_index
from downstream_imagenet.layout import training_source, validation_source

# The most images beside the folders of the classes, such as an overview of them, that are left out.
LOOSE = 10
NO_LAYOUT = "is not in ImageNet's layout, one folder for each class with its images"
CLASS_FILES = ('.cls', '.json', '.txt')  # in which WebDataset may have the class of an image, beside it


class InClassFolders:
    """A mix-in for ImageFiles and its subclasses: the class of an image is the first folder of its path.

    Items are (image, class).

    classes: their names, in the order of their numbers. labels: the class of each image, (N,).

    A class that takes it in has `place_of_classes`, where the folders are, in words, and two methods.
    empty_because(name) is why a class has no image, as the end of a sentence whose subject is the class.
    against_loose_ones(folders) is what to do about images in no folder, where there are these folders.
    """

    @property
    def rows(self):
        return *super().rows, 'labels'

    def __getitem__(self, index):
        return super().__getitem__(index), int(self.labels[index])

    def set_classes(self, folders, classes=None):
        """Find the classes in the paths, and leave out up to LOOSE images that are in no folder.

        folders: the names of the folders that there are, a set. classes: as of LabelledFolder. Raises ValueError.
        """
        self.leave_loose_ones(folders)
        names = [first_part(path) for path in self.paths]
        empty = sorted(folders - set(names))
        if empty:
            which = f'the classes {first_of(empty)} of {self.root} have'
            if len(empty) == 1:
                which = f'the class {printable(empty[0])} of {self.root} has'
            raise ValueError(f'{which} no image that is read: {printable(empty[0])} '
                             f'{self.empty_because(empty[0])}')
        self.classes = sorted(set(names)) if classes is None else list(classes)
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise ValueError(f'{self.root} has classes that the training images do not have: '
                             f'{first_of(unknown)}. Classes are the folders {self.place_of_classes}: add '
                             'images of these to the training images, or take the folders away')
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = np.array([number[name] for name in names])

    def leave_loose_ones(self, folders):
        """Leave out images that are in none of the folders of classes.

        Raises ValueError for more than LOOSE of them, and if there are no folders.
        """
        in_class = np.array([os.fsencode(os.sep) in path for path in self.paths.tolist()])
        loose = [os.fsdecode(path) for path in self.paths[~in_class]]
        if len(loose) > LOOSE or not folders:
            number = f'{len(loose):,} image{"s" * (len(loose) > 1)}'
            beside = f'beside the folders {first_of(sorted(folders), 3)}' if folders else 'and no folders'
            raise ValueError(f'{self.root} {NO_LAYOUT}: it holds {number} ({first_of(loose, 3)}) {beside}: '
                             f'{self.against_loose_ones(folders)}')
        if loose:
            what = f'image{"s" * (len(loose) > 1)} beside the folders of the classes ({first_of(loose, 3)})'
            self.left_out[what] = len(loose)
            for name in super().rows:
                setattr(self, name, getattr(self, name)[in_class])


class LabelledFolder(InClassFolders, ImageFiles):
    """Images in ImageNet's layout, with a folder for each class. Items are (image, class).

    source: the folder that holds the folders. in_chans: 1 or 3. reading: a Reading.
    classes: their names, in the order of their numbers; if not given, those of the folders, sorted.

    labels: the class of each image, (N,).

    Up to LOOSE images that are in none of these folders are left out and counted. Raises ValueError for more
    of them, for a class that is not among `classes`, and for one without an image that is read.
    """
    place_of_classes = 'directly in it'

    def __init__(self, source, in_chans=3, classes=None, reading=AS_IT_IS):
        super().__init__(source, in_chans, reading=reading)
        if not Path(source).is_dir():
            raise ValueError(f'{source} {NO_LAYOUT}')
        self.set_classes(set(folders_of(source)), classes)

    def empty_because(self, name):
        return why_without_images(Path(self.root, name))

    def against_loose_ones(self, folders):
        advice = 'move each into the folder of its class, or away' if folders else 'sort them into such'
        if next(find_files(self.root, TAR_ENDINGS), None) is not None:
            advice += '; tars are read where there are no images beside them'
        return advice


class LabelledTars(InClassFolders, TarShards):
    """The images of a tar, or of all tars in a folder, with a folder for each class inside of them. Items are
    (image, class).

    They are those of a LabelledFolder of the same files unpacked, in the same order and with the same
    classes. The arguments, the attributes and the errors are the same, too. Besides, ValueError is raised for
    tars that TarShards refuses, and for tars that hold train/ and val/.
    """
    place_of_classes = 'at the top inside of its tars'

    def __init__(self, source, in_chans=3, classes=None, reading=AS_IT_IS):
        super().__init__(source, in_chans, reading)
        held_out = validation_among(self.folders)
        if held_out:
            raise ValueError(f'{source} holds train/ and {held_out}/ inside of its tars, which would be two '
                             'classes: pack each into a tar of its own, with the folders of the classes at its '
                             f'top (tar -C train -cf train.tar . and tar -C {held_out} -cf {held_out}.tar .)')
        self.set_classes(self.folders, classes)

    def empty_because(self, name):
        left_out = self.left_out_of(name).counted()
        return f'holds {in_words(left_out)}' if left_out else 'is empty'

    def against_loose_ones(self, folders):
        advice = 'pack each image as CLASS/NAME, in the folder of its class inside of the tar'
        beside = [ending for ending in CLASS_FILES if ending in self.left_out_of().files]
        if beside:
            advice += f'; classes are not read from files beside the images ({", ".join(beside)})'
        return advice


def first_part(path):
    """The first folder of a path in bytes, or the file if it is in none."""
    return os.fsdecode(path).split(os.sep, 1)[0]


def labelled_files(source, in_chans=3, classes=None, reading=AS_IT_IS):
    """A LabelledFolder; LabelledTars for a tar and for a folder of tars. The arguments are those of both."""
    kind = LabelledTars if is_sharded(source) else LabelledFolder
    return kind(source, in_chans, classes, reading)


def find_labelled(data_path, val_path=None, dataset=None, in_chans=3, reading=AS_IT_IS, divided=False):
    """The data sets of training and of validation images, whose items are (image, class). Raises ValueError.

    data_path: a folder in ImageNet's layout. val_path: the folder or the tar of the validation images, if it is another.
    dataset: timm's name of a data set, which is read instead, with data_path as its root.
    divided: whether the training images will be divided into both. The validation images are None then.
    """
    if dataset is not None:
        images = timm_dataset(dataset, data_path, 'train', in_chans)
        if divided:
            return images, None
        val = timm_dataset(dataset, data_path, 'validation', in_chans)
        if class_to_index(images) != class_to_index(val):
            raise ValueError(f'{dataset} numbers the classes of its validation images in another way than '
                             'those of its training images, since not all have both: for folders leave '
                             '--dataset out')
        return images, val
    train = training_source(data_path, val_path, divided)
    val = None if divided else validation_source(data_path, val_path)
    images = labelled_files(train, in_chans, reading=reading)
    return images, None if divided else labelled_files(val, in_chans, images.classes, reading)
