"""Networks that a strip cannot compute are refused by name, and those that it can are not."""
import pytest
import timm
import torch
import torch.utils.checkpoint
from timm.layers.cbam import CbamModule
from torch import nn

import pretrain.models  # noqa: F401  (your_convnet)
from pretrain.encoder import SparseEncoder
from pretrain.sparse import on_plane
from tests.pretrain.sparse.networks import Call, Pyramid


@pytest.mark.parametrize(('odd', 'word'), [
    (Call(lambda x: nn.functional.interpolate(x, size=(x.shape[2], x.shape[3]), mode='bilinear')), 'interpolates the image'),
    (Call(lambda x: nn.functional.interpolate(x, scale_factor=1.5)), 'no whole number'),
    (Call(lambda x: nn.functional.pad(x, (1, 0, 0, 1))[..., :-1, :-1]), 'slice'),
    (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(12, 12, 3)), 'no whole number'),
    (nn.Sequential(nn.ZeroPad2d(1), nn.ZeroPad2d(1), nn.Conv2d(12, 12, 5)), 'for the second time'),
    (Call(lambda x: x * x.mean(dim=3, keepdim=True)), 'along one side'),
    (Call(lambda x: torch.roll(x, 1, 2)), 'roll'),
    (Call(lambda x: x.flip(3)), 'flip'),
    (Call(lambda x: x.cumsum(2)), 'cumsum'),
    (Call(lambda x: torch.cat([x[:, :, 1:], x[:, :, :1]], 2)), 'slice'),
    (Call(lambda x: torch.cat(x.chunk(2, 3)[::-1], 3)), 'split'),
    (Call(lambda x: x * x.softmax(2)), 'along the image plane with _softmax'),
    (Call(lambda x: x[:, :, 1::2, ::2].repeat(1, 1, 2, 2)), 'repeats the image plane'),
    (Call(lambda x: x[:, :, torch.arange(x.shape[2])]), 'picks positions'),
    (Call(lambda x: nn.functional.avg_pool2d(torch.cat([x, -x]), 3, 1, 1)[:2]), 'no map of the visible cells of 2'),
    (Call(lambda x: nn.functional.max_pool2d(x, 3, 1, 1, return_indices=True)[0]), 'indices'),
    (Call(lambda x: nn.functional.adaptive_avg_pool2d(x, 2).mean((2, 3), True) + x), 'adaptive_avg_pool2d'),
    (Call(lambda x: x + torch.linspace(0, 1, 8)[:, None].expand(8, 8)), 'cannot run on a strip'),
    (Call(lambda x: torch.ops.aten.avg_pool2d(x.contiguous(), [3, 3], [1, 1], [1, 1])), 'avg_pool2d'),
])
def test_what_mixes_positions_is_refused_by_name(odd, word):
    with pytest.raises(ValueError, match=rf'"odd[.\d]*" \(\w+\).*({word}).*--method=a2mim'):
        SparseEncoder(Pyramid(odd), (32, 32))


def run_on(x):
    """Flattened, it has no image plane that the probe could know it by."""
    return x.flatten(2).cumsum(2).view_as(x)


class NormedConv(nn.Conv2d):
    """A convolution with its norm inside, as Detectron2 has them."""

    def __init__(self):
        super().__init__(12, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x):
        return self.norm(super().forward(x))


class NormedOnPlane(NormedConv):
    forward = on_plane(NormedConv.forward)


class InTraining(nn.Module):
    def forward(self, x):
        return x.flip(3) if self.training else x


class Scaled(nn.Module):
    """A branch that its own initialisation hides."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((12, 1, 1), 1e-6).squeeze(1).squeeze(1))

    def forward(self, x):
        return x + self.gamma[:, None, None] * run_on(x)


def test_what_shows_in_training_or_on_the_canvas_only_is_refused():
    with pytest.raises(ValueError, match=r'"odd.norm" \(BatchNorm2d\) calls \w*batch_norm'):
        SparseEncoder(Pyramid(NormedOnPlane()), (32, 32))
    with pytest.raises(ValueError, match=r'"odd" \(InTraining\) .* with flip'):
        SparseEncoder(Pyramid(InTraining()), (32, 32))
    with pytest.raises(ValueError, match='does not give its own features'):
        SparseEncoder(Pyramid(Scaled()), (32, 32))


class Neighbours(nn.Module):
    """A one-dimensional convolution over the positions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(12, 12, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x.flatten(2)).view_as(x)


@pytest.mark.parametrize('function', [run_on, Neighbours()])
@pytest.mark.parametrize('at', [1, 2])
def test_what_hides_from_the_probe_is_found_by_the_proof(function, at):
    """Also at the last stage, where a cell is one position and the strip of all cells in their order is the plane itself."""
    network = Pyramid(Call(function), at)
    with pytest.raises(ValueError, match=r'does not give its own features .* "odd" \(Call\)|"odd.function.conv" \(Conv1d\)'):
        SparseEncoder(network, (32, 32))


def test_networks_in_half_precision_and_frozen_ones_fit():
    network = timm.create_model('test_resnet').to(torch.bfloat16)
    assert SparseEncoder(network, (64, 64)).grid == (2, 2) and next(network.parameters()).dtype == torch.bfloat16
    assert SparseEncoder(timm.create_model('test_resnet').requires_grad_(False), (64, 64)).unused == ()


