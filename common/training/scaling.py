"""Loss scaling for training in fp16, with its state on the device (Micikevicius et al. 2018, arXiv 1710.03740).

The gradients of small losses are too small for fp16. So the loss is multiplied by a scale, and the gradients
are divided by it. A step whose gradients overflow is left out, and halves the scale; after many steps without
one it is doubled.
"""
import torch

INITIAL_SCALE = 2.0 ** 16
GROWTH_INTERVAL = 2000  # steps without an overflow after which the scale is doubled


class LossScaler:
    """torch.amp.GradScaler's rule, whose state the host never reads: a CUDA graph can repeat it.

    A step is called off by the trainer's own verdict, which is the same on all ranks.
    """

    def __init__(self, device):
        self.scale = torch.full((), INITIAL_SCALE, device=device)
        self.growth = torch.zeros((), dtype=torch.int32, device=device)  # steps since the scale changed

    def scaled(self, loss):
        return loss * self.scale

    def unscale(self, gradients):
        """Divide gradients by the scale, in place. The scale is a power of two: nothing is rounded."""
        torch._foreach_mul_(gradients, self.scale.reciprocal())

    def update(self, off):
        """off: 0-dim tensor, 1 if the step was left out, else 0."""
        torch._amp_update_scale_(self.scale, self.growth, off, 2.0, 0.5, GROWTH_INTERVAL)

    def state_dict(self):
        return {'scale': self.scale, 'growth': self.growth}

    def load_state_dict(self, state):
        self.scale.copy_(state['scale'])
        self.growth.copy_(state['growth'])
