"""Which folders a data set is made of, and which are refused."""
import subprocess
import sys

import pytest

from downstream_ade20k.layout import folders, folders_to_train_on, is_ade20k
from tests.downstream_ade20k.files import HALVES, options, written


@pytest.mark.parametrize('names', [('train', 'val'), ('training', 'validation'), ('train', 'valid')])
def test_splits_by_their_usual_names(tmp_path, names):
    written(tmp_path, {'a.jpg': HALVES}, {'b.jpg': HALVES}, names)
    found = folders_to_train_on(options(tmp_path))
    assert found == tuple((tmp_path / 'images' / name, tmp_path / 'annotations' / name) for name in names)


def test_folders_given_one_by_one_come_before_those_of_the_layout(tmp_path):
    written(tmp_path, {'a.jpg': HALVES}, {'b.jpg': HALVES})
    written(tmp_path / 'other', {'a.jpg': HALVES}, {'b.jpg': HALVES})
    other = tmp_path / 'other' / 'annotations' / 'val'
    assert folders(options(tmp_path, val_masks=other), 'val') == (tmp_path / 'images' / 'val', other)
    given = options(train_images=tmp_path / 'images' / 'train', train_masks=tmp_path / 'annotations' / 'train')
    assert folders(given, 'train') == folders(options(tmp_path), 'train')


def test_without_splits_a_share_is_held_out(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'annotations').mkdir()
    found = folders_to_train_on(options(tmp_path, val_fraction=0.1))
    assert found == ((tmp_path / 'images', tmp_path / 'annotations'), None)
    with pytest.raises(ValueError, match='there is no folder .*images/train, nor training .*holds no folders. Of images '
                                         'that lie in .* without splits, .* --val_fraction=0.1 holds out a part$'):
        folders_to_train_on(options(tmp_path))


@pytest.mark.parametrize('given', [{}, {'val_fraction': 0.1}])
def test_folders_of_masks_with_another_name(tmp_path, given):
    (tmp_path / 'images' / 'train').mkdir(parents=True)
    (tmp_path / 'masks').mkdir()
    with pytest.raises(ValueError, match='no folder .*annotations/train.* holds the folders images, masks. Folders with '
                                         'other names are given one by one, --train_masks=DIR and --val_masks=DIR'):
        folders_to_train_on(options(tmp_path, **given))


def test_what_is_refused(tmp_path):
    data = written(tmp_path / 'data', {'a.jpg': HALVES}, {'b.jpg': HALVES})
    images = data / 'images' / 'train'
    masks = data / 'annotations' / 'train'
    (tmp_path / 'link').symlink_to(images)
    refused = [
        (options(), 'say where the images and masks are: --data_path=DIR'),
        (options(train_images=images), 'say where the images and masks are'),
        (options(tmp_path / 'none'), 'none cannot be read'),
        (options(data, val_masks=tmp_path / 'none'), 'there is no folder of masks'),
        (options(data, train_masks=images), 'images and their masks are in one folder'),
        (options(data, train_images=data), 'annotations/train lies in'),
        (options(data, val_images=tmp_path / 'link', val_masks=masks), 'training and validation images are in one folder'),
        (options(data, val_fraction=0.1), 'there are validation images already, .*val: leave --val_fraction out')]
    for given, message in refused:
        with pytest.raises(ValueError, match=message):
            folders_to_train_on(given)
    (data / 'images' / 'valid').mkdir()
    with pytest.raises(ValueError, match='images holds val and valid: .*--val_images=DIR'):
        folders_to_train_on(options(data))


def test_ade20k_is_told_by_its_folders_and_files(tmp_path):
    def first_images(name, names):
        return written(tmp_path / names[0] / name, {name: HALVES}, {}, names) / 'images' / names[0]

    assert is_ade20k(first_images('ADE_train_00000001.jpg', ('training', 'validation')))
    assert not is_ade20k(first_images('tree.jpg', ('training', 'validation')))
    assert not is_ade20k(first_images('ADE_train_00000001.jpg', ('train', 'val')))


def test_layout_and_classes_do_not_load_torch():
    code = ('import sys, downstream_ade20k.layout, downstream_ade20k.classes; '
            'assert "torch" not in sys.modules, "torch is loaded"')
    subprocess.run([sys.executable, '-c', code], check=True)
