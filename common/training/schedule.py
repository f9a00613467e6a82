"""Learning rate and weight decay as functions of the step (official SparK's schedule), and seeds of their purpose."""
import math

import numpy as np


def learning_rate(step, steps, warmup_steps, peak):
    """Linear from 0.005 to 1 times the peak, then cosine down to 0.001 times the peak at the last step."""
    if step < warmup_steps:
        return peak * (0.005 + 0.995 * step / warmup_steps)
    done = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return peak * (0.001 + 0.999 * (0.5 + 0.5 * math.cos(math.pi * done)))


def weight_decay(step, steps, start, end):
    """Cosine from start to end over the whole run."""
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * step / max(steps - 1, 1)))


def seed_for(purpose, *numbers):
    """A 64-bit seed that is a function of what it is for, such as ('order', seed, epoch).

    No random state is ever carried on: a resumed run, or one with other workers or ranks, draws the same.
    """
    words = [*purpose.encode(), *numbers]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
