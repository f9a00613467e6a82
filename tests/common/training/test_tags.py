"""The groups in which TensorBoard and trackers show what a run tells."""
import pytest

from common.training.tags import GROUPS, tag_of


@pytest.mark.parametrize(('name', 'tag'), [
    ('loss', 'loss/train'), ('val_loss', 'loss/held_out'), ('val_loss_ema', 'loss/held_out_ema'),
    ('top1', 'metrics/top1'), ('top1_ema', 'metrics/top1_ema'), ('mask_AP_small_ema', 'metrics/mask_AP_small_ema'),
    ('gradient_norm', 'optimisation/gradient_norm'), ('data_wait', 'speed/data_wait')])
def test_each_name_has_a_group(name, tag):
    assert tag_of(name) == tag


def test_the_losses_come_first_and_the_pictures_before_the_speed():
    groups = {tag.split('/')[0] for tag in [*GROUPS.values(), tag_of('top1'), 'pictures/anything']}
    assert sorted(groups) == ['loss', 'metrics', 'optimisation', 'pictures', 'speed']


def test_no_two_names_share_a_tag():
    names = [*GROUPS, *(f'{name}_ema' for name in GROUPS), 'top1', 'top1_ema']
    assert len({tag_of(name) for name in names}) == len(names)
