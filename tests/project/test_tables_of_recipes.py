"""The tables of docs/your_images.md on what --recipe chooses are what it chooses."""
import re

import pytest
import torch

from common.distributed import Ranks
from pretrain.recipe import Recipe
from pretrain.spark_method import SparKOptions
from tests.conftest import ROOT


def rows():
    """(images, what the table says of GPUs, and of a CPU) of each row."""
    page = (ROOT / 'docs/your_images.md').read_text(encoding='utf-8')
    table = re.search(r'<!-- recipe -->\n(.*?)<!-- end -->', page, re.DOTALL)[1]
    for line in table.splitlines()[2:]:
        images, gpus, cpu = (cell.strip() for cell in line.strip('|').split('|'))
        yield int(images.split()[0].replace(',', '')), gpus, cpu


@pytest.mark.parametrize('images, gpus, cpu', list(rows()))
def test_what_is_chosen_for_so_many_images(images, gpus, cpu):
    for device, told in (('cuda', gpus), ('cpu', cpu)):
        numbers = re.match(r'(\d+), (\d+), ([\d.e-]+)', told)
        if numbers is None:
            assert told == 'not for a CPU'
            continue
        options, said = Recipe().settled(SparKOptions(name='a'), images, Ranks(0, 1, torch.device(device)))
        chosen = options.batch_size, options.epochs, options.peak_lr
        assert chosen == (int(numbers[1]), int(numbers[2]), pytest.approx(float(numbers[3])))
        assert ("(the paper's)" in told) == said.startswith('paper')


def test_there_are_six_sizes():
    assert [images for images, _, _ in rows()] == [150, 2_000, 10_000, 100_000, 1_281_167, 100_000_000]
