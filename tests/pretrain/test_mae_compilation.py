"""Compiled by parts, MAE and ConvMAE give the numbers that they give uncompiled, whatever the mask."""
import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch._dynamo.testing import CompileCounterWithBackend

from common.convvit import ConvBlock, ConvViT
from common.training.compilation import compiled_at_first_call
from pretrain.convmae import build_convmae
from pretrain.convmae_method import ConvMAEMethod
from pretrain.mae import build_mae
from pretrain.mae_method import MAEMethod
from tests.conftest import randomise
from tests.host_reads import NoHostReads

DECODER = {'decoder_width': 32, 'decoder_depth': 2, 'decoder_heads': 4}
METHOD = {'mae': MAEMethod(), 'convmae': ConvMAEMethod()}
CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


def network_of(method, accelerated, recompute='none', **changes):
    """A small network of a method, with a random weight everywhere."""
    torch.manual_seed(0)
    drop_path_rate = changes.pop('drop_path', 0.0)
    if method == 'mae':
        cnn = VisionTransformer(64, 16, embed_dim=64, depth=2, num_heads=4, drop_path_rate=drop_path_rate)
        network = build_mae(cnn, 64, **DECODER, **changes)
    else:
        cnn = ConvViT(64, widths=(32, 48, 96), depths=(1, 1, 2), heads=4, drop_path_rate=drop_path_rate)
        network = build_convmae(cnn, 64, **DECODER, **changes)
    network.accelerated = accelerated
    network.recompute(recompute)
    return randomise(network).placed(CPU).train()


def steps_compiled(method, network, backend):
    """Three steps with other masks, of a compiled network and of its twin, which is not.

    Returns (numbers of graphs after each step, what the compiled network gave, what its twin gave).
    """
    counter, counts, results = CompileCounterWithBackend(backend), [], []
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    masks = [network.draw_masks(2, torch.Generator().manual_seed(seed)) for seed in range(3)]
    with torch.compiler.set_stance(force_backend=counter), \
            compiled_at_first_call(METHOD[method].parts_to_compile(network)):
        twin = copy.deepcopy(network)
        for each in (network, twin):
            losses = []
            for seed, visible in enumerate(masks):
                torch.manual_seed(seed)
                losses.append(each(images, visible))
                losses[-1].backward()
                counts.append(counter.frame_count)
            results.append([*losses, *(p.grad for p in each.parameters() if p.grad is not None)])
    return counts, *results


def assert_close(some, others, tolerance):
    """tolerance: of an error, as a share of the tensor's largest value; compilers change the order of sums."""
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item() + 1e-5)


def test_the_parts_are_the_blocks_of_encoder_and_decoder():
    network = network_of('mae', accelerated=False)
    assert METHOD['mae'].parts_to_compile(network) == [*network.encoder.cnn.blocks, *network.decoder_blocks]
    network = network_of('convmae', accelerated=False)
    parts, cnn = METHOD['convmae'].parts_to_compile(network), network.encoder.cnn
    assert parts[-2:] == [*network.decoder_blocks] and {*cnn.blocks3} <= {*parts[:-2]}
    assert {*parts[:-2]} - {*cnn.blocks3} <= {part for part in cnn.modules() if isinstance(part, ConvBlock)}


@pytest.mark.parametrize('method', METHOD)
def test_the_form_of_the_cpu_is_one_part(method):
    network = network_of(method, accelerated=None)
    assert METHOD[method].parts_to_compile(network) == [network]
    network.recompute('decoder')
    assert METHOD[method].parts_to_compile(network) == []


@pytest.mark.slow
@pytest.mark.parametrize('method', METHOD)
@pytest.mark.parametrize(('recompute', 'changes'), [
    ('none', {}), ('decoder', {}), ('all', {'drop_path': 0.3}), ('none', {'mask_ratio': 0.75, 'masks_per_image': 4})])
def test_blocks_agree_whatever_the_mask(method, recompute, changes):
    network = network_of(method, False, recompute, **changes)
    counts, one, other = steps_compiled(method, network, 'aot_eager')
    assert len(set(counts)) == 1 and len(one) > 50
    assert_close(one, other, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'accelerated'), [('mae', None), ('convmae', False)])
def test_inductor_agrees(method, accelerated):
    counts, one, other = steps_compiled(method, network_of(method, accelerated), 'inductor')
    assert len(set(counts)) == 1
    assert_close(one, other, 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize('method', METHOD)
def test_the_form_of_the_cpu_is_one_graph(method):
    network = network_of(method, accelerated=None)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for seed in range(3):
        visible = network.draw_visible(2, torch.Generator().manual_seed(seed))
        images = torch.randn(2, 3, 64, 64)
        assert compiled(images, visible).item() == pytest.approx(network(images, visible).item(), rel=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize('method', METHOD)
@pytest.mark.parametrize('accelerated', [False, None])
def test_a_step_reads_nothing_on_the_host(method, accelerated):
    network = network_of(method, accelerated)
    images, visible = torch.randn(2, 3, 64, 64), network.draw_visible(2)
    with NoHostReads():
        network(images, visible).backward()
