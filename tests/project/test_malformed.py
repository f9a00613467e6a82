"""Files and data sets that are broken, or odd, or do harm: each is read or named, and nothing else happens."""
import io
import multiprocessing
import os
import random
import signal
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, TiffImagePlugin

from common.images.augmented import Augmented, CentreCrop, RandomCrop
from common.images.datasets import check_dataset
from common.images.files import ImageFiles
from common.images.loading import loader, naming_the_file
from common.images.timeout import at_most

NORM = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device('cpu')
FORMATS = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'GIF', 'BMP')


# -- files ------------------------------------------------------------------------------------------------------------

def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth=8, colour=0, pixels=b'', extra=b''):
    """A PNG that says of itself what it likes."""
    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)) + extra \
        + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b'')


def written(folder, seed=0):
    """Write 200 files and more; {name: whether it can be read, None where that is the decoder's business}."""
    rng, draw, files = np.random.default_rng(seed), random.Random(seed), {}
    noise = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image, deep = Image.fromarray(noise), rng.integers(0, 65536, (30, 40), dtype=np.uint16)
    frames, turned, text = [image, image.rotate(180)], Image.Exif(), PngImagePlugin.PngInfo()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    turned[0x112] = 6
    text.add_text('comment', 'x' * 10_000_000, zip=True)
    tags[700] = b'x' * 1_000_000
    clear = image.quantize(16)
    clear.info['transparency'] = bytes(range(16))
    whole = {kind: encoded(image, kind) for kind in FORMATS}
    good = {
        'png_called.jpg': whole['PNG'], 'jpg_called.png': whole['JPEG'], 'cmyk.jpg': encoded(image.convert('CMYK'), 'JPEG'),
        'cmyk.tif': encoded(image.convert('CMYK'), 'TIFF'), 'ycbcr.jpg': encoded(image.convert('YCbCr'), 'JPEG'),
        'exif.jpg': encoded(image, 'JPEG', exif=turned), 'palette.png': encoded(clear, 'PNG'), 'alpha.png': encoded(
            image.convert('RGBA'), 'PNG'), 'alpha.webp': encoded(image.convert('RGBA'), 'WEBP'), 'grey_alpha.png': encoded(
            image.convert('LA'), 'PNG'), 'palette.gif': encoded(clear, 'GIF', transparency=3), 'bits.png': encoded(
            image.convert('1'), 'PNG'), 'fax.tif': encoded(image.convert('1'), 'TIFF', compression='group4'),
        'sixteen.png': encoded(Image.fromarray(deep), 'PNG'), 'sixteen_little.tif': encoded(Image.fromarray(deep), 'TIFF'),
        'sixteen_big.tif': encoded(Image.fromarray(deep.astype('>u2')), 'TIFF'), 'sixteen.pgm': b'P5 40 30 65535\n'
        + deep.astype('>u2').tobytes(), 'float.tif': encoded(Image.fromarray(rng.random((30, 40), np.float32)), 'TIFF'),
        'one_pixel.png': encoded(image.crop((0, 0, 1, 1)), 'PNG'), 'wide.png': png(60000, 1, pixels=bytes(60001)),
        'high.png': png(1, 60000, pixels=bytes(120000)),
        'moving.gif': encoded(image, 'GIF', save_all=True, append_images=frames),
        'moving.webp': encoded(image, 'WEBP', save_all=True, append_images=frames), 'moving.png': encoded(
            image, 'PNG', save_all=True, append_images=frames), 'pages.tif': encoded(
            image, 'TIFF', save_all=True, append_images=frames), 'icc.jpg': encoded(image, 'JPEG', icc_profile=bytes(900_000)),
        'icc.png': encoded(image, 'PNG', icc_profile=bytes(900_000)), 'tag.tif': encoded(image, 'TIFF', tiffinfo=tags),
        'warned_of.png': png(1200, 1200, 1, pixels=bytes(151 * 1200)), 'spaces and ünïcode.png': whole['PNG']}
    bad = {
        'empty.jpg': b'', 'empty.png': b'', 'text.jpg': b'This is no image.\n' * 99, 'page.jpg': b'<html>404</html>',
        'zeros.jpg': bytes(5000), 'bomb.png': png(20000, 20000, 1, pixels=bytes(99)), 'bomb.gif': b'GIF89a' + b'\xff' * 4
        + whole['GIF'][10:], 'bomb.bmp': whole['BMP'][:18] + struct.pack('<ii', 60000, 60000) + whole['BMP'][26:],
        'no_width.png': png(0, 30), 'no_height.png': png(30, 0),
        'no_width.bmp': whole['BMP'][:18] + struct.pack('<ii', 0, 30) + whole['BMP'][26:], 'no_width.pgm': b'P5 0 30 255\n',
        'text.png': encoded(image, 'PNG', pnginfo=text), 'header.jpg': whole['JPEG'][:20], 'header.png': whole['PNG'][:33],
        'script.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n',
        'nan.tif': encoded(Image.fromarray(np.full((30, 40), np.nan, np.float32)), 'TIFF'), 'inf.tif': encoded(
            Image.fromarray(np.full((30, 40), np.inf, np.float32)), 'TIFF'), 'meters.tif': encoded(
            Image.fromarray(np.full((30, 40), -70000, np.int32)), 'TIFF'), 'half.png': whole['PNG'][:len(whole['PNG']) // 2],
        'half.jpg': whole['JPEG'][:len(whole['JPEG']) // 2], 'half.webp': whole['WEBP'][:len(whole['WEBP']) // 2]}
    unclear = {'no_width.gif': b'GIF89a' + bytes(4) + whole['GIF'][10:]}
    for number in range(150):
        kind, content = FORMATS[number % 6], bytearray(whole[FORMATS[number % 6]])
        if number % 4 == 0:
            del content[draw.randrange(len(content)):]
        for _ in range(number % 4):
            content[draw.randrange(min(len(content), 200 if number % 8 < 4 else len(content)))] ^= 1 << draw.randrange(8)
        unclear[f'{number:03}.{kind.lower()}'] = bytes(content)
    for outcome, contents in ((True, good), (False, bad), (None, unclear)):
        for name, content in contents.items():
            (folder / name).write_bytes(content)
            files[name] = outcome
    os.mkfifo(folder / 'fifo.png')
    (folder / 'device.png').symlink_to('/dev/zero')
    (folder / 'broken link.png').symlink_to('nowhere')
    return {**files, **dict.fromkeys(('fifo.png', 'device.png'), False)}


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


# -- files that hang --------------------------------------------------------------------------------------------------

class Doing:
    """Eight images, number 3 of which does something when it is read."""

    def __init__(self, what):
        self.what = what

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            self.what()
        return torch.full((3, 8, 8), index / 8)

    def name(self, index):
        return f'file{index}.png'


def never():
    time.sleep(1000)


def alarmed():
    """Have the alarm that is set go off now, as if its time were over."""
    assert signal.setitimer(signal.ITIMER_REAL, 0.01)[0] > 0


def hanging():
    alarmed()
    never()


class Waiting:
    """Opens a FIFO that nobody writes to."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        alarmed()
        with open(self.path, 'rb') as file:
            file.read()


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('fifo', [False, True])
def test_a_read_that_hangs_is_given_up(tmp_path, fifo, workers):
    os.mkfifo(tmp_path / 'fifo')
    images = Doing(Waiting(tmp_path / 'fifo') if fifo else hanging)
    augmented = Augmented(images, CentreCrop((8, 8)), NORM, timeout=1000)
    batches = list(loader(augmented, [[(0, i)] for i in (2, 3, 4)], workers, CPU))
    assert [failures for *_, failures in batches] == [[], [(3, 'TimeoutError: it gave nothing for 1000 seconds')], []]
    assert torch.equal(batches[1][0], batches[2][0])  # the next one stands in
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_someone_elses_alarm_goes_off_all_the_same():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with at_most(1000):
            time.sleep(0.2)
        for _ in range(10_000):  # an alarm ends no sleep
            if rung:
                break
            time.sleep(0.01)
        assert rung == [True]
        signal.setitimer(signal.ITIMER_REAL, 1000)
        with pytest.raises(TimeoutError), at_most(0.01):
            never()
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_without_a_limit_there_is_no_alarm():
    seen = []
    images = Doing(lambda: seen.append(signal.getitimer(signal.ITIMER_REAL)[0]))
    Augmented(images, CentreCrop((8, 8)), NORM)[0, 3]
    Augmented(images, CentreCrop((8, 8)), NORM, timeout=None)[0, 3]
    assert 0 < seen[0] <= 120 and seen[1] == 0
    assert loader(Augmented(images, CentreCrop((8, 8)), NORM, timeout=None), [], 1, CPU).timeout == 0
    assert loader(Augmented(images, CentreCrop((8, 8)), NORM), [], 1, CPU).timeout == 3600
    assert loader(Augmented(images, CentreCrop((8, 8)), NORM), [], 0, CPU).timeout == 0


def test_the_first_look_at_a_dataset_does_not_hang():
    images = torch.utils.data.Subset(Doing(never), [3])
    assert check_dataset(images, timeout=0.05) is images


# -- loading processes ------------------------------------------------------------------------------------------------

def killed():
    os.kill(os.getpid(), signal.SIGKILL)


class KilledLater:
    """Ends its process once somebody says so."""

    def __init__(self):
        self.listen, self.say = os.pipe()

    def __call__(self):
        os.read(self.listen, 1)
        killed()


def exits():
    os._exit(3)


def faults():
    os.kill(os.getpid(), signal.SIGSEGV)


def uninterrupted():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
    never()


def told_to_stop():
    for name in ('SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGTERM'):
        os.kill(os.getpid(), getattr(signal, name))


def ended():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    never()


def read_all(what, context=None, **options):
    """Read the images of Doing(what) with one process, beside another data set that is in order."""
    augmented, other = (Augmented(Doing(each), CentreCrop((8, 8)), NORM, **options) for each in (what, int))
    batches = loader(augmented, [[(0, i)] for i in range(8)], 1, CPU)
    batches.multiprocessing_context = context
    with naming_the_file(other, augmented):
        for _ in loader(other, [[(0, 5)]], 1, CPU):
            pass
        return [x for x, *_ in batches]


DEATHS = [(killed, 'killed by signal: Killed'), (exits, 'exited unexpectedly with exit code 3'),
          (faults, 'killed by signal: Segmentation fault'), (ended, 'killed by signal: Terminated')]


@pytest.mark.parametrize(('what', 'how'), DEATHS)
def test_a_death_is_told_with_the_file(what, how):
    with pytest.raises(ValueError, match=r'file3\.png\. If that repeats.*--workers') as error:
        read_all(what)
    died = str(error.value).split(' while it read file3.png.')[0]  # how is not known if a batch was being handed over
    assert died in (f'a loading process died ({how})', 'a loading process died (exited unexpectedly)')


@pytest.mark.slow
@pytest.mark.parametrize(('what', 'how'), DEATHS[:2])
def test_a_death_is_told_with_the_file_where_processes_are_spawned(what, how):
    with pytest.raises(ValueError, match=r'read file3\.png\. If that repeats'):
        read_all(what, 'spawn')


def test_a_death_is_told_wherever_the_training_process_is():
    """Not in the loop over the batches, but in the middle of a step."""
    later = KilledLater()
    augmented = Augmented(Doing(later), CentreCrop((8, 8)), NORM)
    batches = iter(loader(augmented, [[(0, i)] for i in (0, 3)], 1, CPU))
    with pytest.raises(ValueError, match='died .killed by signal: Killed. while it read file3.png'), naming_the_file(augmented):
        next(batches)
        os.write(later.say, b'.')
        time.sleep(600)


def fatal(items):
    killed()


def test_a_death_between_two_images_blames_none():
    augmented = Augmented(Doing(int), CentreCrop((8, 8)), NORM)
    with pytest.raises(ValueError, match='between two images: memory or /dev/shm ran out'), naming_the_file(augmented):
        list(loader(augmented, [[(0, 0)]], 1, CPU, collate=fatal))


def test_other_errors_pass(monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    with pytest.raises(RuntimeError, match='^mine$'), naming_the_file():
        raise RuntimeError('mine')
    with pytest.raises(FileNotFoundError, match='^mine$'), naming_the_file(Augmented(Doing(int), None, NORM)):
        raise FileNotFoundError('mine')


def test_processes_outlive_what_stops_a_run():
    assert [float(x.mean()) for x in read_all(told_to_stop)] == [(i / 8 - 0.5) / 0.25 for i in range(8)]


def test_a_read_that_nothing_interrupts_ends_the_run():
    """And its process, which would keep the training process from ending."""
    with pytest.raises(ValueError, match=r'timed out after 6\.0 seconds, reading file3\.png: is the storage still there'):
        read_all(uninterrupted, timeout=0.2)
    assert not multiprocessing.active_children()
