"""Learning rate and weight decay as functions of the step: the curves that all programs share.

Which of them a run takes is in the `curve` of its Run: in pretrain/pretraining.py, common/training/finetuning.py,
downstream_imagenet/run.py and downstream_ade20k/run.py.

A curve of the learning rate is a `Cosine`, a `CosineToFloor`, a `CosineToRate`, a `HalfCosine`, a `Drop` or a
`Polynomial`. Its method `parts(step, steps, warmup_steps)` gives two numbers, (share, floor): the learning rate is
floor + share * peak. `steps` is the number of steps of the whole curve, and `warmup_steps` that of its rising part.
A group of parameters whose peak is a share of the others' has the same floor (`set_schedule` in
common/training/optim.py). `again` is the curve of a finished run that is given more epochs: it starts where the first
one ended.
"""
import math
from dataclasses import dataclass


def learning_rate(step, steps, warmup_steps, peak, start, end):
    """Linear from `start` times the peak to the peak, then a cosine down to `end` times the peak at the last step.

    steps: of the whole run. warmup_steps: of the linear part. start, end: shares of the peak, such as 0.005 and 0.001.
    """
    if step < warmup_steps:
        return peak * (start + (1 - start) * step / warmup_steps)
    done = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return peak * (end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * done)))


def weight_decay(step, steps, start, end):
    """A cosine from `start` to `end` over the whole run."""
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * step / max(steps - 1, 1)))


@dataclass(frozen=True)
class Cosine:
    """The curve of `learning_rate`, whose start and end are shares of the peak."""
    start: float
    end: float

    def parts(self, step, steps, warmup_steps):
        return learning_rate(step, steps, warmup_steps, 1.0, self.start, self.end), 0.0

    @property
    def again(self):
        return Cosine(self.end, self.end)


@dataclass(frozen=True)
class CosineToFloor:
    """A cosine over all steps from the peak to a floor, multiplied by step / warmup_steps in the warm-up.

    With r = step / warmup_steps, at most 1, and a cosine c that is 1 at the end of the warm-up and 0 at the last step:

        learning rate = r * (floor + c * (peak - floor))

    The cosine is symmetric about the end of the warm-up. So the learning rate lies a little below a straight
    line in the warm-up, and it is 0 at the first step. floor: a learning rate, which does not depend on the
    peak. rises_from_floor: whether the warm-up starts at the floor instead, as it does where a finished run goes on:
    floor + r * c * (peak - floor).
    """
    floor: float
    rises_from_floor: bool = False

    def parts(self, step, steps, warmup_steps):
        done = (step - warmup_steps) / max(steps - warmup_steps, 1)
        falling = 0.5 + 0.5 * math.cos(math.pi * max(done, -1.0))  # a warm-up of more than half of the steps is 0 at first
        rising = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
        least = 1.0 if self.rises_from_floor else rising
        return rising * falling, self.floor * (least - rising * falling)

    @property
    def again(self):
        return CosineToFloor(self.floor, rises_from_floor=True)


@dataclass(frozen=True)
class CosineToRate:
    """Linear from a share of the peak to the peak, then a cosine to a learning rate.

    start: the share. end: the learning rate, which does not depend on the peak. rises_from_end: whether the warm-up
    starts at `end` instead, as it does where a finished run goes on.
    steps_per_epoch: if given, the cosine falls between epochs only. As in timm's CosineLRScheduler, epoch e of E,
    counted from 0, then has its value at e / E, so that it falls in the warm-up too, and the last epoch has a little
    more than `end`. If not given, the cosine begins after the warm-up, and the last step has `end`.
    """
    start: float
    end: float
    steps_per_epoch: int | None = None
    rises_from_end: bool = False

    def parts(self, step, steps, warmup_steps):
        if step < warmup_steps:
            rising = step / warmup_steps
            return (rising, self.end * (1 - rising)) if self.rises_from_end else \
                (self.start + (1 - self.start) * rising, 0.0)
        if self.steps_per_epoch is None:
            done = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
        else:
            done = step // self.steps_per_epoch / -(-steps // self.steps_per_epoch)
        share = 0.5 + 0.5 * math.cos(math.pi * done)
        return share, self.end * (1 - share)

    @property
    def again(self):
        return CosineToRate(self.start, self.end, self.steps_per_epoch, rises_from_end=True)


@dataclass(frozen=True)
class HalfCosine:
    """MAE's curve: linear from 0 to the peak, then half a cosine, which reaches its end one step after the last.

    end: a share of the peak. As there is no floor, a group of parameters ends at its own share of that. start: a share
    of the peak too; not 0 where a finished run goes on.
    """
    end: float = 0.0
    start: float = 0.0

    def parts(self, step, steps, warmup_steps):
        if step < warmup_steps:
            return self.start + (1 - self.start) * step / warmup_steps, 0.0
        done = (step - warmup_steps) / max(steps - warmup_steps, 1)
        return self.end + (1 - self.end) * (0.5 + 0.5 * math.cos(math.pi * done)), 0.0

    @property
    def again(self):
        return HalfCosine(self.end, start=self.end)


@dataclass(frozen=True)
class Drop:
    """Linear from `start` to the peak, then constant, but for places from which on it is a tenth of what it was.

    start: a share of the peak. at: shares of all steps, the places.
    """
    at: tuple
    start: float = 0.0

    def parts(self, step, steps, warmup_steps):
        if step < warmup_steps:
            return self.start + (1 - self.start) * step / warmup_steps, 0.0
        return 0.1 ** sum(step >= round(share * steps, 6) for share in self.at), 0.0

    @property
    def again(self):
        return Drop(self.at, start=0.1 ** len(self.at))


@dataclass(frozen=True)
class Polynomial:
    """(1 - step / steps) ** power from the peak to a learning rate, as MMSegmentation 0.x has it ("poly").

    The curve begins at the first step of the run, in the warm-up too, and would reach its end one step after the
    last. A warm-up multiplies it by a factor that rises linearly from `start` to 1. MMSegmentation 1.x begins the curve
    after the warm-up instead. power: 1 for a straight line. end: the learning rate, which does not depend on the peak.
    start: share of the curve's own value at the first step, such as 1e-6. rises_from_end: whether the warm-up starts
    at `end` instead, as it does where a finished run goes on.
    """
    power: float
    end: float = 0.0
    start: float = 0.0
    rises_from_end: bool = False

    def parts(self, step, steps, warmup_steps):
        falling = (1 - step / steps) ** self.power
        if step >= warmup_steps:
            return falling, self.end * (1 - falling)
        rising = step / warmup_steps
        if self.rises_from_end:
            return rising * falling, self.end * (1 - rising * falling)
        factor = self.start + (1 - self.start) * rising
        return factor * falling, factor * self.end * (1 - falling)

    @property
    def again(self):
        return Polynomial(self.power, self.end, self.start, rises_from_end=True)
