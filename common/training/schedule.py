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
