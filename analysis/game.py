"""What `python -m analysis.interaction` measures of each image: the grid of cells, and how much is drawn."""
from dataclasses import dataclass

from analysis.orders import draw_pairs, num_masked, orders_of

MOST_CELLS = 14  # along a side of an image, where the grid is not given


@dataclass(frozen=True)
class Game:
    """Raises ValueError.

    grid: rows and columns of cells, which are the players. pairs: of cells, an image. contexts: of each pair
    and order. reward: a name of analysis.orders.REWARDS.
    """
    grid: tuple
    pairs: int = 20
    contexts: int = 20
    reward: str = 'log_odds'

    def __post_init__(self):
        for name in ('pairs', 'contexts'):
            if getattr(self, name) < 1:
                raise ValueError(f'--{name} is 1 or more, not {getattr(self, name)}')
        if len(self.grid) != 2 or min(self.grid) < 1 or self.players < 3:
            raise ValueError('--grid is the number of cells along a side, or rows,columns, of 3 cells or '
                             f'more in all, not {",".join(map(str, self.grid))}')
        draw_pairs(self.grid, self.pairs, 0, '')  # it says if the grid has too few of them

    @property
    def players(self):
        return self.grid[0] * self.grid[1]

    @property
    def orders(self):
        return orders_of(self.players)

    def num_masked(self, orders):
        """Return how many masked images a network sees for some orders of one image."""
        return sum(num_masked(self.players, order, self.pairs, self.contexts) for order in orders)

    def require_equal_cells(self, size):
        """Raise a ValueError if an image of a size (height, width) is not divided into equal cells."""
        if size[0] % self.grid[0] or size[1] % self.grid[1]:
            raise ValueError(f'{size[0]} x {size[1]} pixels cannot be divided into {self.grid[0]} x '
                             f'{self.grid[1]} equal cells: give another --grid, such as '
                             f'--grid={",".join(map(str, finest_grid(size)))}')


def finest_grid(size):
    """Return the most rows and columns, up to MOST_CELLS, of equal cells in an image (height, width)."""
    return tuple(max(cells for cells in range(1, MOST_CELLS + 1) if side % cells == 0) for side in size)
