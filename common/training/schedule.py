"""Learning rate and weight decay as functions of the step: the curves that all programs share.

Which of them a run takes is in `Run.schedule` of pretrain/pretraining.py, and of the downstream folders' training.py.
"""
import math


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


def cosine_by_epoch(step, steps_per_epoch, epochs, warmup_steps, peak, start, end):
    """Linear from `start` times the peak to the peak at each step, then a cosine that falls between epochs only.

    In epoch e, counted from 0, it has the value at e / epochs of a cosine from the peak to the learning rate `end`,
    as timm's CosineLRScheduler has it. So the cosine falls from the first epoch on, behind the warm-up too, and the
    last epoch has a little more than `end`. start: a share of the peak. end: a learning rate.
    """
    if step < warmup_steps:
        return peak * (start + (1 - start) * step / warmup_steps)
    epoch = step // steps_per_epoch
    return end + (peak - end) * (0.5 + 0.5 * math.cos(math.pi * epoch / epochs))


def tenths(step, drops, warmup_steps, peak, start):
    """Linear from `start` times the peak to the peak, then a tenth of what it was from each of the steps `drops` on.

    start: a share of the peak.
    """
    if step < warmup_steps:
        return peak * (start + (1 - start) * step / warmup_steps)
    return peak * 0.1 ** sum(step >= drop for drop in drops)
