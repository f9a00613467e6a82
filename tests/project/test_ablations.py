"""The ablations take out what they say."""
import torch

from benchmarks import ablations
from pretrain.spark_method import SparKMethod
from pretrain.spark_options import SparKOptions


def small(method):
    torch.manual_seed(0)
    return method.build(SparKOptions(name='x', model='your_convnet', input_size=32, decoder_width=16))


def test_zeroed_runs_the_dense_network_on_zeroed_pixels():
    spark, images = small(ablations.Zeroed()).eval(), torch.randn(2, 3, 32, 32)
    visible = spark.draw_visible(2)
    is_visible = spark.is_visible(visible)[..., 0].view(2, 1, 4, 4)
    mask = is_visible.repeat_interleave(8, 2).repeat_interleave(8, 3)
    dense = spark.encoder(images * mask)
    for ours, out in zip(spark.encode(images, visible), dense):
        share = out.shape[-1] // 4
        expected = out * is_visible.repeat_interleave(share, 2).repeat_interleave(share, 3)
        torch.testing.assert_close(ours, expected)
    assert not torch.allclose(spark.encode(images, visible)[-1], small(SparKMethod()).eval().encode(images, visible)[-1])
    spark.train()(images).backward()


def test_single_level_gives_the_decoder_the_smallest_map():
    spark, images = small(ablations.SingleLevel()), torch.randn(2, 3, 32, 32)
    geometry = spark.geometry(images, spark.draw_visible(2))
    assert list(spark.densify(spark.encoder(images, geometry), geometry)) == [8]
    spark(images).backward()
    assert all(p.grad is None for p in spark.densify_projs[1:].parameters()) and spark.mask_tokens[0].grad is not None
    assert spark.state_dict().keys() == small(SparKMethod()).state_dict().keys()
