"""Parts of `benchmarks.gpu` that compare numbers: golden ones, graphs with eager steps, fp16, shared norms."""
import copy
import json
import math
from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.gpu_steps import time_in_turns
from benchmarks.gpu_training import deterministic, pretraining_of, synchronise
from common.distributed import in_ddp
from common.sync_batchnorm import synchronise_on_gpus
from common.training.graph import EAGER_STEPS, EAGER_STEPS_DDP, RECOVERS, BrokenCapture, torch_version
from common.words import counted
from pretrain.spark import build_spark
from tests.pretrain.official import GOLDEN, fill, official_name, official_value

STEPS = 20
# Relative differences of what was learned: the most of two eager trainings, and what is rounding beyond twice that.
NOISE, ROUNDING = 0.05, 1e-3


def golden(report, sizes, device):
    """The official numbers in float64, on this device, in both forms."""
    for path in sorted(GOLDEN.glob('spark_*.json')):
        want = json.loads(path.read_text())
        state = {name: official_value(name, shape) for name, shape in want['keys'].items()}
        spark = build_spark(want['model'], want['input_size'], want['mask_ratio']).double()
        spark.load_official({'module': state, 'config': {}})
        images = fill('input', (want['batch'], 3, want['input_size'], want['input_size'])).to(device)
        visible = torch.tensor(want['visible'], device=device)
        for accelerated in (False, True):
            net = copy.deepcopy(spark).placed(device)
            net.accelerated = accelerated
            worst = golden_error(net, want, images, visible)
            report(f'{want["model"]}, {"accelerated" if accelerated else "plain"}',
                   f'worst relative error {worst:.1e}', aim='at most 1e-9', met=worst <= 1e-9, error=worst)


def golden_error(spark, want, images, visible):
    """The largest relative error of evaluation loss, reconstruction, loss and gradient norms."""
    with torch.no_grad():  # first, since a training step changes the running statistics
        pairs = [(spark.eval()(images, visible).item(), want['loss_eval'])]
        picture = spark.reconstruct(images, visible)
        pairs.append((picture.square().sum().item(), want['vis']['rec_or_inp_sq_sum']))
    loss = spark.train()(images, visible)
    loss.backward()
    pairs.append((loss.item(), want['loss_train']))
    norms = {official_name(name): p.grad.norm().item() for name, p in spark.named_parameters()
             if p.grad is not None}
    pairs += [(norms[name], norm) for name, norm in want['grad_norm'].items() if abs(norm) > 1e-9]
    pairs.append((math.sqrt(sum(norm ** 2 for norm in norms.values())), want['grad_norm_total']))
    return max(abs(got - expected) / abs(expected) for got, expected in pairs)


