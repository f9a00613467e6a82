"""The step as one CUDA graph: it waits for nothing, all state stays where it is, and replays are the eager steps."""
import json
import os
import random
import re
import signal
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from common import recompute
from common.distributed import Ranks
from common.networks.create import create_cnn
from common.reliability.stopping import Stopped
from common.training import graph
from common.training.finetuning import Average
from common.training.graph import EAGER_STEPS, BrokenCapture, GraphedStep
from common.training.optim import BufferGuard, build_optimizer, parameter_groups, set_schedule
from common.training.scaling import LossScaler
from common.training.trainer import Trainer, train_step
from downstream_ade20k.segmenter import Segmenter
from downstream_imagenet.classifier import Classifier
from pretrain.main import pretrain
from pretrain.results.read_log import read_log
from pretrain.spark import build_spark
from tests.common.runs import in_step, losses_of
from tests.conftest import Stop, log_of, same, saved, stop_after
from tests.emulated_graph import EmulatedRecorder
from tests.host_reads import NoHostReads

ALONE = Ranks(0, 1, torch.device('cpu'))
IMAGES = 4


class Pretraining:
    """SparK with drop path, and batches for it."""

    def __init__(self, accelerated=False, recompute='none'):
        self.network = build_spark('test_convnext', 64, decoder_width=32, drop_path=0.3)
        self.network.accelerated = accelerated
        self.network.recompute(recompute)

    def batch(self, step, part, count):
        generator = torch.Generator().manual_seed(100 * step + part)
        images = torch.randn(count, 3, 64, 64, generator=generator).to(memory_format=torch.channels_last)
        return images, self.network.draw_visible(count, generator)


class BatchNorms(Pretraining):
    def __init__(self):
        self.network = build_spark('test_resnet', 64, decoder_width=32)
        self.network.accelerated = False


class FineTuning:
    def __init__(self):
        self.network = Classifier(create_cnn('test_resnet', num_classes=5), 'bce')

    def batch(self, step, part, count):
        generator = torch.Generator().manual_seed(100 * step + part)
        return torch.randn(count, 3, 64, 64, generator=generator), torch.rand(count, 5, generator=generator)


class Segmentation:
    def __init__(self):
        self.network = Segmenter(create_cnn('test_convvit'), 5, head_channels=16)

    def batch(self, step, part, count):
        generator = torch.Generator().manual_seed(100 * step + part)
        masks = torch.randint(-1, 5, (count, 64, 64), generator=generator, dtype=torch.int16)
        return torch.randn(count, 3, 64, 64, generator=generator), masks


