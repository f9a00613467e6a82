"""What a run tells of its first steps and of the time to go."""
from types import SimpleNamespace

import torch

from common.training.progress import Progress
from common.training.unit import Unit
from tests.common.runs import Log


def progress_of(log, saved=None, name='a.jpg'):
    """The Progress of a run of two epochs with four steps each, on a device whose first steps are told of apart."""
    ranks = SimpleNamespace(size=1, device=torch.device('cpu'), is_main=True, gather=lambda items: items)
    run = SimpleNamespace(workers=1, epochs=2, unit=Unit(), ranks=ranks, images_per_rank=8, per_epoch=4, steps=8,
                          is_scaled=True, options=SimpleNamespace(batch_size=8, epochs=2, max_skips=10),
                          schedule=lambda step: (0.1, 0.0))
    progress = Progress(run, log, saved, lambda step: [name], 'more --workers', lambda: 0.01)
    progress.start_epoch()
    return progress


def test_a_first_step_that_is_not_finite_is_told_of_at_once():
    """With fp16 the scale of the loss begins high, so that it often is the first one of all."""
    log = Log()
    progress = progress_of(log)
    progress.add(0, float('inf'), float('inf'), False)
    progress.add_first_step(20.0)
    assert len(log.warned) == 1 and 'step 0 was not finite' in log.warned[0] and '1 in epoch 1 so far' in log.warned[0]
    assert log.recorded[0]['skipped'] == [0]
    progress.add(1, 1.0, 1.0, True)
    progress.add_first_step(5.0)
    assert len(log.warned) == 1


def test_a_name_that_is_no_text_can_be_written_to_any_file():
    log = Log()
    progress = progress_of(log, name='\udcff\n.jpg')
    progress.add(0, float('nan'), float('nan'), False)
    progress.add_first_step(1.0)
    assert '.jpg' in log.warned[0] and '\n' not in log.warned[0] and log.warned[0].encode()


def test_the_time_to_go_is_not_known_before_a_step_was_timed():
    log = Log()
    progress = progress_of(log)
    for step in range(4):
        progress.add(step, 1.0, 1.0, True)
        progress.add_first_step(20.0)
    progress.end_epoch(1, {}, 0, '')
    assert log.recorded[-1]['remaining'] is None and log.recorded[-1]['finish'] is None
    assert log.said[-1].startswith('epoch 1/2: loss 1.0000') and 'left' not in log.said[-1]
    progress.start_epoch()
    for step in range(4, 8):
        progress.add(step, 1.0, 1.0, True)
    progress.look(4.0)
    progress.end_epoch(2, {}, 0, '')
    assert log.recorded[-1]['remaining'] == '0 s' and ', 0 s left' in log.said[-1]
