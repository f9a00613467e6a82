"""Which groups of images fit a batch, for A2MIM's loss on spectra. Nothing here needs torch.

That loss averages the spectra of a group of images, so the group is a part of the objective. It must consist
of the same images on any number of processes, and in any number of parts into which they cut a batch. The
images of a step stand in the order of `Steps` (common/images/augmented.py): its parts one after the other,
and in each part the images of one rank after those of another. A group is a run of neighbours in that order.
So it must lie inside of one part of the step, and it must consist of whole ranks' images, or a rank's images
of whole groups.
"""
import math

PUBLISHED_GROUP = 256  # the images of a GPU, in the recipes of CNNs


def fits(group, batch, ranks=1, parts=1):
    """Whether groups of so many images can be formed.

    batch: images of a step, on all ranks together. parts: those that each rank cuts its share of them into.
    """
    if batch % (ranks * parts):
        return False
    together = batch // parts  # images that are in the network at a time, on all ranks
    own = together // ranks  # of one rank
    return together % group == 0 and (own % group == 0 or group % own == 0)


def largest_group(batch, ranks=1, parts=1, most=PUBLISHED_GROUP):
    """The largest group, of `most` images at most, that fits; 1 for a batch that ranks and parts do not divide."""
    groups = range(min(most, batch), 1, -1)
    return next((group for group in groups if fits(group, batch, ranks, parts)), 1)


def reason_against(group, batch, ranks=1, parts=1, goes_on=False):
    """Why groups of so many images cannot be formed, in a sentence with what would work; None if they can.

    The batch is divisible by ranks * parts. goes_on: whether the run goes on, so that only ranks and parts
    may be others.
    """
    if fits(group, batch, ranks, parts):
        return None
    own = batch // parts // ranks
    where = f'{ranks} ranks with {own} images each at a time' if ranks > 1 else f'{own} images at a time'
    return (f'--fourier_group={group} does not fit {where}: the images of a rank at a time must be a multiple of the '
            f'group, or the group a multiple of them. Give {remedies(group, batch, ranks, parts, goes_on)}')


def remedies(group, batch, ranks, parts, goes_on):
    """What would work: other parts or another number of ranks; in a new run other groups and batches."""
    others = [other for other in range(1, batch // ranks + 1) if fits(group, batch, ranks, other)]
    accums = [f'--accum={other}' for other in nearest(others, parts)]
    if goes_on:
        processes = [other for other in range(1, batch + 1) if fits(group, batch, other, parts)]
        started = ' or '.join(map(str, nearest(processes, ranks)))
        others = [*accums, f'start {started} processes'] if started else accums
        return '; or '.join([*others, '--fresh to start over'])
    groups = [other for other in range(1, batch + 1) if fits(other, batch, ranks, parts)]
    unit = math.lcm(group, ranks) * parts
    multiples = range(unit, batch + 2 * ranks * unit, unit)
    batches = [other for other in multiples if fits(group, other, ranks, parts)]
    return ' or '.join([*(f'--fourier_group={other}' for other in nearest(groups, group)),
                        *(f'--bs={other}' for other in nearest(batches, batch)), *accums])


def nearest(numbers, number):
    """Those of ascending numbers that are next to a number, below and above."""
    below = [other for other in numbers if other < number][-1:]
    return below + [other for other in numbers if other > number][:1]
