"""A2MIM: what it sees, its masks, groups of images, and that its step is compiled and reads nothing."""
import copy
import json

import pytest
import torch
from torch import multiprocessing
from torch._dynamo.testing import CompileCounterWithBackend

from common.distributed import Ranks
from pretrain.a2mim import build_a2mim
from pretrain.a2mim_loss import focal_frequency_loss
from pretrain.fourier_groups import GroupMeans
from tests.conftest import randomise
from tests.host_reads import NoHostReads
from tests.pretrain.official import GOLDEN, fill


def small(size=(64, 96), **options):
    torch.manual_seed(0)
    network = build_a2mim('test_resnet', input_size=size, **{'cell_size': 32, **options}).double()
    return randomise(network)


@pytest.fixture(scope='module')
def built():
    return small()


def images_for(network, batch=4):
    return fill('images', (batch, network.encoder.in_chans, *network.input_size))


def test_the_whole_image_is_seen_but_for_the_channel_means(built):
    network = copy.deepcopy(built).eval()
    images = images_for(network)
    visible = network.draw_visible(4, torch.Generator().manual_seed(0))
    pixels = network.hidden_pixels(network.hidden(images, visible)) > 0
    before = network.encode(images, visible)
    noise = fill('noise', images.shape) * pixels
    noise -= (noise.sum((2, 3), keepdim=True) / pixels.sum((2, 3), keepdim=True)) * pixels
    assert noise.abs().max() > 1
    same = network.encode(images + noise, visible)  # hidden pixels are others, the means are the same
    torch.testing.assert_close(same, before, rtol=1e-10, atol=1e-10)
    shifted = network.encode(images + 0.1 * pixels, visible)
    assert (shifted - before).abs().max() > 1e-3
    assert torch.equal(network.masked(images, visible)[~pixels.expand_as(images)], images[~pixels.expand_as(images)])
    unfilled = small(image_fill='none').eval()
    assert torch.equal(unfilled.masked(images, visible), images)


@pytest.mark.parametrize(('size', 'ratio', 'hidden'), [
    (224, 0.6, 30), (192, 0.6, 22), (96, 0.6, 6), (128, 0.6, 10), (224, 0.75, 37), (320, 0.55, 56)])
def test_the_number_of_hidden_cells_is_rounded_up(size, ratio, hidden):
    network = build_a2mim('test_resnet', input_size=size, cell_size=32, mask_ratio=ratio)
    assert network.cells - network.visible_cells == hidden
    visible = network.draw_visible(2000, torch.Generator().manual_seed(0))
    assert visible.shape == (2000, network.cells - hidden) and (visible.diff(dim=1) > 0).all()
    counts = torch.bincount(visible.flatten(), minlength=network.cells) / 2000
    assert (counts - (1 - hidden / network.cells)).abs().max() < 0.06  # five standard errors


def test_the_numbers_are_those_of_the_authors_masks():
    for case in json.loads((GOLDEN / 'a2mim_parts.json').read_text())['masks']:
        network = build_a2mim('test_resnet', input_size=case['size'], cell_size=case['cell_size'], mask_ratio=case['ratio'])
        assert network.cells == case['cells'] and network.cells - network.visible_cells == case['hidden']


def test_reconstruction_keeps_what_is_visible(built):
    network = copy.deepcopy(built).eval()
    images, visible = images_for(network), network.draw_visible(4)
    pixels = network.hidden_pixels(network.hidden(images, visible)) > 0
    shown = network.reconstruct(images, visible)
    assert torch.equal(shown[~pixels.expand_as(shown)], images[~pixels.expand_as(images)])
    predicted = network.predict(images, visible)
    assert torch.equal(shown[pixels.expand_as(shown)], predicted[pixels.expand_as(shown)])


def test_channels_and_oblong_images():
    network = small(size=(96, 64), in_chans=5)
    loss = network.train()(images_for(network))
    loss.backward()
    assert loss.isfinite() and network.encoder.mask_token.grad.abs().sum() > 0


def test_cell_errors_make_the_spatial_loss(built):
    network = copy.deepcopy(built).eval()
    images, visible = images_for(network), network.draw_visible(4)
    hidden = network.hidden(images, visible).flatten(1)
    errors = network.cell_errors(images, network.predict(images, visible))
    expected = network.terms(images, visible)['spatial'].item()
    assert ((errors * hidden).sum() / hidden.sum()).item() == pytest.approx(expected, rel=1e-8)


def test_wrong_values_are_named():
    for option, value in (('image_fill', 'zero'), ('spatial_loss', 'l2'), ('fourier', 'fft'), ('fourier_fill', 'x')):
        with pytest.raises(ValueError, match=f'{option} is one of'):
            small(**{option: value})


# -- groups of images --------------------------------------------------------------------------------------


