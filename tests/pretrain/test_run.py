"""Whole runs: the launch line, resuming to the last bit, ranks that agree, and what ends a run."""
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch

from common.demo_world import write_world
from common.distributed import Ranks
from common.training import trainer
from common.training.accumulation import fit_accumulation
from common.training.energy import Meter
from common.training.log import RunLog
from common.training.optim import BufferGuard
from pretrain.main import main, pretrain
from pretrain.saved import read_saved
from pretrain.spark import build_spark
from pretrain.spark_method import SparKOptions as Options
from tests.conftest import ROOT, Stop, assert_same_run, flags, log_of, main_sh, same, saved, stop_after


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
    assert [event.step for event in events.Scalars('val_loss')] == [0, 10]
    assert {'loss', 'learning_rate', 'weight_decay', 'gradient_norm', 'images_per_second', 'data_wait', 'val_loss'} == set(
        events.Tags()['scalars']) and events.Tags()['images']
    pretrain(tiny(run_dir=str(whole)))
    assert 'This run is finished: 2 epochs' in capsys.readouterr().out
    again = board.EventAccumulator(str(whole / 'tensorboard_log')).Reload()
    assert [event.step for event in again.Scalars('val_loss')] == [0, 10]


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
    assert saved.has_decoder and saved.spark.dense_decoder.strides == [8, 4, 2] and saved.options.decoder == 'light'
    assert saved.spark.predict(images, saved.spark.draw_visible(1)).shape == images.shape
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


def test_accumulation_is_the_same_batch_in_parts(whole, tiny, tmp_path, monkeypatch):
    folder = pretrain(tiny(run_dir=str(tmp_path / 'parts'), accum=2))
    one, other = log_of(whole)[0][1]['loss'], log_of(folder)[0][1]['loss']
    assert one != other and one == pytest.approx(other, rel=0.05)  # BatchNorm sees the parts one by one
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(tiny(run_dir=str(tmp_path / 'auto'), accum='auto'))
    auto = pretrain(tiny(run_dir=str(tmp_path / 'auto'), accum='auto'))
    assert saved(auto)['accum'] == 1 and same(saved(auto)['model'], saved(whole)['model'])


def test_accumulated_gradients_are_those_of_the_whole_batch():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(5))

        def forward(self, images, visible):
            return (images @ self.weight - visible).square().mean()

    images, visible, results = torch.randn(12, 5), torch.randn(12), []
    for accum in (1, 2, 4):
        net = Linear()
        optimizer = torch.optim.SGD([{'params': net.parameters(), 'decays': False}], lr=0.1, fused=True)
        result = trainer.train_step(net, zip(images.chunk(accum), visible.chunk(accum)), accum, optimizer, BufferGuard(net),
                                   Ranks(0, 1, torch.device('cpu')), nullcontext, float('inf'), lambda: torch.zeros(2))
        results.append(torch.cat([result, net.weight.detach()]))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_auto_accumulation_doubles_until_it_fits(monkeypatch):
    spark = build_spark('your_convnet', input_size=32, decoder_width=16)
    forward, sizes = spark.forward, []

    def limited(images, visible=None):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError('too much')
        return forward(images, visible)

    monkeypatch.setattr(spark, 'forward', limited)
    before = {k: v.clone() for k, v in spark.state_dict().items()}
    ranks = Ranks(0, 1, torch.device('cpu'))

    def example(n):
        return (torch.randn(n, 3, 32, 32),)

    assert fit_accumulation(spark, example, 8, ranks, nullcontext) == 4 and sizes == [8, 4, 2]
    assert same(dict(spark.state_dict()), before) and all(p.grad is None for p in spark.parameters())
    with pytest.raises(ValueError, match='5 images at a time do not fit in memory, and the 5 of a rank cannot be halved'):
        fit_accumulation(spark, example, 5, ranks, nullcontext)


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
    pretrain(tiny(run_dir=str(tmp_path / 'few'), batch_size=64, epochs=1, warmup_epochs=0, lr=None))
    errors = capsys.readouterr().err
    assert '40 images are fewer than one batch of 64' in errors and '--bs=4' in errors and 'Give --lr' in errors


