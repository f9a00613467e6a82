"""The dense encoder: the formulas of the token, and what a run does to an encoder.

The numbers of the original are in tests/pretrain/test_a2mim_golden.py.
"""
import copy
import itertools

import pytest
import timm
import torch
from torch import nn

from common.recompute import checkpointed
from common.sync_batchnorm import CPUSyncBatchNorm, synchronise_batchnorm, synchronise_on_gpus
from pretrain.dense.encoder import DenseEncoder

GRID = (2, 3)
SIZE = (64, 96)


@pytest.fixture(scope='module')
def built():
    """{mode of the token: an encoder of a small ResNet} in float64 and evaluation mode; tests copy them."""
    torch.manual_seed(0)
    return {token: DenseEncoder(timm.create_model('test_resnet').double(), SIZE, token=token).eval()
            for token in ('gain', 'residual', 'replace')}


def images_of(batch=2, size=SIZE, channels=3):
    return torch.randn(batch, channels, *size, dtype=torch.float64)


def cells(batch=2, grid=GRID):
    """Hidden cells, others in every image; the first is hidden and the last is visible in all."""
    hidden = (torch.rand(batch, 1, *grid, dtype=torch.float64) < 0.5).double()
    hidden[:, :, 0, 0], hidden[:, :, -1, -1] = 1, 0
    return hidden


def outputs_of(encoder, images, hidden):
    """The output of `token_at` without the token and with it."""
    seen = {}
    module = encoder.cnn.get_submodule(encoder.token_at)
    handles = [module.register_forward_hook(lambda _, x, out: seen.update(before=out), prepend=True),
               module.register_forward_hook(lambda _, x, out: seen.update(after=out))]
    encoder(images, hidden)
    for handle in handles:
        handle.remove()
    return seen['before'], seen['after']


def test_start_values(built):
    encoder = built['gain']
    assert encoder.mask_token.shape == encoder.mask_gain.shape == (1, encoder.channels[-2], 1, 1)
    assert (encoder.mask_gain == 1e-6).all() and 0.01 < encoder.mask_token.std() < 0.03
    assert built['residual'].mask_gain is None and built['replace'].mask_gain is None
    convnext = DenseEncoder(timm.create_model('test_convnext'), (64, 64))
    assert not convnext.mask_token.any() and 'starts at zero' in convnext.notes[0]


# -- the formulas -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('token', ['gain', 'residual', 'replace'])
def test_nothing_hidden_is_the_network_itself(built, token):
    images = images_of()
    assert torch.equal(built[token](images, torch.zeros(2, 1, *GRID, dtype=torch.float64)), built[token](images))
    assert torch.equal(built[token](images), built[token].cnn.forward_features(images))


def test_a_gain_of_one_and_a_token_of_zero_is_the_network_itself(built):
    encoder, images = copy.deepcopy(built['gain']), images_of()
    with torch.no_grad():
        encoder.mask_gain.fill_(1)
        encoder.mask_token.zero_()
    assert torch.equal(encoder(images, cells()), encoder(images))


def test_a_gain_of_zero_replaces(built):
    encoder, other, images, hidden = copy.deepcopy(built['gain']), copy.deepcopy(built['replace']), images_of(), cells()
    other.cnn.load_state_dict(encoder.cnn.state_dict())
    with torch.no_grad():
        encoder.mask_gain.zero_()
        other.mask_token.copy_(encoder.mask_token)
    assert torch.equal(encoder(images, hidden), other(images, hidden))


