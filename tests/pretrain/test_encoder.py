"""Strip and canvas against a naive submanifold implementation, and against the dense network on a crop."""
import copy
import itertools

import numpy as np
import pytest
import timm
import torch
import torch.utils.checkpoint
from timm.layers.grn import GlobalResponseNorm
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

import pretrain.models  # noqa: F401  (your_convnet)
from pretrain import masking
from pretrain.encoder import SparseEncoder
from pretrain.sparse.geometry import Geometry
from tests.conftest import randomise

torch.manual_seed(0)


def random_geometry(batch, grid, visible, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(batch, grid[0] * grid[1], generator=generator).argsort(1)[:, :visible].sort(1).values
    return Geometry(cells, grid)


def plane_mask(geometry, p):
    """(B, h*p, w*p) boolean, True where visible."""
    mask = masking.is_visible(geometry.visible, geometry.grid[0] * geometry.grid[1]).view(-1, *geometry.grid)
    return mask.repeat_interleave(p, 1).repeat_interleave(p, 2)


def test_strip_and_canvas_are_inverse():
    geometry = random_geometry(3, (2, 3), 4)
    canvas = torch.randn(3, 5, 8, 12)
    strip = geometry.to_strip(canvas)
    assert strip.shape == (3, 5, 16, 4)
    first = geometry.visible[1, 0].item()
    assert torch.equal(strip[1, :, :4], canvas[1, :, first // 3 * 4:first // 3 * 4 + 4, first % 3 * 4:first % 3 * 4 + 4])
    back = geometry.to_canvas(strip, fill=7.0)
    mask = plane_mask(geometry, 4)[:, None]
    assert torch.equal(back, torch.where(mask, canvas, torch.tensor(7.0)))
    token = torch.randn(1, 5, 1, 1)
    assert torch.equal(geometry.to_canvas(strip, fill=token), torch.where(mask, canvas, token))


# -- the oracle: feature maps on the whole plane, hidden positions ignored one by one ---------------------------------

class Oracle:
    """Runs the layers of a network naively: for every visible output position, a loop over its visible inputs."""

    def __init__(self, network, geometry):
        self.geometry = geometry
        self.network = copy.deepcopy(network)
        for layer in self.network.modules():
            for cls, rule in ((nn.Conv2d, self.window), (nn.MaxPool2d, self.window), (nn.AvgPool2d, self.window),
                              (nn.BatchNorm2d, self.batch_norm), (GlobalResponseNorm, self.response_norm),
                              (timm.layers.SEModule, self.squeeze_excite)):
                if isinstance(layer, cls):
                    layer.forward = lambda x, layer=layer, rule=rule: rule(layer, x)

    def __call__(self, images):
        pyramid = self.network.forward_intermediates(images, intermediates_only=True)
        return [x * self.mask(x)[:, None] for x in pyramid]

    def mask(self, x, height_axis=2):
        return plane_mask(self.geometry, x.shape[height_axis] // self.geometry.grid[0])

    def window(self, layer, x):
        kernel, stride, pad = (np.broadcast_to(getattr(layer, f), 2) for f in ('kernel_size', 'stride', 'padding'))
        size = [(x.shape[2 + i] + 2 * pad[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
        channels = layer.out_channels if isinstance(layer, nn.Conv2d) else x.shape[1]
        out = torch.zeros(len(x), channels, *size, dtype=x.dtype)
        seen_in = self.mask(x)
        for b, i, j in self.mask(out).nonzero().tolist():
            taps = [(di, dj, y, z) for di, dj in itertools.product(range(kernel[0]), range(kernel[1]))
                    if 0 <= (y := i * stride[0] - pad[0] + di) < x.shape[2]
                    and 0 <= (z := j * stride[1] - pad[1] + dj) < x.shape[3] and seen_in[b, y, z]]
            di, dj, y, z = map(list, zip(*taps))
            values = x[b][:, y, z]  # (C, taps)
            if isinstance(layer, nn.MaxPool2d):
                out[b, :, i, j] = values.amax(1)
            elif isinstance(layer, nn.AvgPool2d):
                count = kernel.prod() if layer.count_include_pad else len(taps)
                out[b, :, i, j] = values.sum(1) / count
            else:
                weight = layer.weight[:, :, di, dj]  # (out, in / groups, taps)
                values = values.view(layer.groups, -1, len(taps))
                weight = weight.view(layer.groups, -1, *weight.shape[1:])
                out[b, :, i, j] = torch.einsum('gct,goct->go', values, weight).flatten()
                if layer.bias is not None:
                    out[b, :, i, j] += layer.bias
        return out

    def batch_norm(self, layer, x):
        values = x.permute(0, 2, 3, 1)[self.mask(x)]
        mean, var = values.mean(0), values.var(0, unbiased=False)
        shape = (1, -1, 1, 1)
        out = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
        return out * layer.weight.view(shape) + layer.bias.view(shape)

    def response_norm(self, layer, x):  # channels last
        square = (x * self.mask(x, 1)[..., None]).square().sum((1, 2), keepdim=True).sqrt()
        return x + layer.bias + layer.weight * x * square / (square.mean(-1, keepdim=True) + layer.eps)

    def squeeze_excite(self, layer, x):
        mask = self.mask(x)[:, None]
        pooled = (x * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True)
        inner = nn.Conv2d.forward(layer.fc1, pooled)
        return x * torch.sigmoid(nn.Conv2d.forward(layer.fc2, layer.act(inner)))


class Grey(ResNet):
    """A ResNet with pools whose windows overlap."""

    def __init__(self, **kwargs):
        super().__init__(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 16), **kwargs)
        self.maxpool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False))


NETWORKS = {
    'basic': lambda: ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 16)),
    'bottleneck, SE, deep stem, average down': lambda: ResNet(
        Bottleneck, (1, 1, 1, 1), channels=(4, 4, 4, 8), stem_width=8, stem_type='deep', avg_down=True, cardinality=2,
        base_width=32, block_args={'attn_layer': 'se'}),
    'average pools': Grey,
    'ConvNeXt': lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 12, 16)),
    'ConvNeXt V2': lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 12, 16), use_grn=True, ls_init_value=None),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_equals_naive_submanifold(name):
    """Every level, and the gradient of a random projection of them, on other masks in each image of a non-square batch."""
    network = randomise(NETWORKS[name]()).double().train()
    geometry = random_geometry(2, (2, 3), 3, seed=5)
    oracle = Oracle(network, geometry)
    if name == 'bottleneck, SE, deep stem, average down':
        assert any(isinstance(m, timm.layers.SEModule) for m in network.modules())
    encoder = SparseEncoder(network, (64, 96))
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, requires_grad=True)
    want = oracle(images * plane_mask(geometry, 32)[:, None])
    want = [want[level] for level in encoder.level_indices]
    got = [geometry.to_canvas(strip) for strip in encoder(images, geometry)]
    weights = [torch.randn_like(x) for x in want]
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    used = [p for n, p in network.named_parameters() if n not in encoder.unused]
    theirs = dict(oracle.network.named_parameters())
    grads = torch.autograd.grad(sum((a * w).sum() for a, w in zip(got, weights)), [images, *used])
    expected = torch.autograd.grad(sum((a * w).sum() for a, w in zip(want, weights)), [images, *(
        theirs[n] for n, _ in network.named_parameters() if n not in encoder.unused)])
    for a, b in zip(grads, expected):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item())


