"""Steps whose numbers are not finite are left out, and too many of them end the run, or take it back."""
import dataclasses
import json
import os
import signal

import pytest
import torch

from common.reliability.stopping import Stopped
from common.training import trainer
from common.training.finetuning import Average
from common.training.trainer import NeverFinite, NotFinite
from pretrain.main import pretrain
from pretrain.pretraining import Pretraining
from tests.common.runs import in_step, spoiled
from tests.conftest import Stop, log_of, same, saved, stop_after


def test_a_step_that_is_not_finite_is_left_out_and_the_run_goes_on(tiny, tmp_path, monkeypatch, capsys):
    states = {}
    original = trainer.train_step

    def watched(model, parts, accum, optimizer, *rest):
        states[len(states)] = {key: value.clone() for key, value in model.state_dict().items()}
        return original(model, parts, accum, optimizer, *rest)

    monkeypatch.setattr(trainer, 'train_step', watched)
    spoiled(monkeypatch, {3, 6, 7})
    folder = pretrain(tiny(log_every=1))
    assert same(states[3], states[4]) and same(states[6], states[8]) and not same(states[4], states[5])
    epochs = log_of(folder)[0]
    assert [line.get('skipped') for line in epochs] == [None, 1, 2] and all(line['loss'] < 1.3 for line in epochs[1:])
    said = capsys.readouterr().err
    assert said.count('not finite') == 3 and 'at a learning rate of' in said and '.png' in said
    skipped = [json.loads(line) for line in (folder / 'pretrain_log.txt').read_text().splitlines() if 'skipped": [' in line]
    assert [line['skipped'] for line in skipped] == [[3], [6], [7]] and len(skipped[0]['images']) == 5


@pytest.mark.parametrize('growth', [1.0, -1e-3])
def test_a_loss_that_has_grown_is_warned_of_at_the_end(tiny, monkeypatch, capsys, growth):
    """By the first epoch of all, of which the log tells: the run was stopped in between."""
    original, count = trainer.train_step, []

    def train_step(*arguments):
        count.append(1)
        result = original(*arguments)
        result[0] = 5 + growth * len(count)
        return result

    monkeypatch.setattr(trainer, 'train_step', train_step)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(tiny())
    count[:] = [1] * 5  # The first epoch was saved.
    folder = pretrain(tiny())
    said = capsys.readouterr().err
    assert ('warning: the mean loss grew from 8 in the first epoch to 13 in the last: ' in said) == (growth > 0)
    assert ('the mean loss grew' in said) == (growth > 0)
    assert [line['loss'] for line in log_of(folder)[0][1:]] == pytest.approx([5 + 3 * growth, 5 + 8 * growth])


def test_too_many_in_a_row_stop_the_run_in_its_last_good_state(tiny, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoiled(patch, {1, 7, 8, 9})
        with pytest.raises(NotFinite, match=r'steps 7 to 9, 3 of them, were not finite: in the last one the loss was nan .* at '
                                            r'a learning rate of .*\.png.* the state at step 7 is saved'):
            pretrain(tiny(max_skips=3))
    state = saved(tmp_path / 'run')
    assert state['step'] == 7 and state['sums'][2] == 2 and all(v.isfinite().all() for v in state['model'].values())
    pretrain(dataclasses.replace(tiny(), lr=1e-3, clip_grad=1.0))  # the remedies that the error names
    epochs = log_of(tmp_path / 'run')[0]
    assert saved(tmp_path / 'run')['step'] == 10 and [line.get('skipped') for line in epochs] == [None, 1, 0]


def test_a_row_over_the_end_of_an_epoch_is_taken_back_to_its_beginning(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoiled(patch, {4, 5, 6})
        with pytest.raises(NotFinite, match='steps 4 to 6.* the state at step 5 is saved'):
            pretrain(tiny(max_skips=3))
    pretrain(tiny(max_skips=3))
    assert [line.get('skipped') for line in log_of(tmp_path / 'run')[0]] == [None, 1, 0]


def test_rewinding_goes_on_without_the_images_that_did_it(tiny, tmp_path, monkeypatch, capsys):
    """Steps 6 and 7 are bad whenever they come; the run goes back to step 5, and on without them."""
    draw, drawn = Pretraining.draw_masks, []
    original = trainer.train_step

    def train_step(model, parts, *rest):
        return original(model, ((images * (float('nan') if drawn[-1] in (6, 7) else 1), visible) for images, visible in parts),
                        *rest)

    monkeypatch.setattr(Pretraining, 'draw_masks', lambda self, *given: (drawn.append(*given), draw(self, *given))[1])
    monkeypatch.setattr(trainer, 'train_step', train_step)
    folder = pretrain(tiny(rewind=True, max_skips=2))
    assert drawn == [*range(8), 5, 8, 9] and saved(folder)['left_out'] == ((6, 8),)
    epochs, runs = log_of(folder)
    assert [line['epoch'] for line in epochs] == [0, 1, 2] and [line['step'] for line in runs] == [0, 5]
    assert 'the steps 6 to 7 are left out' in capsys.readouterr().err
    monkeypatch.undo()
    pretrain(tiny(run_dir=str(tmp_path / 'other'), rewind=True))
    assert not same(saved(tmp_path / 'other')['model'], saved(folder)['model'])


def test_a_stop_counts_more_than_going_back(tiny, tmp_path, monkeypatch):
    spoiled(monkeypatch, {6, 7})
    in_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match='after step 8'):
        pretrain(tiny(rewind=True, max_skips=2))
    assert saved(tmp_path / 'run')['step'] == 8 and saved(tmp_path / 'run')['skipped'] == 2


def test_a_run_whose_last_epoch_has_no_finite_step_does_not_finish(tiny, tmp_path, monkeypatch):
    spoiled(monkeypatch, range(5, 100))
    with pytest.raises(NeverFinite, match='no step of epoch 2, the last, was finite'):
        pretrain(tiny(max_skips=100))
    assert not (tmp_path / 'run' / 'your_convnet_1kpretrained.pth').exists()


def test_rewinding_ends(tiny, monkeypatch):
    spoiled(monkeypatch, range(1, 10_000))
    with pytest.raises(NotFinite):
        pretrain(tiny(rewind=True, max_skips=1))


def test_the_average_of_the_weights_stays_where_a_step_is_called_off():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    average, theirs = Average(net, decay=0.9), Average(net, decay=0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    before = {key: value.clone() for key, value in average.module.state_dict().items()}
    average.update(net, torch.tensor(0.0))
    assert same(dict(average.module.state_dict()), before)
    average.update(net, torch.tensor(1.0))
    super(Average, theirs).update(net)
    for one, other in zip(average.module.state_dict().values(), theirs.module.state_dict().values()):
        torch.testing.assert_close(one, other)
