"""Packs of images for benchmarks.evidence, and the commands of its scale for GPUs, which read one."""
import io
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import evidence_pack
from benchmarks.evidence_pack import SPLITS, bytes_in_tar, encoded, highest_quality, psnr, resized, tar
from benchmarks.evidence_stages import SCALES, Plan
from common.demo_world import write_world
from downstream_imagenet.class_folders import find_labelled
from tests.conftest import ROOT

TRAIN, VAL = 24, 12  # images of the drawn world


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drawn')
    write_world(folder, TRAIN, VAL, 48, 0)
    return folder


def pack(data_path, out, *options):
    evidence_pack.main([f'--data_path={data_path}', f'--out={out}', *options])
    return [out / split / '000.tar' for split in SPLITS]


def test_a_pack_holds_the_images_smaller_and_with_their_classes(drawn, tmp_path, capsys):
    pack(drawn, tmp_path / 'pack', '--side=32')
    said = capsys.readouterr().out
    assert f'{TRAIN} training and {VAL} validation images' in said
    assert 'quality 100 of 100' in said  # There is room for all of it.
    for before, after in zip(find_labelled(drawn), find_labelled(tmp_path / 'pack')):
        assert after.classes == before.classes and after.labels.tolist() == before.labels.tolist()
        assert [path.replace(b'.png', b'.webp') for path in before.paths.tolist()] == after.paths.tolist()
        for index in range(len(before)):
            original = before[index][0].resize((32, 32), Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(after[index][0], float) - np.asarray(original)).mean() < 8


def test_the_same_images_give_the_same_bytes(drawn, tmp_path):
    packs = [pack(drawn, tmp_path / name, '--side=32', '--megabytes=0.06') for name in ('one', 'other')]
    assert [path.read_bytes() for path in packs[0]] == [path.read_bytes() for path in packs[1]]


def test_a_pack_of_tars_is_that_of_their_images(drawn, tmp_path):
    """A pack of a pack has the bytes of a pack of the same files unpacked."""
    once = pack(drawn, tmp_path / 'once', '--side=32')
    for path in once:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / 'unpacked' / path.parent.name, filter='data')
    packs = [pack(source, tmp_path / f'of_{source.name}', '--side=32') for source in (tmp_path / 'once', tmp_path / 'unpacked')]
    assert [path.read_bytes() for path in packs[0]] == [path.read_bytes() for path in packs[1]]


def test_both_tars_fit_and_a_higher_quality_would_not(drawn, tmp_path, capsys):
    megabytes = 0.07
    paths = pack(drawn, tmp_path / 'pack', '--side=48', f'--megabytes={megabytes}')
    assert sum(path.stat().st_size for path in paths) <= megabytes * 1e6
    quality = int(re.findall(r'WebP of quality (\d+)', capsys.readouterr().out)[0])
    assert 1 < quality < 100
    splits = find_labelled(drawn)
    assert sum(map(len, evidence_pack.packed(splits, 48, quality + 2))) > megabytes * 1e6


def test_the_quality_is_lowered_if_the_sample_promised_too_much(drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evidence_pack, 'highest_quality', lambda sample, most: 100)
    room = sum(map(len, evidence_pack.packed(find_labelled(drawn), 48, 80)))
    paths = pack(drawn, tmp_path / 'pack', '--side=48', f'--megabytes={room / 1e6}')
    assert sum(path.stat().st_size for path in paths) <= room
    tried = [int(quality) for quality in re.findall(r'with quality (\d+)', capsys.readouterr().out)]
    assert len(tried) > 1 and tried == list(range(100, tried[-1] - 1, -1))