# -- the crop: if the visible cells form a rectangle, the dense network on that rectangle must say the same -----------

def check_crop(name):
    plain = randomise(timm.create_model(name, num_classes=0)).double().train()
    encoder = SparseEncoder(copy.deepcopy(plain).train(), (128, 128))
    torch.manual_seed(1)
    images = torch.full((2, 3, 128, 128), 1e3, dtype=torch.float64)
    content = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    images[0, :, 32:96, 32:128] = content[0]
    images[1, :, 0:64, 0:96] = content[1]
    visible = torch.tensor([[5, 6, 7, 9, 10, 11], [0, 1, 2, 4, 5, 6]])
    geometry = Geometry(visible, (4, 4))
    want = plain.forward_intermediates(content, intermediates_only=True)
    for level, strip in zip(encoder.level_indices, encoder(images, geometry)):
        canvas, p = geometry.to_canvas(strip), strip.shape[3]
        got = torch.stack([canvas[0, :, p:3 * p, p:4 * p], canvas[1, :, 0:2 * p, 0:3 * p]])
        torch.testing.assert_close(got, want[level], rtol=1e-8, atol=1e-8)
    for (key, ours), theirs in zip(encoder.cnn.state_dict().items(), plain.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8, msg=lambda m, key=key: f'{key}: {m}')


