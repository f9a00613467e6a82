"""No image is left out without a word: formats that are not read, folders of systems, classes without images, lists."""
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from common.cli import expanded
from common.images.datasets import fingerprint, mostly_unread, not_looked_at
from common.images.files import ImageFiles, SeveralFiles, open_image
from common.images.finding import find_files, image_endings, register_plug_ins
from downstream_coco.config import Options as CocoOptions
from downstream_imagenet.class_folders import LOOSE, LabelledFolder, find_labelled
from downstream_imagenet.config import Options as ClassOptions
from downstream_imagenet.data import share_of
from downstream_imagenet.features import Options as FeatureOptions
from downstream_imagenet.layout import validation_source
from downstream_imagenet.main import fine_tune
from pretrain.data import find_held_out, find_images
from pretrain.main import pretrain
from tests.common.images.drawn import pack


def write(folder, *names):
    """Files: small pictures where Pillow writes such, else a few bytes."""
    for seed, name in enumerate(names):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in ('.png', '.jpg'):
            values = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(values).save(path)
        else:
            path.write_bytes(b'some bytes')
    return Path(folder)


def found(images):
    return [str(Path(images.name(i)).relative_to(images.root)) for i in range(len(images))]


@pytest.fixture
def without_plug_ins(monkeypatch):
    """Pillow as it is without pillow-heif and pillow-jxl-plugin, though they may be installed."""
    for module in ('finding', 'files'):
        monkeypatch.setattr(f'common.images.{module}.register_plug_ins', lambda: None)
    Image.init()
    own = {ending: kind for ending, kind in Image.EXTENSION.items() if kind not in ('HEIF', 'JXL')}
    monkeypatch.setattr(Image, 'EXTENSION', own)


