"""Whole runs of A2MIM: resuming to the last bit, ranks, parts, static inputs, and what is refused."""
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch

from pretrain.a2mim import A2MIM, build_a2mim
from pretrain.a2mim_options import A2MIMOptions
from pretrain.main import pretrain
from pretrain.pretraining import Pretraining
from pretrain.term_sums import TermSums
from tests.conftest import ROOT, assert_goes_on, assert_same_run, flags, log_of, saved

TINY = {'method': 'a2mim', 'name': 'tiny', 'model': 'your_convnet', 'input_size': 32, 'cell_size': 8, 'batch_size': 8,
        'epochs': 2, 'lr': 1e-3, 'workers': 0, 'warmup_epochs': 0.5, 'log_every': 3, 'fourier_group': 4}


@pytest.fixture
def options(world, tmp_path):
    """Options of a run of 2 epochs with 5 steps each, a second or two; options(**changes)."""
    def make(**changes):
        return A2MIMOptions(**{**TINY, 'run_dir': str(tmp_path / 'run'), 'data_path': str(world), **changes})
    return make


def close(one, other, tolerance=1e-4):
    """Whether two runs ended with about the same weights."""
    a, b = saved(one)['model'], saved(other)['model']
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=tolerance, atol=tolerance, msg=name)


def test_a_run_tells_its_terms_and_leaves_a_network_of_timm(options):
    folder = pretrain(options(val_every=1))
    epochs, runs = log_of(folder)
    for entry in epochs[1:]:
        assert entry['loss'] == pytest.approx(entry['loss_spatial'] + 0.5 * entry['loss_frequency'], rel=1e-5)
    assert epochs[0]['val_loss'] > epochs[2]['val_loss'] > 0  # of hidden pixels alone
    assert epochs[2]['token_gain'] != epochs[1]['token_gain'] != 0
    assert runs[0]['config']['fourier_group'] == 4 and runs[0]['config']['method'] == 'a2mim'
    shown = (folder / 'stdout_backup.txt').read_text()
    for text in ('16 in an image of 32 x 32, 6 visible', 'after stages.1', 'averaged over 4 images'):
        assert text in shown, text
    assert [path.name for path in (folder / 'reconstructions').iterdir()] == ['epoch_0002.png']
    state = torch.load(folder / 'your_convnet_1kpretrained.pth', weights_only=True)
    timm.create_model('your_convnet').load_state_dict(state)
    trained = saved(folder)['model']
    assert all(torch.equal(value, trained[f'encoder.cnn.{name}']) for name, value in state.items())


@pytest.mark.parametrize(('steps', 'changes'), [
    (5, {}), (7, {'save_every_steps': 3}), (9, {'save_every_steps': 2, 'workers': 2, 'log_every': 1, 'accum': 2}),
    (3, {'save_every_steps': 1, 'recompute': 'all', 'fourier': 'spectral', 'fourier_group': None})])
def test_a_killed_run_goes_on_to_the_same_end_to_the_last_bit(options, tmp_path, monkeypatch, steps, changes):
    assert_goes_on(options, tmp_path, monkeypatch, steps, changes)


def test_static_inputs_change_nothing(options, tmp_path):
    """The step of a CUDA graph, as far as the CPU has it."""
    one = pretrain(options(run_dir=str(tmp_path / 'eager')))
    assert_same_run(one, pretrain(options(run_dir=str(tmp_path / 'static'), graph=True)))


