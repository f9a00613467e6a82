"""The way of images to the network: as bytes to the device, out of tar shards, decoded no larger than needed, waited for."""
import io
import os
import pickle
import re
import shutil
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from common.images.augmented import Augmented, CentreCrop, Crop, RandomCrop, as_input, collate
from common.images.datasets import fingerprint
from common.images.fast_decode import FastDecode, decoded, reduced, reduction
from common.images.files import ImageFiles
from common.images.loading import loader
from common.images.shards import TarShards
from common.training import trainer
from common.training.device import Normalise
from common.training.waits import Waits
from pretrain.data import find_held_out, find_images
from pretrain.main import pretrain
from tests.conftest import assert_same_run, log_of, saved
from tests.project.test_malformed import written

NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CPU = torch.device('cpu')


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# -- bytes to the device ----------------------------------------------------------------------------------------------

def test_eight_bits_travel_as_bytes_and_are_normalised_to_the_same_bits():
    images = [noise(40, 50, seed) for seed in range(6)]
    as_bytes, as_floats = (Augmented(images, RandomCrop((24, 32)), norm, seed=3) for norm in (None, NORM))
    batches = [[(1, 0), (1, 4), (2, 4)], [(1, 5)]]
    loaded = [loader(each, batches, workers, CPU) for each, workers in ((as_bytes, 1), (as_floats, 0))]
    for (x, _, _), (y, _, _) in zip(*loaded):
        assert x.dtype == torch.uint8 and y.dtype == torch.float32
        on_device = Normalise(NORM, CPU)(x)
        assert torch.equal(on_device, y) and on_device.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(on_device, torch.stack([as_input(image, NORM) for image in x]))


def test_floats_and_bytes_in_one_batch():
    deep = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    items = [noise(20, 20), deep, deep.double(), (deep * 255).to(torch.uint8)]
    as_loaded, as_floats = (Augmented(items, CentreCrop((8, 8)), norm) for norm in (None, NORM))
    assert [as_loaded[0, i][0].dtype for i in range(4)] == [torch.uint8, torch.float32, torch.float32, torch.uint8]
    x, y = (collate([each[0, i] for i in range(4)])[0] for each in (as_loaded, as_floats))
    assert x.dtype == torch.float32 and torch.equal(Normalise(NORM, CPU)(x), y)
    before = x.clone()
    Normalise(NORM, CPU)(x)
    assert torch.equal(x, before)  # what was loaded is left alone


def test_values_that_are_none_are_still_found():
    holes = torch.full((3, 9, 9), float('nan'))
    image, _, failed = Augmented([holes, torch.ones(3, 9, 9)], RandomCrop((8, 8)), None)[0, 0]
    assert failed == [(0, 'it holds NaN or infinite values')] and image.isfinite().all()


# -- tar shards -------------------------------------------------------------------------------------------------------

