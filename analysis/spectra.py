"""Two measures of feature maps: how strong their frequencies are, and how much they vary in space.

Legend: B images, C channels, h and w positions, K frequencies. They are those of the figures of A2MIM (Li et
al., ICML 2023), which takes them from Park and Kim, How Do Vision Transformers Work?, ICLR 2022.
"""
import torch

EPSILON = 1e-6  # that is added to an amplitude, so that its logarithm is finite


def log_amplitudes(maps):
    """Return the logarithms of the amplitudes on the diagonal of the spectrum, mean over channels, (B, K).

    The transform of maps (B, C, h, w) is not normalised. Entry k is at frequency k along both axes: the
    diagonal from the middle of a spectrum that was shifted by (h // 2, w // 2) to its end, so K = min(h - h
    // 2, w - w // 2).
    """
    spectrum = torch.fft.rfft2(at_least_float32(maps))  # half of the spectrum, which has all of these
    h, w = maps.shape[2:]
    steps = torch.arange(min(h - h // 2, w - w // 2), device=maps.device)
    return (spectrum[:, :, steps, steps].abs() + EPSILON).log().mean(1)


def relative(amplitudes):
    """Return a list of log amplitudes, less the first one, which is that of the mean value."""
    return [value - amplitudes[0] for value in amplitudes]


def frequencies(grid, number):
    """Return the first frequencies of maps of a grid (h, w), in units of pi along its shorter side."""
    return [2 * step / min(grid) for step in range(number)]


def spatial_variances(maps):
    """Return the unbiased variance of maps (B, C, h, w) over positions, mean over channels, (B,)."""
    return at_least_float32(maps).var((2, 3)).mean(1)


def at_least_float32(maps):
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