def test_parts_of_a_batch_have_the_same_groups(options, tmp_path):
    """With LayerNorm, since BatchNorm's statistics are those of a part."""
    changes = {'model': 'test_convnext', 'input_size': 64, 'cell_size': 32, 'epochs': 1, 'fourier_weight': 5.0}
    folders = [pretrain(options(run_dir=str(tmp_path / f'parts{accum}'), accum=accum, **changes)) for accum in (1, 2)]
    losses = [log_of(folder)[0][1]['loss'] for folder in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    larger = pretrain(options(run_dir=str(tmp_path / 'larger'), **{**changes, 'fourier_group': 8}))
    assert log_of(larger)[0][1]['loss'] != pytest.approx(losses[0], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize('group', [2, 8])
def test_two_ranks_train_as_one(options, tmp_path, group):
    """With 8 images in a group the ranks share it, and with 2 each has groups of its own.

    By SGD: Adam's first steps are as long whatever the size of a gradient, and make much of its rounding.
    """
    changes = {'fourier_group': group, 'opt': 'sgd', 'lr': 0.1, 'token_lr_scale': 1.0, 'fourier_weight': 5.0}
    one = pretrain(options(run_dir=str(tmp_path / 'one'), **changes))
    two = options(run_dir=str(tmp_path / 'two'), **changes)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'pretrain.main',
               '--name=tiny', '--method=a2mim', *flags(two)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    close(one, tmp_path / 'two')
    for mine, theirs in zip(log_of(one)[0], log_of(tmp_path / 'two')[0]):
        for name in ('loss', 'val_loss', 'loss_spatial', 'loss_frequency'):
            if mine.get(name) is not None:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_another_group_is_another_run(options):
    pretrain(options(epochs=1, warmup_epochs=0))
    with pytest.raises(ValueError, match='fourier_group was 4 and is 8 now'):
        pretrain(options(warmup_epochs=0, fourier_group=8))


def test_a_group_that_does_not_fit_is_refused_before_images_are_looked_for(options, tmp_path):
    with pytest.raises(ValueError, match='--fourier_group=3 does not fit 8 images at a time'):
        options(fourier_group=3, data_path=str(tmp_path / 'no images'))


def test_a_step_that_is_not_finite_is_not_counted():
    network = build_a2mim('your_convnet', input_size=32, cell_size=8).train()
    one, two, nan = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(float('nan'))
    sums = network.term_sums
    for spatial, frequency in ((one, two), (one, None)):  # two parts of a step
        sums.add({'spatial': spatial, 'frequency': frequency})
    sums.end_step(torch.tensor(1.0))
    for spatial in (one, nan):
        sums.add({'spatial': spatial, 'frequency': one})
    sums.end_step(torch.tensor(0.0))
    assert sums.totals.tolist() == [2, 2, 2]
    sums.reset([1.0, 2.0, 3.0])
    assert sums.totals.tolist() == [1, 2, 3]


def test_terms_agree_with_the_loss_where_steps_are_called_off(options, monkeypatch):
    forward = A2MIM.forward
    calls = []

    def broken_now_and_then(self, images, visible=None):
        calls.append(self.training)
        loss = forward(self, images, visible)
        return loss * float('nan') if sum(calls) in (4, 7) and self.training else loss

    monkeypatch.setattr(A2MIM, 'forward', broken_now_and_then)
    epochs, _ = log_of(pretrain(options(accum=2)))
    assert epochs[1]['skipped'] == 2
    for entry in epochs[1:]:
        assert entry['loss'] == pytest.approx(entry['loss_spatial'] + 0.5 * entry['loss_frequency'], rel=1e-5)


def test_few_cells_are_warned_of(options, capsys):
    pretrain(options(input_size=64, cell_size=32, epochs=1, warmup_epochs=0))
    warned = capsys.readouterr().err
    assert 'an image has 4 cells of 32 px only, of which 3 (75%) are hidden' in warned and 'Give --cell_size=8' in warned


def test_a_run_of_another_loss_is_refused_by_name(options):
    pretrain(options(epochs=1, warmup_epochs=0))
    with pytest.raises(ValueError, match='fourier was focal and is none now'):
        pretrain(options(warmup_epochs=0, fourier='none', fourier_group=None))


def test_the_terms_are_added_up_on_the_device_of_the_ranks():
    """Before the first step they are on the CPU, where NCCL adds nothing up: so it is in a run that goes on at the end of an
    epoch.
    """
    class Device:
        """Stands in for the ranks of GPUs."""
        device = torch.device('meta')

        def all_reduce(self, tensor):
            self.seen = tensor
            return torch.tensor([4.0, 6.0])

    run = SimpleNamespace(ranks=Device(), network=None, method=SimpleNamespace(term_sums=lambda network: TermSums(['l1'])))
    assert Pretraining.terms_of_all_ranks(run) == [4.0, 6.0]
    assert run.ranks.seen.device.type == 'meta'