@pytest.mark.parametrize('name', ['test_resnet', 'resnetaa34d', 'test_convnext3', 'convnextv2_atto', 'hgnetv2_b0'])
def test_equals_dense_network_on_a_crop(name):
    """Without a line of check.py, which proves it for many more (test_check.py)."""
    check_crop(name)


def test_hidden_pixels_change_nothing_to_the_last_bit():
    encoder = SparseEncoder(randomise(timm.create_model('test_resnet')).eval(), (64, 64))
    geometry = random_geometry(2, (2, 2), 2)
    images = torch.randn(2, 3, 64, 64)
    hidden = ~plane_mask(geometry, 32)[:, None]
    other = torch.where(hidden, torch.randn(2, 3, 64, 64) * 1e3, images)
    for a, b in zip(encoder(images, geometry), encoder(other, geometry)):
        assert torch.equal(a, b)


def test_the_network_is_left_as_it_is():
    plain = randomise(timm.create_model('test_resnet')).eval()
    images = torch.randn(2, 3, 64, 64)
    want, attributes = plain.forward_intermediates(images, intermediates_only=True), {m: set(vars(m)) for m in plain.modules()}
    encoder = SparseEncoder(plain, (64, 64))
    encoder(images, random_geometry(2, (2, 2), 2))
    assert encoder.cnn is plain and {m: set(vars(m)) for m in plain.modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
    maps = plain.forward_intermediates(images, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, want))
    assert all(torch.equal(a, want[level]) for a, level in zip(encoder(images), encoder.level_indices))


def test_encoders_of_one_network_and_a_copy_do_not_disturb_each_other():
    one = SparseEncoder(randomise(timm.create_model('test_resnet')).eval(), (64, 64))
    images, geometry = torch.randn(1, 3, 64, 64), random_geometry(1, (2, 2), 1)
    want = one(images, geometry)
    again = SparseEncoder(one.cnn, (64, 96))
    again(torch.randn(1, 3, 64, 96), random_geometry(1, (2, 3), 2))
    assert all(torch.equal(a, b) for a, b in zip(one(images, geometry), want))
    other = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(other(images, geometry), want))


def test_facts_are_measured():
    encoder = SparseEncoder(timm.create_model('resnet18'), (64, 96), cell_size=32)
    assert (encoder.stride, encoder.grid, encoder.reductions, encoder.channels, encoder.norm) == (
        32, (2, 3), (4, 8, 16, 32), (64, 128, 256, 512), 'bn')
    assert set(encoder.unused) == {'fc.weight', 'fc.bias'}
    convnext = SparseEncoder(timm.create_model('test_convnext'), (64, 64))
    assert convnext.norm == 'ln' and {'head.norm.weight', 'head.fc.weight'} <= set(convnext.unused)
    small = SparseEncoder(timm.create_model('your_convnet', in_chans=1), (32, 16), in_chans=1)
    assert (small.stride, small.reductions, small.channels) == (8, (2, 4, 8), (32, 64, 128))
    assert small.cnn.training
    with torch.no_grad():
        assert set(SparseEncoder(timm.create_model('resnet18'), (64, 64)).unused) == set(encoder.unused)


def test_activation_checkpointing_of_timm_is_refused():
    encoder = SparseEncoder(timm.create_model('test_resnet'), (64, 64))
    encoder.cnn.set_grad_checkpointing()
    with pytest.raises(ValueError, match=r'set_grad_checkpointing\(False\)'):
        encoder(torch.randn(1, 3, 64, 64), random_geometry(1, (2, 2), 1))
