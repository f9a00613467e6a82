"""Amplitudes of frequencies and variances of maps: the numbers of the original, and what follows from the definition."""
import json
import math

import pytest
import torch

from analysis.blocks import as_maps
from analysis.spectra import frequencies, log_amplitudes, relative, spatial_variances
from tests.pretrain.official import GOLDEN, fill

CASES = json.loads((GOLDEN / 'a2mim_parts.json').read_text())['fourier']


def curve(maps):
    return relative(log_amplitudes(maps).mean(0).tolist())


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['name'])
def test_curves_and_variances_are_those_of_the_original(case):
    tensor = fill(case['name'], case['shape'])
    if case['transform']:
        tensor = 0.05 * tensor.cumsum(2).cumsum(3)
    side = 4 if tensor.ndim == 3 else tensor.shape[2]
    maps = as_maps(tensor, (16 * side, 16 * side))
    assert curve(maps) == pytest.approx(case['curve'], rel=1e-9, abs=1e-12)
    assert spatial_variances(maps).mean().item() == pytest.approx(case['variance'], rel=1e-9)


@pytest.mark.parametrize('side', [8, 7])
def test_the_diagonal_is_that_of_the_shifted_spectrum(side):
    maps = fill('shifted', (2, 3, side, side))
    amplitudes = (torch.fft.fft2(maps).abs() + 1e-6).log().roll((side // 2, side // 2), (2, 3))
    expected = amplitudes.diagonal(dim1=2, dim2=3)[..., side // 2:].mean(1)
    torch.testing.assert_close(log_amplitudes(maps), expected, rtol=1e-10, atol=1e-10)


def test_white_noise_is_flat_and_a_constant_map_has_its_mean_alone():
    noise = torch.randn(400, 8, 14, 14, generator=torch.Generator().manual_seed(0))
    flat = curve(noise)
    # Frequency 0 of real noise is real, the others are complex: the means of their logarithms are ln(2) / 2 apart.
    assert flat[0] == 0 and flat[1:] == pytest.approx([math.log(2) / 2] * 6, abs=0.05)
    constant = curve(torch.full((1, 2, 14, 14), 3.0, dtype=torch.float64))
    assert constant[0] == 0
    assert constant[1:] == pytest.approx([math.log(1e-6) - math.log(3 * 14 * 14)] * 6, rel=1e-6)


def test_a_wave_has_its_frequency():
    y, x = torch.meshgrid(torch.arange(16.), torch.arange(16.), indexing='ij')
    wave = torch.cos(2 * math.pi * 3 * (x + y) / 16)[None, None]
    found = log_amplitudes(wave)[0]
    assert found.argmax() == 3 and frequencies((16, 16), len(found))[3] == 6 / 16
    assert len(found) == 8 and log_amplitudes(torch.zeros(1, 1, 6, 9)).shape == (1, 3)


def test_maps_of_half_precision_are_measured_in_float32():
    maps = fill('half', (2, 3, 8, 8)).to(torch.bfloat16)
    assert torch.equal(log_amplitudes(maps), log_amplitudes(maps.float()))
    assert torch.equal(spatial_variances(maps), spatial_variances(maps.float()))