def test_unreadable_images_are_named_once(tiny, world, tmp_path, capsys):
    shutil.copytree(world / 'train', tmp_path / 'data')
    victim = sorted((tmp_path / 'data').rglob('*.png'))[5]
    victim.write_bytes(b'no image')
    pretrain(tiny(run_dir=str(tmp_path / 'run'), data_path=str(tmp_path / 'data')))
    errors = capsys.readouterr().err
    assert errors.count(f'unreadable image {victim}') == 1 and '1 so far' in errors


@pytest.mark.parametrize(('arguments', 'word'), [
    (['--data_path=nowhere'], 'no folder or list of images nowhere'), (['--model=resnet5O'], 'nearest names are'),
    (['--input_size=33'], 'give 32 or 40'), (['--bs=9', '--accum=2'], 'give --bs=8 or --bs=10'),
    (['--run_dir=/proc/x/y'], 'cannot make the run folder'), (['--mask=0.99'], 'mask_ratio 0.99'),
    (['--dataset=hfds/x'], 'timm cannot make the data set hfds/x'),
])
def test_mistakes_end_with_one_sentence(tiny, tmp_path, arguments, word):
    line = [a for a in flags(tiny()) if a.split('=')[0] not in {b.split('=')[0] for b in arguments}]
    with pytest.raises(SystemExit) as end:  # with a text, which Python writes to stderr, and code 1
        main(['--name=x', *line, *arguments])
    assert end.value.code.startswith('error: ') and word in end.value.code
    assert not (tmp_path / 'run').exists()


def test_a_mistake_ends_with_code_1_and_no_trace(tmp_path):
    done = main_sh('x', '--ngpu_per_node=1', '--data_path=nowhere', cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == 'error: there is no folder or list of images nowhere\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_launch_line_from_another_folder_on_one_and_two_processes(tiny, tmp_path):
    """2 processes see the images and masks of 1, and their losses agree: BatchNorm is shared, drop path is 0."""
    line = [a for a in flags(tiny(log_every=1)) if not a.startswith('--run_dir')]
    losses = []
    for name, extra in (('one', ['--num_nodes=1', '--ngpu_per_node=1']), ('two', ['--ngpu_per_node', '2'])):
        done = main_sh(name, *extra, *line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f'8 = {1 if name == "one" else 2} rank' in done.stdout
        epochs, _ = log_of(tmp_path / f'output_{name}')
        board = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
        events = board.EventAccumulator(str(tmp_path / f'output_{name}/tensorboard_log')).Reload()
        losses.append([event.value for event in events.Scalars('loss')])
        assert len(epochs) == 3
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_launcher_names_its_own_mistakes(tmp_path):
    for arguments, word in ((['--data_path=x'], 'first argument is the name'), (['x', '--ngpu_per_node=two'], 'are numbers'),
                            (['x', '--num_nodes=2'], '--node_rank'), (['x', '--num_nodes'], 'needs a value'),
                            (['x', '--name=y'], 'leave out --name'), (['x', '--ngpu_per_node=0'], '1 or more')):
        done = main_sh(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and word in done.stderr


@pytest.mark.slow
def test_started_as_a_file(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / 'pretrain/main.py'), '--help'], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0 and '--mask_ratio' in done.stdout


def test_an_error_on_another_rank_is_told(tmp_path, capsys):
    with pytest.raises(OSError, match='gone'), RunLog(tmp_path, 3, 'log.txt', Options(name='x')):
        raise OSError('the disk is gone')
    assert 'error on rank 3: the disk is gone' in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_runs_agree_with_eager_ones(whole, tiny, tmp_path):
    folder = pretrain(tiny(run_dir=str(tmp_path / 'compiled'), compile=True))
    assert [e['loss'] for e in log_of(folder)[0][1:]] == pytest.approx([e['loss'] for e in log_of(whole)[0][1:]], rel=1e-3)


@pytest.fixture
def writer(tiny, tmp_path):
    """A process that writes into the run folder, as long as the test wants."""
    (tmp_path / 'run').mkdir()
    code = f"""import sys, time; from common.training.log import RunLog; from pretrain.spark_method import SparKOptions as Options
log = RunLog({str(tmp_path / 'run')!r}, 0, 'pretrain_log.txt', Options(name='x'))
import os
if os.fork():
    print('holds it', flush=True)
time.sleep(600)"""
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    assert process.stdout.readline() == 'holds it\n'
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize('fresh', [False, True])
def test_a_folder_that_another_process_writes_into_is_refused(tiny, writer, tmp_path, fresh):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=f'is in use by process {writer.pid} on .*give this run another name'):
        pretrain(tiny(fresh=fresh))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    os.kill(writer.pid, signal.SIGKILL)  # its child, as a loading process would, lives on and holds nothing
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
    assert (pretrain(tiny(fresh=fresh, epochs=1)) / 'your_convnet_1kpretrained.pth').exists()


def test_a_run_lets_go_of_its_folder(tiny):
    pretrain(tiny(epochs=1))
    assert pretrain(tiny(epochs=1)).name == 'run'


class Service:
    """Stands for wandb: remembers what it is told; log fails when its patience is over."""
    __name__, patience = 'wandb', 2

    def __init__(self):
        self.said, self.begun, self.finished = [], [], False

    def init(self, **given):
        self.begun.append(given)

    def log(self, values, step):
        if len(self.said) == self.patience:
            raise OSError('no connection')
        self.said.append((values, step))

    def finish(self):
        self.finished = True

    @staticmethod
    def Image(array):
        return array.shape


@pytest.fixture
def service(monkeypatch):
    service, known = Service(), importlib.util.find_spec
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name == 'wandb' or known(name))
    monkeypatch.setitem(sys.modules, 'wandb', service)
    return service


