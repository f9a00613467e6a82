"""Pixels are what the file holds, or it is said that they are not."""
import base64
import dataclasses
import io
import json
import os
import shutil
import struct
import tarfile
import warnings
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from common.config import ImageOptions
from common.images.augmented import Augmented, CentreCrop, RandomCrop
from common.images.fast_decode import FastDecode
from common.images.files import ImageFiles, SeveralFiles
from common.images.pixels import as_channels
from common.images.reading import AS_IT_IS, Reading
from common.images.survey import survey
from common.images.tiff import turned as turned_upright
from downstream_coco.data import CocoImages
from downstream_imagenet.class_folders import find_labelled
from pretrain.data import find_images
from pretrain.main import pretrain
from pretrain.playground import Playground
from pretrain.saved import read_saved
from tests.conftest import saved

DEEP = np.random.default_rng(0).integers(0, 65536, (7, 9, 3), dtype=np.uint16)
# 6 x 4 pixels of 3 x 12 bits, reversible
JPEG_2000 = base64.b85decode(
    '|4;u>051Rl000060000400000000000000600004000000000000RpF0Sf^E3jqQDQUDA90003200aa80smY81VCW_WB?@q0Yh?SVRU6=AYyqSPjF>!N>D{dAa-'
    'SPb7^mGATlmBE;Rp;015yA0001!00IA#&*YpGG|Om?1)J8M=Mq|<w{{r=4oTxZu50m_8CqD-1k}g%-A42Y>L1_Ws0<mGLa};PSyS~A%j^B8<;=-sa2h7RrxY{XZ'
    'ba}YX!ok#kQyC(k#-Z`;H()<87E2%VTo@JXj?GPUAUAng0dTNv>{5Bv9jyLfR1e{%&&U!*Z7w>_y5@')


