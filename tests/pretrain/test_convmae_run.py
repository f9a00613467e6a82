"""Whole runs of ConvMAE: resuming to the last bit, ranks, parts, several masks an image, and what is refused."""
import subprocess
import sys

import pytest
import timm
import torch

from pretrain.convmae_options import ConvMAEOptions
from pretrain.main import pretrain
from tests.conftest import ROOT, assert_goes_on, assert_same_run, flags, log_of, saved

MODEL = 'test_convvit'
TINY = {'method': 'convmae', 'name': 'tiny', 'model': MODEL, 'input_size': 64, 'batch_size': 8, 'epochs': 2, 'lr': 1e-3,
        'workers': 0, 'warmup_epochs': 0.5, 'log_every': 3, 'decoder_width': 32, 'decoder_depth': 1, 'decoder_heads': 4}


@pytest.fixture
def options(world, tmp_path):
    """Options of a run of 2 epochs with 5 steps each, a second or two; options(**changes)."""
    def make(**changes):
        return ConvMAEOptions(**{**TINY, 'run_dir': str(tmp_path / 'run'), 'data_path': str(world), **changes})
    return make


def test_a_run_leaves_a_network_with_its_own_keys(options):
    folder = pretrain(options(val_every=1))
    epochs, runs = log_of(folder)
    assert epochs[0]['val_loss'] > epochs[2]['val_loss'] > 0
    assert runs[0]['config']['method'] == 'convmae'
    shown = (folder / 'stdout_backup.txt').read_text()
    for text in ('4 x 4 = 16 in an image of 64 x 64, 4 visible', 'in fusion and decoder', 'mean and deviation'):
        assert text in shown, text
    assert 'stride' not in shown  # of a level that ConvMAE's decoder would not use anyway
    assert [path.name for path in (folder / 'reconstructions').iterdir()] == ['epoch_0002.png']
    state = torch.load(folder / 'test_convvit_1kpretrained.pth', weights_only=True)
    timm.create_model('test_convvit', img_size=64).load_state_dict(state)
    trained = saved(folder, MODEL)['model']
    assert all(torch.equal(value, trained[f'encoder.cnn.{name}']) for name, value in state.items())


@pytest.mark.parametrize(('steps', 'changes'), [
    (5, {}), pytest.param(7, {'save_every_steps': 3, 'masks_per_image': 4}, marks=pytest.mark.slow),
    (9, {'save_every_steps': 2, 'workers': 2, 'log_every': 1, 'accum': 2, 'masks_per_image': 4}),
    pytest.param(3, {'save_every_steps': 1, 'recompute': 'all', 'drop_path': 0.3}, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_end_to_the_last_bit(options, tmp_path, monkeypatch, steps, changes):
    assert_goes_on(options, tmp_path, monkeypatch, steps, changes, MODEL)


@pytest.mark.parametrize('changes', [
    {'recompute': 'all'}, {'graph': True, 'masks_per_image': 4}, pytest.param({'recompute': 'decoder'}, marks=pytest.mark.slow),
    pytest.param({'graph': True}, marks=pytest.mark.slow)])
def test_how_a_step_is_computed_changes_nothing(options, tmp_path, changes):
    """Computed again, or by the step of a CUDA graph, as far as the CPU has it."""
    masks = {'masks_per_image': changes.get('masks_per_image', 1)}
    one = pretrain(options(run_dir=str(tmp_path / 'plain'), epochs=1, **masks))
    assert_same_run(one, pretrain(options(run_dir=str(tmp_path / 'other'), epochs=1, **changes)), MODEL)


@pytest.mark.parametrize('masks', [1, 4])
def test_parts_of_a_batch_give_the_same_loss(options, tmp_path, masks):
    folders = [pretrain(options(run_dir=str(tmp_path / f'parts{accum}'), accum=accum, epochs=1, masks_per_image=masks))
               for accum in (1, 2)]
    losses = [log_of(folder)[0][1]['loss'] for folder in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('masks', [1, 4])
def test_two_ranks_train_as_one(options, tmp_path, masks):
    """By SGD: Adam's first steps are as long whatever the size of a gradient, and make much of its rounding."""
    changes = {'opt': 'sgd', 'lr': 0.1, 'masks_per_image': masks}
    one = pretrain(options(run_dir=str(tmp_path / 'one'), **changes))
    two = options(run_dir=str(tmp_path / 'two'), **changes)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'pretrain.main',
               '--name=tiny', '--method=convmae', *flags(two)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    mine, theirs = saved(one, MODEL)['model'], saved(tmp_path / 'two', MODEL)['model']
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-4, msg=name)
    trained = [[entry for entry in log_of(folder)[0] if 'loss' in entry] for folder in (one, tmp_path / 'two')]
    for first, second in zip(*trained, strict=True):
        assert first['loss'] == pytest.approx(second['loss'], rel=1e-4)


def test_held_out_losses_are_of_one_mask_an_image(options, tmp_path):
    """So they can be compared with those of a run that has one."""
    folders = [pretrain(options(run_dir=str(tmp_path / f'masks{masks}'), epochs=1, val_every=1, masks_per_image=masks))
               for masks in (1, 4)]
    one, four = (log_of(folder)[0] for folder in folders)
    assert one[0]['val_loss'] == four[0]['val_loss']
    assert one[1]['loss'] != four[1]['loss']


@pytest.mark.parametrize(('changes', 'words'), [
    ({'model': 'test_convnext', 'input_size': 128}, 'no attention over all positions.*--method=spark'),
    ({'input_size': 72}, 'multiple'),
    ({'input_size': 48, 'masks_per_image': 4}, 'masks_per_image 4'),
])
def test_what_does_not_fit_is_refused_in_one_sentence(options, changes, words):
    with pytest.raises(ValueError, match=words):
        pretrain(options(**changes))


def test_a_run_of_another_method_is_refused_by_name(options):
    pretrain(options(epochs=1, warmup_epochs=0))
    with pytest.raises(ValueError, match='masks_per_image was 1 and is 4 now'):
        pretrain(options(warmup_epochs=0, masks_per_image=4))


def test_the_learning_rate_begins_and_ends_at_nothing(options):
    folder = pretrain(options(log_every=1, warmup_epochs=1))
    rates = [entry['lr'] for entry in log_of(folder)[0] if 'lr' in entry]
    assert rates and rates[-1] < 1e-4  # of the last step: half a cosine is 0 one step after it
