"""The images and objects of an annotation file in COCO's format: which of them are used, and what is left out and why."""
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from torchvision.transforms import functional as F

from common.images.files import ImageFiles, fits_turned
from common.images.held_out import with_held_out
from common.images.path_lists import inside
from common.images.reading import AS_IT_IS
from downstream_coco.annotations import read_annotations
from downstream_coco.layout import require_folder


class CocoImages(ImageFiles):
    """The images that an annotation file in COCO's format names, and their objects.

    Items are (image, objects). image: as of ImageFiles. objects: {'boxes': (N, 4), x1 y1 x2 y2 in pixels;
    'labels': [N], from 1 on; 'segmentations': [N] as in the file, or None where masks are not used}.

    folder: that the names in the file start from. annotations: the path of the file. in_chans: 1 or 3.
    categories: [{'id', 'name'}] of the training images; those of the file if not given.
    keep_empty: whether images without objects are used too.
    masks: whether objects need a mask; if None, they do where most of them are given one.
    reading: a Reading. line: a LiveLine that shows how far the reading of the file has come.

    own_categories: as categories, with the ids of the file, None for those that the file lacks.
    has_masks: whether objects have masks. ids: of the images. shapes: (images, 2), height and width.
    notes: what is left out, in words. remarks: sentences on what is wrong with the file.

    Raises ValueError for a file that cannot be used, and for files that do not belong together.
    """

    rows = ('paths', 'shapes')

    def __init__(self, folder, annotations, in_chans=3, categories=None, keep_empty=False, masks=None,
                 reading=AS_IT_IS, line=None):
        content = read_annotations(annotations, line)
        if in_chans not in (1, 3):
            raise ValueError(f'image files are read with 1 or 3 channels, not {in_chans}')
        self.root = Path(folder)
        self.mode = 'RGB' if in_chans == 3 else 'L'
        self.annotations = str(annotations)
        self.reading = reading
        self.set_categories(content['categories'], categories)
        require_folder(folder)
        paths = self.find(content['images'])
        images = {image['id']: image for image in content['images'] if paths[image['id']] is not None}
        missing = [image['file_name'] for image in content['images'] if paths[image['id']] is None]
        # Bad masks count as given. A file with many of them is refused; it does not become one without masks.
        is_given = [bool(given) for annotation, given in zip(content['annotations'], content['checks'].given)
                    if annotation['image_id'] in images and not annotation['iscrowd']]
        self.has_masks = 2 * sum(is_given) > len(is_given) if masks is None else masks
        self.remarks = content['checks'].judge(masks) + self.renamed_categories()
        self.left_out = Counter()
        found = self.sort_out([annotation for annotation in content['annotations']
                               if annotation['image_id'] in images], images)
        if masks is None and not self.has_masks and any(is_given):
            self.remarks.append(f'{annotations}: the masks of {sum(is_given):,} objects are not used, since '
                                f'the other {len(is_given) - sum(is_given):,} have none: --heads=mask uses '
                                'them')
        if missing:
            self.left_out[f'images that are not in the folder ({missing[0]}, ...)'] = len(missing)
        kept = [key for key in images if keep_empty or found[key]['labels']]
        if len(kept) < len(images):
            self.left_out['images without objects'] = len(images) - len(kept)
        if not any(found[key]['labels'] for key in kept):
            raise ValueError(f'{annotations} has no object that can be used'
                             + (f': left out are {self.notes}' if self.left_out else ''))
        self.ids = [images[key]['id'] for key in kept]
        self.shapes = np.array([(images[key]['height'], images[key]['width']) for key in kept])
        # These are arrays, which loading processes share. The reference counts of lists would have them
        # copied into each.
        self.paths = np.array([os.fsencode(paths[key]) for key in kept])
        texts = [json.dumps(found[key]).encode() for key in kept]
        self.texts = np.frombuffer(b''.join(texts), np.uint8)
        self.ends = np.cumsum([0, *map(len, texts)])

    def set_categories(self, listed, categories):
        """Set categories, own_categories, and label, {id of a category in the file: its label}. Raises ValueError.

        listed: the categories of the file. categories: those of the training images, or None.
        """
        own = [{'id': category['id'], 'name': str(category.get('name', category['id']))}
               for category in listed]
        if categories is None:
            categories = sorted(own, key=lambda category: (str(type(category['id'])), category['id']))
        self.categories = categories
        self.label = labels_of(own, self.categories, self.annotations)
        self.own_categories = [{**category, 'id': None} for category in self.categories]
        for key, label in self.label.items():
            self.own_categories[label - 1]['id'] = key

    def renamed_categories(self):
        """Sentences, none or one, on categories that have other ids than in the training images."""
        renamed = [(own, category) for own, category in zip(self.own_categories, self.categories)
                   if own['id'] is not None and own not in self.categories]
        if not renamed:
            return []
        own, category = renamed[0]
        return [f'{self.annotations}: {len(renamed)} categories have other ids than in the training images, '
                f'and are told by their names; for example {own["name"]}, {own["id"]!r} here and '
                f'{category["id"]!r} there']

    def find(self, images):
        """{image id: the path of its file below the folder, None if there is no such file}. Raises ValueError.

        Backslashes, as Windows has them between folders, are taken as slashes where no file has the name as it is.
        """
        found = {}
        as_written = {image['id']: image['file_name'] for image in images}
        with_slashes = {key: name.replace('\\', '/') for key, name in as_written.items() if '\\' in name}
        for names in (as_written, with_slashes):
            wanted = [key for key in names if found.get(key) is None]
            for key, path in zip(wanted, inside([names[key] for key in wanted], self.root)):
                if path is None:
                    raise ValueError(f'{self.annotations} names {names[key]!r}, which does not lie below '
                                     f'{self.root}: give the folder that all its images lie below, and names '
                                     'from there on')
                found[key] = path if os.path.isfile(self.root / path) else None
        if not any(found.values()):
            raise ValueError(self.nothing_found(images))
        return found

    def nothing_found(self, images):
        """The message where none of the images is in the folder."""
        name = images[0]['file_name'].replace('\\', '/')
        last = name.rsplit('/', 1)[-1]
        advice = ''
        if last != name and os.path.isfile(self.root / last):
            advice = (f'. {last} itself is there: give the folder in which {name} lies, or take the folders '
                      'out of the names')
        return (f'none of the {len(images)} images that {self.annotations} names is in {self.root}, for '
                f'example {images[0]["file_name"]}: give the folder that belongs to that file{advice}')

    def sort_out(self, annotations, images):
        """{image id: its objects} of the annotations that can be trained on; the others are counted in left_out."""
        found = {key: {'boxes': [], 'labels': [], 'segmentations': [] if self.has_masks else None}
                 for key in images}
        for annotation in annotations:
            objects = found[annotation['image_id']]
            if annotation['iscrowd']:
                self.left_out['crowd regions (evaluation alone takes note of them)'] += 1
            elif annotation['box'] is None:
                self.left_out['boxes without area in the image'] += 1
            elif self.has_masks and annotation['segmentation'] is None:
                self.left_out['objects without a mask that fits the image'] += 1
            elif self.has_masks and annotation.get('contradicts'):
                self.left_out['objects whose mask does not fit their box'] += 1
            else:
                objects['boxes'].append(annotation['box'])
                objects['labels'].append(self.label[annotation['category_id']])
                if self.has_masks:
                    objects['segmentations'].append(annotation['segmentation'])
        return found

    def subset(self, places):
        part = super().subset(places)
        texts = [self.texts[self.ends[place]:self.ends[place + 1]] for place in places]
        part.texts = np.concatenate(texts)
        part.ends = np.cumsum([0, *map(len, texts)])
        part.ids = [self.ids[place] for place in places]
        return part

    def with_objects(self):
        """The images that have objects; the others are counted in left_out. Raises ValueError if there are none."""
        places = [place for place in range(len(self)) if self.objects(place)['labels']]
        if not places:
            raise ValueError(f'{self.annotations}: none of the images to train on has an object: give another '
                             '--val_fraction or --seed')
        part = self.subset(places)
        if len(places) < len(self):
            part.left_out = self.left_out + Counter({'images without objects': len(self) - len(places)})
        return part

    @property
    def upright(self):
        """Which images are higher than wide, (images,) bool."""
        return self.shapes[:, 0] > self.shapes[:, 1]

    @property
    def notes(self):
        """What is left out, in words; empty if nothing is."""
        return ', '.join(f'{count:,} {what}' for what, count in self.left_out.items())

    @property
    def most(self):
        """The number of objects of the image that has most of them."""
        return max(len(self.objects(index)['labels']) for index in range(len(self)))

    @property
    def digest(self):
        """A short text that is the same for the same images and objects."""
        return hashlib.sha256(self.texts.tobytes() + repr(self.ids).encode()).hexdigest()

    def fingerprint(self):
        return self.digest

    def objects(self, index):
        """The objects of an image, with the boxes as a list."""
        return json.loads(bytes(self.texts[self.ends[index]:self.ends[index + 1]]))

    def is_to_turn(self, image, index):
        """Whether the image has the size in the annotations only after it is turned by 90 degrees."""
        return fits_turned(image, self.shapes[index])

    def __getitem__(self, index):
        image = super().__getitem__(index)
        _, height, width = F.get_dimensions(image)
        if (height, width) != tuple(self.shapes[index]):
            raise ValueError(f'it is {width}x{height}, the annotations say '
                             f'{self.shapes[index][1]}x{self.shapes[index][0]}')
        objects = self.objects(index)
        return image, {**objects, 'boxes': np.array(objects['boxes'], float).reshape(-1, 4)}


