"""Images out of tar shards: the same as from a folder, and nothing that a tar lies about is read."""
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.images.augmented import Augmented, CentreCrop
from common.images.datasets import fingerprint
from common.images.files import ImageFiles
from common.images.loading import loader
from common.images.shards import TarShards
from pretrain.data import find_held_out, find_images
from pretrain.main import pretrain
from tests.common.images.drawn import noise, pack, packed
from tests.conftest import assert_same_run, saved

CPU = torch.device('cpu')


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


def test_tars_named_as_splits_are_kept_apart(tmp_path):
    for split, image in (('train', 'a.png'), ('val', 'b.png')):
        shard(tmp_path, image).rename(tmp_path / f'{split}.tar')
    shutil.rmtree(tmp_path / 'files')
    assert find_images(tmp_path).paths.tolist() == [b'a.png'] and find_held_out(tmp_path).paths.tolist() == [b'b.png']
    (tmp_path / 'val.tar').rename(tmp_path / 'more.tar')
    assert len(find_images(tmp_path)) == 2 and find_held_out(tmp_path) is None  # as tars of any names


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
    """The byte after the last member."""
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
    'two in one': (lambda path: path.write_bytes(path.read_bytes() * 2), 'after its end'),
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
