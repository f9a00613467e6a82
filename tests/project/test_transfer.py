"""The ablations take out what they say, and make transfer goes through its stages and does none of them twice."""
import sys

import pytest
import torch

from benchmarks import ablations, transfer
from common.demo_world import write_world
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


def test_every_job_needs_what_comes_before_it():
    names = [job.name for job in transfer.jobs()]
    assert len(names) == len(set(names)) == 104
    assert all(need in names[:names.index(job.name)] for job in transfer.jobs() for need in job.needs)


@pytest.mark.slow  # a minute or two: 104 programs
def test_the_stages_run_once_and_make_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transfer, 'PRETRAINING', (*transfer.PRETRAINING[:-1], '--ep=1'))
    monkeypatch.setattr(transfer, 'FRACTIONS', {'1': ('0.01', 2), '4': ('0.04', 2), '10': ('0.1', 2), '100': ('1', 2)})
    for where, train, val in (('world', 120, 48), ('tune', 0, 24)):
        write_world(tmp_path / where, train, val, 64, 0)
        (tmp_path / where / 'complete').touch()
    page = tmp_path / 'docs' / 'transfer.md'
    page.parent.mkdir()
    page.write_text('before\n<!-- results -->\nold\n<!-- end -->\nafter\n')
    monkeypatch.setattr(transfer, 'PAGE', page)
    monkeypatch.setattr(sys, 'argv', ['transfer', str(tmp_path)])
    transfer.main()
    assert '104 of 104' in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith('before') and text.endswith('after\n') and 'old' not in text and page.with_suffix('.svg').exists()
    assert '| pretrained |' in text and '| mask ratio 0.75 |' in text
    transfer.main()
    assert 'of 104' not in capsys.readouterr().out and page.read_text() == text
