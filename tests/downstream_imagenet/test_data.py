"""Images, classes and labels, how they are mixed and augmented, and which ones are refused."""
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from common.images.augmented import Augmented
from downstream_imagenet.class_folders import LabelledFolder, find_labelled
from downstream_imagenet.classifier import Classifier
from downstream_imagenet.data import (
    Mixing,
    all_labels,
    check_labelled,
    check_same_classes,
    class_names,
    evaluation_transform,
    labels_of,
    share_of,
    training_transform,
)
from downstream_imagenet.main import fine_tune
from tests.downstream_imagenet.runs import parse, picture

# -- data -------------------------------------------------------------------------------------------------------------

def test_imagenets_layout(tmp_path):
    for i, name in enumerate(('train/b/1.png', 'train/a/x/2.png', 'train/b/3.png', 'val/b/4.png')):
        picture(tmp_path / name, i)
    images, val = find_labelled(tmp_path)
    assert images.classes == val.classes == ['a', 'b'] and [images[i][1] for i in range(3)] == [0, 1, 1] and val[0][1] == 1
    picture(tmp_path / 'val/c/5.png')
    with pytest.raises(ValueError, match='classes that the training images do not have: c'):
        find_labelled(tmp_path)
    (tmp_path / 'flat').mkdir()
    picture(tmp_path / 'flat/6.png')
    with pytest.raises(ValueError, match="not in ImageNet's layout"):
        LabelledFolder(tmp_path / 'flat')
    with pytest.raises(ValueError, match='no folder .*none/train'):
        find_labelled(tmp_path / 'none')


def test_classes_are_counted_and_named(labelled):
    images, _ = find_labelled(labelled)
    assert class_names(images) == images.classes and len(class_names(images, 20)) == 20
    with pytest.raises(ValueError, match='more than --num_classes=3'):
        class_names(images, 3)
    with pytest.raises(ValueError, match='give --num_classes'):
        class_names([(torch.zeros(3, 8, 8), 0)])
    assert class_names([(torch.zeros(3, 8, 8), 0)], 3) == ['0', '1', '2']
    with pytest.raises(ValueError, match='must be .image, class.'):
        check_labelled([torch.zeros(3, 8, 8)], parse('--augment=none'), 2)
    with pytest.raises(ValueError, match='--augment=none'):
        check_labelled([(torch.zeros(3, 8, 8), 0)], parse(''), 2)
    timms = timm.data.create_dataset('folder/', root=str(labelled), split='train')
    assert class_names(timms) == images.classes


def test_a_share_of_the_labels_is_of_each_class_and_a_function_of_the_seed(labelled):
    images, _ = find_labelled(labelled)
    half, again, other = (share_of(images, 0.5, seed) for seed in (0, 0, 1))
    assert len(half) == 24 and half.indices.tolist() == again.indices.tolist() != other.indices.tolist()
    assert sorted(half[i][1] for i in range(24)) == sorted([*range(12)] * 2)
    assert len(share_of(images, 0.01, 0)) == 12 and share_of(images, 1, 0) is images


def test_mixing_by_hand():
    x, y = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1])  # odd
    images, targets = Mixing(parse('--mixup=0.8 --cutmix=0'), 3)(x, y, 7)
    share = images[1, 0, 0, 0].item()  # of 1 with 0, the one before it in the roll: share * 1 + (1 - share) * 0
    one_hot = torch.eye(3)[y]
    expected = (share * one_hot + (1 - share) * one_hot.roll(1, 0)) * 0.9 + 0.1 / 3
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(images[:, 0, 0, 0], share * torch.arange(5.0) + (1 - share) * torch.arange(5.0).roll(1))
    again, _ = Mixing(parse('--mixup=0.8 --cutmix=0'), 3)(x, y, 7)
    assert torch.equal(images, again)
    images, targets = Mixing(parse('--mixup=0 --cutmix=1 --smoothing=0'), 3)(x, y, 3)
    pasted = (images[1, 0] == 0).float().mean()
    assert 0 < pasted < 1 and targets[1].tolist() == pytest.approx([pasted.item(), 1 - pasted.item(), 0])
    images, targets = Mixing(parse('--mixup=0 --cutmix=0'), 3)(x, y, 3)
    assert torch.equal(images, x) and targets[0].tolist() == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    both = Mixing(parse(''), 3)
    assert len({round(both(x, y, seed)[1][1].max().item(), 4) for seed in range(9)}) > 5


def test_losses_by_hand():
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.7, 0.3]])
    bce, ce = (Classifier(nn.Identity(), loss)(logits, targets).item() for loss in ('bce', 'ce'))
    p = torch.sigmoid(logits)[0].tolist()
    assert bce == pytest.approx(-sum(t * np.log(q) + (1 - t) * np.log(1 - q) for t, q in zip((0.7, 0.3), p)) / 2)
    s = torch.softmax(logits, 1)[0].tolist()
    assert ce == pytest.approx(-0.7 * np.log(s[0]) - 0.3 * np.log(s[1]))


def test_transforms(labelled):
    images, _ = find_labelled(labelled)
    for line in ('--img_size=32', '--img_size=32,48 --augment=v0', '--img_size=384'):
        options = parse(line)
        for transform in (training_transform(options), evaluation_transform(options)):
            item = Augmented(images, transform, options.normalisation, labelled=True)[(0, 7)]
            assert item[0].shape == (3, *options.size) and item[1] == images[7][1] and not item[2]
    ramp = torch.linspace(0, 1, 100).expand(1, 100, 100)
    cut = evaluation_transform(parse('--img_size=95'))(ramp)
    assert cut[0, 0, 0] == pytest.approx(0.02, abs=0.01) and cut.shape == (1, 95, 95)


