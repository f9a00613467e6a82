"""Files and data sets that are broken, or odd, or do harm: each is read or named, and nothing else happens."""
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from common.images.augmented import Augmented, CentreCrop, RandomCrop
from common.images.files import ImageFiles
from common.images.loading import loader
from tests.common.images.malformed import written

NORM = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device('cpu')


@pytest.fixture
def malformed(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_000_000)  # what is tested takes no gigabytes then
    return tmp_path, written(tmp_path)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('transform', [CentreCrop((16, 16)), RandomCrop((16, 16))], ids=['centre', 'random'])
def test_every_file_is_read_or_named(malformed, transform, workers):
    folder, files = malformed
    assert len(files) >= 200
    images = ImageFiles(folder)
    assert sorted(os.path.basename(images.name(i)) for i in range(len(images))) == sorted(files)
    assert images.left_out == {'link to nowhere (such as broken link.png)': 1}
    (folder / 'gone.png').write_bytes(b'')
    images = ImageFiles(folder)
    (folder / 'gone.png').unlink()  # between listing and reading
    augmented, read, said = Augmented(images, transform, NORM, stand_ins=False), set(), {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        batches = loader(augmented, [[(0, i)] for i in range(len(images))], workers, CPU)
        for index, (x, _, failures) in enumerate(batches):
            name = os.path.basename(images.name(index))
            if len(x):
                assert x.shape == (1, 3, 16, 16) and x.isfinite().all() and not failures
                read.add(name)
            else:
                assert [at for at, _ in failures] == [index]
                said[name] = failures[0][1]
    assert not [str(each.message) for each in warned] and read | set(said) == {*files, 'gone.png'}
    assert {name for name, good in files.items() if good} <= read
    assert {name for name, good in files.items() if good is False} | {'gone.png'} <= set(said)
    bombs = {name for name in said if 'DecompressionBombError' in said[name] and files.get(name) is False}
    assert bombs == {'bomb.png', 'bomb.gif', 'bomb.bmp'}
    assert said['nan.tif'] == said['inf.tif'] == 'ValueError: it holds NaN or infinite values'
    assert said['fifo.png'] == said['device.png'] == 'OSError: it is no regular file' and 'NotFound' in said['gone.png']
    assert 'UnidentifiedImageError' in said['script.jpg']  # Ghostscript is not asked
    damaged = {name for name, good in files.items() if good is None}
    assert damaged & read and damaged & set(said)  # so that there is something in it


def test_what_odd_files_show(malformed):
    """Read, and to the right thing: not merely to something."""
    folder, _ = malformed
    images = ImageFiles(folder, in_chans=1)
    by_name = {os.path.basename(images.name(i)): i for i in range(len(images))}
    little, *others = (images[by_name[f'sixteen{name}']] for name in ('_little.tif', '_big.tif', '.png', '.pgm'))
    assert little.unique().numel() > 1000 and all(torch.equal(little, other) for other in others)
    assert images[by_name['exif.jpg']].size == (40, 30)  # as stored, though it says that it is to be turned
    still, moving = (images[by_name[name]] for name in ('jpg_called.png', 'moving.webp'))
    assert np.abs(np.subtract(still, moving, dtype=float)).mean() < 40 < np.abs(np.subtract(  # the first picture of them
        still.rotate(180), moving, dtype=float)).mean()


def test_what_a_user_registers_is_read(tmp_path, monkeypatch):
    class Own(PngImagePlugin.PngImageFile):
        format = 'OWN'

        def _open(self):
            if self.fp.read(4) != b'OWN1':
                raise SyntaxError('not mine')
            self._size, self._mode, self.tile = (2, 1), 'L', []
            self.im = Image.frombytes('L', (2, 1), b'\x07\x09').im

        def load(self):
            return self.im.pixel_access(self.readonly)

    (tmp_path / 'a.own').write_bytes(b'OWN1')
    with pytest.raises(ValueError, match='holds no images'):
        ImageFiles(tmp_path)
    Image.init()
    for name in ('ID', 'OPEN', 'EXTENSION'):
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    Image.register_open('OWN', Own, lambda prefix: prefix.startswith(b'OWN1'))
    Image.register_extension('OWN', '.own')
    assert np.array(ImageFiles(tmp_path, in_chans=1)[0]).tolist() == [[7, 9]]


@pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    (tmp_path / 'a.png').chmod(0)
    assert 'PermissionError' in Augmented(ImageFiles(tmp_path), CentreCrop((8, 8)), NORM, stand_ins=False)[0, 0][2][0][1]


@pytest.mark.parametrize('empty', [torch.zeros(3, 0, 5), torch.zeros(3, 5, 0, dtype=torch.uint8), Image.new('RGB', (0, 5)),
                                   (Image.new('RGB', (5, 0)), 3)])
def test_images_without_pixels_are_unreadable(empty):
    _, _, failed = Augmented([empty, torch.ones(3, 9, 9)], CentreCrop((8, 8)), NORM)[0, 0]
    assert failed == [(0, 'ValueError: it has no pixels')]


def test_no_warning_is_silenced_for_good(malformed):
    images = ImageFiles(malformed[0])
    number = next(i for i in range(len(images)) if 'warned_of' in images.name(i))
    assert images[number].size == (1200, 1200)
    with pytest.warns(Image.DecompressionBombWarning), Image.open(malformed[0] / 'warned_of.png'):
        pass
