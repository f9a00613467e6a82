"""Images and their masks: what is found, what is read, and what all ranks are told."""
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.distributed import Ranks
from common.images.reading import Reading
from common.live_line import LiveLine
from downstream_ade20k.classes import ADE20K, IGNORE, Classes
from downstream_ade20k.data import training_and_validation, validation_images
from tests.downstream_ade20k.files import ALONE, HALVES, options, write_image, written


@pytest.fixture
def folder(tmp_path):
    """A data set of the values 2, 4 and 255, with an image of another format below a folder."""
    masks = dict.fromkeys(('a.jpg', 'b.png', 'sub/c.webp', 'd.v2.jpg'), 2 * HALVES + 2)
    masks['a.jpg'] = masks['a.jpg'].copy()
    masks['a.jpg'][0, 0] = 255
    return written(tmp_path, masks, {'e.jpg': 2 * HALVES + 2})


def test_items(folder):
    train, val = training_and_validation(options(folder), ALONE)
    assert len(train) == 4 and len(val) == 1
    assert train.classes == val.classes and train.classes.ids == (2, 4) and train.classes.ignored == (255,)
    assert train.shapes.tolist() == [[6, 8]] * 4
    image, mask = train[0]
    assert image.size == (8, 6) and mask.dtype == torch.int16
    assert mask[0].tolist() == [IGNORE, 0, 0, 0, 1, 1, 1, 1] and mask[1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    names = [train.mask_path(index) for index in range(4)]
    assert names == ['a.png', 'b.png', 'd.v2.png', 'sub/c.png']
    assert train.name(3).endswith('images/train/sub/c.webp') and train.mask_name(3).endswith('train/sub/c.png')


def test_one_channel(folder):
    train, _ = training_and_validation(options(folder, in_chans=1), ALONE)
    assert train[1][0].mode == 'L'


def test_an_image_is_turned_if_its_mask_is(tmp_path):
    upright = np.uint8([[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]])
    exif = Image.Exif()
    exif[0x0112] = 6
    written(tmp_path, {'a.png': HALVES, 'x.jpg': upright}, {'b.png': HALVES})
    write_image(tmp_path / 'images' / 'train' / 'x.jpg', (3, 4), exif=exif)
    train, _ = training_and_validation(options(tmp_path), ALONE)
    image, mask = train[1]
    assert image.size == (3, 4) and tuple(mask.shape) == (4, 3)
    pixels = np.asarray(image)[..., 0]
    assert pixels[0].max() < pixels[-1].min()  # columns of the stored image are rows now, in the same order


def test_masks_without_images_are_counted(folder):
    Image.fromarray(HALVES).save(folder / 'annotations' / 'train' / 'x.png')
    train, val = training_and_validation(options(folder), ALONE)
    assert train.notes == '1 mask without an image (x.png)' and val.notes == ''


def test_a_mask_that_changes_while_it_is_trained_on(folder):
    train, _ = training_and_validation(options(folder), ALONE)
    path = folder / 'annotations' / 'train' / 'a.png'
    Image.fromarray(HALVES).save(path)
    with pytest.raises(ValueError, match='it has the value 0, which is neither'):
        train[0]
    Image.fromarray(2 * HALVES[:5] + 2).save(path)
    with pytest.raises(ValueError, match='it is 8x6, its mask 8x5'):
        train[0]


# -- classes ----------------------------------------------------------------------------------------------------------

def test_classes_of_ade20k_in_its_layout_alone(tmp_path):
    masks = {'ADE_train_00000001.jpg': 3 * HALVES, 'ADE_train_00000002.jpg': HALVES + 1}
    layout = written(tmp_path / 'ade', masks, {'ADE_val_00000001.jpg': HALVES}, ('training', 'validation'))
    train, val = training_and_validation(options(layout), ALONE)
    assert train.classes == ADE20K and train[0][1].unique().tolist() == [IGNORE, 2]
    other = written(tmp_path / 'other', {'a.jpg': HALVES}, {'b.jpg': HALVES}, ('training', 'validation'))
    assert training_and_validation(options(other), ALONE)[0].classes.ids == (0, 1)
    assert training_and_validation(options(other, classes='ade20k'), ALONE)[0].classes == ADE20K


def test_classes_of_a_file(folder):
    file = folder / 'classes.txt'
    file.write_text('4 tree\n2 sky\n')
    train, _ = training_and_validation(options(folder, classes=str(file)), ALONE)
    assert train.classes.names == ('tree', 'sky') and train[1][1][0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_eval_measures_the_classes_that_a_file_was_trained_with(folder):
    trained = Classes((4, 2), ('tree', 'sky'), ((0, 160, 0), (0, 0, 200)), (255,))
    listing = folder / 'classes.txt'

    def measured(**given):
        return validation_images(options(folder, eval='run.pth', **{'ignore': None, **given}), trained, ALONE).classes

    assert measured() == trained
    assert measured(ignore=(0, 9)) == replace(trained, ignored=(0, 9, 255))
    with pytest.raises(ValueError, match='--ignore=2: run.pth was trained with the class sky'):
        measured(ignore=(0, 2))
    listing.write_text('2 sky #010203\n4 tree #040506\n')  # in another order, and with colours for the masks
    assert measured(classes=str(listing)) == replace(trained, mask_colours=((2, (1, 2, 3)), (4, (4, 5, 6))))
    for text, message in (('2 sky\n4 bush\n', 'the value 4 is "bush" there, and "tree" in run.pth'),
                          ('2 sky\n4 tree\n7 sea\n', 'the value 7 is "sea" there, and no class in run.pth'),
                          ('2 sky\n7 sea\n', 'the value 4 is no class there, and "tree" in run.pth')):
        listing.write_text(text)
        with pytest.raises(ValueError, match=f'{message}, whose classes are measured. Leave --classes out'):
            measured(classes=str(listing))
    with pytest.raises(ValueError, match='--classes=ade20k: the value 1 is "wall" there'):
        measured(classes='ade20k')


def continued(folder, text):
    """The classes of a run that went on with another text in its file of classes."""
    file = folder / 'classes.txt'
    file.write_text('2 sky #0000ff\n4 tree #00ff00\n')
    train, val = training_and_validation(options(folder, classes=str(file)), ALONE)
    file.write_text(text)
    asked = options(folder, classes=str(file), resume=None)
    asked.folder = 'output_x'
    images, _ = training_and_validation(asked, ALONE, None, train.classes, [train.fingerprint(), val.fingerprint()])
    return images.classes


def test_names_and_colours_may_change_when_a_run_goes_on(folder):
    classes = continued(folder, '4 bush #00ff11\n2 sky #0000ff\n')
    assert classes.ids == (2, 4) and classes.names == ('sky', 'bush')
    assert classes.colours == ((0, 0, 255), (0, 255, 17)) and (4, (0, 255, 17)) in classes.mask_colours
    bare = continued(folder, '2 air\n4 bush\n')
    assert bare.names == ('air', 'bush') and (4, (0, 255, 0)) in bare.mask_colours


@pytest.mark.parametrize('text, message', [
    ('2 sky\n4 tree\n7 sea\n', 'the value 7 is "sea" there, and no class in output_x, which holds a run that goes on'),
    ('2 sky\n7 sea\n', 'the value 4 is no class there, and "tree" in output_x'),
    ('2 tree #00ff00\n4 sky #0000ff\n', r'the colour \(0, 255, 0\) is that of 2 there, and of 4 in output_x, .*--fresh')])
def test_other_classes_are_refused_when_a_run_goes_on(folder, text, message):
    with pytest.raises(ValueError, match=message):
        continued(folder, text)


def test_masks_in_other_colours_are_read_when_a_run_goes_on(folder):
    """Their files are as many, and as large, so that their fingerprint may not tell."""
    pixels = np.where(HALVES[..., None], np.uint8([0, 255, 0]), np.uint8([0, 0, 255]))
    for path in (folder / 'annotations').rglob('*.png'):
        Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match='hold colours of no class; a.png: it has the colour 0, 255, 0, which is not in '):
        continued(folder, '2 sky #0000ff\n4 tree #00ff11\n')


# -- divided ----------------------------------------------------------------------------------------------------------

def test_a_share_is_held_out(tmp_path):
    masks = {f'{number}.jpg': HALVES for number in range(10)}
    masks['0.jpg'] = HALVES + 1
    written(tmp_path, masks, {})
    given = options(tmp_path, val_fraction=0.3)
    train, val = training_and_validation(given, ALONE)
    names = [images.mask_path(index) for images in (train, val) for index in range(len(images))]
    assert len(train) == 7 and len(val) == 3 and sorted(names) == sorted(f'{number}.png' for number in range(10))
    assert train.classes.ids == val.classes.ids == (0, 1, 2)  # of all, in whichever part 0.jpg is
    alone = validation_images(given, train.classes, ALONE)
    assert alone.paths.tolist() == val.paths.tolist() and np.array_equal(alone.shapes, val.shapes)


def test_validation_images_alone(folder):
    train, val = training_and_validation(options(folder), ALONE)
    for path in (folder / 'images' / 'train').glob('*.*'):
        path.unlink()
    alone = validation_images(options(folder), train.classes, ALONE)
    assert torch.equal(alone[0][1], val[0][1]) and alone.fingerprint() == val.fingerprint()
    with pytest.raises(ValueError, match='annotations/val hold values that are no classes, 2, 4'):
        validation_images(options(folder), replace(train.classes, ids=(7, 8)), ALONE)


def test_a_subset_has_its_own_masks(folder):
    train, _ = training_and_validation(options(folder), ALONE)
    part = train.subset(np.array([1, 3]))
    assert [part.mask_path(index) for index in range(2)] == ['b.png', 'sub/c.png'] and part.shapes.shape == (2, 2)
    assert torch.equal(part[1][1], train[3][1]) and part.fingerprint() != train.fingerprint()


# -- several ranks, and a run that goes on ----------------------------------------------------------------------------

MAIN, OTHER = ((rank, 2, torch.device('cpu')) for rank in range(2))


@dataclass(frozen=True)
class OneOfTwo(Ranks):
    """A rank; the main one keeps what it broadcasts for the other one."""
    sent: list

    def broadcast_object(self, item):
        if self.is_main:
            self.sent.append(item)
        return self.sent[-1]


def test_the_main_rank_alone_reads_the_masks(folder):
    sent = []
    first, _ = training_and_validation(options(folder), OneOfTwo(*MAIN, sent))
    for path in (folder / 'annotations').rglob('*.png'):
        path.write_bytes(b'')
    second, val = training_and_validation(options(folder), OneOfTwo(*OTHER, sent))
    assert second.classes == first.classes and np.array_equal(second.shapes, first.shapes)
    for place in (MAIN, OTHER):
        with pytest.raises(ValueError, match='4 of 4 masks .* cannot be read'):
            training_and_validation(options(folder), OneOfTwo(*place, sent))


def test_masks_are_not_read_again_when_a_run_goes_on_with_the_same_files(folder):
    train, val = training_and_validation(options(folder), ALONE)
    known = {'classes': train.classes, 'fingerprints': [train.fingerprint(), val.fingerprint()]}
    path = folder / 'annotations' / 'train' / 'a.png'
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # in the checksum of the last chunk: of the same size, and no longer a PNG
    place = content.index(b'IDAT') + 6
    content[place] ^= 255  # in the pixels
    path.write_bytes(content)
    again, val = training_and_validation(options(folder), ALONE, **known)
    assert np.array_equal(again.shapes, train.shapes) and again.classes == train.classes == val.classes
    with pytest.raises(ValueError, match='1 of 4 masks .* cannot be read; a.png'):
        training_and_validation(options(folder), ALONE, classes=train.classes)
    path.write_bytes(content + b'more')
    with pytest.raises(ValueError, match='1 of 4 masks .* cannot be read; a.png'):
        training_and_validation(options(folder), ALONE, **known)


def test_masks_are_read_again_when_a_run_goes_on_with_other_validation_masks(folder):
    train, val = training_and_validation(options(folder), ALONE)
    known = {'classes': train.classes, 'fingerprints': [train.fingerprint(), val.fingerprint()]}
    noise = np.random.default_rng(0).choice(np.uint8([2, 4, 7]), HALVES.shape)  # of more bytes than the one before
    Image.fromarray(noise).save(folder / 'annotations' / 'val' / 'e.png')
    with pytest.raises(ValueError, match='annotations/val hold values that are no classes, 7; e.png'):
        training_and_validation(options(folder), ALONE, **known)
    # A file of an earlier version does not say which validation images it had.
    with pytest.raises(ValueError, match='annotations/val hold values that are no classes, 7; e.png'):
        training_and_validation(options(folder), ALONE, None, train.classes, [train.fingerprint(), None])


def test_fingerprints_tell_masks_and_images(folder):
    def fingerprint():
        return training_and_validation(options(folder), ALONE)[0].fingerprint()

    marks = [fingerprint(), fingerprint()]
    assert marks[0] == marks[1]
    for path in ('annotations/train/a.png', 'images/train/b.png'):
        with open(folder / path, 'ab') as file:
            file.write(b'more')
        marks.append(fingerprint())
    assert len(set(marks)) == 3


def test_progress_is_shown(folder):
    said = []
    line = LiveLine(said.append)
    shown = []
    line.showing = lambda count: shown.append(count.task[0]) or LiveLine(None).showing(count)
    training_and_validation(options(folder), ALONE, line)
    assert shown == ['training masks', 'validation masks']


def test_large_images_are_refused_as_elsewhere(folder):
    with pytest.raises(ValueError, match=r'4 of 4 masks .* cannot be read; a.png: DecompressionBombError: .*--max_pixels=48'):
        training_and_validation(options(folder, reading=Reading(max_pixels=20)), ALONE)
    assert len(training_and_validation(options(folder, reading=Reading(max_pixels=48)), ALONE)[0]) == 4