@pytest.mark.parametrize('token', ['gain', 'residual', 'replace'])
def test_the_formulas_position_by_position(built, token):
    encoder, images, hidden = copy.deepcopy(built[token]), images_of(), cells()
    if token == 'gain':
        nn.init.normal_(encoder.mask_gain)
    before, after = outputs_of(encoder, images, hidden)
    side = before.shape[2] // GRID[0]
    t = encoder.mask_token[0, :, 0, 0]
    for b, i, j in itertools.product(range(2), range(before.shape[2]), range(before.shape[3])):
        f = before[b, :, i, j]
        if not hidden[b, 0, i // side, j // side]:
            expected = f
        elif token == 'gain':
            expected = f * encoder.mask_gain[0, :, 0, 0] + t  # the token itself never goes through the gain
        else:
            expected = t if token == 'replace' else f + t
        torch.testing.assert_close(after[b, :, i, j], expected)


@pytest.mark.parametrize(('model', 'size', 'place'), [
    ('test_mambaout', (64, 96), 'stages.3.downsample.norm'), ('deit_tiny_patch16_224', (224, 224), 'patch_embed')])
def test_other_layouts_get_the_token_at_the_same_positions(model, size, place):
    """(B, h, w, C) and (B, N, C)."""
    encoder = DenseEncoder(timm.create_model(model).double(), size, token='replace').eval()
    assert encoder.token_at == place
    hidden = torch.zeros(1, 1, *encoder.grid, dtype=torch.float64)
    hidden[0, 0, 0, 1] = 1
    before, after = outputs_of(encoder, images_of(1, size), hidden)
    if before.ndim == 3:
        before, after = (out.view(1, size[0] // 16, size[1] // 16, -1) for out in (before, after))
    side = before.shape[1] // encoder.grid[0]
    changed = (after != before).any(-1)[0]
    assert changed[:side, side:2 * side].all() and changed.sum() == side * side
    torch.testing.assert_close(after[0, 0, side], encoder.mask_token.flatten())


def test_the_output_keeps_its_precision(built):
    encoder = DenseEncoder(timm.create_model('test_resnet'), SIZE)
    with torch.autocast('cpu', torch.bfloat16):
        before, after = outputs_of(encoder, images_of().float(), cells().float())
    assert before.dtype == after.dtype


# -- what a run does to an encoder ------------------------------------------------------------------------------------

def test_recomputation_sees_its_own_cells(built):
    """Another mask is set before the backward pass; one left behind by it would change the gradients."""
    images, hidden, others = images_of(), cells(), 1 - cells()
    gradients = []
    for enabled in (False, True):
        encoder = copy.deepcopy(built['gain']).train()
        loss = checkpointed(encoder, images, hidden, enabled=enabled).square().sum()
        with torch.no_grad():
            copy.deepcopy(encoder)(images, others)
            encoder.eval()(images, others)
            encoder.train()
        loss.backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_without_hidden_cells_the_network_is_timms(built):
    """Also after a forward with some, and after one that failed."""
    encoder, images = copy.deepcopy(built['gain']), images_of()
    plain = timm.create_model('test_resnet').double().eval()
    plain.load_state_dict(encoder.cnn.state_dict())
    encoder(images, cells())
    assert torch.equal(encoder.cnn(images), plain(images))
    handle = encoder.cnn.layer4.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder(images, cells())
    handle.remove()
    assert torch.equal(encoder.cnn(images), plain(images))


def test_the_copy_uses_its_own_token(built):
    encoder, images, hidden = copy.deepcopy(built['gain']), images_of(), cells()
    expected = encoder(images, hidden)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.mask_token.add_(1)
    assert torch.equal(encoder(images, hidden), expected)
    changed = other(images, hidden)
    assert not torch.equal(changed, expected)
    changed.sum().backward()
    assert other.mask_token.grad.any() and encoder.mask_token.grad is None
    assert len(other.cnn.get_submodule(other.token_at)._forward_hooks) == 1


def test_shared_batchnorm_keeps_the_token(built):
    images, hidden = images_of(), cells()
    encoder = synchronise_batchnorm(copy.deepcopy(built['gain']))
    assert any(isinstance(module, CPUSyncBatchNorm) for module in encoder.modules())
    assert torch.equal(encoder(images, hidden), built['gain'](images, hidden))


def test_a_norm_that_is_replaced_keeps_the_token(built):
    """On GPUs, where ranks have different numbers of positions, BatchNorms are replaced by others."""
    module = nn.Sequential(nn.Conv2d(3, 4, 32, 32), nn.BatchNorm2d(4))
    handle = module[1].register_forward_hook(lambda _, x, out: out + 1)
    synchronise_on_gpus(module, equal_counts=False)
    assert isinstance(module[1], nn.SyncBatchNorm) and len(module[1]._forward_hooks) == 1
    handle.remove()
    assert not module[1]._forward_hooks


@pytest.mark.parametrize(('model', 'size'), [
    ('test_resnet', SIZE), pytest.param('deit_tiny_patch16_224', (224, 224), marks=pytest.mark.slow)])
def test_it_compiles_to_one_graph_that_serves_all_masks(model, size):
    torch.compiler.reset()
    encoder = DenseEncoder(timm.create_model(model), size)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(copy.deepcopy(encoder), fullgraph=True, backend=backend)
    for _ in range(3):
        images, hidden = images_of(2, size).float(), cells(2, encoder.grid).float()
        found, expected = compiled(images, hidden), encoder(images, hidden)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
    found.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(compiled.mask_token.grad, encoder.mask_token.grad, rtol=1e-4, atol=1e-6)
    assert encoder.mask_token.grad.any()


def test_nothing_of_the_given_network_changes():
    cnn = timm.create_model('test_resnet')
    cnn.layer1.eval()
    before, modes = copy.deepcopy(cnn.state_dict()), [module.training for module in cnn.modules()]
    state = torch.get_rng_state()
    DenseEncoder(cnn, (64, 64), token='gain', token_at='layer2')
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    nn.init.trunc_normal_(torch.empty(1, cnn.feature_info[-3]['num_chs'], 1, 1), std=0.02)
    assert torch.equal(torch.get_rng_state(), drawn)  # the token alone was drawn
    assert all(torch.equal(value, before[key]) for key, value in cnn.state_dict().items())
    assert [module.training for module in cnn.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in cnn.parameters())


# -- the pyramid, sizes and channels ----------------------------------------------------------------------------------

def test_pyramid(built):
    encoder, images, hidden = built['gain'], images_of(), cells()
    maps = encoder.pyramid(images)
    assert encoder.reductions == (2, 4, 8, 16, 32) == tuple(SIZE[0] // one.shape[2] for one in maps)
    assert tuple(one.shape[1] for one in maps) == encoder.channels
    assert torch.equal(maps[-1], encoder(images))
    masked = encoder.pyramid(images, hidden)
    assert all(torch.equal(a, b) for a, b in zip(maps[:-1], masked[:-1]) if a.shape[2] > 4)  # above the token
    assert torch.equal(masked[-1], encoder(images, hidden)) and not torch.equal(masked[-1], maps[-1])


def test_other_channels_and_a_place_of_ones_own():
    encoder = DenseEncoder(timm.create_model('test_resnet', in_chans=5).double(), SIZE, 5, cell_size=32, token_at='maxpool')
    assert encoder.token_at == 'maxpool' and encoder.grid == (2, 3)
    out = encoder(images_of(channels=5), cells())
    assert out.shape == (2, encoder.width, 2, 3) and out.dtype == torch.float64


def test_names_of_what_is_not_trained(built):
    encoder = copy.deepcopy(built['gain'])
    encoder(images_of(), cells()).square().sum().backward()
    without = {name for name, p in encoder.cnn.named_parameters() if p.grad is None}
    assert set(encoder.unused) == without == {'fc.weight', 'fc.bias'}
    assert list(encoder.left_out()) == ['fc']
    assert encoder.mask_token.grad.any() and encoder.mask_gain.grad.any()


def test_wrong_arguments(built):
    encoder = copy.deepcopy(built['gain'])
    with pytest.raises(ValueError, match='was built for'):
        encoder(images_of(size=(64, 64)))
    with pytest.raises(ValueError, match=r'hidden must be \(B, 1, h, w\)'):
        encoder(images_of(), torch.zeros(2, 6))
    encoder.cnn.set_grad_checkpointing()
    encoder(images_of())
    with pytest.raises(ValueError, match='set_grad_checkpointing'):
        encoder(images_of(), cells())
    with pytest.raises(ValueError, match='token is one of gain, residual, replace'):
        DenseEncoder(timm.create_model('test_resnet'), (64, 64), token='mean')
