"""Sheets of pictures: what is on them, how they are laid out at any number, and that texts fit."""
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from common.pictures import as_image, breaks, enlarged, labelled_columns, labelled_rows, lines_of, scaled, shortened, written

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def squares(count, side=64, colour=(255, 0, 0)):
    return [Image.new('RGB', (side, side), colour)] * count


def area(sheet, colour):
    """How many pixels of a sheet have a colour, and the first and last (row, column) of them."""
    places = np.argwhere((np.asarray(sheet) == colour).all(2))
    return len(places), places.min(0).tolist(), places.max(0).tolist()


@pytest.mark.parametrize(('side', 'shown'), [(1, 224), (32, 224), (64, 256), (100, 200), (150, 150), (224, 224), (336, 336),
                                             (500, 224), (4000, 224)])
def test_small_pictures_are_enlarged_and_large_ones_made_small(side, shown):
    picture = scaled(Image.new('RGB', (side, side)), 224)
    assert picture.size == (shown, shown)
    assert scaled(picture, 224).size == (shown, shown)  # It stays as it is when a sheet is made of it.


def test_the_proportions_stay_and_pixels_become_squares():
    assert scaled(Image.new('RGB', (1000, 10)), 224).size == (224, 2)
    assert scaled(Image.new('L', (10, 4000)), 224).size == (1, 224)
    noise = torch.randint(0, 256, (3, 8, 4), dtype=torch.uint8)
    enlarged = np.asarray(scaled(noise, 32))
    assert np.array_equal(enlarged, np.kron(noise.permute(1, 2, 0).numpy(), np.ones((4, 4, 1), np.uint8)))
    assert np.array_equal(np.asarray(scaled(noise.float() / 255, 32)), enlarged)


@pytest.mark.parametrize(('size', 'shown'), [((1, 1), (800, 800)), ((30, 60), (400, 800)), ((800, 600), (800, 600)),
                                             ((1000, 1500), (1000, 1500)), ((3000, 1), (3000, 1)), ((799, 1), (800, 1))])
def test_a_picture_alone_is_enlarged_if_it_is_small(size, shown):
    assert enlarged(Image.new('RGB', size)).size == shown


@pytest.mark.parametrize('picture', [torch.full((1, 4, 4), 0.5), torch.full((2, 4, 4), 128, dtype=torch.uint8),
                                     torch.full((5, 4, 4), 0.5, dtype=torch.bfloat16), Image.new('L', (4, 4), 128),
                                     torch.full((3, 4, 4), 32896, dtype=torch.uint16)])
def test_pictures_of_any_kind_become_rgb(picture):
    image = as_image(picture)
    assert image.mode == 'RGB' and image.size == (4, 4) and (np.asarray(image) == 128).all()


def test_every_picture_is_on_the_sheet_below_the_label_of_its_row():
    rows = [squares(5, colour=colour) for colour in COLOURS]
    sheet = labelled_rows(rows, ['input', 'masked', 'reconstruction'], names=list('abcde'), note='a note', side=64)
    ends = []
    for colour in COLOURS:
        pixels, first, last = area(sheet, colour)
        assert pixels == 5 * 64 * 64
        ends.append((first[0], last[0]))
    assert ends[0][0] > 14 and ends[0][1] + 14 < ends[1][0] and ends[1][1] + 14 < ends[2][0]
    between = np.asarray(sheet)[ends[0][1] + 1:ends[1][0]]
    assert (between < 128).any()  # the label


def test_every_picture_is_on_the_sheet_below_the_label_of_its_column():
    rows = [[squares(1, colour=colour)[0] for colour in COLOURS] for _ in range(7)]
    sheet = labelled_columns(rows, ['input', 'masked', 'reconstruction'], list('abcdefg'), side=64)
    assert [area(sheet, colour)[0] for colour in COLOURS] == [7 * 64 * 64] * 3
    assert sheet.height > 4 * 64 and (np.asarray(sheet)[:area(sheet, COLOURS[0])[1][0]] < 128).any()


@pytest.mark.parametrize('count', [1, 2, 3, 8, 13, 50])
@pytest.mark.parametrize('fields', [3, 4, 5])
def test_a_sheet_of_any_number_of_images_is_neither_a_strip_nor_a_tower(count, fields):
    rows = [squares(fields)] * count
    in_columns = labelled_columns(rows, ['label'] * fields, side=64)
    in_rows = labelled_rows([squares(count)] * fields, ['label'] * fields, side=64)
    assert 0.4 < in_columns.width / in_columns.height < 5 and in_columns.width < 64 * 20
    assert in_rows.width / in_rows.height < 3
    assert in_rows.height / in_rows.width < (1.5 * fields if count < 3 else 3)


def test_a_strip_is_cut_such_that_a_square_is_made():
    assert [breaks(length, 3, 99) for length in (1, 3, 12, 27, 100)] == [1, 1, 2, 3, 6]
    assert breaks(1000, 1, 3) == 3


def test_pictures_of_several_sizes_stand_in_places_of_one_size():
    rows = [[Image.new('RGB', (64, 32), 'red'), Image.new('RGB', (32, 64), 'red')]]
    pixels, first, last = area(labelled_columns(rows, ['a', 'b'], side=64), (255, 0, 0))
    assert pixels == 2 * 64 * 32 and last[0] - first[0] == 63


def test_texts_are_broken_into_lines_and_long_words_shortened():
    font = ImageFont.load_default(15)
    lines = lines_of('a text of several words and a_word_that_is_as_long_as_the_name_of_a_file.jpg', 150, font)
    assert len(lines) == 3 and all(font.getlength(line) <= 150 for line in lines)
    assert lines[0].startswith('a text of') and '…' in lines[2] and lines[2].endswith('jpg')
    assert lines_of('first\nsecond', 150, font) == ['first', 'second']
    long = 'a long name of a picture ' * 50 + 'end.png'
    assert font.getlength(shortened(long, 200, font)) <= 200 and shortened('short.png', 200, font) == 'short.png'
    assert [shortened(text, 1, font) for text in ('', 'a', 'ab', 'abc', 'abcd')] == ['', 'a', 'ab', 'a…c', 'a…d']


@pytest.mark.parametrize('text', ['', '\n', 'ü ß 漢字 \udcff', 'x' * 10_000])
def test_any_text_can_be_written(text):
    assert written(text, 100, 14).width == 100


def test_a_font_of_pillow_where_the_system_has_none(monkeypatch):
    def none(*_):
        raise OSError('no such font')
    default = ImageFont.load_default(20)
    monkeypatch.setattr(ImageFont, 'truetype', none)
    monkeypatch.setattr(ImageFont, 'load_default', lambda size: default if size == 20 else None)
    assert (np.asarray(written('text', 100, 20)) < 128).any()