def test_groups_are_of_neighbouring_images():
    x = fill('x', (6, 3, 8, 8))
    y = x + fill('d', x.shape)
    whole = focal_frequency_loss(y, x, GroupMeans(2, 6))
    pairs = [focal_frequency_loss(y[i:i + 2], x[i:i + 2]) for i in (0, 2, 4)]
    assert whole.item() == pytest.approx(sum(pairs).item() / 3, rel=1e-12)
    assert focal_frequency_loss(y, x, GroupMeans(6, 6)).item() == focal_frequency_loss(y, x).item()


def test_the_loss_depends_on_the_group():
    """The authors' term is that of a GPU's batch: with independent residuals it falls like one over their number."""
    d = torch.randn(64, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.zeros_like(d)
    losses = [focal_frequency_loss(d, x, GroupMeans(group, 64)).item() for group in (1, 4, 16, 64)]
    assert losses == sorted(losses, reverse=True) and losses[0] / losses[-1] > 20


def test_a_group_that_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ValueError, match='--fourier_group=2 or --fourier_group=4'):
        GroupMeans(3, 8)


BATCH = 8


def step(network, images, visible, means):
    """The loss of a training step, and all gradients."""
    network = copy.deepcopy(network).train()
    network.group_means = means
    loss = network(images, visible)
    loss.backward()
    return {'loss': loss.detach(), **{name: p.grad for name, p in network.named_parameters() if p.grad is not None}}


def with_layer_norm():
    """A network whose images do not depend on each other, so that ranks differ by groups alone."""
    torch.manual_seed(0)
    network = randomise(build_a2mim('test_convnext', input_size=64, cell_size=32, fourier_weight=5.0).double())
    images = images_for(network, BATCH)
    return network, images, network.draw_visible(BATCH, torch.Generator().manual_seed(1))


def on_rank(rank, ranks, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meet{ranks}', rank=rank, world_size=ranks)
    network, images, visible = with_layer_norm()
    part = BATCH // ranks
    mine = slice(rank * part, (rank + 1) * part)
    found = {}
    for group in (1, 2, 4, 8):
        means = GroupMeans(group, part, ranks)
        results = step(network, images[mine], visible[mine], means)
        everyone = Ranks(rank, ranks, torch.device('cpu'))
        found[group] = {name: everyone.all_reduce(value.clone()) / ranks for name, value in results.items()}  # as DDP does
    if rank == 0:
        torch.save(found, f'{folder}/{ranks}.pth')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('ranks', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_computes_the_same_groups(tmp_path, ranks):
    multiprocessing.spawn(on_rank, (ranks, str(tmp_path)), nprocs=ranks)
    found = torch.load(tmp_path / f'{ranks}.pth')
    network, images, visible = with_layer_norm()
    for group, results in found.items():
        whole = step(network, images, visible, GroupMeans(group, BATCH))
        assert results.keys() == whole.keys() and 'encoder.mask_token' in results
        for name, value in whole.items():
            torch.testing.assert_close(results[name], value, rtol=1e-9, atol=1e-12, msg=f'{name}, groups of {group}')
    assert abs(found[1]['loss'] - found[8]['loss']) > 0.01


# -- compilation, and the device -----------------------------------------------------------------------------


def test_a_step_reads_nothing_on_the_host(built):
    network = copy.deepcopy(built).train()
    images, visible = images_for(network), network.draw_visible(4)
    with NoHostReads():
        network(images, visible).backward()


@pytest.mark.slow
def test_it_is_one_graph_whatever_the_mask(built):
    network, eager = copy.deepcopy(built).train(), copy.deepcopy(built).train()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('inductor')
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    images = images_for(network)
    for seed in range(3):
        visible = network.draw_visible(4, torch.Generator().manual_seed(seed))
        for each in (network, eager):
            each.zero_grad()
        expected, loss = eager(images, visible), compiled(images, visible)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        loss.backward()
        expected.backward()
        for (name, p), (_, other) in zip(network.named_parameters(), eager.named_parameters()):
            if other.grad is not None:
                torch.testing.assert_close(p.grad, other.grad, rtol=1e-6, atol=1e-9, msg=name)
    assert counter.frame_count == 1


@pytest.mark.parametrize('what', ['none', 'all'])
def test_the_backward_pass_sees_the_mask_of_its_forward(built, what):
    network = copy.deepcopy(built).train()
    network.recompute(what)
    images = images_for(network)
    one, other = (network.draw_visible(4, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    loss = network(images, one)
    network.eval()
    network.encode(images, other)  # another mask in between
    network.train()
    loss.backward()
    expected = copy.deepcopy(built).train()
    expected(images, one).backward()
    assert torch.equal(network.encoder.mask_token.grad, expected.encoder.mask_token.grad)
    for (name, p), (_, q) in zip(network.named_parameters(), expected.named_parameters()):
        assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.equal(p.grad, q.grad)), name
