"""Groups of images for A2MIM's loss on spectra: the same images on any ranks and in any parts that are allowed."""
import pytest

from common.images.augmented import Steps
from pretrain.group_sizes import fits, largest_group, reason_against, remedies


def groups_of(group, batch, ranks, parts):
    """The groups of a step as sets of images, made from what each rank takes at a time; None if they cannot be made."""
    own = batch // parts // ranks
    if own % group and (group % own or ranks % (group // own)):
        return None
    taken = [list(Steps(batch, batch, 1, seed=0, rank=rank, ranks=ranks, accum=parts)) for rank in range(ranks)]
    found = set()
    for part in range(parts):
        images = [index for of_rank in taken for _, index in of_rank[part]]
        found |= {frozenset(images[i:i + group]) for i in range(0, len(images), group)}
    return found


@pytest.mark.parametrize('batch', [1, 8, 24, 36, 40])
def test_the_same_images_are_averaged_however_a_batch_is_divided(batch):
    for group in (size for size in range(1, batch + 1) if batch % size == 0):
        expected = groups_of(group, batch, 1, 1)
        assert len(expected) == batch // group
        allowed = 0
        for ranks in (size for size in range(1, batch + 1) if batch % size == 0):
            for parts in (size for size in range(1, batch // ranks + 1) if batch // ranks % size == 0):
                found = groups_of(group, batch, ranks, parts)
                assert fits(group, batch, ranks, parts) == (found is not None), (group, ranks, parts)
                assert found in (None, expected)
                allowed += found is not None
        assert allowed >= 1 + (batch // group > 1)  # at least whole batches, and one group at a time


def test_what_does_not_fit():
    assert not fits(256, 300) and not fits(256, 128) and not fits(48, 96, ranks=3) and fits(48, 96, ranks=3, parts=2)
    assert not fits(8, 24, ranks=5) and not fits(8, 24, parts=2) and fits(8, 24, parts=3)
    assert fits(256, 2048, ranks=8, parts=8) and not fits(256, 2048, ranks=8, parts=16)


@pytest.mark.parametrize(('batch', 'ranks', 'parts', 'expected'), [
    (2048, 8, 1, 256), (2048, 1, 8, 256), (2048, 1, 16, 128), (2048, 32, 1, 256), (300, 1, 1, 150), (32, 1, 1, 32),
    (9, 3, 1, 9), (2052, 6, 1, 171), (257, 1, 1, 1), (1, 1, 1, 1), (9, 2, 1, 1)])
def test_the_group_that_is_chosen_is_the_largest_that_fits(batch, ranks, parts, expected):
    assert largest_group(batch, ranks, parts) == expected
    assert expected == 1 or fits(expected, batch, ranks, parts)


@pytest.mark.parametrize(('arguments', 'expected'), [
    ((256, 300), '--fourier_group=150 or --fourier_group=300 or --bs=256 or --bs=512'),
    ((256, 2048, 1, 16), '--fourier_group=128 or --bs=4096 or --accum=8'),
    ((48, 96, 3), '--fourier_group=32 or --fourier_group=96 or --bs=48 or --bs=144 or --accum=2'),
    ((48, 96, 3, 1, True), '--accum=2; or start 2 or 4 processes; or --fresh to start over'),
    ((256, 2048, 2, 16, True), '--accum=8; or --fresh to start over')])
def test_a_refusal_names_what_works(arguments, expected):
    text = reason_against(*arguments)
    assert text.startswith(f'--fourier_group={arguments[0]} does not fit') and text.endswith(f'. Give {expected}')


@pytest.mark.parametrize(('group', 'batch', 'ranks', 'parts'), [
    (256, 300, 1, 1), (64, 96, 2, 1), (48, 96, 3, 1), (16, 48, 2, 4), (7, 60, 5, 3), (256, 2048, 16, 16)])
def test_each_remedy_of_a_new_run_works(group, batch, ranks, parts):
    for flag in remedies(group, batch, ranks, parts, goes_on=False).split(' or '):
        name, _, number = flag.partition('=')
        changed = {'--fourier_group': (int(number), batch, ranks, parts), '--bs': (group, int(number), ranks, parts),
                   '--accum': (group, batch, ranks, int(number))}[name]
        assert fits(*changed), flag