def png(values, turned=None):
    """A 16-bit PNG of (h, w, C); turned: EXIF's orientation."""
    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
    height, width, channels = values.shape
    header = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    said = struct.pack('>4sIHHHIHHI', b'MM\0*', 8, 1, 0x112, 3, 1, turned or 1, 0, 0)
    exif = chunk(b'eXIf', said) if turned else b''
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + exif + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def tiff(*pages, order='<', photometric=None, bits=None, **tags):
    """An uncompressed TIFF of pages (h, w) or (h, w, C), with samples of the arrays' types. tags: more of them, as t338=2."""
    content, at = bytearray((b'II*\0' if order == '<' else b'MM\0*') + bytes(4)), 4
    for values in pages:
        (height, width), samples = values.shape[:2], values.shape[2] if values.ndim == 3 else 1
        data, offset = values.astype(values.dtype.newbyteorder(order)).tobytes(), len(content)
        content += data + bytes(len(data) % 2)
        bits_at = len(content)
        content += struct.pack(f'{order}{samples}H', *[bits or 8 * values.dtype.itemsize] * samples)
        kind = {'u': 1, 'i': 2, 'f': 3}[values.dtype.kind]
        found = {256: width, 257: height, 259: 1, 262: photometric if photometric is not None else 2 if samples > 2 else 1,
                 273: offset, 277: samples, 278: height, 279: len(data), 284: 1,
                 **{int(name[1:]): value for name, value in tags.items()}}
        entries = [(tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in found.items()]
        entries += [(258, 3, samples, bits_at if samples > 2 else 0)] + ([(339, 3, 1, kind)] if kind != 1 else [])
        struct.pack_into(f'{order}I', content, at, len(content) + len(content) % 2)
        content += bytes(len(content) % 2) + struct.pack(f'{order}H', len(entries))
        for tag, code, number, value in sorted(entries):
            inside = bytes(content[bits_at:bits_at + 2 * samples]).ljust(4, b'\0') if tag == 258 and samples <= 2 else \
                struct.pack(f'{order}HH', value, 0) if code == 3 and number == 1 else struct.pack(f'{order}I', value)
            content += struct.pack(f'{order}HHI', tag, code, number) + inside
        at = len(content)
        content += bytes(4)
        tags = {'t254': 1}  # the pages after the first are smaller copies of it
    return bytes(content)


def ppm(values, most=65535, plain=False):
    kind = {3: b'P3', 1: b'P2'} if plain else {3: b'P6', 1: b'P5'}
    height, width, channels = values.shape
    body = ' '.join(map(str, values.flatten())).encode() + b' # all' if plain else values.astype('>u2').tobytes()
    return kind[channels] + b' # a comment\n%d %d\n%d\n' % (width, height, most) + body


def read(folder, content, name, in_chans=3, reading=AS_IT_IS):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    images = ImageFiles(folder, in_chans, reading=reading)
    return images[[images.name(i).endswith(name) for i in range(len(images))].index(True)]


def expected(values, low=0, high=65535):
    return torch.from_numpy(((values.astype(np.float64) - low) / (high - low)).clip(0, 1)).float().permute(2, 0, 1)


# -- the right values -------------------------------------------------------------------------------------------------

ALPHA = np.dstack([DEEP, DEEP[..., :1]])
COLOURS = {'rgb.png': png(DEEP), 'rgba.png': png(ALPHA), 'p6.ppm': ppm(DEEP), 'p3.ppm': ppm(DEEP, plain=True)}
TIFFS = {'little.tif': tiff(DEEP), 'big.tif': tiff(DEEP, order='>'), 'alpha.tif': tiff(ALPHA, t338=2),
         'bands.tif': tiff(DEEP, photometric=1)}


@pytest.mark.parametrize('name', [*COLOURS, *TIFFS])
def test_colours_of_sixteen_bits(tmp_path, name):
    if name in TIFFS:
        pytest.importorskip('tifffile', reason='colour TIFFs of 16 bits are read by tifffile')
    content = {**COLOURS, **TIFFS}[name]
    torch.testing.assert_close(read(tmp_path, content, name), expected(DEEP), rtol=0, atol=1e-7)
    ranged = read(tmp_path, content, name, 3, Reading((1000, 30000)))
    torch.testing.assert_close(ranged, expected(DEEP, 1000, 30000), rtol=0, atol=1e-6)
    if name != 'bands.tif':  # of these nobody knows which is red
        grey = read(tmp_path, content, name, 1)
        luminance = (expected(DEEP) * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
        torch.testing.assert_close(grey, luminance, rtol=0, atol=1e-6)
    item, _, failed = Augmented(ImageFiles(tmp_path), RandomCrop((8, 8)), None)[0, 0]
    assert not failed and item.shape == (3, 8, 8) and item.dtype == torch.float32


@pytest.mark.parametrize(('content', 'values', 'top'), [
    (png(DEEP[..., :2]), DEEP[..., :1], 65535), (ppm(DEEP % 1001, 1000), DEEP % 1001, 1000),
    (ppm(DEEP[..., :1] % 3001, 3000), DEEP[..., :1] % 3001, 3000),
    (ppm(DEEP[..., :1] % 301, 300, plain=True), DEEP[..., :1] % 301, 300)])
def test_other_depths_and_grey_with_alpha(tmp_path, content, values, top):
    torch.testing.assert_close(read(tmp_path, content, 'a.png'), expected(values, 0, top).expand(3, -1, -1), rtol=0, atol=1e-5)
    ranged = read(tmp_path, content, 'a.png', 3, Reading((10, 90)))
    torch.testing.assert_close(ranged, expected(values, 10, 90).expand(3, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(('values', 'pixel_range', 'more'), [
    (DEEP[..., 0].view(np.int16), (-1000, 1000), {}), (DEEP[..., 0].view(np.int16), (-40000, 40000), {'order': '>'}),
    (DEEP[..., 0].astype(np.uint32) * 65537, (0, 2 ** 32 - 1), {}), (DEEP[..., 0].astype(np.int32) - 70000, (-70000, 0), {}),
    ((DEEP[..., 0] - 30000.0).astype(np.float32), (-30000, 36000), {'order': '>'}),
    ((DEEP[..., 0] >> 8).astype(np.uint8).view(np.int8), (-100, 100), {})])
def test_signed_and_float_values_with_a_range(tmp_path, values, pixel_range, more):
    content = tiff(values, **more)
    with pytest.raises(ValueError, match='its values, -?[0-9].* to .*--pixel_range=FROM,TO'):
        read(tmp_path, content, 'a.tif', 1)
    image = read(tmp_path, content, 'a.tif', 1, Reading(pixel_range))
    torch.testing.assert_close(image, expected(values[..., None], *pixel_range), rtol=0, atol=1e-6)


def test_floats_as_they_are_and_holes(tmp_path):
    values = DEEP[..., 0].astype(np.float32) / 65535
    assert torch.equal(read(tmp_path, tiff(values), 'a.tif', 1)[0], torch.from_numpy(values))
    values[2, 3] = np.nan
    for reading in (AS_IT_IS, Reading((-1, 1))):
        with pytest.raises(ValueError, match='it holds NaN'):
            read(tmp_path, tiff(values), 'a.tif', 1, reading)


def test_white_that_is_zero_and_twelve_bits(tmp_path):
    white = read(tmp_path, tiff(DEEP[..., 0], photometric=0), 'a.tif', 1)
    torch.testing.assert_close(white, 1 - expected(DEEP[..., :1]), rtol=0, atol=1e-7)
    packed = np.array([0xFF, 0xF0, 0x00, 0x80, 0x01, 0x00], np.uint8).reshape(1, 6)  # 4095, 0, 2048, 256
    content = tiff(packed, bits=12, t256=4)
    torch.testing.assert_close(read(tmp_path, content, 'b.tif', 1), torch.tensor([[[4095., 0, 2048, 256]]]) / 4095)


@pytest.mark.parametrize(('values', 'more'), [
    (DEEP.astype(np.float32) / 65535, {}), (DEEP[..., 0] / 65535, {}), (DEEP[..., :2], {'t338': 2}),
    (DEEP.astype(np.float32) / 65535, {'photometric': 1}), ((DEEP >> 8).astype(np.uint8), {'photometric': 1})])
def test_tiffs_that_pillow_does_not_open(tmp_path, values, more):
    pytest.importorskip('tifffile', reason='such TIFFs are read by tifffile')
    top = 1 if values.dtype.kind == 'f' else 2 ** (8 * values.dtype.itemsize) - 1
    whole = values if values.ndim == 3 and values.shape[2] == 3 else values.reshape(7, 9, -1)[..., :1]
    reading = Reading((0, 0.5)) if top == 1 else AS_IT_IS
    image = read(tmp_path, tiff(values, **more), 'a.tif', 3, reading)
    torch.testing.assert_close(image, expected(whole, 0, 0.5 if top == 1 else top).expand(3, -1, -1), rtol=0, atol=1e-6)


def test_tiffs_that_nobody_can_read(tmp_path, monkeypatch):
    five = np.dstack([DEEP, DEEP[..., :2]])
    if find_spec('tifffile'):
        with pytest.raises(ValueError, match='5 bands that it does not call colours'):
            read(tmp_path, tiff(five, photometric=1), 'a.tif')
        with pytest.raises(Image.DecompressionBombError, match='--max_pixels=63'):
            read(tmp_path, tiff(DEEP.astype(np.float32)), 'a.tif', 3, Reading(max_pixels=60))
        with pytest.raises(ValueError, match='it begins as a TIFF, but cannot be read'):
            read(tmp_path, tiff(DEEP)[:200], 'a.tif')
    monkeypatch.setattr('common.images.tiff.find_spec', lambda name: None)
    for content in (tiff(DEEP), tiff(five, photometric=1)):
        with pytest.raises(ValueError, match='pip install tifffile'):
            read(tmp_path, content, 'a.tif')
    (tmp_path / 'a.tif').write_bytes(tiff(DEEP))
    with pytest.raises(ValueError, match='a.tif cannot be read.*pip install tifffile'):
        survey(ImageFiles(tmp_path))


def test_images_are_turned_at_their_depth(tmp_path):
    for turned in range(1, 9):
        path = tmp_path / f'{turned}.png'
        path.write_bytes(png(DEEP, turned))
        upright = turned_upright(DEEP, turned)
        torch.testing.assert_close(SeveralFiles([path])[0], expected(upright), rtol=0, atol=1e-7)
        torch.testing.assert_close(ImageFiles(tmp_path)[turned - 1], expected(DEEP), rtol=0, atol=1e-7)
        eight = Image.fromarray((DEEP >> 8).astype(np.uint8))
        exif = Image.Exif()
        exif[0x112] = turned
        eight.save(tmp_path / 'eight.webp', lossless=True, exif=exif)
        assert (np.array(SeveralFiles([tmp_path / 'eight.webp'])[0]) == upright >> 8).all()
        if find_spec('tifffile'):  # Pillow turns TIFFs by itself
            (tmp_path / 'a.tiff').write_bytes(tiff(DEEP, t274=turned))
            torch.testing.assert_close(SeveralFiles([tmp_path / 'a.tiff'])[0], expected(upright), rtol=0, atol=1e-7)
            (tmp_path / 'a.tiff').unlink()
        (tmp_path / 'eight.webp').unlink()


def test_what_pillow_has_loaded_is_told(tmp_path):
    (tmp_path / 'a.tif').write_bytes(tiff(DEEP))
    image = Image.open(tmp_path / 'a.tif')
    image.load()
    with pytest.raises(ValueError, match='as Image.open gives it'):
        as_channels(image, 3)


def test_eight_bit_images_are_not_touched_by_a_range(tmp_path):
    for i, mode in enumerate(['RGB', 'L', 'P', 'RGBA', '1']):
        Image.fromarray((DEEP >> 8).astype(np.uint8)).convert(mode).save(tmp_path / f'{i}.png')
    plain, ranged = ImageFiles(tmp_path), ImageFiles(tmp_path, reading=Reading((100, 200)))
    assert all(plain[i].tobytes() == ranged[i].tobytes() and plain[i].mode == 'RGB' for i in range(5))


def test_a_range_is_refused_where_bits_are_lost(tmp_path):
    with pytest.raises(ValueError, match='8 of its 12 bits can be read of JPEG2000'):
        read(tmp_path, JPEG_2000, 'a.jp2', 3, Reading((0, 4095)))
    assert read(tmp_path, JPEG_2000, 'a.jp2').size == (6, 4)


def test_shards_fast_decoding_and_annotated_images_are_read_alike(tmp_path):
    reading = Reading((1000, 30000))
    wanted = expected(DEEP, 1000, 30000)
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        about = tarfile.TarInfo('a.png')
        about.size = len(png(DEEP))
        tar.addfile(about, io.BytesIO(png(DEEP)))
    shards = find_images(tmp_path / 'a.tar', reading=reading)
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco/a.png').write_bytes(png(DEEP))
    (tmp_path / 'a.json').write_text(json.dumps({
        'images': [{'id': 1, 'file_name': 'a.png', 'width': 9, 'height': 7}], 'categories': [{'id': 1, 'name': 'thing'}],
        'annotations': [{'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 4, 4]}]}))
    annotated = CocoImages(tmp_path / 'coco', tmp_path / 'a.json', reading=reading)
    fast = FastDecode(shards, RandomCrop((8, 8)), None).read(0)[0]
    for image in (shards[0], annotated[0][0], fast):
        torch.testing.assert_close(image, wanted, rtol=0, atol=1e-6)


# -- what is said -----------------------------------------------------------------------------------------------------

def pictures(folder, **contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        name = name.replace('_', '.')
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content.save(folder / name)
    return ImageFiles(folder, 1)


def several(kind):
    frames, file = [Image.new('L', (8, 6), value) for value in (10, 60, 110)], io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def test_pages_are_counted(tmp_path):
    images = pictures(tmp_path, a_tif=several('TIFF'), b_gif=several('GIF'), c_png=several('PNG'), d_webp=several('WEBP'),
                      e_jpg=Image.new('L', (8, 6)), f_tif=tiff(DEEP[..., 0], DEEP[::2, ::2, 0]))
    assert survey(images) == ['in 4 of 6 files looked at the first of 3 pages is read (d.webp)']
    assert survey(Subset(images, [4, 5])) == [] and survey([images[0]]) == []


def test_transparency_bits_and_bands_are_told(tmp_path):
    clear = Image.new('RGBA', (8, 6), (9, 9, 9, 255))
    assert survey(pictures(tmp_path / 'opaque', a_png=clear, b_png=clear.convert('RGB'))) == []
    clear.putpixel((2, 3), (9, 9, 9, 0))
    palette, file = Image.fromarray((DEEP >> 8).astype(np.uint8)).quantize(4), io.BytesIO()
    palette.save(file, 'PNG', transparency=palette.getpixel((1, 1)))
    assert survey(pictures(tmp_path / 'clear', a_png=clear, b_png=file.getvalue(), c_png=clear.convert('RGB'),
                            d_png=png(ALPHA))) == ['in 3 of 4 files looked at transparency is left out (d.png)']
    file, bands = io.BytesIO(), Image.new('RGBX', (8, 6))
    bands.convert('RGB').save(file, 'SGI', bpc=2)
    assert survey(pictures(tmp_path / 'bits', a_sgi=file.getvalue(), b_jp2=JPEG_2000)) == [
        'in 2 of 2 files looked at 8 of 16 bits are read (a.sgi)']
    assert survey(pictures(tmp_path / 'bands', a_tif=bands)) == [
        'in 1 of 1 files looked at bands beside the colours (1) are left out (a.tif)']
    (tmp_path / 'timm/a').mkdir(parents=True)
    (tmp_path / 'timm/a/a.png').write_bytes(png(DEEP))
    assert survey(find_images(str(tmp_path / 'timm'), dataset='folder/')) == [
        'in 1 of 1 files looked at 8 of 16 bits are read (number 0)']


def test_dark_and_clipped_values_are_told(tmp_path, monkeypatch):
    twelve = [DEEP >> 4, DEEP[..., 0] >> 6]
    images = pictures(tmp_path, a_png=png(twelve[0]), b_tif=tiff(twelve[1]), c_jpg=Image.new('L', (8, 6)))
    largest = int(twelve[0].max())
    assert survey(images) == [f'the largest value of these files is {largest:,} of 65,535: give --pixel_range=0,4095 (or '
                               '--mean and --std), or the images are nearly black']
    assert survey(images, (0.05, 0.05, 0.05)) == []  # They are meant to be dark.
    assert survey(images, (0.2,)) == [f'the largest value of these files is {largest:,} of 65,535, below the --mean: give '
                                      '--pixel_range=0,4095, and the --mean and --std of the values from 0 to 1 that it makes '
                                      'of them']
    assert survey(ImageFiles(tmp_path, reading=Reading((0, 4095)))) == []
    assert survey(ImageFiles(tmp_path, reading=Reading((5000, 6000)))) == [
        '100% of the values in these files lie outside of --pixel_range, and are clipped']
    (tmp_path / 'd.png').write_bytes(png(DEEP))
    assert survey(ImageFiles(tmp_path)) == []  # one file has all that is possible
    (tmp_path / 'd.png').unlink()
    monkeypatch.setattr('common.images.survey.PIXELS', 10)
    assert survey(images) == []  # nothing is decoded


def test_files_are_spread_and_those_that_cannot_be_read_passed_over(tmp_path, monkeypatch):
    contents = {f'{i}_png': Image.new('L', (4, 4)) for i in range(9)}
    images = pictures(tmp_path, **contents, x_tif=several('TIFF'), y_png=b'broken')
    monkeypatch.setattr('common.images.survey.FILES', 6)
    assert [os.path.basename(images.name(i)) for i in (0, 2, 4, 6, 8, 10)][-1] == 'y.png' and survey(images) == []
    monkeypatch.setattr('common.images.survey.FILES', 11)
    assert survey(images) == ['in 1 of 10 files looked at the first of 3 pages is read (x.tif)']


# -- large images -----------------------------------------------------------------------------------------------------

def test_the_limit_of_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)
    Image.new('1', (200, 150)).save(tmp_path / 'a.png')
    with pytest.raises(Image.DecompressionBombError, match=r'\(30000 pixels\).*--max_pixels=30000'):
        ImageFiles(tmp_path)[0]
    images = ImageFiles(tmp_path, reading=Reading(max_pixels=30_000))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        for transform in (RandomCrop((16, 16), (0.9, 1.0)), CentreCrop((16, 16))):
            assert Augmented(images, transform, None)[0, 0][2] == []
    assert not warned and Image.MAX_IMAGE_PIXELS == 10_000
    with pytest.raises(Image.DecompressionBombError):
        ImageFiles(tmp_path, reading=Reading(max_pixels=29_998))[0]
    Image.new('1', (100, 150)).save(tmp_path / 'a.png')
    assert ImageFiles(tmp_path)[0].size == (100, 150)  # which Pillow warns of


# -- options ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('wrong', [{'pixel_range': (1, 1)}, {'pixel_range': (0, 1, 2)}, {'pixel_range': (0, float('nan'))},
                                   {'max_pixels': 0}, {'pixel_range': (0, 9), 'dataset': 'hfds/a/b'}])
def test_options_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match='pixel_range|max_pixels'):
        ImageOptions(**wrong)


def test_a_run_keeps_to_its_range(finished, tiny, tmp_path):
    folder = shutil.copytree(finished, tmp_path / 'run')
    with pytest.raises(ValueError, match=r'pixel_range was None and is \(0.0, 4095.0\) now'):
        pretrain(tiny(pixel_range=(0.0, 4095.0)))
    content = saved(folder)
    assert content['config'].pop('pixel_range') is None and content['config'].pop('max_pixels') is None
    torch.save(content, folder / 'your_convnet_still_pretraining.pth')  # as it was before there were such options
    pretrain(tiny(max_pixels=10 ** 9))
    with pytest.raises(ValueError, match=r'pixel_range was None and is \(0.0, 4095.0\) now'):
        pretrain(tiny(pixel_range=(0.0, 4095.0)))


def test_programs_take_and_tell_it(finished, tiny, tmp_path):
    for split in ('train', 'val'):
        for label in 'ab':
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            for i in range(4):
                (tmp_path / 'data' / split / label / f'{i}.png').write_bytes(png(np.roll(DEEP, i, 0) >> 4))
    options = {'data_path': str(tmp_path / 'data'), 'epochs': 1, 'warmup_epochs': 0, 'picture_every': 0}
    dark = pretrain(tiny(**options, run_dir=str(tmp_path / 'dark')))
    bright = pretrain(tiny(**options, run_dir=str(tmp_path / 'bright'), pixel_range=(0, 4095)))
    told = [(folder / 'stderr_backup.txt').read_text() for folder in (dark, bright)]
    assert '--pixel_range=0,4095' in told[0] and 'pixel' not in told[1]
    reading = Reading((0, 4095))
    images = [part[0][0] for part in find_labelled(tmp_path / 'data', reading=reading)]
    assert all(torch.allclose(image, expected(DEEP >> 4, 0, 4095), atol=1e-6) for image in images)
    run, path = read_saved(bright), tmp_path / 'data/train/a/0.png'
    mean, std = (torch.tensor(value)[:, None, None] for value in run.options.normalisation)
    wanted = CentreCrop((32, 32))(expected(DEEP >> 4, 0, 4095))
    given = [run.prepare(Image.open(path)), *(image for *_, image in run.each([path]))]
    assert all(torch.allclose(image[0] * std + mean, wanted, atol=1e-5) for image in given) and len(given) == 2
    assert torch.equal(Playground([run]).opened(path)[0], given[0])
    with pytest.raises(ValueError, match='pixel_range is'):
        read_saved(bright, pixel_range=(0, 1))
    lines = []
    list(dataclasses.replace(read_saved(dark), options=run.options).each([path], lines.append))
    list(read_saved(dark).each([path], lines.append))
    assert len(lines) == 1 and '--pixel_range=0,4095' in lines[0]
