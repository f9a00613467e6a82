"""The plain form, as the paper writes it, against the accelerated one, which computes on the CPU: the same numbers."""
import copy

import pytest
import torch
import torch._dynamo.testing

from pretrain.spark import build_spark
from pretrain.sparse.compare import relative_error
from pretrain.sparse.geometry import Geometry
from tests.conftest import randomise

CASES = {  # BatchNorm and LayerNorm, depthwise, grouped and strided windows of 3 to 7, pools, padding, larger cells
    'batch norm': {'model': 'your_convnet', 'input_size': (32, 48)},
    'light decoder': {'model': 'your_convnet', 'input_size': (32, 48), 'decoder': 'light'},
    'larger cells': {'model': 'your_convnet', 'input_size': (64, 96), 'cell_size': 16, 'mask_ratio': 0.75},
    'bottlenecks': {'model': 'resnet10t', 'input_size': (64, 128)},
    'large cells': {'model': 'resnet10t', 'input_size': 128, 'cell_size': 64},
    'groups': {'model': 'regnetz_005', 'input_size': 64},
    'layer norm': {'model': 'test_convnext', 'input_size': (64, 96)},
    'same width': {'model': 'test_convnext', 'input_size': 64, 'decoder_width': 64},
    'pools that overlap': {'model': 'poolformer_s12', 'input_size': 64},
    'padding in forward': {'model': 'hgnetv2_b0', 'input_size': 64},
}


def computed(spark, accelerated, images, visible):
    """Lists of what a form computes, by kind. spark is not changed."""
    spark = copy.deepcopy(spark)
    spark.accelerated = accelerated
    pyramid = spark.encode(images, visible)
    loss = spark(images, visible)
    loss.backward()
    with torch.no_grad():
        predicted = spark.predict(images, visible)
    return {'features': pyramid, 'loss': [loss], 'image': [predicted],
            'gradients': [p.grad for p in spark.parameters() if p.grad is not None],
            'statistics': list(spark.buffers())}


def compare(ours, theirs, tolerance=1e-10):
    """Each tensor by its own size, or a thousandth of the largest of its kind: some gradients are 0 but for rounding."""
    for kind in ours:
        assert len(ours[kind]) == len(theirs[kind])
        assert relative_error(ours[kind], theirs[kind]) < tolerance, kind


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_both_forms_compute_the_same(case, training):
    """Features, loss, image, all gradients and running statistics, in float64, with another mask in each image."""
    spark = randomise(build_spark(**{'decoder_width': 32, **CASES[case]})).double().train(training)
    images = torch.randn(3, 3, *spark.encoder.input_size, dtype=torch.float64)
    visible = spark.draw_visible(3)
    plain, accelerated = (computed(spark, form, images, visible) for form in (False, True))
    assert len(plain['gradients']) > 30
    compare(accelerated, plain)


def test_merged_kernels_compute_the_same(monkeypatch):
    """Maps in the tests are too small for them: on these they are worth it."""
    monkeypatch.setattr('pretrain.accelerated.decoder.LEAST_POSITIONS', 0)
    spark = randomise(build_spark('your_convnet', (32, 48), decoder_width=32)).double()
    images, visible = torch.randn(3, 3, 32, 48, dtype=torch.float64), spark.draw_visible(3)
    compare(computed(spark, True, images, visible), computed(spark, False, images, visible))


def test_the_device_decides_unless_it_is_given():
    """Nothing that runs asks for a form but by `accelerated`, which reaches the rules through the geometry."""
    visible = torch.tensor([[0, 3]])
    assert Geometry(visible, (2, 2)).accelerated and not Geometry(visible.to('meta'), (2, 2)).accelerated
    assert Geometry(visible, (2, 2), accelerated=False).tables is None
    spark = build_spark('your_convnet', 32, decoder_width=16)
    images, visible = torch.randn(2, 3, 32, 32), spark.draw_visible(2)
    kinds = {}
    for form in (None, True, False):
        spark.accelerated = form
        geometry = spark.geometry(images, visible)
        strip = spark.encoder(images, geometry)[-1]
        kinds[form] = type(spark.densify(spark.encoder(images, geometry), geometry)[8]).__name__, strip.shape
    assert kinds[None] == kinds[True] == ('FilledMap', strip.shape) and kinds[False] == ('Tensor', strip.shape)


@pytest.mark.parametrize('accelerated', [True, False])
@pytest.mark.parametrize('what', ['decoder', 'all'])
def test_what_is_computed_again_is_the_same_to_the_last_bit(what, accelerated):
    """Loss, gradients and running statistics, with drop path; and less is kept."""
    kept, results = [], []
    for again in ('none', what):
        torch.manual_seed(1)
        spark = randomise(build_spark('test_resnet', input_size=64, decoder_width=32, drop_path=0.5)).train()
        spark.accelerated = accelerated
        spark.recompute(again)
        images, visible, sizes = torch.randn(4, 3, 64, 64), spark.draw_visible(4), []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = spark(images, visible)
        loss.backward()
        kept.append(sum(sizes))
        results.append([loss, *(p.grad for p in spark.parameters() if p.grad is not None), *spark.buffers()])
    assert kept[1] < kept[0] * {'decoder': 0.95, 'all': 0.3}[what]
    assert len(results[0]) > 50
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize('accelerated', [True, False])
@pytest.mark.parametrize(('model', 'backend'), [
    ('your_convnet', 'eager'),  # the graph is made, and run as it is
    pytest.param('your_convnet', 'aot_eager', marks=pytest.mark.slow),  # the graph of the backward pass as well
    *(pytest.param(model, 'inductor', marks=pytest.mark.slow)
      for model in ('your_convnet', 'test_resnet', 'convnextv2_atto'))])
def test_compiles_to_one_graph_whatever_the_mask(model, backend, accelerated):
    torch._dynamo.reset()  # the other networks' compilations share the code of forward
    spark = randomise(build_spark(model, input_size=64, decoder_width=32))
    spark = spark.to(memory_format=torch.channels_last).train()
    spark.accelerated = accelerated
    eager = copy.deepcopy(spark)
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(spark, fullgraph=True, backend=counter)
    for _ in range(3):
        images, visible = torch.randn(2, 3, 64, 64), spark.draw_visible(2)
        one, other = compiled(images, visible), eager(images, visible)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        one.backward()
        other.backward()
    for a, b in zip(spark.parameters(), eager.parameters()):
        if b.grad is not None:
            atol = 2e-3 * b.grad.abs().max().item() + 1e-6
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=atol)
    assert counter.frame_count == 1


@pytest.mark.parametrize('accelerated', [True, False])
def test_gradients_are_laid_out_as_their_weights(accelerated):
    """Otherwise DDP copies them, and warns."""
    spark, seen = build_spark('test_resnet', input_size=64, decoder_width=32), []
    spark.accelerated = accelerated
    for part in (spark.encoder, spark.densify_projs, spark.dense_decoder):
        part.to(memory_format=torch.channels_last)

    def look(grad, name, parameter):
        sides = zip(grad.stride(), parameter.stride(), parameter.shape)
        seen.append((name, [(a, b) for a, b, side in sides if side > 1]))

    for name, parameter in spark.named_parameters():
        parameter.register_hook(lambda grad, name=name, parameter=parameter: look(grad, name, parameter))
    spark(torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)).backward()
    assert len(seen) > 50 and not [name for name, strides in seen if any(a != b for a, b in strides)]
