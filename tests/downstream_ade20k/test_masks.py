"""Mask files of each kind hold the values that were written into them."""
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from downstream_ade20k.classes import read_classes
from downstream_ade20k.masks import HoldsColours, read_mask
from tests.downstream_ade20k.files import grey_png


def saved(folder, image):
    image.save(folder / 'mask.png')
    return folder / 'mask.png'


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_grey_of_few_bits_is_not_stretched(tmp_path, bits):
    values = np.arange(20).reshape(4, 5) % 2 ** bits
    path = tmp_path / 'mask.png'
    path.write_bytes(grey_png(values, bits))
    read = read_mask(path)
    assert np.array_equal(read, values) and read.dtype == np.uint8


def test_grey_of_16_bits(tmp_path):
    values = np.array([[0, 1, 255], [256, 40_000, 65_535]], np.uint16)
    read = read_mask(saved(tmp_path, Image.fromarray(values)))
    assert np.array_equal(read, values) and read.dtype == np.uint16


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_a_palette_has_its_places_whatever_its_colours(tmp_path, bits):
    values = (np.arange(-10, 10).reshape(4, 5) % 2 ** bits).astype(np.uint8)
    image = Image.fromarray(values)
    image.putpalette([200, 100, 50] * 2 ** bits)
    path = tmp_path / 'mask.png'
    image.save(path, bits=bits)
    with Image.open(path) as opened:
        assert opened.mode == 'P'
    assert np.array_equal(read_mask(path), values)


def test_transparency_is_left_out(tmp_path):
    values = np.uint8([[0, 1], [2, 3]])
    path = saved(tmp_path, Image.merge('LA', [Image.fromarray(values), Image.fromarray(values * 80)]))
    assert np.array_equal(read_mask(path), values)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA'])
def test_colours_stand_for_the_classes_of_a_file(tmp_path, mode):
    file = tmp_path / 'classes.txt'
    file.write_text('4 tree 0,128,0\n9 sky 0,0,128\n255 void 255,255,255\n')
    pixels = np.uint8([[[0, 128, 0], [0, 0, 128], [255, 255, 255]]])
    path = saved(tmp_path, Image.fromarray(pixels).convert(mode))
    assert read_mask(path, read_classes(file, (255,))).tolist() == [[4, 9, 255]]
    file.write_text('4 tree\n9 sky\n')
    for classes, said in ((None, 'it holds colours'), (read_classes(file, (255,)), f'colours, and {file} has none')):
        with pytest.raises(HoldsColours, match=f'{said}: save the ids'):
            read_mask(path, classes)
    with pytest.raises(HoldsColours, match='three channels, all alike: save one of them'):
        read_mask(saved(tmp_path, Image.fromarray(np.uint8([[1, 2]])).convert('RGB')))


def test_what_is_no_mask(tmp_path):
    path = tmp_path / 'mask.png'
    Image.fromarray(np.uint8([[1, 2], [3, 4]])).save(path, 'JPEG')
    with pytest.raises(ValueError, match='it is no PNG but JPEG, which changes values: save it as a PNG'):
        read_mask(path)
    path.write_bytes(b'')
    with pytest.raises(UnidentifiedImageError):
        read_mask(path)
    whole = grey_png(np.arange(6400).reshape(80, 80) % 251, 8)
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(OSError):
        read_mask(path)
    path.write_bytes(whole)
    with pytest.raises(Image.DecompressionBombError):
        read_mask(path, max_pixels=100)
