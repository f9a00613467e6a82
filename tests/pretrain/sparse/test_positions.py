"""Tables of positions on strips: every visible cell gets its own, whatever the order of cells."""
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.convvit import ConvViT
from common.feature_maps import feature_maps
from pretrain.encoder import SparseEncoder
from pretrain.sparse.compare import VisibleRectangles
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.plane import Plane
from pretrain.sparse.positions import CutPositions
from tests.pretrain.sparse.networks import Pyramid

GRID = (2, 3)


def some_cells(images=2, cells=4, accelerated=None, grid=GRID):
    """Visible cells in random order."""
    generator = torch.Generator().manual_seed(0)
    visible = [torch.randperm(grid[0] * grid[1], generator=generator)[:cells] for _ in range(images)]
    return Geometry(torch.stack(visible), grid, accelerated)


def positions(size=GRID, p=1, channels=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, p * size[0], p * size[1], dtype=torch.float64, generator=generator).requires_grad_()


def tokens(maps):
    return maps.flatten(2).transpose(1, 2)


@pytest.mark.parametrize('accelerated', [False, True])
@pytest.mark.parametrize('images', [1, 2])
@pytest.mark.parametrize('p', [1, 2])
@pytest.mark.parametrize('table', [(2, 3), (4, 6), (5, 4), (4, 1)])
def test_a_table_that_is_resized_to_the_strip_is_that_of_the_plane(accelerated, images, p, table):
    """A table of 4 x 1 has the shape of a strip of four cells by chance."""
    geometry, table = some_cells(images, accelerated=accelerated), positions(table)
    size = (GRID[0] * p, GRID[1] * p)
    plane = table if table.shape[2:] == size else F.interpolate(table, size, mode='bicubic', antialias=True)
    wanted = geometry.to_strip(plane.expand(images, -1, -1, -1))
    with Plane(geometry):
        found = F.interpolate(table, (4 * p, p), mode='bicubic', antialias=True)
    assert torch.equal(found, wanted)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((out * weights).sum(), table)[0] for out in (found, wanted)]
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize('accelerated', [False, True])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('images', [1, 3])
def test_one_table_is_gathered_as_copies_are(accelerated, layout, images):
    """Also its gradient is the same to the last bit, and its place in memory."""
    geometry, table = some_cells(images, accelerated=accelerated), positions(p=2).detach().to(memory_format=layout)
    table.requires_grad_()
    found, wanted = geometry.gather(table), geometry.to_strip(table.expand(images, -1, -1, -1))
    assert torch.equal(found, wanted) and found.stride() == wanted.stride()
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((out * weights).sum(), table)[0] for out in (found, wanted)]
    assert torch.equal(*gradients) and gradients[0].any()


def test_a_table_is_not_copied_for_each_image():
    geometry, table = some_cells(64, cells=1), positions(p=2).detach()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        geometry.gather(table)
    sizes = [math.prod(shape) for event in profile.events() for shape in event.input_shapes]
    assert max(sizes) < len(geometry.visible) * table.numel()


@pytest.mark.parametrize('images', [1, 2])
@pytest.mark.parametrize('cells', [1, 4, 5])
@pytest.mark.parametrize('p', [1, 2])
def test_a_table_of_the_plane_is_gathered_where_it_is_added(images, cells, p):
    geometry, table = some_cells(images, cells), positions(p=p)
    strip = torch.randn(images, 5, cells * p, p, dtype=torch.float64)
    wanted = strip + geometry.to_strip(table.expand(images, -1, -1, -1))
    with Plane(geometry):
        sums = [strip + table, table + strip, torch.add(strip, table), strip.clone().add_(table)]
        sums_of_tokens = [tokens(strip) + tokens(table), tokens(table) + tokens(strip)]
    assert all(torch.equal(one, wanted) for one in sums)
    assert all(torch.equal(one, tokens(wanted)) for one in sums_of_tokens)


def test_with_all_cells_visible_in_any_order_it_is_gathered_too():
    geometry, table = some_cells(2, 6), positions()
    strip = torch.randn(2, 5, 6, 1, dtype=torch.float64)
    with Plane(geometry):
        found = tokens(strip) + tokens(table)
    assert torch.equal(found, tokens(strip + geometry.to_strip(table.expand(2, -1, -1, -1))))
    assert not torch.equal(found, tokens(strip) + tokens(table))


def test_other_sums_are_left_as_they_are():
    strip, geometry = torch.randn(1, 5, 6, 1), some_cells(1, 6)
    others = [torch.randn(1, 5, 1, 1), torch.randn(1, 1, 6, 1), torch.randn(6, 1), torch.randn(1, 5, 6, 1)]
    with Plane(geometry):
        found = [strip + other for other in others]
        number = strip + 1
    assert all(torch.equal(one, strip + other) for one, other in zip(found, others))
    assert torch.equal(number, strip + 1)


@pytest.mark.parametrize('shape', [(), (1,), (1, 5), (1, 2, 1, 5, 6)])
def test_sums_of_no_maps_and_no_tokens_are_left_as_they_are(shape):
    one, other = torch.randn(shape), torch.randn((2, *shape[1:]) if shape else ())
    for context in (Plane(some_cells(2)), CutPositions(VisibleRectangles(GRID, [(0, 0)] * 2, (1, 2)))):
        with context:
            found = [one + other, one.clone() + other, torch.add(one, other)]
        assert all(torch.equal(each, one + other) for each in found)


class TwoNumbers(nn.Module):
    """A convolution in a branch with a scale that is the sum of two parameters without dimensions."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.4))
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x) * (self.a + self.b)


def test_a_network_may_add_two_numbers():
    assert SparseEncoder(Pyramid(TwoNumbers()), (64, 64)).grid == (8, 8)


def test_strips_are_enlarged_by_their_nearest_values_alone():
    geometry, strip = some_cells(1), torch.randn(1, 5, 8, 2)
    with Plane(geometry):
        assert torch.equal(F.interpolate(strip, (16, 4)), F.interpolate(strip, scale_factor=2))
        with pytest.raises(ValueError, match='no whole number'):
            F.interpolate(strip, scale_factor=1.5)
        with pytest.raises(ValueError, match='interpolates the image plane'):
            F.interpolate(strip, scale_factor=2, mode='bilinear')


@pytest.mark.parametrize('size', [(96, 96), (64, 128), (32, 16)])
def test_convvit_on_strips_of_all_cells_is_itself(size):
    torch.manual_seed(0)
    network = ConvViT(96, (16, 24, 32), (1, 1, 2), 4).double()
    grid = (size[0] // 16, size[1] // 16)
    images, geometry = torch.randn(2, 3, *size, dtype=torch.float64), some_cells(2, grid[0] * grid[1], grid=grid)
    with Plane(geometry):
        strips = feature_maps(network, geometry.to_strip(images))
    dense = feature_maps(network, images)
    for strip, one in zip(strips, dense):
        assert (geometry.to_canvas(strip) - one).abs().max() < 1e-13
    gradients = [torch.autograd.grad(maps[-1].pow(3).sum(), network.pos_embed)[0] for maps in (strips, dense)]
    assert gradients[1].any() and torch.allclose(*gradients, rtol=1e-12, atol=1e-12)
