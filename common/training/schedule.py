"""Learning rate and weight decay as functions of the step: the curves that all programs share.

Which of them a run takes is in `Run.schedule` of pretrain/pretraining.py, and of the downstream folders'
training.py.

A curve of the learning rate is a `Cosine`, a `CosineToFloor` or a `Drop`. Its `parts(step, steps,
warmup_steps)` gives two numbers, (share, floor): the learning rate is floor + share * peak. `steps` is the
number of steps of the whole curve, and `warmup_steps` that of its rising part. A group of parameters whose
peak is a share of the others' has the same floor (`set_schedule` in common/training/optim.py). `again` is the
curve of a finished run that is given more epochs: it starts where the first one ended.
"""
import math
from dataclasses import dataclass


def learning_rate(step, steps, warmup_steps, peak, start, end):
    """Linear from `start` times the peak to the peak, then a cosine down to `end` times the peak at the last
    step.

    steps: of the whole run. warmup_steps: of the linear part. start, end: shares of the peak, such as 0.005
    and 0.001.
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

    The cosine is symmetric about the end of the warm-up. So the learning rate lies a little below a straight
    line in the warm-up, and it is 0 at the first step. floor: a learning rate, which does not depend on the
    peak. rises_from_floor: whether the warm-up starts at the floor instead, as it does where a finished run
    goes on.
    """
    floor: float
    rises_from_floor: bool = False

    def parts(self, step, steps, warmup_steps):
        falling = 0.5 + 0.5 * math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1))
        rising = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
        least = 1.0 if self.rises_from_floor else rising
        return rising * falling, self.floor * (least - rising * falling)

    @property
    def again(self):
        return CosineToFloor(self.floor, rises_from_floor=True)


@dataclass(frozen=True)
class Drop:
    """Linear from `start` to the peak, then constant, and a tenth of the peak for the last part of the steps.

    start: a share of the peak. at: the share of all steps after which the learning rate is a tenth.
    """
    at: float
    start: float = 0.0

    def parts(self, step, steps, warmup_steps):
        if step < warmup_steps:
            return self.start + (1 - self.start) * step / warmup_steps, 0.0
        return (1.0 if step < self.at * steps else 0.1), 0.0

    @property
    def again(self):
        return Drop(self.at, start=0.1)
