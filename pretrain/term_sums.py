"""The terms of a loss, summed up over training steps on the device, so that nothing waits for them."""
import torch


class TermSums:
    """Sums of the terms of a loss over training steps.

    names: of the terms. sums: tensor (1 + terms,), of the number of forward passes and of each term over them.
    `count` adds the passes of a step, which become part of the sums where `end_step` is told that the step was good.
    """

    def __init__(self, names):
        self.names = names
        self.sums = torch.zeros(1 + len(names), dtype=torch.float64)
        self.step = torch.zeros_like(self.sums)

    @torch.no_grad()
    def count(self, terms):
        """Add the terms of a forward pass, {name: 0-dim tensor, or None for 0}."""
        values = [terms[name] for name in self.names]
        one = torch.ones_like(next(value for value in values if value is not None))
        if self.sums.device != one.device:
            self.sums, self.step = self.sums.to(one.device), self.step.to(one.device)
        self.step += torch.stack([one, *(torch.zeros_like(one) if value is None else value for value in values)])

    @torch.no_grad()
    def end_step(self, finite):
        """Add the step, or leave it out. finite: 0-dim tensor on the device, 0 if the step changed nothing."""
        self.sums += torch.where(finite > 0, self.step, 0.0)
        self.step.zero_()

    def reset(self, sums=None):
        """Start from given sums, a list, or from 0."""
        self.step.zero_()
        self.sums.zero_()
        if sums is not None:
            self.sums += torch.tensor(sums, dtype=self.sums.dtype, device=self.sums.device)