def photo(width=60, height=40):
    """Smooth noise, which is as large as a photograph when it is compressed."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_bisection_finds_the_highest_quality_that_fits():
    sample = [photo()]
    for quality in (1, 40, 99):
        size = bytes_in_tar(encoded(sample[0], quality))
        found = highest_quality(sample, size)
        assert bytes_in_tar(encoded(sample[0], found)) <= size and found >= quality
        assert found == 100 or bytes_in_tar(encoded(sample[0], found + 1)) > size
    assert highest_quality(sample, 1e9) == 100 and highest_quality(sample, 1) == 0


def test_more_quality_means_less_error():
    assert psnr(photo(), 10) < psnr(photo(), 50) < psnr(photo(), 100)
    assert psnr(Image.new('RGB', (32, 32)), 50) == float('inf')


def test_the_size_of_a_tar_counts_headers_and_whole_blocks():
    contents = [b'x' * size for size in (1, 512, 513)]
    assert [bytes_in_tar(content) for content in contents] == [1024, 1024, 1536]
    many = [(f'{i:05}', content) for i in range(200) for content in contents[i % 3:i % 3 + 1]]
    assert len(tar(many)) == pytest.approx(sum(bytes_in_tar(content) for _, content in many), rel=0.05)


class OneImage:
    """A data set of one image. image: as a data set gives it."""

    def __init__(self, image):
        self.image = image

    def __getitem__(self, index):
        return self.image, 0


@pytest.mark.parametrize('size, side, expected', [((60, 40), 20, (30, 20)), ((40, 60), 20, (20, 30)),
                                                  ((60, 40), 50, (60, 40)), ((61, 40), 20, (30, 20))])
def test_the_short_side_gets_shorter_and_never_longer(size, side, expected):
    assert resized(OneImage(photo(*size)), 0, side).size == expected


def test_images_of_more_than_8_bits_are_packed_with_8():
    image = resized(OneImage(torch.full((3, 30, 40), 0.5)), 0, 20)
    assert image.mode == 'RGB' and image.size == (27, 20) and image.getpixel((5, 5)) == (127, 127, 127)


def refused(message, *words):
    with pytest.raises(SystemExit, match=message):
        evidence_pack.main(list(words))


def test_what_a_user_gets_wrong_is_said(drawn, tmp_path, capsys):
    out = f'--out={tmp_path}/pack'
    refused('^error: there is no folder .*train with the training images', f'--data_path={tmp_path}/nothing', out)
    refused('36 images do not fit into 0.001 MB even with quality 1', f'--data_path={drawn}', out, '--megabytes=0.001')
    refused(f'{drawn} exists and is no empty folder', f'--data_path={drawn}', f'--out={drawn}')
    refused('lies in .*, whose images are read', f'--data_path={drawn}', f'--out={drawn}/train/pack')
    for option, message in (('--side=0', '--side must be 1 or more'), ('--megabytes=nan', '--megabytes must be more than 0')):
        with pytest.raises(SystemExit):
            evidence_pack.main([f'--data_path={drawn}', out, option])
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'pack').exists()


def test_an_image_that_cannot_be_packed_is_named(tmp_path):
    write_world(tmp_path / 'world', 24, 12, 32, 0)
    first = sorted((tmp_path / 'world' / 'val').rglob('*.png'))[0]
    content = first.read_bytes()
    words = f'--data_path={tmp_path}/world', f'--out={tmp_path}/pack'
    first.write_bytes(content[:len(content) // 2])
    refused(f'^error: {first} cannot be read .*: replace it or take it away', *words)
    file = io.BytesIO()
    photo().save(file, 'JPEG')
    first.write_bytes(content)
    first.with_suffix('.jpg').write_bytes(file.getvalue())
    refused(f'{first.with_suffix(".jpg")} and {first} would have the same name', *words)
    assert not (tmp_path / 'pack').exists()


def small(words, folder):
    """Run a command of a stage with options that make it small."""
    options = '--input_size=64', '--batch_size=8', '--epochs=1', '--workers=0'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run([sys.executable, '-m', *words, *options], cwd=folder, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow  # A minute: three programs with a ResNet-50
def test_the_commands_of_the_scale_for_gpus_run_on_a_pack(drawn, tmp_path):
    pack(drawn, tmp_path / 'photos', '--side=64')
    stages = {stage.name: stage for stage in Plan(SCALES['cuda'], 1, TRAIN).stages(('a', 'b'))}
    for name in ('sparse_0', 'zeroed_0'):
        said = small([*stages[name].arguments, '--decoder_width=32'], tmp_path)
        assert f'Finished. The pretrained resnet50 is in output_{name}/resnet50_1kpretrained.pth' in said
    said = small([*stages['final_100_sparse_0'].arguments, '--lr=1e-3'], tmp_path)
    assert 'output_sparse_0/resnet50_1kpretrained.pth: matched' in said
    assert f'On {VAL} validation images' in said
