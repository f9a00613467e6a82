"""How long a device has nothing to do because its images are not there yet."""
import time
from collections import deque
from contextlib import contextmanager

import torch


class Waits:
    """Adds up waits for a batch, but for the first: loading processes start then.

    A GPU works on while the host waits. So it is asked, by its own clock, how long it was idle between what
    it was given before a batch and after it.
    """

    def __init__(self, device):
        self.device, self.pairs, self.started = device, deque(), False

    def now(self):
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def one(self):
        """Around the wait for a batch."""
        began = self.now()
        yield
        if self.started:
            self.pairs.append((began, self.now()))
        self.started = True

    def taken(self):
        """Seconds waited since the last call. The host does not wait for a GPU: what that has not told yet
        comes next time.
        """
        seconds = 0.0
        while self.pairs and (self.device.type != 'cuda' or self.pairs[0][1].query()):
            began, ended = self.pairs.popleft()
            seconds += began.elapsed_time(ended) / 1000 if self.device.type == 'cuda' else ended - began
        return seconds
