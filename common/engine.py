"""One epoch: batches in, losses out. Within a step the host does not wait for the device; it looks every few steps.

(torch's SyncBatchNorm does wait, once a layer, when several GPUs share their statistics.)
"""
import time
from contextlib import nullcontext
from itertools import islice

import torch
from torch import distributed as dist

from common.optim import set_schedule
from common.schedule import seed_for


class NotFinite(ValueError):
    """The loss or the gradient of a step was NaN or infinite; that step changed nothing."""
    on_all_ranks = True  # so that one of them says it


def train_one_epoch(model, batches, steps, *, optimizer, guard, ranks, seed, schedule, autocast, accum, clip_grad, log_every,
                    look, after_step=None):
    """Train on the steps of a range.

    batches yields the arguments of model(...) -> loss, on the device, `accum` times a step: this rank's images (B / accum, C,
    H, W) and what belongs to them. schedule(step) -> (lr, weight decay). autocast() -> the context of the forward pass.
    look(results, seconds) is called every `log_every` steps and after the last one with [(step, loss, gradient norm before
    clipping)] since the look before; after_step() after each. Raises NotFinite.
    """
    model.train()
    window, first, began = [], steps.start, time.perf_counter()
    for step in steps:
        # Drop path and dropout: a function of where we are, so that there is no random state to save.
        torch.manual_seed(seed_for('noise', seed, step, ranks.rank))
        set_schedule(optimizer, *schedule(step))
        window.append(train_step(model, batches, accum, optimizer, guard, ranks, autocast, clip_grad))
        if after_step is not None:
            after_step()
        if (step + 1) % log_every == 0 or step + 1 in (first + 5, steps.stop):
            results = torch.stack(window).tolist()  # the one wait for the device
            done = range(step + 1 - len(results), step + 1)
            for at, (loss, norm, finite) in zip(done, results):
                if not finite:
                    raise NotFinite(
                        f'step {at}: the loss was {loss:.4g} and the gradient norm {norm:.4g} at a learning rate of '
                        f'{schedule(at)[0]:.3g}. That step changed nothing, and the last checkpoint is untouched. Go on from '
                        'it with a lower rate (--lr or --base_lr) or clipping (--clip), or with --precision=fp32')
            now = time.perf_counter()
            look([(at, loss, norm) for at, (loss, norm, _) in zip(done, results)], now - began)
            window, began = [], now


def to_device(tensor, device):
    """Without waiting; images channels last."""
    if device.type == 'cuda' and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.to(device, non_blocking=True).to(memory_format=layout)


def train_step(model, batches, accum, optimizer, guard, ranks, autocast, clip_grad):
    """One optimiser step on the next `accum` of the batches, of equal size; (loss, gradient norm, 1 if finite) on the device.

    Whether the step is finite is decided on the device, alike on all ranks; if it is not, it changes nothing.
    """
    before = guard.snapshot()
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=ranks.device)
    for i, batch in enumerate(islice(batches, accum)):
        alone = i + 1 < accum and hasattr(model, 'no_sync')  # gradients meet after the last part only
        with model.no_sync() if alone else nullcontext():
            with autocast():
                loss = model(*batch) / accum
            loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], clip_grad)
    verdict = ranks.all_reduce(torch.stack([total, (~torch.isfinite(total + norm)).float()]))
    off = verdict[1] > 0
    optimizer.found_inf, optimizer.grad_scale = off.float(), None
    optimizer.step()
    guard.restore(before, off)
    return torch.stack([verdict[0] / ranks.size, norm.float(), 1 - off.float()])


def fit_accumulation(model, arguments, share, ranks, autocast):
    """The smallest power of two that a rank's batch of `share` images must be cut into to fit in memory; on all ranks alike.

    arguments(n): those of model(...) -> loss for n images, on the device. Tried with a forward and backward pass of the plain
    network (a rank that failed alone would leave the others waiting in SyncBatchNorm), beside as much memory as the gradients
    in flight and the optimiser will take. Raises ValueError.
    """
    accum, buffers = 1, {name: b.clone() for name, b in model.named_buffers()}
    while True:
        try:
            reserve = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(3)]
            batch = arguments(share // accum)
            with autocast():
                loss = model(*batch)
            loss.backward()
            failed = 0.0
        except torch.OutOfMemoryError:
            failed = 1.0
        batch = loss = reserve = None  # noqa: F841  (give the memory back before the next try)
        model.zero_grad(set_to_none=True)
        if ranks.device.type == 'cuda':
            torch.cuda.empty_cache()
        if not ranks.all_reduce(torch.tensor(failed, device=ranks.device), dist.ReduceOp.MAX).item():
            break
        if share % (accum * 2):
            raise ValueError(f'{share // accum} images at a time do not fit in memory, and the {share} of a rank cannot be '
                             f'halved further: give a smaller --bs or --input_size')
        accum *= 2
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return accum