class Training:
    """Some steps of training as `Trainer` takes them, on whichever of the problems."""

    def __init__(self, problem, opt='lamb', accum=1, average=False, fp16=False, bad=()):
        torch.manual_seed(0)
        self.problem, self.accum, self.bad = problem(), accum, bad
        self.network = self.problem.network.train()
        self.optimizer = build_optimizer(opt, parameter_groups(self.network, 0.1), (0.9, 0.95))
        self.guard = BufferGuard(self.network)
        self.scaler = LossScaler(ALONE.device) if fp16 else None
        self.average = Average(self.network, decay=0.9) if average else None
        self.autocast = partial(torch.autocast, 'cpu', torch.float16) if fp16 else nullcontext
        self.warned = []
        self.began_anew = 0

    def eager(self, batches, requests):
        result = train_step(self.network, batches, self.accum, self.optimizer, self.guard, ALONE, self.autocast, 5.0,
                            requests, self.scaler)
        if self.average:
            self.average.update(self.network, result[2])
        return result

    def graphed(self, recorder=None):
        def before_eager():
            self.began_anew += 1
        return GraphedStep(self.eager, self.accum, self.optimizer, ALONE, self.warned.append, before_eager, recorder)

    def run(self, take, steps, around=nullcontext):
        results = []
        for step in steps:
            torch.manual_seed(step)
            set_schedule(self.optimizer, 0.01 * (step + 1), 0.1 + step / 50)
            batches = [self.problem.batch(step, part, IMAGES // self.accum) for part in range(self.accum)]
            if step in self.bad:
                batches = [(images * float('nan'), *rest) for images, *rest in batches]
            requests = torch.tensor([0.0, float(step % 2)])
            with around():
                result = take(iter(batches), lambda: requests)  # noqa: B023  (called at once)
            results.append(result.clone())
        return torch.stack(results)

    def state(self):
        """All tensors that outlive a step, by name."""
        found = {f'network.{name}': value for name, value in self.network.state_dict().items()}
        for i, state in enumerate(self.optimizer.state.values()):
            found |= {f'optimizer.{i}.{name}': value for name, value in state.items()}
        for i, group in enumerate(self.optimizer.param_groups):
            found |= {f'group.{i}.{name}': value for name, value in group.items() if torch.is_tensor(value)}
        if self.average:
            found |= {f'average.{name}': value for name, value in self.average.module.state_dict().items()}
        if self.scaler:
            found |= {'scale': self.scaler.scale, 'growth': self.scaler.growth}
        return found


CASES = {
    'lamb': {'problem': Pretraining},
    'lamb in parts': {'problem': Pretraining, 'accum': 4},
    'adamw': {'problem': BatchNorms, 'opt': 'adamw', 'accum': 2},
    'sgd': {'problem': BatchNorms, 'opt': 'sgd'},
    'called off': {'problem': BatchNorms, 'bad': (6, 7)},
    'average': {'problem': FineTuning, 'average': True, 'bad': (5,)},
    'accelerated': {'problem': partial(Pretraining, accelerated=True)},
    'recompute': {'problem': partial(Pretraining, recompute='all')},
    'segmentation': {'problem': Segmentation, 'opt': 'adamw', 'bad': (6,)},
    'fp16': {'problem': BatchNorms, 'fp16': True, 'bad': (6,)},
}


def equal(one, other):
    assert one.keys() == other.keys()
    different = [name for name, value in one.items() if not torch.equal(value, other[name])]
    assert not different, different


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_a_step_reads_nothing_from_the_device(case):
    training = Training(**case)
    step = training.graphed()
    training.run(step, range(1))  # makes the optimiser's state
    training.run(step, range(1, 4), NoHostReads)
    training.run(training.eager, range(4, 6), NoHostReads)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_all_state_stays_at_its_place_in_memory(case):
    training = Training(**case)
    step = training.graphed()

    def places():
        inputs = {f'input.{i}': tensor for i, tensor in enumerate(sum(step.inputs.batches, ()))}
        return {name: value.data_ptr() for name, value in (training.state() | inputs).items()} | {
            'requests': step.inputs.requests.data_ptr(), 'rates': training.optimizer.rates.data_ptr()}

    training.run(step, range(2))
    before = places()
    training.run(step, range(2, 9))
    assert places() == before


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_steps_on_static_inputs_and_replays_are_the_eager_steps(case, monkeypatch):
    """To the last bit, with rates that change, drop path, steps that are called off, and averages."""
    eager, static, replayed = (Training(**case) for _ in range(3))
    expected = eager.run(eager.eager, range(20))
    torch.testing.assert_close(static.run(static.graphed(), range(20)), expected, rtol=0, atol=0, equal_nan=True)
    equal(static.state(), eager.state())

    recorder = EmulatedRecorder()
    monkeypatch.setattr(recompute, 'is_capturing', lambda: recorder.is_capturing)
    # What is measured between steps runs beside the graph: here, the network on another number of images.
    step = replayed.graphed(recorder)
    found = [replayed.run(step, range(12))]
    with torch.no_grad():
        replayed.network.eval()(*replayed.problem.batch(0, 0, 3))
        replayed.network.train()
    found.append(replayed.run(step, range(12, 20)))
    assert recorder.runs == EAGER_STEPS and recorder.replays == 20 - EAGER_STEPS and step.captured
    assert not replayed.warned and not replayed.began_anew
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=0, equal_nan=True)
    equal(replayed.state(), eager.state())
    if eager.bad:
        assert (expected[:, 2] == 0).nonzero().flatten().tolist() == list(eager.bad)


class DrawsOnTheHost(nn.Module):
    def forward(self, x):
        return x * random.random()


class LooksAtValues(nn.Module):
    def forward(self, x):
        return x * torch.tensor(2.0) if x.mean() > -9 else x


@pytest.mark.parametrize(('module', 'cause'), [
    (DrawsOnTheHost, 'draws random numbers on the host'), (LooksAtValues, 'operation not permitted')])
def test_what_cannot_be_captured_runs_eagerly_with_one_warning(monkeypatch, module, cause):
    monkeypatch.setattr(graph, 'torch_version', lambda: graph.RECOVERS)
    training, recorder = Training(FineTuning), EmulatedRecorder()
    training.network.cnn.conv1 = nn.Sequential(training.network.cnn.conv1, module())
    step = training.graphed(recorder)
    results = training.run(step, range(EAGER_STEPS + 3))
    assert step.captured is False and recorder.replays == 0
    assert training.began_anew == 1 and len(training.warned) == 1
    assert cause in training.warned[0] and '--graph=False' in training.warned[0]
    if module is LooksAtValues:
        expected = Training(FineTuning)
        expected.network.cnn.conv1 = nn.Sequential(expected.network.cnn.conv1, module())
        assert torch.equal(expected.run(expected.eager, range(EAGER_STEPS + 3)), results)
        equal(training.state(), expected.state())


@pytest.mark.parametrize(('module', 'ends'), [(LooksAtValues, True), (DrawsOnTheHost, False)])
def test_an_older_torch_ends_the_run_after_a_capture_that_broke(monkeypatch, module, ends):
    """What draws on the host lets the capture come to its end."""
    monkeypatch.setattr(graph, 'torch_version', lambda: (2, 11))
    training = Training(FineTuning)
    training.network.cnn.conv1 = nn.Sequential(training.network.cnn.conv1, module())
    step = training.graphed(EmulatedRecorder())
    training.run(step, range(EAGER_STEPS))
    with pytest.raises(BrokenCapture, match='cannot go on after that: give --graph=False') if ends else nullcontext():
        training.run(step, range(EAGER_STEPS, EAGER_STEPS + 2))
    assert len(training.warned) == (not ends)


def test_a_run_that_is_stopped_lets_go_of_its_graph(tiny, monkeypatch):
    """NCCL would wait for it for ever, while the error that ends the run holds the trainer."""
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop) as stopped:
            pretrain(tiny(graph=True))
    trainers = [frame.tb_frame.f_locals['self'] for frame in frames_of(stopped.tb)
                if isinstance(frame.tb_frame.f_locals.get('self'), Trainer)]
    assert trainers and all(trainer.step is None for trainer in trainers)


