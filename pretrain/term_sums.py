"""The terms of a loss, summed up over training steps on the device, so that nothing waits for them."""
import torch


class TermSums:
    """Sums of the terms of a loss over training steps.

    names: of the terms. totals: tensor (1 + terms,), the number of forward passes and the sum of each term over them.
    `add` takes the passes of a step, which become part of the totals once `end_step` says that the step was finite.
    """

    def __init__(self, names):
        self.names = names
        self.totals = torch.zeros(1 + len(names), dtype=torch.float64)
        self.pending = torch.zeros_like(self.totals)

    @torch.no_grad()
    def add(self, terms):
        """Add the terms of a forward pass, {name: 0-dim tensor, or None for 0}."""
        values = [terms[name] for name in self.names]
        one = torch.ones_like(next(value for value in values if value is not None))
        if self.totals.device != one.device:
            self.totals, self.pending = self.totals.to(one.device), self.pending.to(one.device)
        self.pending += torch.stack([one, *(torch.zeros_like(one) if value is None else value for value in values)])

    @torch.no_grad()
    def end_step(self, finite):
        """Add the step, or leave it out. finite: 0-dim tensor on the device, 0 if the step changed nothing."""
        self.totals += torch.where(finite > 0, self.pending, 0.0)
        self.pending.zero_()

    def reset(self, sums=None):
        """Start from given sums, a list, or from 0."""
        self.pending.zero_()
        self.totals.zero_()
        if sums is not None:
            self.totals += torch.tensor(sums, dtype=self.totals.dtype, device=self.totals.device)
