"""The accelerated forms one by one: convolutions on strips, densify, steps of the decoder, against the layers themselves."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.training.memory import kept_for_backward
from pretrain.accelerated.convolutions import CanvasConvolution, CellConvolution, WindowProduct
from pretrain.accelerated.decoder import LEAST_POSITIONS, decode, enlarge
from pretrain.accelerated.densify import FilledMap
from pretrain.accelerated.gradients import convolution_gradients
from pretrain.accelerated.norms import norm_conv
from pretrain.decoder import LightDecoder
from pretrain.spark import build_spark
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.plane import Plane
from tests.conftest import randomise

torch.manual_seed(0)
DOUBLE = {'dtype': torch.float64}


def gradients_of(out, weights, tensors):
    return torch.autograd.grad((out * weights).sum(), tensors, retain_graph=True)


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(('side', 'kernel', 'stride', 'padding', 'groups', 'way'), [
    (8, 3, 1, 1, 1, CellConvolution), (4, 3, 1, 1, 2, CellConvolution), (8, 3, 2, 1, 1, CellConvolution),
    (16, 7, 2, 3, 1, CellConvolution), (8, 7, 1, 3, 4, CellConvolution), (8, (1, 7), 1, (0, 3), 1, CellConvolution),
    (8, 4, 2, 1, 1, CellConvolution), (8, 5, 2, 2, 4, CellConvolution), (16, 6, 4, 1, 4, CellConvolution),
    (2, 3, 1, 1, 1, WindowProduct), (1, 3, 1, 1, 1, WindowProduct), (4, 3, 2, 1, 1, WindowProduct),
    (2, 3, 2, 1, 1, WindowProduct), (2, (7, 1), 1, (3, 0), 1, WindowProduct), (2, 2, 1, 1, 1, None),
    (2, 5, 1, 2, 1, CanvasConvolution), (4, 5, 1, 2, 4, CellConvolution),
    (4, 7, 1, 3, 4, CanvasConvolution), (2, 3, 2, 1, 4, CanvasConvolution), (1, 7, 1, 3, 4, CanvasConvolution),
])
@pytest.mark.parametrize('bias', [True, False])
def test_a_convolution_of_a_strip_is_that_of_its_canvas(side, kernel, stride, padding, groups, way, bias):
    """Output and all gradients, with other masks in each image of a grid that is not square."""
    visible = torch.stack([torch.randperm(12)[:5].sort().values for _ in range(3)])
    geometry = Geometry(visible, (3, 4))
    layer = nn.Conv2d(4, 4 if groups == 4 else 8, kernel, stride, padding, groups=groups, bias=bias, **DOUBLE)
    strip = torch.randn(3, 4, 5 * side, side, **DOUBLE, requires_grad=True)

    canvas = layer(geometry.to_canvas(strip))
    if canvas.shape[3] != 4 * side // stride:
        with pytest.raises(ValueError, match='no whole number for each of 3x4 cells'), Plane(geometry):
            layer(strip)
        return
    want = geometry.to_strip(canvas)
    with Plane(geometry):
        got = layer(strip)
    assert isinstance(got.grad_fn, way._backward_cls)
    weights, tensors = torch.randn_like(want), [strip, *layer.parameters()]
    close([got, *gradients_of(got, weights, tensors)], [want, *gradients_of(want, weights, tensors)])
    with Plane(geometry):  # images need no gradient, and a frozen layer has none
        close(gradients_of(layer(strip.detach()), weights, tensors[1:]), gradients_of(want, weights, tensors[1:]))
        layer.requires_grad_(False)
        close(gradients_of(layer(strip), weights, [strip]), gradients_of(want, weights, [strip]))


@pytest.mark.parametrize(('kernel', 'padding'), [(7, 3), (5, 0), ((5, 9), (4, 2))])
@pytest.mark.parametrize('batch', [1, 5])
def test_gradients_of_a_wide_depthwise_convolution(kernel, padding, batch):
    layer = nn.Conv2d(3, 3, kernel, padding=padding, groups=3, **DOUBLE)
    x = torch.randn(batch, 3, 6, 11, **DOUBLE).to(memory_format=torch.channels_last).requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    got = convolution_gradients(grad, x, layer.weight, layer.bias, layer.stride, layer.padding, layer.groups,
                                (True, True, True))
    close(got, torch.autograd.grad(out, [x, layer.weight, layer.bias], grad))


@pytest.mark.parametrize('side', [1, 2, 4, 8])
@pytest.mark.parametrize(('h', 'w'), [(3, 4), (1, 6), (7, 2)])
def test_a_filled_canvas_is_convolved_as_it_is(side, h, w):
    visible = torch.stack([torch.randperm(h * w)[:5].sort().values for _ in range(3)])
    geometry, token = Geometry(visible, (h, w)), torch.randn(1, 4, 1, 1, **DOUBLE, requires_grad=True)
    strip = torch.randn(3, 4, 5 * side, side, **DOUBLE, requires_grad=True)
    filled = FilledMap(geometry, strip, token)
    for layer in (nn.Conv2d(4, 8, 3, padding=1, **DOUBLE), nn.ConvTranspose2d(4, 8, 4, 2, 1, **DOUBLE)):
        got, want = filled.convolve(layer), layer(geometry.to_canvas(strip, fill=token))
        weights, tensors = torch.randn_like(want), [strip, token, *layer.parameters()]
        close([got, *gradients_of(got, weights, tensors)], [want, *gradients_of(want, weights, tensors)])
    for layer in (nn.Conv2d(4, 8, 1, **DOUBLE), nn.Identity()):
        other, want = filled.project(layer), layer(geometry.to_canvas(strip, fill=token))
        got = geometry.to_canvas(other.strip, fill=other.token)
        weights, tensors = torch.randn_like(want), [strip, token, *layer.parameters()]
        close([got, *gradients_of(got, weights, tensors)], [want, *gradients_of(want, weights, tensors)])


@pytest.mark.parametrize('size', [(1, 1), (1, 3), (5, 6)])
def test_one_convolution_is_the_transposed_one_and_the_next(size, monkeypatch):
    monkeypatch.setattr('pretrain.accelerated.decoder.LEAST_POSITIONS', 0)
    up, conv = nn.ConvTranspose2d(6, 6, 4, 2, 1, **DOUBLE), nn.Conv2d(6, 8, 3, padding=1, bias=False, **DOUBLE)
    x = torch.randn(2, 6, *size, **DOUBLE, requires_grad=True)
    got, want = enlarge(x, up, conv), conv(up(x))
    weights, tensors = torch.randn_like(want), [x, *up.parameters(), *conv.parameters()]
    close([got, *gradients_of(got, weights, tensors)], [want, *gradients_of(want, weights, tensors)])


@pytest.mark.parametrize(('clipped', 'kernel'), [(True, 3), (False, 1)])
def test_a_norm_is_computed_again_for_the_backward_pass(clipped, kernel):
    norm = randomise(nn.BatchNorm2d(6, **DOUBLE))
    conv, plain = nn.Conv2d(6, 4, kernel, padding=kernel // 2, bias=not clipped, **DOUBLE), copy.deepcopy(norm)
    x = 3 + 4 * torch.randn(2, 6, 5, 7, **DOUBLE).requires_grad_()
    got, want = norm_conv(x, norm, conv, clipped), conv(F.relu6(plain(x)) if clipped else plain(x))
    weights = torch.randn_like(want)
    close([got, *gradients_of(got, weights, [x, *norm.parameters(), *conv.parameters()])],
          [want, *gradients_of(want, weights, [x, *plain.parameters(), *conv.parameters()])])
    close(norm.buffers(), plain.buffers())


@pytest.mark.parametrize(('training', 'finest'), [(True, 1), (False, 1), (True, 2), (True, 4), (False, 4)])
def test_the_decoder_is_the_plain_one(training, finest):
    """In fp32 to rounding: the first block's kernels are not worth merging, the last one's are."""
    decoder = randomise(LightDecoder(8, 64, finest=finest)).train(training)
    levels = {stride: torch.randn(8, width, 48 // stride, 32 // stride) for stride, width in ((8, 64), (4, 32))}
    assert 6 * 4 < LEAST_POSITIONS * 64 and 12 * 8 > LEAST_POSITIONS * 32
    want, got = copy.deepcopy(decoder)(levels), decode(decoder, levels)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize(('model', 'official'), [
    ('resnet50', 155), pytest.param('convnext_small', 249, marks=pytest.mark.slow)])
def test_a_step_keeps_less_than_half_of_what_the_official_one_does(model, official):
    """MiB for the backward pass, an image more, at 224 px in fp32."""
    spark, kept = build_spark(model).to(memory_format=torch.channels_last), []
    for batch in (1, 2):
        images = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
        kept.append(kept_for_backward(lambda images=images: spark(images), [*spark.parameters(), *spark.buffers(), images]))
    assert (kept[1] - kept[0]) / 2 ** 20 < official / 2


@pytest.mark.parametrize(('side', 'groups'), [(8, 1), (2, 1), (2, 4)])
def test_an_activation_behind_a_convolution_may_work_in_place(side, groups):
    geometry, results = Geometry(torch.tensor([[0, 3], [1, 2]]), (2, 2)), []
    strip = torch.randn(2, 4, 2 * side, side, **DOUBLE, requires_grad=True)
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=groups, **DOUBLE)
    for inplace in (True, False):
        with Plane(geometry):
            out = F.silu(layer(strip), inplace=inplace)
        results.append(gradients_of(out, out.detach(), [strip, *layer.parameters()]))
    close(*results)
