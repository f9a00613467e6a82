"""Interactions of two cells of an image in contexts of m other cells (multi-order interactions).

The players are the n cells of a grid. v(S) is what a classifier says for the image of which only the cells S
are left. For two cells i, j and a context S of m others

    D = v(S+i+j) - v(S+i) - v(S+j) + v(S),        I_ij(m) = mean of D over contexts,
    J(m) = mean over images and pairs of |I_ij(m)|, divided by the mean of J over all orders m.

Deng et al., Discovering and Explaining the Representation Bottleneck of DNNs, ICLR 2022; the figure of A2MIM
(Li et al., ICML 2023). Low orders are of cells with little around them, high orders of cells in almost the whole image.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

from common.seeds import seed_for

RATIOS = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
REACH = 2  # cells between the two of a pair, at most, along either axis


def orders_of(players, ratios=RATIOS):
    """Return the orders m, how many of the other players - 2 cells are in the context."""
    return list(dict.fromkeys(int((players - 2) * ratio) for ratio in ratios))


def num_pairs(grid):
    """Return how many pairs of different cells there are on a grid (rows, columns), at most REACH apart."""
    rows, columns = grid
    ordered = sum(max(rows - abs(down), 0) * max(columns - abs(right), 0)
                  for down in range(-REACH, REACH + 1) for right in range(-REACH, REACH + 1))
    return (ordered - rows * columns) // 2


def draw_pairs(grid, number, seed, image):
    """Draw `number` different pairs of cells, a list of (i, j). It is a function of (seed, image) alone.

    i is any cell, j is up to REACH cells away; beyond the border it is the border's. image: a name. Raises
    ValueError if there are fewer pairs on the grid.
    """
    if number > num_pairs(grid):
        raise ValueError(f'--pairs={number}: a grid of {grid[0]} x {grid[1]} cells has {num_pairs(grid)} '
                         f'pairs of cells that are at most {REACH} apart. Give fewer --pairs, or a larger '
                         '--grid')
    rng = np.random.default_rng(seed_for(f'pairs of {image}', seed))
    rows, columns = grid
    pairs = {}
    while len(pairs) < number:
        row, column = int(rng.integers(rows)), int(rng.integers(columns))
        down, right = rng.integers(-REACH, REACH + 1, 2).tolist()
        other_row = min(max(row + down, 0), rows - 1)
        other_column = min(max(column + right, 0), columns - 1)
        i = row * columns + column
        j = other_row * columns + other_column
        if i != j:
            pairs.setdefault(frozenset((i, j)), (i, j))
    return list(pairs.values())


def draw_contexts(players, pairs, order, number, seed, image):
    """Draw `number` contexts of `order` other cells for each pair: an array (P, number, order) of cells.

    They are a function of (seed, image, order) alone. With no cell, or with all of them, there is one context.
    """
    rng = np.random.default_rng(seed_for(f'contexts of {image}', seed, order))
    number = 1 if order in (0, players - 2) else number
    ranks = rng.random((len(pairs), number, players - 2)).argsort(-1)[..., :order]
    others = np.array([np.setdiff1d(np.arange(players), pair) for pair in pairs])
    return others[np.arange(len(pairs))[:, None, None], ranks]


def num_masked(players, order, pairs, contexts):
    """Return how many masked images the interactions of one order take."""
    return 4 * pairs * (1 if order in (0, players - 2) else contexts)


def visible_cells(players, pairs, contexts):
    """Return which cells are left in the four images of each D: bool (P, contexts, 4, players).

    They are S+i+j, S+i, S+j and S.
    """
    contexts = torch.as_tensor(np.asarray(contexts), dtype=torch.int64)
    visible = torch.zeros(*contexts.shape[:2], 4, players, dtype=torch.bool)
    visible.scatter_(3, contexts[:, :, None].expand(-1, -1, 4, -1), True)
    for place, pair in enumerate(pairs):
        i, j = pair
        visible[place, :, [0, 1], i] = True
        visible[place, :, [0, 2], j] = True
    return visible


def pair_interactions(value, players, pairs, contexts):
    """Return I_ij of each pair, (P,) float64.

    value: v, a function of bool (N, players), the cells that are left, that returns (N,). contexts: (P, number, order).
    """
    visible = visible_cells(players, pairs, contexts)
    both, one, other, none = value(visible.flatten(0, 2)).double().view(visible.shape[:3]).unbind(2)
    return (both - one - other + none).mean(1)


def strengths(interactions):
    """Return (J, its standard error over images), each a list with a number for every order.

    interactions: I_ij, (images, orders, pairs). The mean of J over orders is 1. The error is None for one
    image. Raises ValueError if all interactions are 0.
    """
    of_images = np.abs(np.asarray(interactions, dtype=np.float64)).mean(2)  # (images, orders)
    strength = of_images.mean(0)
    scale = strength.mean()
    if not scale > 0:
        raise ValueError('all interactions are 0: what the network says does not depend on the image')
    error = None
    if len(of_images) > 1:
        error = (of_images.std(0, ddof=1) / math.sqrt(len(of_images)) / scale).tolist()
    return (strength / scale).tolist(), error


def log_odds(logits, label):
    """log p / (1 - p) of a class: its logit less the log of the sum of the other classes' exponentials."""
    others = torch.cat([logits[:, :label], logits[:, label + 1:]], 1)
    return logits[:, label] - others.logsumexp(1)


def log_probability(logits, label):
    return F.log_softmax(logits, 1)[:, label]


def logit(logits, label):
    return logits[:, label]


# v, functions of logits (N, classes) and the number of a class that return (N,)
REWARDS = {'log_odds': log_odds, 'log_p': log_probability, 'logit': logit}


def masked(image, visible, grid):
    """Return an image (C, H, W) as often as cells are given, 0 in the cells that are not left: (N, C, H, W).

    visible: bool (N, rows * columns). The sides of the image are multiples of the rows and columns of the grid.
    """
    rows, columns = grid
    height, width = image.shape[1] // rows, image.shape[2] // columns
    pixels = visible.view(-1, 1, rows, columns).repeat_interleave(height, 2).repeat_interleave(width, 3)
    return torch.where(pixels, image, 0)
