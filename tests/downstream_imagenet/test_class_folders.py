"""Classes that are folders inside of tars: the same images, numbers and runs as of the folders that the tars unpack to."""
import gzip
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from common.images.datasets import fingerprint
from common.images.survey import survey
from downstream_imagenet import knn, predict
from downstream_imagenet.class_folders import LOOSE, LabelledTars, find_labelled, labelled_files
from downstream_imagenet.config import Options
from downstream_imagenet.data import class_names, share_of
from downstream_imagenet.labelled import labelled_images
from downstream_imagenet.main import fine_tune
from tests.common.images.drawn import pack, packed
from tests.conftest import ROOT, same
from tests.downstream_imagenet.runs import picture, saved


@pytest.fixture(scope='session')
def tars(labelled, tmp_path_factory):
    """The images of `labelled`, as train/00.tar, 01.tar, 02.tar and val/00.tar."""
    return packed(labelled, tmp_path_factory.mktemp('tars'))


def of(images):
    """[(path below the folder of the classes, class)] of a data set of tars or of folders."""
    return [(path.decode(), label) for path, label in zip(images.paths.tolist(), images.labels.tolist())]


def a_tar(folder, target, *names, split=None):
    """Pack pictures and other files of these names into a tar."""
    for seed, name in enumerate(names):
        if name.endswith('.png'):
            picture(folder / 'files' / name, seed)
        else:
            (folder / 'files' / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / 'files' / name).write_text('0')
    return pack(folder / 'files', names, folder / target)


# -- the same as of folders -------------------------------------------------------------------------------------------

def test_the_images_are_those_of_the_folders(labelled, tars):
    for folder, packed_ones in zip(find_labelled(labelled), find_labelled(tars)):
        assert isinstance(packed_ones, LabelledTars) and fingerprint(packed_ones) == fingerprint(folder)
        assert of(packed_ones) == of(folder) and packed_ones.classes == folder.classes
        for (image, label), (other, same_label) in zip(folder, packed_ones):
            assert np.array_equal(image, other) and label == same_label
        assert survey(packed_ones) == survey(folder)


def test_where_the_tars_may_lie(labelled, tars, tmp_path):
    expected = [of(images) for images in find_labelled(labelled)]
    mixed = tmp_path / 'mixed'
    shutil.copytree(tars / 'train', mixed / 'train')
    shutil.copytree(labelled / 'val', mixed / 'val')
    turned = tmp_path / 'turned'
    shutil.copytree(labelled / 'train', turned / 'train')
    shutil.copytree(tars / 'val', turned / 'validation')
    deep = tmp_path / 'deep'
    shutil.copytree(tars / 'train', deep / 'train/some/more')
    shutil.copy(tars / 'val/00.tar', deep / 'valid.tar')
    one = tmp_path / 'one'
    for split in ('train', 'val'):
        names = sorted(path.name for path in (labelled / split).iterdir())
        pack(labelled / split, names, one / f'{split}.tar')  # whole folders
    for paths in ((mixed,), (turned,), (deep,), (one,), (one / 'train.tar', one / 'val.tar'), (tars, labelled / 'val'),
                  (labelled, tars / 'val'), (one, tars / 'val/00.tar')):
        assert [of(images) for images in find_labelled(*paths)] == expected, paths


def test_the_parts_are_those_of_the_folders(labelled, tars, tmp_path):
    def options(folder, **changes):
        return Options(**{'name': 'n', 'data_path': str(folder), 'val_fraction': 0.25, **changes})

    names = sorted(path.name for path in (labelled / 'train').iterdir())
    whole = pack(labelled / 'train', names, tmp_path / 'train.tar')
    images, val, classes = labelled_images(options(labelled / 'train'))
    for source in (tars / 'train', whole, tmp_path):
        found, held_out, same_classes = labelled_images(options(source))
        assert of(found) == of(images) and of(held_out) == of(val) and classes == same_classes
    assert np.array_equal(found[7][0], images[7][0]) and found[7][1] == images[7][1] and held_out.notes == ''
    half, same_half = (share_of(each, 0.5, 3) for each in (images, found))
    assert half.indices.tolist() == same_half.indices.tolist() and fingerprint(half) == fingerprint(same_half)
    (tmp_path / 'val.tar').write_bytes(whole.read_bytes())
    with pytest.raises(ValueError, match=r'val\.tar of validation images already: leave --val_fraction out'):
        labelled_images(options(tmp_path))