def test_a_tracker_is_told_and_cannot_stop_a_run(tiny, service, capsys):
    folder = pretrain(tiny(tracker='wandb', val_every=2, picture_every=1))
    begun = service.begun[0]
    assert begun['id'] == begun['name'] and begun['name'].startswith('run-') and begun['config']['model'] == 'your_convnet'
    assert begun['resume'] == 'allow' and service.finished and (folder / 'your_convnet_1kpretrained.pth').exists()
    assert list(service.said[0][0]) == ['val_loss'] and service.said[1][1] == 3 and 'learning_rate' in service.said[1][0]
    assert capsys.readouterr().err.count('wandb takes nothing any more: OSError: no connection') == 1
    pretrain(tiny(tracker='wandb', val_every=2, picture_every=1))
    assert service.begun[1]['id'] == begun['id']  # the same run goes on there
    pretrain(tiny(tracker='wandb', val_every=2, picture_every=1, fresh=True))
    assert service.begun[2]['id'] != begun['id']


def test_pictures_for_a_tracker_and_a_failure_at_its_end(tiny, service, capsys):
    service.patience = 1000
    service.finish = lambda: Path('/nowhere/at/all').read_text()
    pretrain(tiny(tracker='wandb', picture_every=2))
    pictures = [value for values, _ in service.said for value in values.values() if isinstance(value, tuple)]
    assert len(pictures) == 1 and pictures[0][2] == 3
    assert 'wandb cannot end its run: FileNotFoundError' in capsys.readouterr().err


def test_a_tracker_that_is_not_there_or_does_not_begin(tiny, service, monkeypatch):
    service.init = lambda **given: Path('/nowhere/at/all').read_text()
    with pytest.raises(ValueError, match='nowhere.*leave --tracker away'):
        pretrain(tiny(tracker='wandb'))
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install trackio'):
        pretrain(tiny(tracker='trackio'))


def test_energy_is_what_the_counter_says(monkeypatch):
    counts = iter([5_000, 7_200_005_000, 10_800_005_000])
    nvml = types.SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda name: name,
                                 nvmlDeviceGetTotalEnergyConsumption=lambda gpu: next(counts) if gpu == 'GPU-1-2' else None)
    monkeypatch.setitem(sys.modules, 'pynvml', nvml)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: types.SimpleNamespace(uuid='1-2'))
    meter = Meter(torch.device('cuda'))
    assert (meter.kwh(), meter.kwh()) == (2.0, 1.0)
    assert Meter(torch.device('cpu')).kwh() is None
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda gpu: 1 / 0  # a GPU that is lost in the middle
    assert meter.kwh() is None and meter.kwh() is None
    nvml.nvmlInit = None  # a driver that is not there
    assert Meter(torch.device('cuda')).kwh() is None
