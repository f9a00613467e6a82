"""Whole runs: resuming to the last bit, weights to start from, and what ends a run."""
import shutil

import pytest
import timm
import torch

from common.demo_world import write_world
from pretrain.main import pretrain
from pretrain.saved import read_saved
from tests.conftest import Stop, assert_same_run, log_of, same, saved, stop_after


def test_a_run_leaves_its_files(whole, tiny, capsys):
    files = {p.name for p in whole.iterdir()}
    assert files == {'your_convnet_still_pretraining.pth', 'your_convnet_still_pretraining_step5.pth', 'pretrain_log.txt',
                     'your_convnet_1kpretrained.pth', 'stdout_backup.txt', 'stderr_backup.txt', 'tensorboard_log',
                     'reconstructions', 'run.lock', 'heartbeat'}
    assert [p.name for p in (whole / 'reconstructions').iterdir()] == ['epoch_0002.png']
    state = torch.load(whole / 'your_convnet_1kpretrained.pth', weights_only=True)
    cnn = timm.create_model('your_convnet', num_classes=7)
    result = cnn.load_state_dict({k: v for k, v in state.items() if not k.startswith('head.')}, strict=False)
    assert result.missing_keys == ['head.weight', 'head.bias'] and not result.unexpected_keys
    timm.create_model('your_convnet').load_state_dict(state)
    epochs, runs = log_of(whole)
    assert [line['epoch'] for line in epochs] == [0, 1, 2] and epochs[2]['step'] == 10
    assert epochs[2]['loss'] < epochs[1]['loss'] < 1.3 and epochs[2]['val_loss'] is not None and epochs[1]['val_loss'] is None
    assert runs[0]['config']['batch_size'] == 8 and runs[0]['versions']['timm'] == timm.__version__
    shown = (whole / 'stdout_backup.txt').read_text()
    for text in ('16 in an image of 32 x 32, 6 visible', 'train, 10 held out', '5 an epoch, 10 in 2 epochs',
                 '8 = 1 rank x 8 images', 'learning rate up to 0.01', 'fp32', 'to go, until', 'Finished'):
        assert text in shown, text
    board = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = board.EventAccumulator(str(whole / 'tensorboard_log')).Reload()
    assert [event.step for event in events.Scalars('loss/held_out')] == [0, 10]
    tags = events.Tags()
    assert sorted(tags['scalars']) == [
        'loss/held_out', 'loss/train', 'optimisation/gradient_norm', 'optimisation/learning_rate',
        'optimisation/weight_decay', 'speed/data_wait', 'speed/images_per_second']  # as TensorBoard has them on its page
    assert len(tags['images']) == 1 and tags['images'][0].startswith('pictures/')
    pretrain(tiny(run_dir=str(whole)))
    assert 'This run is finished: 2 epochs' in capsys.readouterr().out
    again = board.EventAccumulator(str(whole / 'tensorboard_log')).Reload()
    assert [event.step for event in again.Scalars('loss/held_out')] == [0, 10]


