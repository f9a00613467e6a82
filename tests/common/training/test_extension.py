"""A finished run that is given more epochs: its learning rate by numbers, its resumes to the last bit, and what is refused."""
import dataclasses

import pytest
import torch

from common.distributed import Ranks
from common.training.schedule import Cosine
from downstream_coco.config import Options as DetectionOptions
from downstream_coco.training import Run as DetectionRun
from downstream_imagenet.config import Options as FineTuningOptions
from downstream_imagenet.run import Run as FineTuningRun
from pretrain.main import pretrain
from pretrain.pretraining import Run
from tests.conftest import Stop, assert_same_run, log_of, same, saved, stop_after

ALONE = Ranks(0, 1, torch.device('cpu'))


def run_of(tiny, ended_at=(), **changes):
    """A run of 5 steps an epoch, of which 2 are warm-up at the start."""
    options = tiny(weight_decay=0.04, weight_decay_end=0.2, **changes)
    return Run(options, ALONE, 40, curve=Cosine(0.005, 0.001), ended_at=ended_at)


def test_the_learning_rate_of_a_longer_run(tiny):
    short = run_of(tiny)
    longer = run_of(tiny, (10,), epochs=6)  # 4 epochs of 5 steps more
    twice = run_of(tiny, (10, 30), epochs=7)
    assert [longer.schedule(step) for step in range(10)] == [short.schedule(step) for step in range(10)]
    assert [twice.schedule(step) for step in range(30)] == [longer.schedule(step) for step in range(30)]
    rates = [longer.schedule(step)[0] for step in range(30)]
    # The warm-up is of 2 steps, which is a tenth of the 20 steps that were added.
    assert rates[9] == pytest.approx(1e-5) and rates[10] == pytest.approx(1e-5)
    assert rates[11] == pytest.approx((1e-5 + 1e-2) / 2) and rates[12] == 1e-2
    assert rates[12 + 17 // 2] > 0.5 * 1e-2 > rates[12 + 17 // 2 + 1] and rates[29] == pytest.approx(1e-5)
    assert rates[12:] == sorted(rates[12:], reverse=True)
    # A tenth of 5 steps is none.
    assert [twice.schedule(step)[0] for step in (29, 30, 34)] == pytest.approx([1e-5, 1e-2, 1e-5])
    assert longer.schedule(9)[1] == 0.2 and {longer.schedule(step)[1] for step in range(10, 30)} == {0.2}


def test_a_long_warmup_takes_a_tenth_of_what_was_added(tiny):
    longer = run_of(tiny, (10,), epochs=42, warmup_epochs=1.0)
    assert (longer.warmup_of(0), longer.warmup_of(10), longer.span(9), longer.span(10)) == (5, 5, (0, 10), (10, 210))
    assert run_of(tiny, (10,), epochs=4, warmup_epochs=1.0).warmup_of(10) == 1


def test_the_learning_rate_of_longer_downstream_runs():
    options = {'name': 'x', 'batch_size': 8, 'lr': 1e-2, 'warmup_epochs': 0.4, 'epochs': 6}
    for run in (FineTuningRun(FineTuningOptions(**options), ALONE, 40, ended_at=(10,)),
                DetectionRun(DetectionOptions(**options), ALONE, 40, ended_at=(10,))):
        assert [run.schedule(step)[0] for step in (0, 9, 10, 11, 12, 29)] == pytest.approx(
            [5e-5, 1e-5, 1e-5, 0.005005, 1e-2, 1e-5])


def test_a_longer_run_is_resumed_to_the_last_bit(tiny, tmp_path, monkeypatch, capsys):
    one = pretrain(tiny(run_dir=str(tmp_path / 'one')))
    assert 'For more epochs: the same command with --epochs=4, or any other number above 2.' in capsys.readouterr().out
    pretrain(tiny(run_dir=str(tmp_path / 'other')))
    before = saved(one)
    longer = {'epochs': 4, 'save_every_steps': 3}
    capsys.readouterr()
    pretrain(tiny(run_dir=str(one), **longer))
    said = capsys.readouterr().out
    assert 'was finished at step 10, and goes on to step 20: its learning rate rises from 1e-05 to the peak in 1 step, ' \
           'then it falls from 0.01 to 1e-05. The loss may be higher for a while. The weight decay stays at 0.2.' in said
    assert 'epoch 3/4' in said and 'epoch 2/' not in said
    other = tiny(run_dir=str(tmp_path / 'other'), **longer)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(other)
    assert saved(tmp_path / 'other')['step'] == 15
    with pytest.raises(ValueError, match=r'finished and then given more epochs, 4 in all, and --epochs=2 is less: give '
                                         '--epochs=4, with which it goes on'):
        pretrain(tiny(run_dir=str(tmp_path / 'other')))
    pretrain(other)
    assert_same_run(one, tmp_path / 'other')
    assert saved(one)['ended_at'] == (10,) and not same(saved(one)['model'], before['model'])
    epochs, runs = log_of(one)
    assert [line['epoch'] for line in epochs] == [0, 1, 2, 3, 4] and [line['step'] for line in runs] == [0, 10]
    assert epochs[2]['lr'] == epochs[4]['lr'] == pytest.approx(1e-5)
    board = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = board.EventAccumulator(str(one / 'tensorboard_log')).Reload()
    assert [event.step for event in events.Scalars('loss/held_out')] == [0, 10, 20]
    pretrain(tiny(run_dir=str(one), epochs=5))
    assert saved(one)['ended_at'] == (10, 20) and saved(one)['step'] == 25


def test_a_warmup_that_follows_from_the_epochs_stays_the_first_one(tiny, tmp_path, monkeypatch, capsys):
    """Without --warmup_epochs it is a tenth of the epochs, which an extension does not change, nor a resume of it."""
    options = tiny(warmup_epochs=None)
    pretrain(options)
    longer = dataclasses.replace(options, epochs=8, save_every_steps=4)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stop):
            pretrain(longer)
    assert saved(tmp_path / 'run')['first_warmup'] == 1  # a tenth of the 10 steps at first
    capsys.readouterr()
    pretrain(longer)
    said = capsys.readouterr().out
    assert saved(tmp_path / 'run')['step'] == 40 and 'warm-up     1 step\n' in said and 'to the peak in 1 step,' in said


