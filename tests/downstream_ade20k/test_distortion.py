"""Changes of colours: by hand, beside the standard library's HSV, and how often they come."""
import colorsys

import numpy as np
import pytest
import torch

from common.images.augmented import seeded
from downstream_ade20k.distortion import BRIGHTNESS, CONTRAST, HUE, SATURATION, Distortion


@pytest.mark.parametrize(('distortion', 'before', 'after'), [
    (Distortion(brightness=51), (0.1, 0.5, 0.9), (0.3, 0.7, 1.0)),
    (Distortion(brightness=-51), (0.1, 0.5, 0.9), (0.0, 0.3, 0.7)),
    (Distortion(contrast=1.5), (0.1, 0.5, 0.9), (0.15, 0.75, 1.0)),
    (Distortion(contrast=0.5, contrast_first=True), (0.1, 0.5, 0.9), (0.05, 0.25, 0.45)),
    (Distortion(saturation=0.5), (1.0, 0.5, 0.5), (1.0, 0.75, 0.75)),
    (Distortion(saturation=1.5), (0.8, 0.2, 0.4), (0.8, 0.0, 0.8 / 3)),  # fully saturated: not more than that
    (Distortion(saturation=1.5), (0.4, 0.4, 0.4), (0.4, 0.4, 0.4)),
    (Distortion(hue=120), (1.0, 0.5, 0.25), (0.25, 1.0, 0.5)),
    (Distortion(hue=-60), (1.0, 0.0, 0.0), (1.0, 0.0, 1.0)),
    (Distortion(hue=60), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)),
    (Distortion(hue=36), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    (Distortion(brightness=51, contrast=0.5), (0.1, 0.5, 0.9), (0.15, 0.35, 0.5)),
    (Distortion(contrast=1.5, saturation=0.5, contrast_first=True), (0.8, 0.4, 0.4), (1.0, 0.8, 0.8)),
    (Distortion(contrast=1.5, saturation=0.5), (0.8, 0.4, 0.4), (1.0, 0.9, 0.9))])
def test_distortions_by_hand(distortion, before, after):
    pixel = torch.tensor(before)[:, None, None]
    assert distortion(pixel).flatten().tolist() == pytest.approx(after, abs=1e-6)
    assert pixel.flatten().tolist() == pytest.approx(before)  # The argument is as it was.


@pytest.mark.parametrize(('saturation', 'hue'), [(1.5, 36), (0.5, -36), (1.2, 0), (1, 17)])
def test_colours_change_as_in_hsv(saturation, hue):
    image = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(image)
    for row in range(8):
        for column in range(9):
            h, s, v = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
            colour = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(s * saturation, 1), v)
            expected[:, row, column] = torch.tensor(colour)
    torch.testing.assert_close(Distortion(saturation=saturation, hue=hue)(image), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('channels', [1, 4])
def test_images_without_colours_have_no_saturation_and_hue(channels):
    image = torch.rand(channels, 4, 5)
    assert torch.equal(Distortion(saturation=1.5, hue=30)(image), image)
    assert Distortion(brightness=10)(image).shape == image.shape


def test_each_change_comes_with_probability_one_half():
    with seeded(0):
        drawn = [Distortion.draw() for _ in range(2000)]
    for values, neutral, most in (([one.brightness for one in drawn], 0, BRIGHTNESS),
                                  ([one.contrast for one in drawn], 1, CONTRAST),
                                  ([one.saturation for one in drawn], 1, SATURATION),
                                  ([one.hue for one in drawn], 0, HUE)):
        changes = np.array(values) - neutral
        assert 900 < np.count_nonzero(changes) < 1100
        assert 0.98 * most < changes.max() <= most and -most <= changes.min() < -0.98 * most
    assert 900 < sum(one.contrast_first for one in drawn) < 1100
    both = sum(one.brightness != 0 and one.hue != 0 for one in drawn)
    assert 420 < both < 580  # The changes are independent.