def agreement(report, sizes, device):
    """Losses and weights after 20 steps of a graph, beside eager steps and beside a run that was resumed."""
    with deterministic(device):
        for model, drop_path in zip(sizes.small_models, (None, 0.2)):
            make = partial(pretraining_of, model, sizes, device, batch=sizes.small_batch, drop_path=drop_path)
            eager, again, graph = learned(make()), learned(make()), learned(make(is_graphed=True))
            resumed = learned(make(is_graphed=True), interrupted_after=STEPS // 2)
            noise = difference(again, eager)
            name = f'{model}, drop path {drop_path}' if drop_path else model
            report(f'{name}: two eager trainings', described(noise), aim=f'weights at most {NOISE:.0e}',
                   met=noise[1] <= NOISE, **named(noise))
            report_agreement(report, f'{name}: graph and eager', difference(graph, eager), noise)
            report_agreement(report, f'{name}: a resume, and none', difference(resumed, graph), noise)


def optimisers(report, sizes, device):
    """LAMB, AdamW and SGD: graph beside eager steps."""
    with deterministic(device):
        for optimizer in ('lamb', 'adamw', 'sgd'):
            make = partial(pretraining_of, sizes.small_models[0], sizes, device, batch=sizes.small_batch,
                           optimizer=optimizer)
            eager, again, graph = learned(make()), learned(make()), learned(make(is_graphed=True))
            noise = difference(again, eager)
            report_agreement(report, f'{optimizer}: graph and eager', difference(graph, eager), noise)


class LooksAtLoss(nn.Module):
    """A network whose loss the host looks at in each step, which no graph can repeat."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *batch):
        loss = self.network(*batch)
        return loss if loss.item() < math.inf else loss.detach()


def fallback(report, sizes, device):
    """A step that cannot be captured: one warning, and eager steps after it, with drop path.

    Versions of torch that cannot go on after a capture that broke end the run with the remedy.
    """
    case = 'a step that looks at its loss'
    training = pretraining_of(sizes.small_models[1], sizes, device, batch=sizes.small_batch, drop_path=0.2,
                              is_graphed=True)
    training.network = LooksAtLoss(training.network)
    try:
        losses = [training.train(number)[0].item() for number in range(EAGER_STEPS + 4)]
    except BrokenCapture as error:
        report(case, f'the run ends: {error}', aim='a run ends only where torch cannot go on, with --graph=False as remedy',
               met=torch_version() < RECOVERS and '--graph=False' in str(error))
        return
    warned, finite = len(training.warnings), all(map(math.isfinite, losses))
    report(case, f'{counted(warned, "warning")}, losses {"" if finite else "not "}finite',
           aim='one warning on a GPU, finite losses', met=finite and warned == (device.type == 'cuda'))


def learned(training, interrupted_after=None):
    """Train STEPS steps; {losses, change of the weights, warnings}.

    interrupted_after: steps after which the training begins anew from what it saved.
    """
    start = flat(training)
    losses = []
    for number in range(STEPS):
        if number == interrupted_after:
            state, batch_of = training.state(), training.batch_of
            training = type(training)(training.network, batch_of, training.device, is_graphed=True)
            with torch.no_grad():
                for parameter in training.network.parameters():
                    parameter.zero_()  # what is not loaded shows
            training.load(state)
        losses.append(training.train(number)[0])
    return {'losses': torch.stack(losses), 'change': flat(training) - start, 'warnings': training.warnings}


def flat(training):
    return torch.cat([p.detach().flatten().double() for p in training.network.parameters()])


def difference(one, other):
    """(largest difference of two trainings' losses, that of their weights, relative to what was learned; warnings)."""
    losses = (one['losses'] - other['losses']).abs().max().item()
    change = (one['change'] - other['change']).norm() / other['change'].norm()
    return losses, change.item(), (*one['warnings'], *other['warnings'])


def described(found):
    losses, change, warnings = found
    return f'losses differ by {losses:.1e}, weights by {change:.1e} of what was learned' + ''.join(
        f'; not captured: {warning}' for warning in warnings[:1])


def named(found):
    return {'losses': found[0], 'weights': found[1]}


def report_agreement(report, case, found, noise):
    limit = 2 * min(noise[1], NOISE) + ROUNDING
    met = found[1] <= limit and not found[2]
    report(case, described(found), aim=f'weights at most {limit:.0e}', met=met, **named(found))


def half_precision(report, sizes, device):
    """Training with --precision=fp16: its loss beside bf16's, and the scale of the loss."""
    make = partial(pretraining_of, sizes.small_models[0], sizes, device, batch=sizes.small_batch)
    losses = {}
    for precision, is_graphed in (('bf16', False), ('fp16', False), ('fp16', True)):
        training = make(precision=precision, is_graphed=is_graphed)
        results = torch.stack([training.train(number) for number in range(STEPS)])
        loss, skipped = results[-1, 0].item(), int((1 - results[:, 2]).sum())
        way = f'{precision}, {"graph" if is_graphed else "eager"}'
        losses[way] = loss
        scale = f', scale 2^{math.log2(training.scaler.scale.item()):.0f}' if training.scaler else ''
        off = abs(loss - losses['bf16, eager']) / losses['bf16, eager']
        report(way, f'loss {loss:.4f} after {STEPS} steps, {skipped} left out{scale}',
               aim='loss of bf16, to 2 %', met=off <= 0.02, loss=loss, skipped=skipped)


def one_rank(report, sizes, device, model):
    """SyncBatchNorm and DDP in a process group of one: the same numbers, no wait of the host, what they cost."""
    is_cuda = device.type == 'cuda'
    options = {'device_id': device} if is_cuda else {}
    dist.init_process_group('nccl' if is_cuda else 'gloo', store=dist.HashStore(), rank=0, world_size=1, **options)
    check_norm(report, device)
    torch.backends.cudnn.benchmark = True
    make = partial(parallel_of, model, sizes, device)
    makers = {'DDP and SyncBatchNorm, graph': partial(make, is_graphed=True), 'DDP and SyncBatchNorm, eager': make}
    if is_cuda:  # torch's is for GPUs alone
        makers["DDP and torch's SyncBatchNorm, eager"] = partial(make, equal_counts=False)
    time_in_turns(report, makers, sizes, device)
    dist.destroy_process_group()


def parallel_of(model, sizes, device, equal_counts=True, is_graphed=False):
    training = pretraining_of(model, sizes, device, is_graphed=is_graphed)
    network = synchronise_on_gpus(training.network, equal_counts)
    training = type(training)(network, training.batch_of, device, is_graphed)
    if is_graphed:
        training.step.eager_steps = EAGER_STEPS_DDP
    with training.step.on_stream() if is_graphed else nullcontext():  # as torch's notes on CUDA graphs ask
        training.network = in_ddp(network, device, same_buffers=True)
    return training


def check_norm(report, device):
    """Our SyncBatchNorm beside BatchNorm, forward and backward, and whether the host waits in it."""
    worst = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for layout in (torch.channels_last, torch.contiguous_format):
            generator = torch.Generator().manual_seed(0)
            x, grad = (torch.randn(8, 32, 14, 14, generator=generator).to(device, dtype) for _ in range(2))
            x, grad = ((3 * x + 2).contiguous(memory_format=layout), grad.contiguous(memory_format=layout))
            plain = nn.BatchNorm2d(32).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
            shared = synchronise_on_gpus(copy.deepcopy(plain), equal_counts=True)
            off = max(relative(a, b) for a, b in zip(passed(shared, x, grad), passed(plain, x, grad)))
            worst[dtype] = max(off, worst.get(dtype, 0.0))
            bare = nn.BatchNorm2d(32, affine=False).to(device)
            passed(synchronise_on_gpus(bare, equal_counts=True), x, grad)  # without weights of its own it runs too
    for dtype, off in worst.items():
        limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
        name = str(dtype).removeprefix('torch.')
        report(f'SyncBatchNorm and BatchNorm, {name}', f'worst relative difference {off:.1e}',
               aim=f'at most {limit:.0e}', met=off <= limit, error=off)
    if device.type == 'cuda':
        synchronise(device)
        torch.cuda.set_sync_debug_mode('error')
        try:
            passed(shared, x, grad)
            report('SyncBatchNorm', 'the host waits for nothing', aim='no wait', met=True)
        except RuntimeError as error:
            report.failed('SyncBatchNorm', error)
        finally:
            torch.cuda.set_sync_debug_mode('default')


def passed(norm, x, grad):
    """Output, gradients and running statistics of a forward and backward pass."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    norm.zero_grad()
    out = norm(x)
    out.backward(grad)
    own = [p.grad for p in norm.parameters()]
    return [out.detach(), x.grad, *own, norm.running_mean, norm.running_var]


def relative(one, other):
    return ((one.double() - other.double()).norm() / other.double().norm()).item()