def test_what_is_refused_of_other_lengths(tiny, tmp_path, monkeypatch):
    options = tiny()
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(options)
    checkpoint = tmp_path / 'run/your_convnet_still_pretraining.pth'
    with pytest.raises(ValueError, match=rf'is of step 5 of 10: .* Finish it with --epochs=2, and then give --epochs=4, .*'
                                         rf'the same command with --run_dir=ANOTHER_FOLDER --init={checkpoint}'):
        pretrain(tiny(epochs=4))
    with pytest.raises(ValueError, match=r'is of a run of 2 epochs, and --epochs=1 is less: .* Give --epochs=2'):
        pretrain(tiny(epochs=1))
    with pytest.raises(ValueError, match=r'of another run: seed was 0 and is 1 now\. Give'):
        pretrain(tiny(epochs=4, seed=1))
    with pytest.raises(ValueError, match=r'of another run: warmup_epochs was 0.5 and is 1.0 now'):
        pretrain(tiny(warmup_epochs=1.0))
    other = pretrain(tiny(epochs=4, run_dir=str(tmp_path / 'other'), init=str(checkpoint)))  # the other remedy
    assert saved(other)['step'] == 20


def test_a_run_of_an_earlier_version_goes_on(whole, tiny):
    path = whole / 'your_convnet_still_pretraining.pth'
    content = saved(whole)
    del content['ended_at']
    torch.save(content, path)
    pretrain(tiny(run_dir=str(whole), epochs=3))
    assert saved(whole)['ended_at'] == (10,) and saved(whole)['step'] == 15