@pytest.fixture
def as_nobody():
    """A folder, and a function after which this process is a user who may not read everything."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        image_endings()  # imports what is needed while it can be read
        privileged = os.geteuid() == 0
        try:
            yield Path(folder), lambda: os.seteuid(65534) if privileged else None
        finally:
            if privileged:
                os.seteuid(0)
            for path in Path(folder).iterdir():
                path.chmod(0o755)


@pytest.mark.parametrize(('names', 'said'), [
    (['IMG_1.HEIC', 'x/IMG_2.heif'], '2 HEIC files (.heic, .heif, such as IMG_1.HEIC: pip install pillow-heif)'),
    (['a.jxl'], '1 JPEG XL file (.jxl, such as a.jxl: pip install pillow-jxl-plugin)'),
    (['b/DSC.NEF', 'b/c.d.nef', 'b/X.ARW'],
     '3 camera raw files (.arw, .nef, such as b/DSC.NEF: develop them into JPEG, PNG or TIFF)'),
    (['logo.svg', 'fig.eps'], '2 drawing or document files (.eps, .svg, such as fig.eps: draw them as PNG)'),
    (['brain.nii.gz', 'slice.dcm'], '2 medical image files (.dcm, .nii.gz, such as brain.nii.gz: write them as PNG or TIFF, or '
     'give a Dataset of your own)'),
    (['cube.npy', 'CLIP.MOV'], '1 array file (.npy, such as cube.npy: give a Dataset of your own), 1 video file (.mov, such as '
     'CLIP.MOV: take frames out of them: ffmpeg -i VIDEO frame_%06d.png)'),
    (['n01.tar', 'n02.tar.gz', 'x.gz'],
     '2 archive files (.tar, .tar.gz, such as n01.tar: unpack them), 1 other file (.gz)'),
    (['a.txt', 'b.txt', 'c.json', 'README', 'a.png.1', '.hidden', '.deep/x.cr2', '._a.jpg'],
     '5 other files (without an ending, .txt, .json)'),
    (['a.q', 'b.r', 'c.s', 'd.t', 'e.u'], '5 other files (.q, .r, .s, .t, ...)'),
])
def test_what_is_not_read_is_counted_by_kind(tmp_path, without_plug_ins, names, said):
    images = ImageFiles(write(tmp_path, 'one.png', *names))
    assert found(images) == ['one.png'] and images.notes == said
    assert not_looked_at(images, None, 'held-out') == f'not looked at  {said}\n'


def test_nothing_left_out_is_no_line_and_others_have_their_own(tmp_path, without_plug_ins):
    whole, part = ImageFiles(write(tmp_path / 'a', 'a.png')), ImageFiles(write(tmp_path / 'b', 'a.png', 'b.dng', 'c.orf'))
    assert whole.notes == '' and not_looked_at(whole, None, 'held-out') == not_looked_at([], whole, 'held-out') == ''
    assert not_looked_at(whole, part, 'held-out').startswith('not looked at  of held-out images, 2 camera raw files (')
    assert mostly_unread(whole) is None
    assert mostly_unread(part).startswith('2 files that may hold images are not read, and only 1 are')
    own = [1, 2]
    assert not_looked_at(own, types.SimpleNamespace(notes=own), 'held-out') == '' and mostly_unread(own) is None
    both = SeveralFiles([tmp_path / 'b', tmp_path / 'a/a.png', tmp_path / 'b'])
    assert len(both) == 3 and both.unread == 4 and both.notes.startswith('4 camera raw files')


def test_only_what_is_not_read_is_an_error_with_the_remedy(tmp_path, without_plug_ins):
    for name, remedy in (('a.hif', 'pip install pillow-heif'), ('b.jxl', 'pip install pillow-jxl-plugin')):
        folder = write(tmp_path / name, name)
        with pytest.raises(ValueError, match=f'holds no images that Pillow reads .*, but 1 .*{remedy}'):
            find_images(folder)
        with pytest.raises(UnidentifiedImageError, match=remedy), open_image(folder / name):
            pass


def test_installed_plug_ins_are_asked(tmp_path, monkeypatch):
    """A module in the place of pillow_heif, whose format is a PNG by another name."""
    for name in ('ID', 'OPEN', 'EXTENSION'):
        Image.init()
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())

    def register_heif_opener():
        Image.register_extension('PNG', '.heic')

    module = types.ModuleType('pillow_heif')
    module.register_heif_opener = register_heif_opener
    monkeypatch.setitem(sys.modules, 'pillow_heif', module)
    monkeypatch.setitem(sys.modules, 'pillow_jxl', None)  # as if it were not installed
    write(tmp_path, 'a.png').joinpath('a.png').rename(tmp_path / 'a.HEIC')
    register_plug_ins.__wrapped__()
    images = ImageFiles(tmp_path)
    assert found(images) == ['a.HEIC'] and images[0].size == (24, 24) and not images.left_out


def test_folders_of_systems_are_left_out_counted_and_no_classes(tmp_path):
    write(tmp_path / 'clean', 'a/1.png', 'a/deep/2.png', 'b/3.png')
    shutil.copytree(tmp_path / 'clean', tmp_path / 'nas')
    junk = ['@eaDir/a/SYNOPHOTO_THUMB_M.jpg', 'a/@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg', '$RECYCLE.BIN/S-1-5/x.png',
            'a/deep/__MACOSX/2.png', 'lost+found/#123.jpg', '#recycle/y.jpg', 'b/.AppleDouble/3.png', '.thumbnails/z.png']
    write(tmp_path / 'nas', *junk)
    clean, nas = (LabelledFolder(tmp_path / name) for name in ('clean', 'nas'))
    assert found(nas) == found(clean) == ['a/1.png', 'a/deep/2.png', 'b/3.png'] and nas.classes == ['a', 'b']
    assert fingerprint(nas) == fingerprint(clean)
    assert nas.left_out == {'folders of thumbnails or system files (such as #recycle)': 6} and nas.unread == 0
    packed = find_images(pack(tmp_path / 'nas', ['a/1.png', 'a/deep/2.png', 'b/3.png', *junk], tmp_path / 'nas.tar'))
    assert fingerprint(packed) == fingerprint(clean) and packed.left_out == nas.left_out


def test_members_of_tars_are_counted(tmp_path, without_plug_ins):
    write(tmp_path / 'files', 'a.png', 'a.json', 'b.heic', 'c/d.CR3', '.e.txt', 'f.cls')
    for name, members in (('x', ['a.png', 'a.json', 'b.heic']), ('y', ['c/d.CR3', '.e.txt', 'f.cls']), ('z', ['b.heic'])):
        (tmp_path / 'tars').mkdir(exist_ok=True)
        pack(tmp_path / 'files', members, tmp_path / f'tars/{name}.tar')
    write(tmp_path / 'tars', 'g.avif' if '.avif' not in image_endings() else 'g.orf')
    images = find_images(tmp_path / 'tars')
    assert len(images) == 1 and images.unread == 4
    assert '2 HEIC files (.heic, such as b.heic: pip install pillow-heif)' in images.notes
    assert images.notes.endswith('2 other files (.cls, .json)')
    with pytest.raises(ValueError, match='no images in them .*, but 1 HEIC file'):
        find_images(tmp_path / 'tars/z.tar')


def test_links_to_nowhere_are_left_out_and_counted(tmp_path):
    write(tmp_path / 'store', '1.png', '2.png')
    (tmp_path / 'images').mkdir()
    for name, target in (('a.png', '../store/1.png'), ('b.png', '../gone/1.png'), ('c.jpg', 'c.jpg'), ('d.txt', 'nowhere')):
        (tmp_path / 'images' / name).symlink_to(target)
    images = ImageFiles(tmp_path / 'images')
    assert found(images) == ['a.png'] and images.unread == 2
    assert images.left_out == {'links to nowhere (such as b.png)': 2, 'other file (.txt)': 1}


def test_folders_that_cannot_be_read_are_counted_and_are_no_empty_classes(as_nobody):
    folder, become_nobody = as_nobody
    write(folder, 'a/1.png', 'b/2.png', 'c/3.png')
    (folder / 'b').chmod(0)
    (folder / 'c').chmod(0o744)  # its files can be listed, and none of them opened
    become_nobody()
    images = ImageFiles(folder)
    assert found(images) == ['a/1.png']
    assert images.left_out == {'folders that cannot be read (such as b: Permission denied)': 2}
    with pytest.raises(ValueError, match=r'the classes b, c of .* have no image .*: b cannot be read \(Permission denied\)'):
        LabelledFolder(folder)


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize(('names', 'why'), [
    (['x.heic', 'y.heic'], r'c holds 2 HEIC files \(.heic, such as .*: pip install pillow-heif\)'),
    (['x.dng', 'deep/y.txt'], r'c holds 1 camera raw file \(.*, 1 other file \(.txt\)'),
    (['@eaDir/x.jpg'], r'c holds 1 folder of thumbnails or system files \(such as @eaDir\)'), (['.keep'], 'c is empty'),
])
def test_a_class_without_images_is_named(tmp_path, without_plug_ins, split, names, why):
    write(tmp_path, *(f'{part}/{name}/1.png' for part in ('train', 'val') for name in 'abc'))
    shutil.rmtree(tmp_path / split / 'c')
    write(tmp_path / split / 'c', *names)
    with pytest.raises(ValueError, match=f'the class c of .*{split} has no image that is read: {why}'):
        find_labelled(tmp_path)


def test_a_class_that_is_a_link_to_another_is_named(tmp_path):
    write(tmp_path, 'a/1.png')
    (tmp_path / 'b').symlink_to('a')
    with pytest.raises(ValueError, match='is what a link in another folder leads to'):
        LabelledFolder(tmp_path)


def test_a_few_images_beside_the_classes_are_left_out_and_many_are_an_error(tmp_path):
    loose = [f'train/{i:02}.png' for i in range(LOOSE)]
    write(tmp_path, 'train/a/1.png', 'train/b/2.png', 'val/a/3.png', 'train/packed.tar', *loose)
    images, val = find_labelled(tmp_path)
    assert found(images) == ['a/1.png', 'b/2.png'] and list(images.labels) == [0, 1] and [one[1] for one in images] == [0, 1]
    assert images.notes.startswith('1 archive file (.tar, such as packed.tar: unpack them), 10 images beside')
    assert images.notes.endswith('beside the folders of the classes (00.png, 01.png, 02.png, ...)')
    assert not_looked_at(share_of(images, 0.5, 0), val, 'validation') == f'not looked at  {images.notes}\n'
    write(tmp_path, 'train/more.png')
    with pytest.raises(ValueError, match=r'it holds 11 images \(00.png, .*\) beside the folders a, b: move each'):
        find_labelled(tmp_path)
    write(tmp_path / 'flat', '1.png', '2.png')
    with pytest.raises(ValueError, match=r"flat is not in ImageNet's layout.*holds 2 images \(1.png, 2.png\) and no folders"):
        LabelledFolder(tmp_path / 'flat')
    write(tmp_path / 'unread', 'overview.png', 'a/1.nef', 'b/2.nef')
    with pytest.raises(ValueError, match='the classes a, b of .* have no image that is read: a holds 1 camera raw file'):
        LabelledFolder(tmp_path / 'unread')


def test_other_names_of_val(tmp_path):
    write(tmp_path, 'x/train/a/1.png', 'x/train/b/1.png', 'x/valid/a/2.png', 'y/train/a/1.png', 'y/validation/a/3.png')
    assert found(find_labelled(tmp_path / 'x')[1]) == ['a/2.png'] and validation_source(tmp_path / 'y').name == 'validation'
    assert found(find_held_out(tmp_path / 'y')) == ['a/3.png'] and find_held_out(tmp_path / 'x').root.name == 'valid'
    write(tmp_path, 'x/validation/a/4.png')
    for find in (find_labelled, find_held_out):
        with pytest.raises(ValueError, match='holds valid and validation: say which .*--val_path'):
            find(tmp_path / 'x')
    write(tmp_path, 'x/val/a/5.png')
    assert found(find_held_out(tmp_path / 'x')) == ['a/5.png']
    write(tmp_path, 'z/train/a/1.png', 'z/test/a/1.png', 'z/.git/1.png', 'w/Train/a/1.png')
    with pytest.raises(ValueError, match=r'nor valid/ or validation/: \S+z holds the folders test, train. .*--val_path=DIR'):
        find_labelled(tmp_path / 'z')
    with pytest.raises(ValueError, match=r'no folder \S+w/train .* holds the folder Train'):
        find_labelled(tmp_path / 'w')
    assert find_held_out(tmp_path / 'z') is None
    tar = pack(tmp_path / 'y', ['train/a/1.png', 'validation/a/3.png'], tmp_path / 'both.tar')
    with pytest.raises(ValueError, match='holds train/ and validation/ inside of its tars'):
        find_images(tar)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be-marked'])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_lists_as_editors_write_them(tmp_path, encoding, newline):
    names = ['ä/1.png', 'ä/2.png', '3.png']
    write(tmp_path, *names)
    text = newline.join([*names[:2], '\ufeff' + names[2], ''])  # a mark inside: of a list that was appended
    content = ('\ufeff' + text).encode('utf-16-be') if encoding == 'utf-16-be-marked' else text.encode(encoding)
    (tmp_path / 'list.txt').write_bytes(content)
    assert found(find_images(tmp_path / 'list.txt')) == names


def test_utf_16_without_a_mark_is_refused(tmp_path):
    write(tmp_path, 'a.png')
    for encoding in ('utf-16-le', 'utf-32'):
        (tmp_path / 'list.txt').write_bytes('a.png\n'.encode(encoding))
        with pytest.raises(ValueError, match='UTF-8, no NUL bytes'):
            find_images(tmp_path / 'list.txt')


def test_backslashes_in_lists(tmp_path):
    write(tmp_path / 'images', 'a/1.png', 'a/b/2.png', 'odd\\name.png')
    file = tmp_path / 'images/list.txt'
    file.write_text('a\\1.png\na\\b\\2.png\na/1.png\n')
    assert found(find_images(file)) == ['a/1.png', 'a/b/2.png', 'a/1.png']
    file.write_text('odd\\name.png\na/1.png\n')
    assert found(find_images(file)) == ['odd\\name.png', 'a/1.png']
    file.write_text('odd\\name.png\na\\1.png\n')  # one of each
    assert found(find_images(file)) == ['odd\\name.png', 'a/1.png']
    write(tmp_path, 'secret.png')
    file.write_text('a\\1.png\n..\\secret.png\n')
    with pytest.raises(ValueError, match='does not lie below'):
        find_images(file)


@pytest.mark.parametrize('lines', [
    ['{} 3', '{} 4'], ['{},3', '{},4'], ['{}\t3'] * 2, ['{};cat;dog'] * 2, ['3 {}', '4 {}'], ['path,label', '{},3'],
    ['"{}"', '"{}"'], ["'{}' 1"] * 2, ['{}', '{} 0 0.5 0.5 1 1']])
def test_lists_with_labels_say_so(tmp_path, lines):
    names = write(tmp_path, 'a b/one two.png', 'c.png') and ['a b/one two.png', 'c.png']
    (tmp_path / 'list.txt').write_text('\n'.join(line.format(name) for line, name in zip(lines, names)))
    with pytest.raises(ValueError, match=r"has more than a path in the line .*, which should be '(a b/one two|c)\.png' alone"):
        find_images(tmp_path / 'list.txt')


def test_missing_files_of_a_list(tmp_path, without_plug_ins, monkeypatch):
    names = [f'{i:02}.png' for i in range(19)]
    write(tmp_path, *names, 'x.heic')
    file = tmp_path / 'list.txt'
    file.write_text('\n'.join([*names[:9], 'gone.png', 'x.heic', *names[9:], 'lost.jpg']))
    images = find_images(file)
    assert len(images) == 21 and images.unread == 1
    assert '2 missing files (of 21 paths of the list that were looked for, such as gone.png)' in images.notes
    assert '1 HEIC file (.heic, such as x.heic: pip install pillow-heif)' in images.notes
    monkeypatch.setattr('common.images.path_lists.TRIED', 3)  # the first, the last, and one between
    assert '1 missing file (of 3 paths of the list that were looked for, such as lost.jpg)' in find_images(file).notes
    file.write_text('\n'.join([names[0], *(f'other/{name}' for name in names)]))
    with pytest.raises(ValueError, match='names files that are missing, 2 of 3 that were looked for, such as other/'):
        find_images(file)
    file.write_text('x.heic\n')
    with pytest.raises(ValueError, match='holds no images .*, but 1 HEIC file'):
        find_images(file)


def test_the_home_folder_in_options(monkeypatch, tmp_path, tiny):
    monkeypatch.setenv('HOME', str(tmp_path))
    home = str(tmp_path / 'images')
    assert tiny(data_path='~/images', val_path=Path('~/images')).data_path == home
    assert tiny(init='~/images', run_dir='~/images', tensorboard_dir='a/~/b').as_dict()['run_dir'] == home
    assert ClassOptions(name='x', finetune_from='~/images', eval='timm').finetune_from == home
    assert CocoOptions(name='x', train_annotations='~/images').train_annotations == home
    assert FeatureOptions(data_path='~/images', weights='~/images').weights == home
    assert expanded(['run', '~/images', '--out=~/images', '--grid', '--seed', '3', '--in=a=~', '--x=./~']) == [
        'run', home, f'--out={home}', '--grid', '--seed', '3', '--in=a=~', '--x=./~']


def test_names_that_cannot_be_printed_are_said_all_the_same(tmp_path, without_plug_ins):
    write(tmp_path, 'a.png', 'new\nline\x1b[2J.heic', os.fsdecode(b'\xff\xfe.cr2'))
    notes = ImageFiles(tmp_path).notes
    assert r'such as new\nline\x1b[2J.heic' in notes and r'such as \udcff\udcfe.cr2' in notes
    assert notes.isprintable() and notes.encode()


def test_endings_with_several_dots_and_none(tmp_path):
    write(tmp_path, 'a.tar.gz', 'b.TAR', 'c.gz', 'tar', '.tar', 'd.tar.gz.png')
    assert sorted(find_files(tmp_path, ('.tar', '.tar.gz'))) == ['a.tar.gz', 'b.TAR']
    assert list(find_files(tmp_path, ('.png',))) == ['d.tar.gz.png']


def test_a_pretraining_says_what_it_does_not_survey(tiny, tmp_path, without_plug_ins, capsys):
    write(tmp_path / 'data', *(f'train/{i}.png' for i in range(8)), *(f'train/{i}.heic' for i in range(9)),
          'validation/1.png', 'validation/2.pef')
    pretrain(tiny(data_path=str(tmp_path / 'data'), epochs=1, warmup_epochs=0.0, picture_every=0))
    said = capsys.readouterr()
    assert f'images      8 of {tmp_path}/data/train, 1 held out ({tmp_path}/data/validation)' in said.out
    assert '\nnot looked at  9 HEIC files (.heic' in said.out and '; of held-out images, 1 camera raw file (.pef' in said.out
    assert 'warning: 9 files that may hold images are not read, and only 8 are' in said.err


def test_a_fine_tuning_says_what_it_does_not_survey(tmp_path, capsys):
    write(tmp_path / 'data', *(f'train/{name}/{i}.png' for name in 'abc' for i in range(3)), 'train/overview.png',
          'valid/a/1.png', 'valid/@eaDir/a/1.jpg')
    options = ClassOptions(name='x', run_dir=str(tmp_path / 'run'), data_path=str(tmp_path / 'data'), model='your_convnet',
                           input_size=32, batch_size=9, epochs=1, warmup_epochs=0.0, lr=1e-2, workers=0, ema=0.0,
                           augment='none')
    fine_tune(options)
    said = capsys.readouterr()
    assert f'images      9 for training, 1 for validation (of {tmp_path}/data/valid); 3 classes' in said.out
    assert '\nnot looked at  1 image beside the folders of the classes (overview.png); of validation images, 1 fo' in said.out
    assert '\nnote        no validation images of 2 of the classes: b, c\n' in said.out
    assert 'may hold images are not read' not in said.err
