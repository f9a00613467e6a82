"""The losses of A2MIM (Li et al., ICML 2023, arXiv 2205.13943), on tensors; no network is in this file.

Legend: B batch, C channels, (H, W) image. x (B, C, H, W) is the image, normalised, and y its reconstruction.
`hidden` (B, 1, H, W) is 1 where a pixel is hidden and 0 where it is visible, in the images' type.

What is here is what the authors' program computes. The spatial error of most of their networks is a focal L1,
and the frequency loss is on for ResNet-50, ResNet-101 and ViTs alone.
"""
import torch

# The error of a value by its absolute difference d from the target.
ERRORS = {
    'l1': lambda d: d,
    'mse': lambda d: d.square(),
    'focal_l1': lambda d: d * torch.tanh(0.1 * d),  # d * (2 * sigmoid(0.2 * d) - 1); about 0.1 * d ** 2 near 0
}
FILLS = ('mixed', 'target', 'prediction', 'mean')  # of the visible pixels in a composite


def error(d, phi):
    """The error of absolute differences d, of any shape. phi: 'l1', 'mse' or 'focal_l1'. Raises ValueError."""
    if phi not in ERRORS:
        raise ValueError(f'the error is one of {", ".join(ERRORS)}, not {phi!r}')
    return ERRORS[phi](d)


def spatial_loss(y, x, hidden, phi, visible_weight=0.0):
    """The mean error of hidden pixels, over all images and channels, 0-dim.

    visible_weight: of visible pixels, in the sum and in the number that divides it.
    """
    weight = hidden + (1 - hidden) * visible_weight
    return (weight * error((y - x).abs(), phi)).sum() / (weight.sum() + 1e-5) / x.shape[1]


def composite(y, x, hidden, visible_weight=1e-3, fill='mixed'):
    """The picture whose spectrum the frequency losses compare with that of x, so that they teach hidden pixels.

    Hidden pixels are those of y. A visible pixel is visible_weight * y + (1 - visible_weight) * fill; no gradient goes to y
    through the fill. fill: 'mixed', half y and half x; 'target', x; 'prediction', y; 'mean', the mean of
    each channel of an image. Raises ValueError.
    """
    if fill not in FILLS:
        raise ValueError(f'the fill is one of {", ".join(FILLS)}, not {fill!r}')
    fills = {'mixed': lambda: 0.5 * y.detach() + 0.5 * x, 'target': lambda: x, 'prediction': y.detach,
             'mean': lambda: x.mean((2, 3), keepdim=True)}
    weight = hidden + (1 - hidden) * visible_weight
    return y * weight + fills[fill]() * (1 - weight)


def mean_over_batch(values):
    """(B, ...) -> (1, ...): all images are one group."""
    return values.mean(0, keepdim=True)


def focal_frequency_loss(y, x, mean=mean_over_batch):
    """Focal frequency loss (Jiang et al., ICCV 2021, arXiv 2012.12821) on the **mean residual** of a group of images, 0-dim.

    The weight of a frequency is log(1 + its amplitude), divided by the largest such value over all frequencies and
    channels of the group; no gradient goes through it. Residuals of different images partly cancel in the mean: if they
    are independent, the loss of a group of n images is about 1/n of that of one. So the size of a group is a
    hyper-parameter. In the original it is the batch of a GPU.

    mean: function of the residuals (B, C, H, W) that returns the means of the groups (groups, C, H, W). The loss
    is the mean over groups.
    """
    # The transform is linear: the mean of the spectra is the spectrum of the mean.
    spectrum = torch.fft.fft2(mean(y - x), norm='ortho')
    power = spectrum.real.square() + spectrum.imag.square()
    weight = torch.log1p(power.detach().sqrt())
    largest = weight.amax((1, 2, 3), keepdim=True)
    weight = weight / largest.clamp(min=torch.finfo(weight.dtype).tiny)  # a group without any residual: 0, not NaN
    return (weight * power).mean()


def spectral_loss(y, x, phi, reweight=False):
    """The mean error of the spectra's absolute differences, each image by itself, 0-dim.

    By Parseval's theorem that of 'mse' is the mean squared error of the pixels. reweight: multiply each error by
    its own value, through which no gradient goes.
    """
    errors = error(torch.fft.fft2(y - x, norm='ortho').abs(), phi)
    return (errors * errors.detach() if reweight else errors).mean()
