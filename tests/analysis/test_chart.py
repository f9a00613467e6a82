"""Charts drawn with Pillow."""
import numpy as np
import pytest
from PIL import ImageColor

from analysis.chart import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, Panel, between, figure, number, tick_step, y_axis


def near(pixels, colour):
    return np.abs(pixels.astype(int) - ImageColor.getrgb(colour)).max(-1) < 8


def test_a_curve_goes_where_its_points_are():
    """A line from the lower left to the upper right corner of the axes, but for the margin."""
    panel = Panel('title', 'about y', 'about x', [Curve([(0, 0), (1, 1)], '#ff0000', marked=False)])
    pixels = np.array(figure([panel]))
    red = near(pixels[:HEIGHT], '#ff0000')
    rows, columns = np.nonzero(red)
    assert abs(columns.min() - LEFT) <= 2 and abs(columns.max() - (WIDTH - RIGHT)) <= 2
    assert rows[columns == columns.min()].mean() > rows[columns == columns.max()].mean() > TOP
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_panels_stand_in_rows_with_a_legend_each():
    panel = Panel('title', 'about y', 'about x', [Curve([(0, 2), (1, 3)], '#0072b2', 'a name', errors=[0.1, 0.2])])
    one, three = figure([panel]), figure([panel] * 3, columns=2)
    assert one.width == WIDTH and three.size == (2 * WIDTH, 2 * (one.height - 8) + 8)
    assert near(np.array(one)[HEIGHT - 8:], '#0072b2').any()


def test_errors_have_room_on_the_axis():
    low, high, ticks = y_axis([Curve([(0, 1), (1, 2)], '#000000', errors=[0.5, 3])])
    assert low < -1 and high > 5 and min(ticks) >= low and max(ticks) <= high


@pytest.mark.parametrize(('curves', 'step'), [([0, 10], 2), ([0.001, 0.0013], 5e-5), ([-7, -6.5], 0.1), ([5, 5], 0.1)])
def test_ticks_are_round(curves, step):
    low, high, ticks = y_axis([Curve(list(enumerate(curves)), '#000000')])
    assert tick_step(high - low) == pytest.approx(step)
    assert 3 <= len(ticks) <= 8 and all(abs(tick / step - round(tick / step)) < 1e-6 for tick in ticks)


def test_numbers_have_the_digits_that_ticks_need():
    assert number(2.0, [0, 2, 4]) == '2' and number(0.5, [0, 0.5]) == '0.5' and number(0.001, [0.0005, 0.001]) == '0.0010'
    assert between('#000000', '#ffffff', 0.5) == '#808080' and between('#123456', '#ffffff', 0) == '#123456'