def pack(folder, paths, target, form=tarfile.GNU_FORMAT):
    """Pack files of a folder into a tar, in this order."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, 'w', format=form) as tar:
        for path in paths:
            tar.add(folder / path, path)
    return target


def packed(world, target):
    """train/ and val/ in shards: three of the first, dealt out in turns and from the back, as ./name; one of the second."""
    for split, number in (('train', 3), ('val', 1)):
        paths = sorted(str(path.relative_to(world / split)) for path in (world / split).rglob('*.png'))[::-1]
        for i in range(number):
            pack(world / split, [f'./{path}' for path in paths[i::number]], target / split / f'{i:02}.tar')
    return target


def test_a_run_on_tars_is_the_run_on_the_folder(world, tiny, whole, tmp_path, monkeypatch):
    folder = packed(world, tmp_path / 'packed')
    one, other = find_images(world), find_images(folder)
    assert [one.name(i).removeprefix(f'{world}/train/') for i in range(40)] == \
        [other.name(i).split('.tar/')[1] for i in range(40)] and other.name(0).startswith(f'{folder}/train/')
    assert fingerprint(one) == fingerprint(other) and len(find_held_out(folder)) == 10
    from_tars = pretrain(tiny(data_path=str(folder), run_dir=str(tmp_path / 'tars'), workers=1, save_every_steps=3, keep=9))
    assert_same_run(whole, from_tars)
    # A run that goes on with the same images unpacked is the same run.
    newest = from_tars / 'your_convnet_still_pretraining.pth'
    (from_tars / 'your_convnet_still_pretraining_step6.pth').replace(newest)
    assert saved(pretrain(tiny(run_dir=str(from_tars))))['fingerprint'] == fingerprint(other)
    assert_same_run(whole, from_tars)


@pytest.mark.parametrize('form', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_index_is_what_tarfile_finds(tmp_path, form):
    names = ['b.jpg', './a.jpg', 'c/d.JPEG', 'ünï.png', f'{"x" * 98}/{"y" * 60}.jpg', 'notes.txt', 'b.cls', 'b.json',
             '.hidden.jpg', 'x/._a.jpg', '/root.jpg', 'empty.jpg', 'f' * 95 + '.jpg', 'g' * 96 + '.jpg', 'folder.jpg/']
    if form != tarfile.USTAR_FORMAT:
        names += [f'{"z" * 200}/{"w" * 150}.jpg', 'caf\udce9.jpg']
    rng, target = np.random.default_rng(0), tmp_path / 'a.tar'
    with tarfile.open(target, 'w', format=form) as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name[-1] == '/' else tarfile.REGTYPE
            info.size = 0 if name[-1] == '/' or 'empty' in name else int(rng.integers(1, 3000))
            info.mtime = 1e9 + 0.5 * (i % 2)  # a fraction makes a header in front
            tar.addfile(info, io.BytesIO(rng.bytes(info.size)))
    if form == tarfile.PAX_FORMAT:  # a size in words is not that of the long name which comes in between
        with open(target, 'r+b') as file:
            file.seek(ends_at(target))
            for kind, content in (b'x', b'12 size=700\n'), (b'L', b'long/er.jpg\0'), (b'0', rng.bytes(700)):
                info = tarfile.TarInfo('long.jpg')
                info.type, info.size = kind, len(content)
                file.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
            file.write(bytes(1024))
    with tarfile.open(target) as tar:
        theirs = {str(Path('/', info.name))[1:]: tar.extractfile(info).read() for info in tar if info.isreg()}
    images, hidden = TarShards(target), {'.hidden.jpg', 'x/._a.jpg', 'notes.txt', 'b.cls', 'b.json'}
    ours = {images.name(i).split('.tar/')[1]: images.content(i) for i in range(len(images))}
    assert ours == {name: content for name, content in theirs.items() if name not in hidden} and len(ours) >= 8
    for name, content in theirs.items():  # and as a folder of these
        (tmp_path / 'unpacked' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'unpacked' / name).write_bytes(content)
    files = ImageFiles(tmp_path / 'unpacked')
    assert files.paths.tolist() == images.paths.tolist() and fingerprint(files) == fingerprint(images)


def shard(tmp_path, *names):
    """A tar of small pictures."""
    for i, name in enumerate(names):
        (tmp_path / 'files' / name).parent.mkdir(parents=True, exist_ok=True)
        noise(12, 16, i).save(tmp_path / 'files' / name)
    return pack(tmp_path / 'files', names, tmp_path / 'a.tar')


def test_tars_are_found(tmp_path):
    one = shard(tmp_path, 'b.png', 'a.png')
    assert len(find_images(one)) == 2 and find_images(one)[0].mode == 'RGB' and find_images(one, in_chans=1)[0].mode == 'L'
    (tmp_path / 'deep/er').mkdir(parents=True)
    (tmp_path / 'deep/er/x.TAR').write_bytes(one.read_bytes())
    (tmp_path / 'deep/z.tar').write_bytes(one.read_bytes())
    images = find_images(tmp_path / 'deep')  # two images of each name: all are there
    assert [images.name(i)[len(str(tmp_path)):] for i in range(4)] == [
        '/deep/er/x.TAR/a.png', '/deep/z.tar/a.png', '/deep/er/x.TAR/b.png', '/deep/z.tar/b.png']
    noise(9, 9).save(tmp_path / 'deep/own.png')
    assert isinstance(find_images(tmp_path / 'deep'), ImageFiles) and len(find_images(tmp_path / 'deep')) == 1
    with pytest.raises(ValueError, match='whose images are trained on'):
        find_held_out(tmp_path / 'deep', tmp_path / 'deep/z.tar')
    with pytest.raises(ValueError, match='holds train/ and val/ inside'):
        find_images(shard(tmp_path, 'train/a.png', 'val/a.png'))


def test_tars_are_read_in_any_process(tmp_path, monkeypatch):
    monkeypatch.setattr('common.images.shards.OPEN_FILES', 2)
    for i in range(5):
        shard(tmp_path, f'{i}.png').rename(tmp_path / f'{i}.tar')
    shutil.rmtree(tmp_path / 'files')
    images = find_images(tmp_path)
    first = [np.array(images[i]) for i in range(5)]
    assert len(images.handles) == 2 and len({one.tobytes() for one in first}) == 1  # each is seed 0
    again = pickle.loads(pickle.dumps(images))  # as a spawned process gets it
    assert not again.handles and all(np.array_equal(again[i], one) for i, one in enumerate(first))
    augmented = Augmented(images, CentreCrop((8, 8)), None)
    batches = [[(0, i % 5)] for i in range(40)]
    for (x, _, failures), (y, _, _) in zip(*(loader(augmented, batches, workers, CPU) for workers in (1, 0))):
        assert torch.equal(x, y) and not failures


def changed(path, at, content):
    data = bytearray(path.read_bytes())
    data[at:at + len(content)] = content
    path.write_bytes(data)


def resized(path, at, size, kind=b'0'):
    """Give the member whose header is there another size and kind, with a checksum that is right."""
    header = bytearray(path.read_bytes()[at:at + 512])
    header[156:157] = kind
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b' ' * 8
    header[148:156] = b'%06o\0 ' % sum(header)
    changed(path, at, header)


def linked(path, kind):
    with tarfile.open(path, 'a') as tar:
        info = tarfile.TarInfo('link.png')
        info.type, info.linkname = kind, '/etc/passwd'
        tar.addfile(info)


def extended(path, content):
    info = tarfile.TarInfo('x')
    info.type, info.size = b'x', len(content)
    path.write_bytes(info.tobuf() + content.ljust(-(-len(content) // 512) * 512, b'\0') + path.read_bytes())


def ends_at(path):
    """The byte behind the last member."""
    with tarfile.open(path) as tar:
        return tar.getmembers()[-1].offset_data + -(-tar.getmembers()[-1].size // 512) * 512


HOSTILE = {
    'beyond the file': (lambda path: resized(path, 0, 10 ** 15), 'cut off or damaged: a.png has 1,000,000,000,000,000 bytes'),
    'negative': (lambda path: resized(path, 0, -512), 'a.png has -512 bytes'),
    'damaged': (lambda path: changed(path, 5, b'\xff'), 'damaged one .byte 0: bad checksum'),
    'text': (lambda path: path.write_bytes(b'This is no tar.' * 99), 'is no tar'),
    'empty': (lambda path: path.write_bytes(b''), 'is empty'),
    'cut in a header': (lambda path: os.truncate(path, 300), 'is cut off'),
    'cut in an image': (lambda path: os.truncate(path, 700), 'cut off or damaged: a.png'),
    'cut between images': (lambda path: os.truncate(path, ends_at(path)), 'does not end as a tar does'),
    'two in one': (lambda path: path.write_bytes(path.read_bytes() * 2), 'behind its end'),
    'symbolic link': (lambda path: linked(path, tarfile.SYMTYPE), 'holds link.png as a link'),
    'hard link': (lambda path: linked(path, tarfile.LNKTYPE), 'holds link.png as a link'),
    'device': (lambda path: linked(path, tarfile.CHRTYPE), 'no regular file'),
    'sparse': (lambda path: resized(path, 0, 99, b'S'), 'with holes'),
    'long name': (lambda path: extended(path, b'2011 path=%b.png\n' % (b'x' * 1996)), 'a name of more than'),
    'a NUL in a name': (lambda path: extended(path, b'14 path=\0.png\n'), 'with a NUL in it'),
    'no length': (lambda path: extended(path, b'99999999 path=x\n'), 'an extended header'),
    'no number': (lambda path: extended(path, b'-12 path=x\n'), 'an extended header'),
    'negative in words': (lambda path: extended(path, b'15 size=-1_000\n'), 'has -1,000 bytes'),
    'no size': (lambda path: extended(path, b'12 size=big\n'), 'invalid literal'),
    'sparse in words': (lambda path: extended(path, b'22 GNU.sparse.major=1\n'), 'with holes'),
    'upwards': (lambda path: extended(path, b'17 path=../x.png\n'), 'leads out of its folder'),
    'twice': (lambda path: extended(path, b'14 path=b.png\n'), 'b.png more than once'),
}


@pytest.mark.parametrize('what', HOSTILE)
def test_hostile_tars_are_one_sentence(tmp_path, what):
    harm, word = HOSTILE[what]
    path = shard(tmp_path, 'a.png', 'b.png')
    harm(path)
    with pytest.raises(ValueError, match=word) as error:
        find_images(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 500


def test_a_header_that_claims_gigabytes_costs_none(tmp_path):
    info, path = tarfile.TarInfo('././@LongLink'), tmp_path / 'a.tar'
    info.type, info.size = b'L', 2 ** 36
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 2 ** 37)  # a file with a hole: as large as it says
    with pytest.raises(ValueError, match='which no tar of images needs'):
        find_images(path)
    info = tarfile.TarInfo('a.png')
    info.size = 2 ** 36
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 2 ** 37)
    assert Augmented(find_images(path), CentreCrop((8, 8)), None, stand_ins=False)[0, 0][2] == [
        (0, 'OSError: it is 68,719,476,736 bytes large, more than any image')]


@pytest.mark.parametrize('way', ['gzip', 'bz2', 'lzma'])
def test_compressed_tars_are_refused(tmp_path, way):
    path = shard(tmp_path, 'a.png')
    path.write_bytes(__import__(way).compress(path.read_bytes()))
    for name in ('a.tar', 'a.tar.gz', 'a.tgz'):
        path = path.rename(tmp_path / name)
        for source in (path, tmp_path):
            (tmp_path / 'files/a.png').unlink(missing_ok=True)
            with pytest.raises(ValueError, match=f'{name} is compressed.*gunzip'):
                find_images(source)


def test_odd_tars(tmp_path):
    path = shard(tmp_path, 'a.png')
    os.mkfifo(tmp_path / 'b.tar')
    (tmp_path / 'files/a.png').unlink()
    with pytest.raises(ValueError, match='b.tar is no regular file'):
        find_images(tmp_path)
    os.unlink(tmp_path / 'b.tar')
    (tmp_path / 'c.tar').symlink_to('nowhere')
    with pytest.raises(ValueError, match='c.tar cannot be read'):
        find_images(tmp_path)
    os.unlink(tmp_path / 'c.tar')
    (tmp_path / 'a.txt').write_text('x')
    pack(tmp_path, ['a.txt'], path)
    with pytest.raises(ValueError, match='holds tars, but no images'):
        find_images(tmp_path)


def test_a_tar_that_changes_is_not_read_any_more(tmp_path):
    path = shard(tmp_path, 'a.png', 'b.png')
    images, other = find_images(path), shard(tmp_path, 'a.png', 'c.png')
    augmented, news = Augmented(images, CentreCrop((8, 8)), None), 'was changed since the run began: start it again'
    os.utime(other, ns=(0, 0))
    with pytest.raises(ValueError, match=f'2 images in a row .*{news}'):  # not the bytes that lie there now
        augmented[0, 0]
    images = find_images(path)
    assert images[0].size == (16, 12)
    os.truncate(path, 700)
    with pytest.raises(OSError, match=news):
        images[0]


def test_what_is_broken_inside_a_tar_is_replaced(tmp_path):
    path = shard(tmp_path, 'a.png', 'b.png')
    changed(path, 512, b'This is no PNG')
    image, _, failed = Augmented(find_images(path), CentreCrop((8, 8)), None)[0, 0]
    assert failed[0][0] == 0 and 'UnidentifiedImageError' in failed[0][1] and image.shape == (3, 8, 8)


# -- JPEGs decoded no larger than needed ------------------------------------------------------------------------------

def photo(height, width, seed=0):
    """Smooth colours with some noise, so that its pixels say where they are."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.stack([np.sin(7 * x + 3 * y), np.cos(9 * y - x), np.sin(5 * x * y + seed)], 2)
    waves = 120 + 90 * waves + np.random.default_rng(seed).normal(0, 4, waves.shape)
    return Image.fromarray(waves.clip(0, 255).astype(np.uint8))


