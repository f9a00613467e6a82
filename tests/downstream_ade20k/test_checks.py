"""What is wrong with masks is said in one sentence, before a training, with the file and what to do."""
import numpy as np
import pytest
from PIL import Image

from downstream_ade20k.checks import ranges
from downstream_ade20k.data import training_and_validation
from tests.downstream_ade20k.files import ALONE, HALVES, options, write_image, written


def mask(*values):
    """A mask of 6 x 8 pixels with some values in columns as wide as each other, (6, 8) uint8."""
    return np.resize(np.repeat(np.uint8(values), 8 // len(values)), (6, 8))


def checked(folder, train=None, val=None, **given):
    """The remarks of a data set that is written and checked."""
    written(folder, {'a.jpg': HALVES, 'b.jpg': HALVES, **(train or {})}, {'c.jpg': HALVES, **(val or {})})
    images, _ = training_and_validation(options(folder, **given), ALONE)
    return images.remarks


def refused(folder, message, train=None, val=None, **given):
    with pytest.raises(ValueError, match=message) as error:
        checked(folder, train, val, **given)
    assert '\n' not in str(error.value)


def test_good_masks_have_no_remarks(tmp_path):
    assert checked(tmp_path) == []


# -- masks and their images -------------------------------------------------------------------------------------------

def test_an_image_without_a_mask(tmp_path):
    write_image(tmp_path / 'images' / 'train' / 'sub' / 'x.jpg', (6, 8))
    refused(tmp_path, r'1 of 3 images in .*images/train have no mask: for sub/x.jpg it would be sub/x.png in '
                      r'.*annotations/train; there is a.png, for example. Give each image a mask')


def test_masks_that_are_jpegs(tmp_path):
    written(tmp_path, {'a.jpg': HALVES}, {'b.jpg': HALVES})
    path = tmp_path / 'annotations' / 'train' / 'a.png'
    path.rename(path.with_suffix('.jpg'))
    with pytest.raises(ValueError, match='1 of 1 image .*annotations/train, which has no PNGs but JPEGs, whose values are'):
        training_and_validation(options(tmp_path), ALONE)


def test_validation_images_that_are_training_images(tmp_path):
    written(tmp_path, {'c.jpg': HALVES, 'x.jpg': HALVES}, {'x.jpg': HALVES})
    write_image(tmp_path / 'images' / 'val' / 'x.jpg', (6, 8), quality=20)  # another image, of the same name
    assert checked(tmp_path) == ['validation images are training images too, such as c.jpg: what is measured on them '
                                 'is too good']


def test_two_images_for_one_mask(tmp_path):
    refused(tmp_path, 'two images of one name, a.jpg and a.png, for one mask, a.png', train={'a.png': HALVES})


def test_masks_of_another_size(tmp_path):
    written(tmp_path, {'x.jpg': HALVES, 'y.jpg': HALVES}, {})
    for name in 'xy':
        write_image(tmp_path / 'images' / 'train' / f'{name}.jpg', (8, 6))
    refused(tmp_path, '2 of 4 masks in .*annotations/train have another size than their images; x.png: it is 8x6, the '
                      'image 6x8. A mask has a pixel for each pixel')


def test_a_turned_image_whose_mask_fits_it_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    written(tmp_path, {'x.jpg': HALVES}, {})
    write_image(tmp_path / 'images' / 'train' / 'x.jpg', (8, 6), exif=exif)
    assert checked(tmp_path) == []
    exif[0x0112] = 3
    write_image(tmp_path / 'images' / 'train' / 'x.jpg', (8, 6), exif=exif)
    refused(tmp_path, 'x.png: it is 8x6, the image 6x8')


def test_turned_images_whose_masks_fit_with_and_without_a_turn(tmp_path):
    square = np.resize(np.uint8([0, 1]), (8, 8))
    written(tmp_path, {'x.jpg': square, 'y.jpg': HALVES, 'z.jpg': HALVES}, {})
    for name, shape, orientation in (('x', (8, 8), 6), ('y', (6, 8), 3), ('z', (6, 8), 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        write_image(tmp_path / 'images' / 'train' / f'{name}.jpg', shape, exif=exif)
    remarks = checked(tmp_path)
    assert len(remarks) == 1 and '2 images with an EXIF orientation, such as ' in remarks[0]
    assert 'x.jpg: the mask has the size' in remarks[0]


def test_damaged_masks(tmp_path):
    written(tmp_path, {'x.jpg': HALVES, 'y.jpg': HALVES}, {})
    path = tmp_path / 'annotations' / 'train' / 'x.png'
    path.write_bytes(path.read_bytes()[:-30])
    (path.parent / 'y.png').write_bytes(b'')
    refused(tmp_path, '2 of 4 masks in .* cannot be read; x.png: .*Error: .*. Replace them, or take them')


def test_damaged_images_are_left_to_the_reading(tmp_path):
    written(tmp_path, {'x.jpg': HALVES}, {})
    (tmp_path / 'images' / 'train' / 'x.jpg').write_bytes(b'nothing')
    assert checked(tmp_path) == []


def test_masks_in_colours(tmp_path):
    colours = np.uint8([[0, 128, 0], [0, 0, 128]])[HALVES]
    refused(tmp_path / 'without', '1 of 3 masks .* hold no ids of classes; x.png: it holds colours: .* palette PNG. '
                                  'Or give a file with the colour of each class, --classes=FILE$',
            train={'x.jpg': colours})
    file = tmp_path / 'classes.txt'
    file.write_text('0 tree 0,128,0\n1 sky 0,0,128\n')
    assert checked(tmp_path / 'with', train={'x.jpg': colours}, classes=str(file)) == []
    refused(tmp_path / 'wrong', '1 of 3 masks .* hold colours of no class; y.png: it has the colour 9, 9, 8, which is '
                                'not in .*classes.txt: add #090908 there',
            train={'y.jpg': np.uint8([[0, 128, 0], [9, 9, 8]])[HALVES]}, classes=str(file))
    file.write_text('0 tree\n1 sky\n')
    refused(tmp_path / 'bare', 'x.png: it holds colours, and .*classes.txt has none: save', train={'x.jpg': colours},
            classes=str(file))


# -- values -----------------------------------------------------------------------------------------------------------

def test_values_of_validation_masks_that_are_in_no_training_mask(tmp_path):
    refused(tmp_path, '2 of 3 masks in .*annotations/val hold values that are no classes, 7, 9; d.png: 7. The classes '
                      'have the values 0 to 1. Name all of them in a file, --classes=FILE, or ignore the others, '
                      '--ignore=255,7,9', val={'d.jpg': mask(0, 7), 'e.jpg': mask(1, 9, 255, 7)})


def test_values_beyond_the_classes_of_a_file(tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('0 ground\n1 tree\n2 sky\n')
    refused(tmp_path, 'annotations/train hold values that are no classes, 3; x.png: 3. The classes have the values 0 to 2',
            train={'x.jpg': mask(0, 1, 3, 255)}, classes=str(file))


def test_many_values_are_not_proposed_to_be_ignored(tmp_path):
    refused(tmp_path, 'no classes, 2, 3, 4, 5, 6, ...; d.png: 2. .* Name all of them in a file, --classes=FILE$',
            val={'d.jpg': mask(2, 3, 4, 5, 6, 7, 8, 0)})


def test_classes_that_training_masks_lack(tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('0 ground\n1 tree\n2 sky\n3 sea\n')
    assert checked(tmp_path, val={'d.jpg': mask(2, 0)}, classes=str(file)) == [
        '2 of 4 classes are in no training mask: sky (2), sea (3)',
        '1 of 4 classes are in validation masks, but in no training mask: they count as not found: sky (2)']


def test_ade20k_says_which_values_it_has(tmp_path):
    refused(tmp_path, 'no classes, 151; x.png: 151. The classes have the values 1 to 150. .*--ignore=0,255,151',
            train={'x.jpg': mask(151, 1)}, classes='ade20k')


def test_masks_that_are_ignored(tmp_path):
    assert checked(tmp_path / 'one', train={'x.jpg': mask(255)}) == ['1 training mask ignores all pixels, such as x.png']
    remarks = checked(tmp_path / 'many', train={f'{number}.jpg': mask(255) for number in range(3)})
    assert remarks == ['60 % of the pixels of the training masks are ignored, with the values 255',
                       '3 training masks ignore all pixels, such as 0.png']
    written(tmp_path / 'all', {}, {'c.jpg': mask(255)})
    with pytest.raises(ValueError, match='all pixels of all validation masks in .* are ignored, with the values 255'):
        written(tmp_path / 'all', {'a.jpg': HALVES}, {})
        training_and_validation(options(tmp_path / 'all'), ALONE)


def test_a_single_class_beside_255(tmp_path):
    written(tmp_path, {'a.jpg': mask(0, 255)}, {'b.jpg': mask(255, 0)})
    with pytest.raises(ValueError, match='hold nothing but the value 0, and 255, which is ignored. If that is a class, '
                                         'ignore a value that they do not hold, --ignore=254'):
        training_and_validation(options(tmp_path), ALONE)
    images, _ = training_and_validation(options(tmp_path, ignore=(254,)), ALONE)
    assert images.classes.ids == (0, 255)


def test_a_single_class(tmp_path):
    written(tmp_path, {'a.jpg': mask(5)}, {'b.jpg': mask(5)})
    with pytest.raises(ValueError, match='hold nothing but the value 5: there is nothing to tell apart'):
        training_and_validation(options(tmp_path), ALONE)
    with pytest.raises(ValueError, match='hold no class, and 5, which is ignored'):
        training_and_validation(options(tmp_path, ignore=(5,)), ALONE)


def test_numbers_of_objects(tmp_path):
    numbers = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    refused(tmp_path, 'hold 1,920 different values, as numbers of objects would be', train={'x.jpg': numbers},
            val={'d.jpg': numbers}, ignore=())


def with_rare(common, rare):
    """A mask of 60 x 80 pixels with so many values that are common, and so many of one pixel each."""
    values = np.resize(np.repeat(np.arange(common, dtype=np.uint8), 80 // common), (60, 80))
    values[0, :rare] = range(20, 20 + rare)
    return values


def test_smoothed_edges(tmp_path):
    remarks = checked(tmp_path, train={'x.jpg': with_rare(2, 9)})
    assert len(remarks) == 1 and '9 of the 11 values of the masks have less than 1 % of the pixels' in remarks[0]


@pytest.mark.parametrize('common, rare', [(2, 3), (10, 9)])
def test_a_few_rare_classes_are_no_smoothed_edges(tmp_path, common, rare):
    assert checked(tmp_path, train={'x.jpg': with_rare(common, rare)}) == []


def with_slips(masks, slips):
    """So many masks of the values 0 and 1, and so many that hold 200 besides."""
    return {**{f'{number}.jpg': HALVES for number in range(masks)},
            **{f'x{number}.jpg': mask(0, 1, 200, 1) for number in range(slips)}}


@pytest.mark.parametrize('held', [1, 2])
def test_a_value_that_few_masks_hold_by_mistake(tmp_path, held):
    remarks = checked(tmp_path, with_slips(20, held))
    assert len(remarks) == 1 and f'the value 200 is in {held} of {22 + held} masks, such as x0.png. If that' in remarks[0]
    assert remarks[0].endswith('mend the masks, or ignore it, --ignore=255,200')


@pytest.mark.parametrize('masks, held', [(30, 3), (15, 2), (5, 1)])
def test_a_value_that_more_masks_hold_is_a_class(tmp_path, masks, held):
    assert checked(tmp_path, with_slips(masks, held)) == []


def test_ranges():
    assert ranges((5, 1, 2, 3, 9)) == '1 to 3, 5, 9'
    assert ranges((0, 1, 2)) == '0 to 2' and ranges((7,)) == '7' and ranges((3, 4)) == '3 to 4'
