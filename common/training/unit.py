"""The unit in which the length of a run is given and told: epochs, or iterations.

A run is a number of rounds. After each one the network is measured, a line is written to the log, and a
checkpoint is saved. A round is an epoch in most programs; in semantic segmentation it is a number of iterations.
In the names of the code that all programs share (Run.epochs, Run.per_epoch, Trainer.end_epoch), an epoch is a round.
"""
from dataclasses import dataclass

from common.words import counted


@dataclass(frozen=True)
class Unit:
    """Tells numbers of rounds in a unit, for a person.

    name: of one. option: by which a user gives the length of a run. size: how many there are in a round.
    """
    name: str = 'epoch'
    option: str = 'epochs'
    size: int = 1

    def number(self, rounds):
        """How many there are in so many rounds."""
        return rounds * self.size

    def at(self, rounds):
        """Where a run is after so many rounds: 'epoch 3'."""
        return f'{self.name} {self.number(rounds):,}'

    def of(self, rounds, total):
        """The same, with where the run ends: 'epoch 3/10'."""
        return f'{self.at(rounds)}/{self.number(total):,}'

    def span(self, rounds):
        """The last of so many rounds: 'epoch 3', or 'iterations 2,001 to 3,000'."""
        first = self.number(rounds - 1) + 1
        return self.at(rounds) if self.size == 1 else f'{self.name}s {first:,} to {self.number(rounds):,}'

    def length(self, rounds):
        """So many rounds: '3 epochs'."""
        return counted(self.number(rounds), self.name)

    def flag(self, rounds):
        """The option that asks for so many rounds: '--epochs=3'."""
        return f'--{self.option}={self.number(rounds)}'