def test_fine_tuning_on_tars_is_fine_tuning_on_the_folders(tars, small, tmp_path):
    folder = fine_tune(small(run_dir=str(tmp_path / 'folders')))
    from_tars = fine_tune(small(run_dir=str(tmp_path / 'tars'), data_path=str(tars)))
    for key in ('model', 'ema', 'optimizer', 'sums', 'fingerprint', 'classes'):
        assert same(saved(folder)[key], saved(from_tars)[key]), key
    assert losses_of(folder) == losses_of(from_tars) and len(losses_of(folder)) == 2


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / 'finetune_log.txt').read_text().splitlines()]
    return [(line['epoch'], line['loss'], line['val_loss']) for line in lines if 'epoch' in line]


def test_the_probe_says_the_same(labelled, tars, capsys):
    said = []
    for folder in (labelled, tars):
        knn.main([f'--data_path={folder}', '--model=your_convnet', '--random', '--input_size=32', '--workers=0',
                  '--label_fraction=0.5'])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and 'features of 24 training and 26 validation images of 12 classes' in said[0]


def test_evaluation_and_prediction_of_what_was_held_out(tars, small, tmp_path, capsys):
    changes = {'data_path': str(tars / 'train'), 'val_fraction': 0.25}
    folder = fine_tune(small(epochs=1, warmup_epochs=0.0, **changes))
    file = str(folder / 'your_convnet_1kfinetuned_last.pth')
    assert fine_tune(small(eval=file, **changes))['model']['images'] == 12
    assert fine_tune(small(eval=file, data_path=None, val_path=str(tars / 'val/00.tar')))['model']['images'] == 26
    held_out = labelled_images(small(**changes))[1]
    predict.main([file, '--held_out', f'--out={tmp_path}/t.csv', '--workers=0'])
    rows = [row.split(',')[0] for row in (tmp_path / 't.csv').read_text().splitlines()[1:]]
    assert rows == [held_out.name(i) for i in range(12)] and '.tar/' in rows[0] and (tmp_path / 't.png').exists()
    predict.main([file, str(tars / 'val'), '--no_sheet', f'--out={tmp_path}/all.csv', '--workers=1'])
    rows = [row.split(',')[0] for row in (tmp_path / 'all.csv').read_text().splitlines()[1:]]
    assert rows == [images.name(i) for images in [labelled_files(tars / 'val')] for i in range(26)]


def test_an_image_of_a_tar_that_cannot_be_read_is_named(tars, small, tmp_path, capsys):
    folder = tmp_path / 'damaged'
    shutil.copytree(tars, folder)
    val = labelled_files(folder / 'val')
    _, first, _ = val.places[3]
    with open(folder / 'val/00.tar', 'r+b') as file:
        file.seek(first)
        file.write(b'This is no PNG')
    knn.main([f'--data_path={folder}', '--model=your_convnet', '--random', '--input_size=32', '--workers=0'])
    said = capsys.readouterr()
    assert val.name(3) in said.out + said.err


# -- what is left out, and what is refused ----------------------------------------------------------------------------

def test_a_few_images_outside_of_the_folders_are_left_out(tmp_path):
    loose = [f'{i:02}.png' for i in range(LOOSE)]
    junk = ['.git/x.png', '@eaDir/a/1.png', 'notes.txt', 'a/notes.txt']
    a_tar(tmp_path, 'tars/0.tar', 'a/1.png', 'b/deep/2.png', *loose[3:], *junk)
    a_tar(tmp_path, 'tars/1.tar', *loose[:3], 'a/0.png')
    images, folder = labelled_files(tmp_path / 'tars'), labelled_files(tmp_path / 'files')
    assert of(images) == of(folder) == [('a/0.png', 0), ('a/1.png', 0), ('b/deep/2.png', 1)]
    assert images.left_out == folder.left_out and len(images.places) == 3 and images[2][0].size == (24, 24)
    assert fingerprint(images) == fingerprint(folder)
    assert '10 images beside the folders of the classes (00.png, 01.png, 02.png, ...)' in images.notes
    a_tar(tmp_path, 'tars/2.tar', 'more.png')
    with pytest.raises(ValueError, match=r'it holds 11 images .* beside the folders a, b: pack each image as CLASS/NAME'):
        labelled_files(tmp_path / 'tars')


