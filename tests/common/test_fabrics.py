"""Fabrics are functions of their seed, and only the pattern tells their class."""
import numpy as np
import pytest
import torch
from PIL import Image

from common.fabrics import PATTERNS, draw_fabric, write_fabrics


def images(seed, count=240, side=24):
    """Fabrics as (count, side, side, 3) float, and their classes (count,)."""
    names = list(PATTERNS)
    drawn = [draw_fabric(names[i % len(names)], np.random.default_rng([seed, i]), side) for i in range(count)]
    return np.stack([np.asarray(image, float) for image in drawn]), np.arange(count) % len(names)


def test_a_fabric_is_a_function_of_seed_split_and_number(tmp_path):
    for name, seed in (('one', 0), ('again', 0), ('other', 1)):
        write_fabrics(tmp_path / name, train=13, val=12, side=16, seed=seed)
    paths = sorted((tmp_path / 'one').rglob('*.png'))
    assert len(paths) == 25
    assert {path.parent.name for path in paths} == set(PATTERNS)
    for path in paths:
        relative = path.relative_to(tmp_path / 'one')
        assert path.read_bytes() == (tmp_path / 'again' / relative).read_bytes()
        assert path.read_bytes() != (tmp_path / 'other' / relative).read_bytes()
    first = [Image.open(tmp_path / 'one' / split / 'stripes' / '000000.png') for split in ('train', 'val')]
    assert first[0].size == (16, 16) and first[0].tobytes() != first[1].tobytes()


def test_mean_and_deviation_of_the_colours_do_not_tell_the_class():
    def features(pictures):
        return np.concatenate([pictures.mean((1, 2)), pictures.std((1, 2))], 1)
    (train, train_classes), (val, val_classes) = images(0), images(1)
    distances = torch.cdist(torch.tensor(features(val)), torch.tensor(features(train)))
    right = (train_classes[distances.argmin(1)] == val_classes).mean()
    assert right < 0.25  # chance is 0.083


@pytest.mark.parametrize('name', PATTERNS)
def test_a_pattern_repeats_itself_and_has_both_colours(name):
    v, u = np.mgrid[0:1:64j, 0:1:64j]
    pattern = PATTERNS[name](u, v)
    assert pattern.dtype == bool and 0.1 < pattern.mean() < 0.9
    assert (PATTERNS[name](u + 3, v) == pattern).mean() > 0.98
