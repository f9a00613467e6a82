"""Images travel to the device as bytes, and are normalised there."""
import torch

from common.images.augmented import Augmented, CentreCrop, RandomCrop, as_input, collate
from common.images.loading import loader
from common.training.device import Normalise
from tests.common.images.drawn import noise

NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CPU = torch.device('cpu')


def test_eight_bits_travel_as_bytes_and_are_normalised_to_the_same_bits():
    images = [noise(40, 50, seed) for seed in range(6)]
    as_bytes, as_floats = (Augmented(images, RandomCrop((24, 32)), norm, seed=3) for norm in (None, NORM))
    batches = [[(1, 0), (1, 4), (2, 4)], [(1, 5)]]
    loaded = [loader(each, batches, workers, CPU) for each, workers in ((as_bytes, 1), (as_floats, 0))]
    for (x, _, _), (y, _, _) in zip(*loaded):
        assert x.dtype == torch.uint8 and y.dtype == torch.float32
        on_device = Normalise(NORM, CPU)(x)
        assert torch.equal(on_device, y) and on_device.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(on_device, torch.stack([as_input(image, NORM) for image in x]))


def test_floats_and_bytes_in_one_batch():
    deep = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    items = [noise(20, 20), deep, deep.double(), (deep * 255).to(torch.uint8)]
    as_loaded, as_floats = (Augmented(items, CentreCrop((8, 8)), norm) for norm in (None, NORM))
    assert [as_loaded[0, i][0].dtype for i in range(4)] == [torch.uint8, torch.float32, torch.float32, torch.uint8]
    x, y = (collate([each[0, i] for i in range(4)])[0] for each in (as_loaded, as_floats))
    assert x.dtype == torch.float32 and torch.equal(Normalise(NORM, CPU)(x), y)
    before = x.clone()
    Normalise(NORM, CPU)(x)
    assert torch.equal(x, before)  # what was loaded is left alone


def test_values_that_are_none_are_still_found():
    holes = torch.full((3, 9, 9), float('nan'))
    image, _, failed = Augmented([holes, torch.ones(3, 9, 9)], RandomCrop((8, 8)), None)[0, 0]
    assert failed == [(0, 'it holds NaN or infinite values')] and image.isfinite().all()
