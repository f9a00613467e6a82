"""Legends: every class has its line or is counted, in the space that there is."""
import numpy as np
import pytest

from downstream_ade20k.legend import FAINT, Entry, Legend, percent


def entries(count, shares=1, name='class {}'):
    return [Entry(name.format(number), (200, number, 100), (0.5,) * shares) for number in range(count)]


def squares(picture, shown):
    """The first entry's rows (top, left) of the squares of entries in a picture, in their order."""
    pixels = np.asarray(picture)
    return [np.argwhere((pixels == entry.colour).all(2)).min(0).tolist() for entry in shown]


@pytest.mark.parametrize('heads', [(), ('predicted', 'true')])
@pytest.mark.parametrize('space', [(800, 200), (1600, 300), (400, 800), (10, 10), (5000, 20)])
@pytest.mark.parametrize('count', [1, 2, 3, 7, 8, 30, 150])
def test_every_entry_has_its_line_or_is_counted(count, space, heads):
    width, height = space
    legend = Legend(entries(count, len(heads) or 1), 19, heads)
    columns, left_out = legend.layout(width, height)
    assert [entry for column in columns for entry in column] == legend.entries[:count - left_out]
    assert left_out != 1  # its own line would be as long
    lines = max(len(columns[0]), len(columns[-1]) + bool(left_out)) + bool(heads)
    picture = legend.drawn(width, height)
    assert picture.height == lines * legend.step <= max(height, 3 * legend.step)
    assert picture.width <= max(width, legend.width)
    places = squares(picture, legend.entries[:count - left_out])
    assert places == sorted(places, key=lambda place: (place[1], place[0]))  # downwards, then to the right
    if left_out:  # no more would have fitted
        assert (len(columns) + 1) * legend.width + len(columns) * legend.gap > width or width < legend.width
        assert (lines + 1) * legend.step > height


def test_fewer_entries_take_less_room():
    legend = Legend(entries(3), 20)
    assert [len(column) for column in legend.layout(10_000, 500)[0]] == [1, 1, 1]
    assert [len(column) for column in legend.layout(2 * legend.width + legend.gap, 500)[0]] == [2, 1]
    assert [len(column) for column in legend.layout(2 * legend.width + legend.gap - 1, 500)[0]] == [3]


def test_the_last_line_counts_what_is_left_out():
    legend = Legend(entries(9), 20)
    assert legend.layout(legend.width, 4 * legend.step) == ([legend.entries[:3]], 6)
    whole = np.asarray(legend.drawn(legend.width, 4 * legend.step))
    faint = tuple(int(FAINT[start:start + 2], 16) for start in (1, 3, 5))
    rows = np.argwhere((whole == faint).all(2))[:, 0]
    assert rows.min() >= 3 * legend.step
    other = np.asarray(Legend(entries(8), 20).drawn(legend.width, 4 * legend.step))
    assert np.array_equal(whole[:3 * legend.step], other[:3 * legend.step]) and not np.array_equal(whole, other)


def test_long_names_are_shortened_and_any_letters_drawn():
    assert Legend(entries(2, name='{}' + 'x' * 300), 20).width < 600
    for name in ('', 'a\tb', '漢\udcff'.encode('unicode_escape').decode()):
        Legend([Entry(name, None, (0.1,))], 14).drawn(100, 100)


def test_shares_in_words():
    assert [percent(share) for share in (0, 1e-9, 0.000499, 0.0005, 0.4123, 1)] == [
        '0.0 %', '< 0.1 %', '< 0.1 %', '0.1 %', '41.2 %', '100.0 %']
