"""Interactions of two cells by order: the numbers of the original, games whose interactions are known, and the draws."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.orders import (
    RATIOS,
    REWARDS,
    draw_contexts,
    draw_pairs,
    masked,
    num_masked,
    num_pairs,
    orders_of,
    pair_interactions,
    strengths,
    visible_cells,
)
from tests.pretrain.official import GOLDEN, fill

GIVEN = json.loads((GOLDEN / 'a2mim_parts.json').read_text())['interactions']
NAMES = {'log_odds': 'modified', 'log_p': 'normal', 'logit': 'yi'}  # of the rewards: ours, the original's
GRID = (4, 4)


def toy(images):
    """The classifier of the golden numbers."""
    conv, fc = fill('conv', (6, 3, 5, 5)) * (2 / 75) ** 0.5, fill('fc', (5, 96)) * (2 / 96) ** 0.5
    return F.adaptive_avg_pool2d(F.gelu(F.conv2d(images, conv, stride=2, padding=2)), 4).flatten(1) @ fc.T


@pytest.mark.parametrize('reward', REWARDS)
def test_interactions_are_those_of_the_original(reward):
    orders = orders_of(16, GIVEN['ratios'])
    assert orders == GIVEN['orders']
    found = []
    images = fill('images', (2, 3, 32, 32))
    for image, label, pairs, contexts in zip(images, GIVEN['labels'], GIVEN['pairs'], GIVEN['contexts']):
        def value(visible, image=image, label=label):
            return REWARDS[reward](toy(masked(image, visible, GRID)), label)
        found.append([pair_interactions(value, 16, pairs, of_order).tolist() for of_order in contexts])
    expected = GIVEN['interactions'][NAMES[reward]]
    for of_order, numbers in zip(found[0], expected['first_image']):
        assert of_order == pytest.approx(numbers, rel=1e-9, abs=1e-14)
    assert strengths(found)[0] == pytest.approx(expected['J'], rel=1e-9)


def games(players, order, number=3):
    pairs = draw_pairs((players // 4, 4), 5, 0, 'x')
    return pairs, draw_contexts(players, pairs, order, number, 0, 'x')


@pytest.mark.parametrize('order', [0, 3, 14])
def test_an_additive_game_has_no_interactions_and_a_product_has_its_own(order):
    pairs, contexts = games(16, order)
    weights = fill('weights', (16,))
    additive = pair_interactions(lambda visible: visible.double() @ weights + 7, 16, pairs, contexts)
    assert additive.abs().max() < 1e-12
    a = fill('products', (16, 16)).triu(1)
    product = pair_interactions(lambda visible: ((visible.double() @ a) * visible).sum(1), 16, pairs, contexts)
    assert product.tolist() == pytest.approx([a[min(pair), max(pair)].item() for pair in pairs], rel=1e-9)


def test_the_mean_strength_is_1_and_its_error_is_over_images():
    interactions = fill('interactions', (4, 3, 5))
    strength, error = strengths(interactions)
    assert np.mean(strength) == pytest.approx(1)
    raw = interactions.abs().mean(2)
    scale = raw.mean()
    assert error == pytest.approx((raw.std(0) / 2 / scale).tolist())
    assert strengths(interactions[:1])[1] is None
    with pytest.raises(ValueError, match='all interactions are 0'):
        strengths(torch.zeros(2, 3, 5))


def test_absolute_values_come_after_the_mean_over_contexts():
    """Two contexts whose D are 1 and -1: the interaction is 0."""
    contexts = [[[2], [3]]]
    values = {(0, 1, 2): 1.0, (0, 1, 3): -1.0}

    def value(visible):
        return torch.tensor([values.get(tuple(row.nonzero().flatten().tolist()), 0.0) for row in visible])
    assert pair_interactions(value, 4, [(0, 1)], contexts).tolist() == [0.0]


def test_the_orders_of_the_paper():
    assert orders_of(196) == [0, 9, 19, 38, 58, 77, 97, 116, 135, 155, 174, 184, 194]
    assert orders_of(4) == [0, 1, 2] and len(RATIOS) == 13
    assert sum(num_masked(196, order, 50, 50) for order in orders_of(196)) == 4 * 50 * (11 * 50 + 2)


def test_pairs_are_near_and_differ_and_depend_on_seed_and_image_alone():
    pairs = draw_pairs((14, 14), 50, 3, 'a/1.png')
    assert pairs == draw_pairs((14, 14), 50, 3, 'a/1.png')
    assert pairs[:20] == draw_pairs((14, 14), 20, 3, 'a/1.png')
    assert pairs != draw_pairs((14, 14), 50, 4, 'a/1.png') and pairs != draw_pairs((14, 14), 50, 3, 'a/2.png')
    assert len({frozenset(pair) for pair in pairs}) == 50
    apart = [(abs(i // 14 - j // 14), abs(i % 14 - j % 14)) for i, j in pairs]
    assert max(map(max, apart)) == 2 and min(map(max, apart)) == 1


def test_all_pairs_of_a_grid_can_be_drawn_and_no_more():
    assert num_pairs((2, 2)) == 6 and num_pairs((1, 4)) == 5
    assert len(draw_pairs((2, 2), 6, 0, 'x')) == 6
    with pytest.raises(ValueError, match='--pairs=7: a grid of 2 x 2 cells has 6 pairs'):
        draw_pairs((2, 2), 7, 0, 'x')


def test_contexts_are_of_other_cells_without_repetition():
    pairs, contexts = games(16, 6, number=40)
    assert contexts.shape == (5, 40, 6)
    for pair, of_pair in zip(pairs, contexts):
        assert not set(pair) & set(of_pair.flatten().tolist())
        assert all(len(set(context)) == 6 for context in of_pair.tolist())
        assert set(of_pair.flatten().tolist()) == set(range(16)) - set(pair)  # each of the others in some of the 40
    assert np.array_equal(contexts, games(16, 6, number=40)[1])
    assert games(16, 0, 9)[1].shape == (5, 1, 0) and games(16, 14, 9)[1].shape == (5, 1, 14)


def test_the_four_images_of_a_difference():
    visible = visible_cells(6, [(0, 5)], [[[2, 3]]])
    assert [row.nonzero().flatten().tolist() for row in visible[0, 0]] == [[0, 2, 3, 5], [0, 2, 3], [2, 3, 5], [2, 3]]


def test_cells_that_are_left_out_are_0():
    image = torch.arange(1., 1 + 2 * 4 * 6).view(2, 4, 6)
    visible = torch.zeros(1, 6, dtype=torch.bool)
    visible[0, 4] = True
    one = masked(image, visible, (2, 3))
    assert torch.equal(one[0, :, 2:, 2:4], image[:, 2:, 2:4]) and (one != 0).sum() == 8


def test_rewards():
    logits = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    p = logits.softmax(1)[0, 1]
    assert REWARDS['log_odds'](logits, 1).item() == pytest.approx((p / (1 - p)).log().item(), rel=1e-12)
    assert REWARDS['log_p'](logits, 1).item() == pytest.approx(p.log().item(), rel=1e-12)
    assert REWARDS['logit'](logits, 1).item() == 2
