"""One epoch: batches in, losses out. Within a step the host does not wait for the device; it looks every few steps.

(torch's SyncBatchNorm does wait, once a layer, when several GPUs share their statistics.)
"""
import time
from contextlib import nullcontext

import torch
from torch import distributed as dist

from common.optim import set_schedule
from common.schedule import seed_for


class NotFinite(ValueError):
    """The loss or the gradient of a step was NaN or infinite; that step changed nothing."""
    on_all_ranks = True  # so that one of them says it


def train_one_epoch(model, parts, steps, *, optimizer, guard, ranks, seed, schedule, draw_visible, autocast, accum, clip_grad,
                    log_every, look):
    """Train on the steps of a range.

    parts yields images (B / accum, C, H, W), `accum` times a step. schedule(step) -> (lr, weight decay). draw_visible(step) ->
    LongTensor (B, k), this rank's part of the step's masks. autocast() -> the context of the forward pass. look(results,
    seconds) is called every `log_every` steps and after the last one with [(step, loss, gradient norm before clipping)] since
    the look before. Raises NotFinite.
    """
    model.train()
    window, first, began = [], steps.start, time.perf_counter()
    for step in steps:
        # Drop path and dropout: a function of where we are, so that there is no random state to save.
        torch.manual_seed(seed_for('noise', seed, step, ranks.rank))
        set_schedule(optimizer, *schedule(step))
        masked = ((to_device(next(parts), ranks.device), to_device(visible, ranks.device))
                  for visible in draw_visible(step).chunk(accum))
        window.append(train_step(model, masked, accum, optimizer, guard, ranks, autocast, clip_grad))
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


def train_step(model, parts, accum, optimizer, guard, ranks, autocast, clip_grad):
    """One optimiser step on `accum` equal parts (images, visible); (loss, gradient norm, 1 if finite) on the device.

    Whether the step is finite is decided on the device, alike on all ranks; if it is not, it changes nothing.
    """
    before = guard.snapshot()
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=ranks.device)
    for i, (images, visible) in enumerate(parts):
        alone = i + 1 < accum and hasattr(model, 'no_sync')  # gradients meet after the last part only
        with model.no_sync() if alone else nullcontext():
            with autocast():
                loss = model(images, visible) / accum
            loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], clip_grad)
    verdict = ranks.all_reduce(torch.stack([total, (~torch.isfinite(total + norm)).float()]))
    off = verdict[1] > 0
    optimizer.found_inf, optimizer.grad_scale = off.float(), None
    optimizer.step()
    guard.restore(before, off)
    return torch.stack([verdict[0] / ranks.size, norm.float(), 1 - off.float()])


@torch.no_grad()
def evaluate(spark, batches, places, visible, ranks, autocast):
    """The mean loss over a data set, each image counted once; on all ranks alike.

    batches yields this rank's images, places their indices; visible (N, k) are the masks of the whole set.
    """
    ranks.broadcast(spark.buffers())  # without sync_bn the ranks' running statistics differ: rank 0's are those saved
    spark.eval()
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for images, part in zip(batches, places):
        with autocast():  # not compiled: the last batch is smaller
            loss = spark.forward(to_device(images, ranks.device), to_device(visible[part], ranks.device))
        total += loss.double() * len(images)
    spark.train()
    return ranks.all_reduce(total).item() / len(visible)


def fit_accumulation(spark, share, ranks, autocast):
    """The smallest power of two that a rank's batch of `share` images must be cut into to fit in memory; on all ranks alike.

    Tried with a forward and backward pass of the plain network (a rank that failed alone would leave the others waiting in
    SyncBatchNorm), beside as much memory as the gradients in flight and the optimiser will take. Raises ValueError.
    """
    accum, buffers, encoder = 1, {name: b.clone() for name, b in spark.named_buffers()}, spark.encoder
    while True:
        try:
            reserve = [torch.empty_like(p) for p in spark.parameters() for _ in range(3)]
            images = torch.randn(share // accum, encoder.in_chans, *encoder.input_size, device=ranks.device)
            with autocast():
                loss = spark(images.to(memory_format=torch.channels_last))
            loss.backward()
            failed = 0.0
        except torch.OutOfMemoryError:
            failed = 1.0
        images = loss = reserve = None  # noqa: F841  (give the memory back before the next try)
        spark.zero_grad(set_to_none=True)
        if ranks.device.type == 'cuda':
            torch.cuda.empty_cache()
        if not ranks.all_reduce(torch.tensor(failed, device=ranks.device), dist.ReduceOp.MAX).item():
            break
        if share % (accum * 2):
            raise ValueError(f'{share // accum} images at a time do not fit in memory, and the {share} of a rank cannot be '
                             f'halved further: give a smaller --bs, --input_size or --decoder_width')
        accum *= 2
    for name, buffer in spark.named_buffers():
        buffer.copy_(buffers[name])
    return accum
