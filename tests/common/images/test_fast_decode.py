"""JPEGs decoded no larger than a crop needs."""
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from common.images.augmented import Augmented, Crop, RandomCrop
from common.images.fast_decode import FastDecode, decoded, reduced, reduction
from common.images.files import ImageFiles
from pretrain.main import pretrain
from tests.common.images.drawn import noise, pack, photo, photos_in
from tests.common.images.malformed import written
from tests.conftest import assert_same_run

SIZES = ((300, 400), (61, 47), (512, 520), (37, 900), (201, 133), (16, 16))


@pytest.fixture
def photos(tmp_path):
    """JPEGs of many sizes and kinds."""
    return photos_in(tmp_path / 'photos', SIZES)


def test_a_reduction_is_the_largest_that_keeps_the_crop_from_growing():
    for height, width, factor in ((224, 224, 1), (447, 2000, 1), (448, 448, 2), (448, 2000, 2), (895, 896, 2), (896, 896, 4),
                                  (1792, 1793, 8), (9999, 9999, 8), (50, 9999, 1)):
        assert reduction(Crop((0, 0, height, width), (224, 224), False)) == factor
    for seed, retries in product(range(300), (True, False)):
        draw = RandomCrop((24, 40), (0.01, 1.0), retries=retries)
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


@pytest.mark.parametrize(('in_chans', 'interpolation'), [(1, 'bicubic'), (3, 'bicubic'), (3, 'bilinear')])
def test_the_same_crops_of_nearly_the_same_pixels(photos, in_chans, interpolation, monkeypatch):
    if in_chans == 1:
        for path in photos.iterdir():
            Image.open(path).convert('L').save(path)
    images, factors = ImageFiles(photos, in_chans), []
    monkeypatch.setattr('common.images.fast_decode.reduction', lambda crop: factors.append(reduction(crop)) or factors[-1])
    crop = RandomCrop((24, 40), (0.1, 1.0), interpolation=interpolation)
    plain, fast = (kind(images, crop, None, seed=5) for kind in (Augmented, FastDecode))
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
    with pytest.raises(ValueError, match='--decode=fast is for folders, lists and tars'):
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
    options = {'data_path': str(photos), 'decode': 'fast', 'run_dir': str(tmp_path / 'fast')}
    target = pack(photos, sorted(path.name for path in photos.iterdir()), tmp_path / 'tars/a.tar')
    one = pretrain(tiny(**options))
    other = pretrain(tiny(**{**options, 'data_path': str(target), 'run_dir': str(tmp_path / 'tar'), 'workers': 1}))
    assert_same_run(one, other)
    with pytest.raises(ValueError, match='decode was fast and is pillow now'):  # it is part of what a run is
        pretrain(tiny(**{**options, 'decode': 'pillow'}))
    with pytest.raises(ValueError, match='--decode=fast is for folders'):
        pretrain(tiny(decode='fast', run_dir=str(tmp_path / 'own')), dataset=[noise(40, 40)] * 8)


def test_malformed_files_are_named_alike(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_000_000)
    written(tmp_path)
    images = ImageFiles(tmp_path)
    plain, fast = (kind(images, RandomCrop((8, 8)), None, stand_ins=False) for kind in (Augmented, FastDecode))
    told = [(plain[0, i][2], fast[0, i][2]) for i in range(len(images))]
    assert all(one == other for one, other in told) and sum(bool(one) for one, _ in told) > 50
    assert capfd.readouterr().err == ''  # nor does libjpeg speak for itself
