"""The trial before training: which images are measured, on what a CPU is judged, and what is said."""
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from common.distributed import Ranks
from downstream_ade20k import trial
from downstream_ade20k.classes import Classes
from downstream_ade20k.config import Options
from downstream_ade20k.inference import Inference
from downstream_ade20k.main import train_segmenter
from downstream_ade20k.trial import bytes_of_scores, can_measure, largest_images, require_memory_to_measure

CPU = Ranks(0, 1, torch.device('cpu'))


class Images:
    """As much of SegmentationImages as the trial looks at."""
    classes = Classes.of_ids(range(150), ())

    def __init__(self, *shapes):
        self.shapes = np.array(shapes)

    def name(self, index):
        return f'{index}.jpg'


class Limited(nn.Module):
    """A network that has memory for images of some pixels alone."""

    def __init__(self, pixels):
        super().__init__()
        self.pixels = pixels
        self.norm = nn.BatchNorm2d(3)

    def scores(self, images):
        if images[0, 0].numel() > self.pixels:
            raise torch.OutOfMemoryError
        return self.norm(images)


def options(**given):
    return Options(name='run', **{'short_side': 100, 'long_side': 400, **given})


def test_the_largest_images_are_those_of_the_largest_view_and_of_the_largest_file():
    val = Images((50, 60), (2000, 2000), (50, 200), (100, 100), (50, 200))
    square, long = ((100, 100), (2000, 2000), '1.jpg'), ((100, 400), (50, 200), '2.jpg')
    assert largest_images(val, options()) == [long, square]
    assert largest_images(val, options(test_scales=(0.5, 2.0)))[1] == ((200, 200), (2000, 2000), '1.jpg')
    kept = options(short_side=None, long_side=None, keep_size=True)
    assert largest_images(val, kept) == [((2000, 2000), (2000, 2000), '1.jpg')]


def test_scores_at_the_size_of_the_file_are_there_where_they_are_a_mean():
    assert bytes_of_scores(7, (10, 20), (100, 30), Inference()) == 4 * 7 * 200
    for inference in (Inference(flip=True), Inference(scales=(0.5, 1.0))):
        assert bytes_of_scores(7, (10, 20), (100, 30), inference) == 4 * 7 * (200 + 3000)


@pytest.mark.parametrize(('given', 'remedy'), [
    ({}, '--slide, with which it is seen in windows; or a smaller --short_side'),
    ({'slide': True, 'test_flip': True}, 'a smaller --short_side; or one scale alone as --test_scales, and no --test_flip'),
    ({'slide': True, 'keep_size': True, 'short_side': None, 'long_side': None}, '--short_side in place of --keep_size')])
def test_a_cpu_is_judged_by_the_scores(monkeypatch, given, remedy):
    val, given = Images((1000, 1000)), options(**given)
    (seen, size, _), = largest_images(val, given)
    needed = bytes_of_scores(150, seen, size, Inference.of(given))
    monkeypatch.setattr(trial, 'free_memory', lambda: needed)
    require_memory_to_measure(None, val, given, CPU, nullcontext)
    monkeypatch.setattr(trial, 'free_memory', lambda: needed - 1)
    with pytest.raises(ValueError, match=rf'image 0.jpg, 1000 x 1000 px, .* with 150 classes cannot .*: give {remedy}$'):
        require_memory_to_measure(None, val, given, CPU, nullcontext)


def test_a_trial_leaves_the_network_as_it_was():
    network = Limited(100)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert can_measure(network, 3, (10, 10), (20, 20), Inference(), nullcontext)
    assert not can_measure(network, 3, (10, 11), (20, 20), Inference(), nullcontext)
    assert can_measure(network, 3, (30, 30), (20, 20), Inference((10, 10), (10, 10)), nullcontext)  # in windows
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_step_that_does_not_fit_is_not_put_down_to_an_image():
    def too_many_images():
        raise torch.OutOfMemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, 'memory_of_a_step', lambda network, example_batch, *rest: example_batch())
        assert can_measure(Limited(1), 3, (10, 10), (20, 20), Inference(), nullcontext, too_many_images)
        assert not can_measure(Limited(1), 3, (10, 10), (20, 20), Inference(), nullcontext, lambda: torch.zeros(1))


def test_a_run_is_refused_before_its_first_step(small, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, 'free_memory', lambda: 1000)
    with pytest.raises(ValueError, match='cannot be measured in the memory that there is: give --slide'):
        train_segmenter(small())
    assert not list((tmp_path / 'run').glob('*.pth'))
