"""Seeds as functions of their purpose, so that no random state is ever saved or carried on."""
import numpy as np


def seed_for(purpose, *numbers):
    """A 64-bit seed that is a function of what it is for, such as ('order', seed, epoch).

    A resumed run, or one with another number of loading processes or ranks, therefore draws the same random numbers.
    """
    words = [*purpose.encode('utf-8', 'surrogateescape'), *numbers]  # a file's name may hold anything
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))