class Keeping(nn.Module):
    """What it gave stays with it, and cannot be copied."""

    def forward(self, x):
        self.last = 2 * x
        return self.last


def test_networks_that_cannot_be_tried_are_refused():
    network = Pyramid(Keeping())
    SparseEncoder(network, (32, 32))
    network.forward_intermediates(torch.randn(1, 3, 32, 32))
    for wrong, word in ((network, 'cannot be copied'), (timm.create_model('test_resnet').to('meta'), 'meta device'),
                        (Pyramid(torch.jit.script(nn.ReLU())), 'torch.jit')):
        with pytest.raises(ValueError, match=word):
            SparseEncoder(wrong, (32, 32))


def write_in_place(x):
    out = torch.empty_like(x)
    out[:, :4], out[:, 4:] = x[:, :4], torch.rsub(x, x.square())[:, 4:]
    return out


def test_harmless_modules_are_not_refused():
    for odd in (nn.Identity(), nn.GroupNorm(2, 12), nn.InstanceNorm2d(12), nn.Conv2d(12, 12, 3, padding='same'), nn.Mish(),
                Call(lambda x: torch.cat([a * b for a, b in zip(x.chunk(2, 1), x.split([6, 6], 1))], 1)),
                timm.layers.SqueezeExcite(12), timm.layers.EcaModule(12), nn.AvgPool2d(3, 1, 1), nn.PReLU(12), NormedConv(),
                nn.ChannelShuffle(3), CbamModule(12), nn.LeakyReLU(inplace=True),
                Call(lambda x: x * nn.functional.adaptive_max_pool2d(x, 1) + nn.functional.glu(x.repeat(1, 2, 1, 1), 1)),
                Call(lambda x: x * x.softmax(1) - x.std((2, 3), keepdim=True) + x.amin(1, keepdim=True)),
                Call(lambda x: x[:, [3, 1, 0, 2] * 3].flip(1).roll(2, 1).cumsum(1) + x.topk(3, 1)[0].sum(1, True)),
                Call(lambda x: x[:, :, ::2, ::2] - x[:, :, 1::2, ::2]),
                Call(lambda x: (x.permute(0, 2, 3, 1) @ torch.eye(12).roll(1, 0)).permute(0, 3, 1, 2)),
                Call(lambda x: torch.einsum('bchw,dc->bdhw', x, torch.eye(12).roll(1, 0))),
                Call(lambda x: x * nn.functional.avg_pool2d(x, x.shape[2:]) + nn.functional.max_pool2d(x, x.shape[2:])),
                timm.layers.GlobalContext(12), nn.ConvTranspose2d(12, 12, 3, padding=1), nn.PixelShuffle(1),
                Call(lambda x: x - nn.functional.avg_pool2d(x, 3, 1, 1)), Call(write_in_place)):
        assert SparseEncoder(Pyramid(odd), (32, 32)).stride == 8


class Recomputing(nn.Module):
    """As torchvision's DenseNet(memory_efficient=True)."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.conv, self.use_reentrant = nn.Conv2d(12, 12, 3, padding=1), use_reentrant

    def forward(self, x):
        if not self.training:
            return self.conv(x)
        return torch.utils.checkpoint.checkpoint(self.conv, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_activation_checkpointing_of_ones_own_is_refused(use_reentrant):
    network = Pyramid(Recomputing(use_reentrant))
    with pytest.raises(ValueError, match=r'runs its module "odd.conv" again in the backward pass'):
        SparseEncoder(network, (32, 32))


def test_activation_checkpointing_of_a_function_is_refused():
    weight = torch.ones(12, 12, 3, 3, requires_grad=True)
    odd = Call(lambda x: torch.utils.checkpoint.checkpoint(nn.functional.conv2d, x, weight, None, 1, 1, use_reentrant=False))
    with pytest.raises(ValueError, match=r'runs something again in the backward pass'):
        SparseEncoder(Pyramid(odd), (32, 32))


@pytest.mark.parametrize(('arguments', 'word'), [
    ({'size': (225, 224)}, '224 or 256'), ({'size': (64, 100)}, 'width 100.*96 or 128'), ({'size': (32, 32)}, '64 or more'),
    ({'size': (96, 96), 'cell': 48}, '32, 64'), ({'size': (96, 96), 'cell': 16}, '32, 64'),
    ({'size': (96, 96), 'cell': 64}, '64 or 128'), ({'size': (64, 64), 'chans': 1}, 'cannot run on an image'),
])
def test_sizes_that_do_not_fit_are_refused_with_what_would(arguments, word):
    with pytest.raises(ValueError, match=word):
        SparseEncoder(timm.create_model('test_resnet'), arguments['size'], arguments.get('chans', 3), arguments.get('cell'))


def test_other_dimensions_and_contracts_are_refused():
    with pytest.raises(ValueError, match='Conv3d'):
        SparseEncoder(nn.Sequential(nn.Conv3d(3, 3, 3)), (32, 32))
    with pytest.raises(ValueError, match='no Conv2d layer'):
        SparseEncoder(nn.Sequential(nn.Conv1d(3, 3, 3)), (32, 32))
    with pytest.raises(ValueError, match='forward_intermediates'):
        SparseEncoder(nn.Sequential(nn.Conv2d(3, 3, 3)), (32, 32))
    with pytest.raises(ValueError, match='power of two|forward_intermediates'):  # the latter in early timm 1.0
        SparseEncoder(timm.create_model('convmixer_768_32'), (224, 224))
