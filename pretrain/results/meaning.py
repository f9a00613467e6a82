"""What a method says of itself to those who read a run: its paper, and what its losses mean.

`Method` (pretrain/methods.py) answers with these; the cards, reports and commands that read a run show them.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """The publication of a method. arxiv: its number there, such as 2301.03580. venue: such as ICLR 2023."""
    authors: str
    title: str
    venue: str
    arxiv: str

    @property
    def link(self):
        return f'https://arxiv.org/abs/{self.arxiv}'


@dataclass(frozen=True)
class LossMeaning:
    """What the losses of a run mean.

    target: what is predicted of a hidden cell, a key of TARGETS (pretrain/results/pictures.py). sentence: what the
    loss is, and what is usual, for a report. of_nothing: what a network gets that says nothing, in words; '' if
    there is no such number. levels: ((loss, words), ...) that a chart marks. at_the_end: (from, to), the losses
    that long runs end with; None if they are not known. title: of the chart. of_cells: what the mean error of an
    image's hidden cells is called; it is the loss, or one term of it.
    """
    target: str
    sentence: str
    of_nothing: str = ''
    levels: tuple = ()
    at_the_end: tuple | None = None
    title: str = 'Loss on hidden cells'
    of_cells: str = 'loss'


SQUARED_ERROR_OF_PIXELS = LossMeaning(
    'pixels', 'The loss of a run with --target=pixels is a squared error on pixels, normalised with --mean and --std: '
    'predicting the mean everywhere gives 1 if --mean and --std are those of the images.')
