"""How facts become one line of a given width."""
import pytest

from common.live_facts import composed, fitted, ticking_time

CELLS = '#-'
FACTS = [('epoch 3/100', 'epoch 3/100', '3/100'), ('step 5/9', '5/9', ''), ('loss 0.6213',), ('0:12 elapsed', '')]


@pytest.mark.parametrize(('width', 'text'), [
    (80, 'epoch 3/100  ##########--------------------  step 5/9  loss 0.6213  0:12 elapsed'),
    (70, 'epoch 3/100  ######--------------  step 5/9  loss 0.6213  0:12 elapsed'),
    (60, 'epoch 3/100  ###-------  step 5/9  loss 0.6213  0:12 elapsed'),
    (50, 'epoch 3/100  step 5/9  loss 0.6213  0:12 elapsed'),
    (46, 'epoch 3/100 step 5/9 loss 0.6213 0:12 elapsed'),
    (40, 'epoch 3/100 ##----- step 5/9 loss 0.6213'),
    (30, 'epoch 3/100 5/9 loss 0.6213'),
    (24, 'epoch 3/100 loss 0.6213'),
    (20, '3/100 loss 0.6213'),
    (10, '3/100 #---'), (3, '3/1')])
def test_facts_become_shorter_and_fewer(width, text):
    assert composed(0.34, FACTS, width, CELLS) == text


def test_without_a_share_there_is_no_bar():
    assert composed(None, FACTS[:2], 80, CELLS) == 'epoch 3/100  step 5/9'
    assert fitted(FACTS, 1) == (['3/100'], ' ')


@pytest.mark.parametrize(('seconds', 'text'), [
    (-3, '0:00'), (7.9, '0:07'), (723, '12:03'), (3723, '1:02:03'), (86400 * 2 + 3 * 3600, '2 d 03 h')])
def test_times_tick(seconds, text):
    assert ticking_time(seconds) == text