@pytest.mark.parametrize(('steps', 'changes'), [
    (5, {}), (7, {'save_every_steps': 3}), (9, {'save_every_steps': 2, 'workers': 2, 'log_every': 1}), (2, {}),
])
def test_a_killed_run_goes_on_to_the_same_end_to_the_last_bit(whole, tiny, tmp_path, monkeypatch, steps, changes):
    options = tiny(run_dir=str(tmp_path / 'cut'), **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            pretrain(options)
    folder = pretrain(options)
    assert_same_run(whole, folder)
    _, runs = log_of(folder)
    every = changes.get('save_every_steps', 5)
    expected = max(steps // every * every, steps // 5 * 5)
    assert [line['step'] for line in runs] == [0, expected]
    if expected:
        assert f'going on from step {expected}' in (folder / 'stdout_backup.txt').read_text()


def test_optimisers_and_dropout_resume_alike(tiny, tmp_path, monkeypatch):
    for opt, model in (('adamw', 'test_convnext'), ('sgd', 'your_convnet')):
        changes = {'opt': opt, 'model': model, 'input_size': 64, 'lr': 1e-3, 'epochs': 1, 'save_every_steps': 3,
                   'warmup_epochs': 0, 'decoder_width': 32, **({'drop_path': 0.3} if model == 'test_convnext' else {})}
        one = pretrain(tiny(run_dir=str(tmp_path / opt), **changes))
        with monkeypatch.context() as patch:
            stop_after(patch, 4)
            with pytest.raises(Stop):
                pretrain(tiny(run_dir=str(tmp_path / f'{opt}_cut'), **changes))
        other = pretrain(tiny(run_dir=str(tmp_path / f'{opt}_cut'), **changes))
        assert same(saved(one, model)['model'], saved(other, model)['model'])
        assert same(saved(one, model)['optimizer'], saved(other, model)['optimizer'])


def test_resume_from_a_file_into_another_folder(whole, tiny, tmp_path, monkeypatch):
    stop_after(monkeypatch, 6)
    with pytest.raises(Stop):
        pretrain(tiny(run_dir=str(tmp_path / 'first')))
    monkeypatch.undo()
    folder = pretrain(tiny(run_dir=str(tmp_path / 'second'), resume=str(tmp_path / 'first/your_convnet_still_pretraining.pth')))
    assert same(saved(whole)['model'], saved(folder)['model']) and log_of(folder)[0][0]['epoch'] == 2
    pretrain(tiny(run_dir=str(folder), resume=str(tmp_path / 'first/your_convnet_still_pretraining.pth')))
    assert 'This run is finished' in (folder / 'stdout_backup.txt').read_text()  # the same command again does not go back


def test_contradictions_foreign_and_damaged_checkpoints_are_refused(whole, tiny, tmp_path):
    before = (whole / 'your_convnet_still_pretraining.pth').read_bytes()
    with pytest.raises(ValueError, match=r'seed was 0 and is 4 now; mask_ratio was 0\.6 and is 0\.5 now.*--fresh'):
        pretrain(tiny(run_dir=str(whole), mask_ratio=0.5, seed=4))
    (tmp_path / 'few').mkdir()
    write_world(tmp_path / 'few', 16, 0, 16, 0)
    with pytest.raises(ValueError, match='there were 40 training images, and are 16 now.*--allow_changed_data'):
        pretrain(tiny(run_dir=str(whole), data_path=str(tmp_path / 'few')))
    with pytest.raises(ValueError, match='start from them with --init or --finetune_from'):
        pretrain(tiny(resume=str(whole / 'your_convnet_1kpretrained.pth')))
    (tmp_path / 'cut.pth').write_bytes(before[:len(before) // 2])
    with pytest.raises(ValueError, match='damaged'):
        pretrain(tiny(resume=str(tmp_path / 'cut.pth')))
    with pytest.raises(ValueError, match='there is no file'):
        pretrain(tiny(resume=str(tmp_path / 'nothing.pth')))
    assert (whole / 'your_convnet_still_pretraining.pth').read_bytes() == before


def test_a_run_with_the_light_decoder(tiny):
    folder = pretrain(tiny(decoder='light'))
    saved, images = read_saved(folder), torch.randn(1, 3, 32, 32)
    assert saved.has_decoder and saved.network.dense_decoder.strides == [8, 4, 2] and saved.options.decoder == 'light'
    assert saved.network.predict(images, saved.network.draw_visible(1)).shape == images.shape
    with pytest.raises(ValueError, match='decoder was light and is unet now'):
        pretrain(tiny())


def test_another_model_in_the_same_folder_is_refused(whole, tiny):
    log = (whole / 'pretrain_log.txt').read_text()
    with pytest.raises(ValueError, match='holds another run'):
        pretrain(tiny(run_dir=str(whole), model='test_resnet', input_size=64, decoder_width=32))
    assert (whole / 'pretrain_log.txt').read_text() == log


def test_init_on_a_run_that_goes_on_is_warned_of(tiny, tmp_path, monkeypatch, capsys, whole):
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Stop):
            pretrain(tiny())
    pretrain(tiny(init=str(whole / 'your_convnet_1kpretrained.pth')))
    assert 'is not used: the run goes on' in capsys.readouterr().err


def test_fresh_moves_the_old_folder_aside_once_all_else_fits(whole, tiny):
    with pytest.raises(ValueError, match='there is no file'):
        pretrain(tiny(run_dir=str(whole), fresh=True, init='nowhere.pth'))
    assert not whole.with_name(f'{whole.name}_old1').exists()
    pretrain(tiny(run_dir=str(whole), fresh=True, seed=1))
    assert 'is in' in (whole / 'stdout_backup.txt').read_text()
    assert saved(whole)['config']['seed'] == 1 and saved(f'{whole}_old1')['config']['seed'] == 0


def test_init_starts_from_weights(whole, tiny, tmp_path, capsys):
    folder = pretrain(tiny(run_dir=str(tmp_path / 'next'), init=str(whole / 'your_convnet_still_pretraining.pth'), epochs=1,
                           warmup_epochs=0))
    assert log_of(folder)[0][0]['val_loss'] == pytest.approx(log_of(whole)[0][-1]['val_loss'], rel=1e-6)
    assert 'matched' in capsys.readouterr().out


def test_bf16_on_the_cpu_trains(tiny, tmp_path):
    folder = pretrain(tiny(run_dir=str(tmp_path / 'bf16'), precision='bf16', epochs=1, warmup_epochs=0))
    assert all(v.dtype in (torch.float32, torch.int64) for v in saved(folder)['model'].values())
    assert log_of(folder)[0][-1]['loss'] < 1.3


def test_datasets_of_your_own(tiny, tmp_path):
    class Bands(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return torch.rand(2, 40, 40), index  # from the seed: the item's random numbers are reproducible

    options = tiny(run_dir=str(tmp_path / 'own'), in_chans=2, mean=(0.5, 0.5), std=(0.3, 0.3), epochs=1, warmup_epochs=0)
    folder = pretrain(options, dataset=Bands(), val_dataset=Bands())
    assert [line['epoch'] for line in log_of(folder)[0]] == [0, 1]


def test_few_images_and_a_low_rate_are_warned_of(tiny, tmp_path, capsys):
    pretrain(tiny(run_dir=str(tmp_path / 'few'), batch_size=64, epochs=1, warmup_epochs=0, lr=None,
                  base_lr=2e-4))
    errors = capsys.readouterr().err
    assert '40 images are fewer than one batch of 64' in errors and '--bs=4' in errors
    assert 'goes up to 5e-05; for 1 step about 0.03 is advised (--lr=0.03)' in errors


def test_unreadable_images_are_named_once_also_by_a_run_that_goes_on(tiny, world, tmp_path, capsys, monkeypatch):
    shutil.copytree(world / 'train', tmp_path / 'data')
    victim = sorted((tmp_path / 'data').rglob('*.png'))[5]
    victim.write_bytes(b'no image')
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 7)  # of 5 steps an epoch
        pretrain(tiny(data_path=str(tmp_path / 'data')))
    pretrain(tiny(data_path=str(tmp_path / 'data')))
    errors = capsys.readouterr().err
    assert errors.count(f'unreadable image {victim}') == 1 and '1 so far' in errors


@pytest.mark.slow
def test_compiled_runs_agree_with_eager_ones(whole, tiny, tmp_path):
    folder = pretrain(tiny(run_dir=str(tmp_path / 'compiled'), compile=True))
    assert [e['loss'] for e in log_of(folder)[0][1:]] == pytest.approx([e['loss'] for e in log_of(whole)[0][1:]], rel=1e-3)