def labels_of(own, categories, path):
    """{id: label} of the categories `own` of an annotation file, by the names of `categories`, whose first
    has label 1.

    Both are [{'id', 'name'}]. path: of the file. Raises ValueError for a name that is not among them, or that
    several have.
    """
    labels = {}
    for category in own:
        exact = [label for label, known in enumerate(categories, 1) if known == category]
        found = exact or [label for label, known in enumerate(categories, 1)
                          if known['name'] == category['name']]
        what = f'{path} has the category {category["id"]} ({category["name"]}), which '
        if not found:
            names = ', '.join(known['name'] for known in categories[:20]) + ', ...' * (len(categories) > 20)
            raise ValueError(f'{what}the training images do not have; theirs are {names}')
        if len(found) > 1 or found[0] in labels.values():
            raise ValueError(f'{what}cannot be told by its name: several have it')
        labels[category['id']] = found[0]
    return labels


def divided_images(options, masks, categories=None, line=None):
    """(training images, validation images): the training images of the options, of which --val_fraction holds out a
    share. Images without objects are held out as well.

    masks, categories, line: as of CocoImages. Raises ValueError.
    """
    given = [path for path in (options.val_images, options.val_annotations) if path]
    if options.data_path is not None:
        given += [path for path in options.files('val') if Path(path).exists()]
    if given:
        raise ValueError(f'--val_fraction holds out a part of the training images, and there are validation images '
                         f'already, {given[0]}: leave --val_fraction out to use those, or take them away')
    images = CocoImages(*options.files('train'), options.in_chans, categories, True, masks, options.reading, line)
    images, val = with_held_out(images, None, options.val_fraction, options.seed)
    return images if options.keep_empty else images.with_objects(), val