@pytest.mark.parametrize(('members', 'message'), [
    (['0.png', '1.png'], r'holds 2 images \(0.png, 1.png\) and no folders: pack each image as CLASS/NAME, in the folder'),
    (['0.png', '0.cls', '1.png', '1.cls'], r'folder of its class inside of the tar; classes are not read from .* \(.cls\)'),
    (['0.png', '0.json'], r'classes are not read from files beside the images \(.json\)'),
    (['train/a/0.png', 'train/b/0.png', 'val/a/1.png'], r'train/ and val/ inside .*tar -C train -cf train.tar'),
    (['a/0.png', 'b/0.png', 'c/0.txt'], r'the class c of .*x.tar has no image that is read: c holds 1 other file \(.txt\)'),
    (['a/0.png', 'b/0.png', 'c/.keep', 'd/.keep'], r'the classes c, d of .* have no image that is read: c is empty'),
    (['a/0.txt'], 'holds tars, but no images in them'),
])
def test_tars_without_folders_of_classes_are_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=message) as error:
        labelled_files(a_tar(tmp_path, 'x.tar', *members))
    assert str(tmp_path / 'x.tar') in str(error.value)


def test_other_classes_and_one_class_are_refused(tmp_path):
    a_tar(tmp_path, 'train.tar', 'a/0.png', 'b/0.png')
    a_tar(tmp_path, 'val.tar', 'a/1.png', 'val/b/1.png')
    with pytest.raises(ValueError, match='training images do not have: val. Classes are the folders at the top inside of its'):
        find_labelled(tmp_path)
    a_tar(tmp_path, 'val.tar', 'b/1.png')
    assert of(find_labelled(tmp_path)[1]) == [('b/1.png', 1)]
    with pytest.raises(ValueError, match='only one class, top: nothing to tell apart. Of .*x.tar classes are .* at the top'):
        class_names(labelled_files(a_tar(tmp_path, 'x.tar', 'top/a/0.png', 'top/b/0.png')))


def test_tars_beside_images_and_compressed_ones(tmp_path):
    tar = a_tar(tmp_path, 'train/x.tar', 'a/0.png', 'b/0.png')
    picture(tmp_path / 'train/overview.png')
    with pytest.raises(ValueError, match='sort them into such; tars are read where there are no images beside them'):
        labelled_files(tmp_path / 'train')
    (tmp_path / 'train/overview.png').unlink()
    (tmp_path / 'val.tar.gz').write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(ValueError, match='val.tar.gz is compressed.*gunzip'):
        find_labelled(tmp_path)


@pytest.mark.parametrize(('flags', 'message'), [
    (['--data_path=all'], 'no folder all/train .* the tar x.tar: put tars of training images into train/'),
    (['--data_path=all/x.tar'], 'x.tar is one tar, .* none to validate on. Say which has them, --val_path=DIR'),
    (['--data_path=half'], 'no folder half/val with the validation images'),
    (['--data_path=half', '--val_path=none.tar'], 'no folder or tar none.tar with the validation images'),
])
def test_the_layout_is_checked_without_torch(tmp_path, flags, message):
    a_tar(tmp_path, 'all/x.tar', 'a/0.png')
    a_tar(tmp_path, 'half/train.tar', 'a/0.png')
    code = ('import sys; from downstream_imagenet.main import check\n'
            'try: check(["--name=n", *sys.argv[1:]])\n'
            'finally: assert "torch" not in sys.modules')
    ended = subprocess.run([sys.executable, '-c', code, *flags], cwd=tmp_path, env={'PYTHONPATH': str(ROOT)}, text=True,
                           capture_output=True)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1
    assert re.search(message, ended.stderr), ended.stderr