def frames_of(traceback):
    while traceback:
        yield traceback
        traceback = traceback.tb_next


def test_a_batch_of_another_shape_is_no_input_of_the_graph():
    training = Training(FineTuning)
    step = training.graphed()
    training.run(step, range(1))
    images, targets = training.problem.batch(1, 0, 1)
    with pytest.raises(AssertionError, match='where'):
        step(iter([(images, targets)]), lambda: torch.zeros(2))


def test_a_run_on_static_inputs_is_the_run_without_and_goes_on_in_the_middle(whole, tiny, tmp_path, monkeypatch):
    given = {'graph': True, 'run_dir': str(tmp_path / 'graph')}
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(tiny(**given))
    folder = pretrain(tiny(**given))
    assert all(same(saved(folder)[part], saved(whole)[part]) for part in ('model', 'optimizer', 'sums'))
    losses = [[line['loss'] for line in log_of(run)[0] if 'loss' in line] for run in (folder, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    assert 'on static inputs; a CUDA graph needs a GPU' in (folder / 'stdout_backup.txt').read_text()


def test_first_steps_that_take_longer_do_not_count_in_the_speed(tiny, monkeypatch):
    """They do so on a GPU alone."""
    monkeypatch.setattr(Trainer, 'first_steps', 7)  # more than an epoch has
    folder = pretrain(tiny(log_every=1, epochs=3))
    said = (folder / 'stdout_backup.txt').read_text()
    assert re.search(r'First 7 steps: ([\d.]+, ){6}[\d.]+ s\. In these the GPU loads and chooses its kernels\.', said)
    assert 'The first' not in said and said.count('The next step took') == 1
    assert sorted(losses_of(folder)) == list(range(8, 16))  # steps are told of from the eighth on
    lines = [json.loads(line) for line in (folder / 'pretrain_log.txt').read_text().splitlines()]
    assert [len(line['first_steps']) for line in lines if 'first_steps' in line] == [7]
    rates = [line['images_per_second'] for line in lines if 'loss' in line]
    assert rates[0] is None and all(rate > 0 for rate in rates[1:])


def test_a_run_that_is_stopped_in_its_first_steps_takes_none_of_them_for_its_speed(tiny, monkeypatch):
    looks = []
    monkeypatch.setattr(Trainer, 'first_steps', 7)
    monkeypatch.setattr(Trainer, 'look', lambda self, seconds: looks.append(seconds))
    in_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        pretrain(tiny())
    assert not looks


def test_a_run_that_told_of_first_steps_goes_on(tiny, whole, monkeypatch):
    """It does so on a GPU alone, and each time that it goes on it has first steps again."""
    monkeypatch.setattr(Trainer, 'first_steps', 2)
    for steps in (1, 7):  # the first time there is no checkpoint yet
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Stop):
                pretrain(tiny())
    folder = pretrain(tiny())
    assert all(same(saved(folder)[part], saved(whole)[part]) for part in ('model', 'optimizer', 'sums'))
    lines = [json.loads(line) for line in (folder / 'pretrain_log.txt').read_text().splitlines()]
    assert [len(line['first_steps']) for line in lines if 'first_steps' in line] == [2, 2]
    assert [line['epoch'] for line in lines if 'epoch' in line] == [0, 1, 2]
    assert [line['epoch'] for line in read_log(folder).epochs] == [1, 2]


def test_fp16_scales_the_loss_and_goes_on_with_the_scale(tiny, tmp_path, monkeypatch):
    given = {'precision': 'fp16', 'run_dir': str(tmp_path / 'fp16')}
    whole = pretrain(tiny(**{**given, 'run_dir': str(tmp_path / 'fp16 whole')}))
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(tiny(**given))
    folder = pretrain(tiny(**given))
    assert all(same(saved(folder)[part], saved(whole)[part]) for part in ('model', 'optimizer', 'scaler'))
    assert saved(whole)['scaler'].keys() == {'scale', 'growth'}
    assert 'fp16 autocast, the loss scaled' in (folder / 'stdout_backup.txt').read_text()
