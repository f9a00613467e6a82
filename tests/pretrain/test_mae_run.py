"""Whole runs of MAE with timm's vision transformers: what they leave, resuming to the last bit, compilation."""
import re

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pretrain.mae_options import MAEOptions
from pretrain.main import pretrain
from tests.conftest import assert_goes_on, log_of, saved

MODEL = 'test_vit'
TINY = {'method': 'mae', 'name': 'tiny', 'model': MODEL, 'input_size': 64, 'batch_size': 8, 'epochs': 2, 'lr': 1e-3,
        'workers': 0, 'warmup_epochs': 0.5, 'log_every': 3, 'decoder_width': 32, 'decoder_depth': 1, 'decoder_heads': 4}


@pytest.fixture
def options(world, tmp_path):
    """Options of a run of 2 epochs with 5 steps each, a second or two; options(**changes)."""
    def make(**changes):
        return MAEOptions(**{**TINY, 'run_dir': str(tmp_path / 'run'), 'data_path': str(world), **changes})
    return make


def test_a_run_leaves_timms_network(options):
    folder = pretrain(options(val_every=1))
    epochs, runs = log_of(folder)
    assert epochs[0]['val_loss'] > epochs[2]['val_loss'] > 0 and runs[0]['config']['method'] == 'mae'
    assert re.search('cells +16 px: 4 x 4 = 16 in an image of 64 x 64, 4 visible', (folder / 'stdout_backup.txt').read_text())
    state = torch.load(folder / f'{MODEL}_1kpretrained.pth', weights_only=True)
    timm.create_model(MODEL, img_size=64).load_state_dict(state)
    trained = saved(folder, MODEL)['model']
    assert all(torch.equal(value, trained[f'encoder.cnn.{name}']) for name, value in state.items())
    drawn = timm.create_model(MODEL, img_size=64).state_dict()
    assert not state['pos_embed'][:, 0].any() and not torch.equal(state['pos_embed'], drawn['pos_embed'])


@pytest.mark.parametrize(('steps', 'changes'), [
    (5, {}), (7, {'save_every_steps': 3, 'masks_per_image': 4, 'recompute': 'all', 'drop_path': 0.3})])
def test_a_killed_run_goes_on_to_the_same_end_to_the_last_bit(options, tmp_path, monkeypatch, steps, changes):
    assert_goes_on(options, tmp_path, monkeypatch, steps, changes, MODEL)


@pytest.mark.slow
def test_a_compiled_run_gives_the_losses_of_one_that_is_not(options, tmp_path, capsys):
    plain, counter = pretrain(options(run_dir=str(tmp_path / 'plain'))), CompileCounterWithBackend('aot_eager')
    torch._dynamo.reset()
    capsys.readouterr()
    with torch.compiler.set_stance(force_backend=counter):
        folder = pretrain(options(compile=True))
    assert counter.frame_count == 1 and 'compiled    1 part of the network' in capsys.readouterr().out
    losses = [[entry['loss'] for entry in log_of(each)[0][1:]] for each in (plain, folder)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'model': 'test_resnet'}, 'give --method=convmae for hybrids'),
    ({'input_size': 100}, 'no multiple of 16'),
    ({'input_size': 48, 'masks_per_image': 4}, 'masks_per_image 4'),
])
def test_what_does_not_fit_is_refused_in_one_sentence(options, changes, words):
    with pytest.raises(ValueError, match=words):
        pretrain(options(**changes))