SIZES = ((300, 400), (61, 47), (512, 520), (37, 900), (201, 133), (16, 16))


@pytest.fixture
def photos(tmp_path):
    """JPEGs of many sizes and kinds."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for i, (height, width) in enumerate(SIZES):
        for kind, options in (('plain', {}), ('full', {'subsampling': 0}), ('progressive', {'progressive': True})):
            photo(height, width, i).save(folder / f'{i}_{kind}.jpg', quality=90, **options)
    return folder


def test_a_reduction_is_the_largest_that_keeps_the_crop_from_growing():
    for height, width, factor in ((224, 224, 1), (447, 2000, 1), (448, 448, 2), (448, 2000, 2), (895, 896, 2), (896, 896, 4),
                                  (1792, 1793, 8), (9999, 9999, 8), (50, 9999, 1)):
        assert reduction(Crop((0, 0, height, width), (224, 224), False)) == factor
    draw = RandomCrop((24, 40), (0.01, 1.0))
    for seed in range(300):
        torch.manual_seed(seed)
        height, width = torch.randint(1, 700, (2,)).tolist()
        crop = draw.draw(height, width)
        factor = reduction(crop)
        top, left, h, w = reduced(crop, factor).box
        assert top + h <= -(-height // factor) and left + w <= -(-width // factor)  # libjpeg rounds up
        assert all(now >= min(side, wanted) for now, side, wanted in zip((h, w), crop.box[2:], crop.size))
        for first, side, whole_first, whole in ((top, h, crop.box[0], crop.box[2]), (left, w, crop.box[1], crop.box[3])):
            assert whole_first - factor < first * factor <= whole_first
            assert whole_first + whole <= (first + side) * factor < whole_first + whole + factor


@pytest.mark.parametrize('in_chans', [1, 3])
def test_the_same_crops_of_nearly_the_same_pixels(photos, in_chans, monkeypatch):
    if in_chans == 1:
        for path in photos.iterdir():
            Image.open(path).convert('L').save(path)
    images, factors = ImageFiles(photos, in_chans), []
    monkeypatch.setattr('common.images.fast_decode.reduction', lambda crop: factors.append(reduction(crop)) or factors[-1])
    plain, fast = (kind(images, RandomCrop((24, 40), (0.1, 1.0)), None, seed=5) for kind in (Augmented, FastDecode))
    for index in range(len(images)):
        for epoch in range(6):
            one, other = plain[epoch, index][0], fast[epoch, index][0]
            assert other.dtype == torch.uint8 and other.shape == one.shape == (in_chans, 24, 40)
            apart = (one.int() - other.int()).abs().float().mean()
            assert apart < (0.05 if factors[-1] == 1 else 4), (images.name(index), factors[-1])
    assert set(factors) == {1, 2, 4, 8}


def test_at_full_size_few_pixels_differ(photos):
    images = ImageFiles(photos)
    plain, fast = (kind(images, RandomCrop((300, 300)), None) for kind in (Augmented, FastDecode))
    apart = [(plain[0, i][0].int() - fast[0, i][0].int()).abs() for i in range(len(images))]
    assert 1 <= max(one.max() for one in apart) <= 2 and np.mean([(one > 0).float().mean() for one in apart]) < 0.02
    for i in range(len(images)):  # and before they are resized, by none
        with images.opened(i) as image:
            whole = decoded(image, 1)
        assert np.array_equal(whole.permute(1, 2, 0), np.array(images[i]))


def test_jpegs_are_decoded_at_the_reduced_size(photos, monkeypatch):
    images, sizes = ImageFiles(photos), []
    original = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, 'load', lambda self: sizes.append(self.size) or original(self))
    fast = FastDecode(images, RandomCrop((30, 30), (1.0, 1.0)), None)
    number = [images.name(i).endswith('0_plain.jpg') for i in range(len(images))].index(True)
    assert fast[0, number][0].shape == (3, 30, 30) and set(sizes) == {(50, 38)}


def test_what_fast_decoding_leaves_alone(tmp_path):
    noise(60, 70).save(tmp_path / 'a.png')
    photo(60, 70).convert('L').save(tmp_path / 'grey.jpg')
    photo(60, 70).convert('CMYK').save(tmp_path / 'cmyk.jpg')
    Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)).save(tmp_path / 'deep.png')
    images = ImageFiles(tmp_path)
    plain, fast = (kind(images, RandomCrop((20, 20)), None) for kind in (Augmented, FastDecode))
    for index in range(4):
        assert torch.equal(plain[1, index][0], fast[1, index][0]) and plain[1, index][0].dtype == fast[1, index][0].dtype
    with pytest.raises(ValueError, match='--fast_decode is for folders, lists and tars'):
        FastDecode([noise(9, 9)], RandomCrop((8, 8)), None)


def test_a_broken_jpeg_is_replaced_as_without_fast_decoding(photos):
    images = ImageFiles(photos)
    for index, keep in ((3, 0.6), (6, 0.02), (9, 0.9)):
        path = Path(images.name(index))
        path.write_bytes(path.read_bytes()[:int(keep * path.stat().st_size)])
    for size in ((300, 300), (10, 10)):
        plain, fast = (kind(images, RandomCrop(size), None) for kind in (Augmented, FastDecode))
        for index in (3, 6, 9):
            assert plain[0, index][2] == fast[0, index][2] and [at for at, _ in fast[0, index][2]] == [index]
            assert (plain[0, index][0].int() - fast[0, index][0].int()).abs().float().mean() < 8  # the next one's same crop


def test_a_run_with_fast_decoding(tiny, tmp_path, photos):
    options = {'data_path': str(photos), 'fast_decode': True, 'run_dir': str(tmp_path / 'fast')}
    target = pack(photos, sorted(path.name for path in photos.iterdir()), tmp_path / 'tars/a.tar')
    one = pretrain(tiny(**options))
    other = pretrain(tiny(**{**options, 'data_path': str(target), 'run_dir': str(tmp_path / 'tar'), 'workers': 1}))
    assert_same_run(one, other)
    with pytest.raises(ValueError, match='fast_decode'):  # it is part of what a run is
        pretrain(tiny(**{**options, 'fast_decode': False}))
    with pytest.raises(ValueError, match='--fast_decode is for folders'):
        pretrain(tiny(fast_decode=True, run_dir=str(tmp_path / 'own')), dataset=[noise(40, 40)] * 8)


def test_malformed_files_are_named_alike(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_000_000)
    written(tmp_path)
    images = ImageFiles(tmp_path)
    plain, fast = (kind(images, RandomCrop((8, 8)), None, stand_ins=False) for kind in (Augmented, FastDecode))
    told = [(plain[0, i][2], fast[0, i][2]) for i in range(len(images))]
    assert all(one == other for one, other in told) and sum(bool(one) for one, _ in told) > 50
    assert capfd.readouterr().err == ''  # nor does libjpeg speak for itself


# -- waiting ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def clock(monkeypatch):
    """Stands in for the clock that training reads: [seconds], which only the test sets forward."""
    now = [0.0]
    for module in ('common.training.trainer', 'common.training.waits', 'common.training.progress'):
        monkeypatch.setattr(f'{module}.time', SimpleNamespace(perf_counter=lambda: now[0], strftime=time.strftime))
    return now


class Taking(list):
    """Images each of which takes so many seconds to read."""

    def __init__(self, images, seconds, clock):
        super().__init__(images)
        self.seconds, self.clock = seconds, clock

    def __getitem__(self, index):
        self.clock[0] += self.seconds
        return super().__getitem__(index)


def taking(monkeypatch, clock, seconds):
    """Have each training step take so many seconds, besides what reading its images does."""
    original = trainer.train_step

    def train_step(*arguments):
        clock[0] += seconds
        return original(*arguments)

    monkeypatch.setattr(trainer, 'train_step', train_step)


def test_the_time_spent_waiting_for_images_is_told(tiny, tmp_path, monkeypatch, clock):
    """A batch takes 8 s to read, and a step 2 s; the first batch of all is not counted."""
    taking(monkeypatch, clock, 2.0)
    folder = pretrain(tiny(run_dir=str(tmp_path / 'slow'), picture_every=0), dataset=Taking([noise(32, 32)] * 40, 1.0, clock))
    assert [entry['data_wait'] for entry in log_of(folder)[0][1:]] == [32 / 50, 40 / 50]
    assert [entry['images_per_second'] for entry in log_of(folder)[0][1:]] == pytest.approx([40 / 50, 40 / 50])
    said, warned = ((folder / f'std{kind}_backup.txt').read_text() for kind in ('out', 'err'))
    assert re.findall(r', waited (\d\d) % for images', said) == ['64', '80']
    told = re.findall(r'(\d\d) % of the time of epoch (\d) were spent waiting for images \(--workers=0\)', warned)
    assert told == [('64', '1')]  # once
    assert all(word in warned for word in ('more --workers', '--fast_decode', 'tar shards'))
    board = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    shares = board.EventAccumulator(str(folder / 'tensorboard_log')).Reload().Scalars('data_wait')
    assert len(shares) >= 3 and all(0.5 < share.value < 0.81 for share in shares)


@pytest.mark.parametrize(('seconds', 'share'), [(0.01, 0.074), (0.001, 0.008)])
def test_who_waits_little_is_not_warned(tiny, tmp_path, monkeypatch, clock, seconds, share):
    """A step takes 1 s, and a batch 0.08 s to read, which is told; or 0.008 s, which is not."""
    monkeypatch.setattr('common.training.progress.SHORTEST_WAIT', 0.0)
    taking(monkeypatch, clock, 1.0)
    folder = pretrain(tiny(run_dir=str(tmp_path / 'fast'), picture_every=0),
                      dataset=Taking([noise(32, 32)] * 40, seconds, clock))
    assert log_of(folder)[0][-1]['data_wait'] == pytest.approx(share, abs=1e-3)
    assert ('waited 7 % for images' in (folder / 'stdout_backup.txt').read_text()) == (share > 0.05)
    assert 'spent waiting' not in (folder / 'stderr_backup.txt').read_text()


def test_a_gpu_waits_only_while_it_has_nothing_to_do(monkeypatch):
    """With events that stand in for a GPU's, whose clock is set by hand; those in the future have not come yet."""
    host = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = max(host[0], busy_until)

        def query(self):
            return self.at <= host[0]

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    waits, busy_until = Waits(torch.device('cuda')), 0.0
    for work, wait in ((0, 100.0), (5.0, 3.0), (5.0, 2.0), (0.0, 7.0)):  # the GPU is given work; the host waits for a batch
        busy_until = max(host[0], busy_until) + work
        with waits.one():
            host[0] += wait
    assert waits.taken() == 2.0  # works until 110, waits from there to 112; the first batch is not counted
    busy_until = 120.0
    with waits.one():
        host[0] += 1.0
    assert waits.taken() == 0.0 and len(waits.pairs) == 1
    host[0] = 130.0
    assert waits.taken() == 0.0 and not waits.pairs
