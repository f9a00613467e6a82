"""The order in which iterations take images: passes without gaps, the same after a resume and on any ranks."""
from collections import Counter

from downstream_ade20k.sampling import Passes


def taken(**options):
    return [pair for batch in Passes(10, 4, 10, seed=3, **options) for pair in batch]


def test_every_image_comes_once_in_a_pass_and_a_batch_may_hold_parts_of_two():
    pairs = taken()
    assert len(pairs) == 40
    assert Counter(number for number, _ in pairs) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert Counter(index for _, index in pairs) == dict.fromkeys(range(10), 4)
    assert {number for number, _ in pairs[8:12]} == {0, 1}  # the third batch
    assert [index for number, index in pairs if number == 0] != [index for number, index in pairs if number == 1]


def test_a_batch_may_hold_more_than_one_pass():
    (batch,) = Passes(3, 8, 1, seed=0)
    assert [number for number, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(index for _, index in batch[:3]) == [0, 1, 2]


def test_a_resume_takes_what_would_have_come():
    assert taken(start=7) == taken()[28:]


def test_steps_can_be_left_out():
    pairs = taken()
    assert taken(left_out=((2, 4), (9, 10))) == pairs[:8] + pairs[16:36]


def test_the_ranks_together_take_the_same_batches_in_the_same_parts():
    alone = list(Passes(10, 8, 5, seed=3, accum=2))
    ranks = [list(Passes(10, 8, 5, seed=3, rank=rank, ranks=2, accum=2)) for rank in range(2)]
    assert [one + other for one, other in zip(*ranks)] == alone


def test_the_images_of_a_step_are_told():
    steps = Passes(10, 4, 10, seed=3)
    assert steps.batch_of(2) == list(steps)[2]