# -- what went wrong once ---------------------------------------------------------------------------------------------

def test_auto_augment_takes_every_image(labelled):
    options, (images, _) = parse('--img_size=32 --augment=v0'), find_labelled(labelled)
    augmented = Augmented(images, training_transform(options), options.normalisation, labelled=True)
    assert all(augmented[(epoch, 3)][2] == [] for epoch in range(200))


@pytest.mark.parametrize('augment', ['v0', 'rand-m9-mstd0.5-inc1'])
def test_timms_augmentations_interpolate_as_the_crops_do(augment):
    steps = training_transform(parse(f'--img_size=32 --augment={augment}')).transforms
    automatic = steps[-1].augment
    operations = automatic.ops if augment != 'v0' else [operation for policy in automatic.policy for operation in policy]
    assert len(operations) > 10 and {operation.kwargs['resample'] for operation in operations} == {Image.Resampling.BICUBIC}


def test_images_that_cannot_be_augmented_end_the_run(small, tmp_path):
    for i in range(8):
        picture(tmp_path / f'w/train/{i % 2}/{i}.png', i)
        picture(tmp_path / f'w/val/{i % 2}/{i}.png', i)
    Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(tmp_path / 'w/train/1/7.png')
    with pytest.raises(ValueError, match=r'image .*7.png can be read, but not be prepared: .*--augment=none'):
        fine_tune(small(data_path=str(tmp_path / 'w'), in_chans=1, batch_size=8))


@pytest.mark.parametrize(('label', 'word'), [(2, 'an image has class 2, but there are 2 classes'), (-1, 'class -1'),
                                             (0.7, 'must be a number'), (torch.tensor([0, 1]), 'must be a number')])
def test_labels_that_are_none(small, label, word):
    images = [(torch.zeros(3, 20, 20), label)] * 6
    with pytest.raises(ValueError, match=word):
        fine_tune(small(num_classes=2, data_path=None, augment='none'), images, images)


class Listed(list):
    """A data set of (image, class) that names its classes."""
    classes = ['cat', 'dog']


def test_classes_of_validation_images_have_the_same_numbers(small):
    """Else a folder that lacks a class would shift the numbers of all later ones, and the accuracy would be wrong."""
    images, val = Listed([(torch.zeros(3, 20, 20), 0)] * 12), Listed([(torch.zeros(3, 20, 20), 0)] * 6)
    val.classes = ['dog']
    with pytest.raises(ValueError, match=r'other classes \(dog, ...\) than the training images \(cat, dog'):
        fine_tune(small(data_path=None, augment='none'), images, val)
    check_same_classes([], ['cat', 'dog'])
    val.classes = ['cat']  # The first ones have the same numbers.
    check_same_classes(val, ['cat', 'dog'])


def test_a_data_set_without_classes_is_refused():
    images = Listed()
    images.classes = []
    with pytest.raises(ValueError, match='the data set has no classes'):
        class_names(images)


@pytest.mark.parametrize('labels', [torch.eye(3), np.eye(3), [[0, 1], [1, 0]], ['cat', 'dog']],
                         ids=['torch', 'numpy', 'lists', 'texts'])
def test_listed_classes_are_numbers(labels):
    images = Listed()
    images.targets = labels
    with pytest.raises(ValueError, match='the `targets` of the data set are not numbers'):
        labels_of(images)


def test_an_image_that_has_to_be_read_for_its_class_and_cannot_is_named():
    class Broken(Listed):
        def __getitem__(self, index):
            if index == 2:
                raise OSError('truncated')
            return torch.zeros(3, 20, 20), 0

    with pytest.raises(ValueError, match=r'item 2 of the data set cannot be read \(OSError: truncated\)'):
        all_labels(Broken([0] * 4))


def test_an_evaluation_augments_nothing(small):
    """So tensors, such as 16-bit images, can be measured without --augment=none."""
    images = [(torch.zeros(3, 20, 20), 0)] * 4
    check_labelled(images, small(), 2, augmented=False)
    with pytest.raises(ValueError, match='--augment=none'):
        check_labelled(images, small(), 2)


def test_later_labels_are_checked_too(small):
    images = [(torch.zeros(3, 20, 20), 0)] * 11 + [(torch.zeros(3, 20, 20), 5)]
    with pytest.raises(ValueError, match='an image has class 5'):
        fine_tune(small(num_classes=2, data_path=None, augment='none', epochs=1, warmup_epochs=0.0), images, images)


def test_too_small_an_image_is_refused(small):
    with pytest.raises(ValueError, match='inception_v3 cannot take images of 32x32 .*--img_size'):
        fine_tune(small(model='inception_v3'))


def test_a_share_knows_its_images_by_name(labelled):
    images, _ = find_labelled(labelled)
    half = share_of(images, 0.5, 0)
    assert half.name(3) == images.name(half.indices[3])


def test_timms_folders_must_have_the_same_classes(small, tmp_path):
    for name in ('train/a', 'train/b', 'val/b'):
        picture(tmp_path / f'w/{name}/1.png')
    with pytest.raises(ValueError, match='numbers the classes of its validation images in another way'):
        fine_tune(small(data_path=str(tmp_path / 'w'), dataset='folder/'))
