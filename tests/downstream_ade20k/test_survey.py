"""What is found in the masks of a data set, in memory that does not grow with them."""
import tracemalloc

import numpy as np
import pytest

from downstream_ade20k.survey import COUNTED, counts_of


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_pixels_are_counted_in_little_memory(kind):
    mask = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (9, COUNTED), kind, endpoint=True)
    tracemalloc.start()
    counts = counts_of(mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    expected = np.bincount(mask.ravel(), minlength=len(counts))
    assert np.array_equal(counts, expected) and counts.sum() == mask.size
    assert peak < 2 * 8 * COUNTED  # a copy of the mask with 8 bytes a pixel would take 9 * 8 * COUNTED
