"""One epoch: batches in, losses out. The host does not wait for the device's step, but reads what came of it two steps later.

(torch's SyncBatchNorm does wait, once a layer, when several GPUs share their statistics.)
"""
import time
from collections import deque
from contextlib import nullcontext
from itertools import islice

import torch
from torch import distributed as dist
from torchvision.transforms.functional import convert_image_dtype

from common.training.optim import set_schedule
from common.training.schedule import seed_for
from common.words import counted

LAG = 2  # steps by which the host reads results later than a GPU is given them: by then it has them, and nobody waits


def train_one_epoch(model, batches, steps, *, optimizer, guard, ranks, seed, schedule, autocast, accum, clip_grad, log_every,
                    wishes, tell, look, after_step=None):
    """Train on the steps of a range; the step that comes next, which is its end unless a rank asked to be heard before.

    batches yields the arguments of model(...) -> loss, on the device, `accum` times a step: this rank's images (B / accum, C,
    H, W) and what belongs to them. schedule(step) -> (lr, weight decay). autocast() -> the context of the forward pass.
    wishes() -> (2,) on the device, not 0 where this rank wants to stop, or to save. tell(step, loss, gradient norm before
    clipping, 1 if finite, how many ranks want to stop, to save) is called for each step in turn, and returns whether to return
    to the caller for it; look(seconds) every `log_every` steps and at the end; after_step(1 if finite) after each, on the
    device. All ranks return at the same step, with all steps told.
    """
    model.train()
    first, began, waiting, wanted, step = steps.start, time.perf_counter(), deque(), False, steps.start - 1

    def read():
        at, result, arrived = waiting.popleft()
        if arrived is not None:
            arrived.synchronize()
        return tell(at, *result.tolist())

    for step in steps:
        # Drop path and dropout: a function of where we are, so that there is no random state to save.
        torch.manual_seed(seed_for('noise', seed, step, ranks.rank))
        set_schedule(optimizer, *schedule(step))
        result = train_step(model, batches, accum, optimizer, guard, ranks, autocast, clip_grad, wishes)
        if after_step is not None:
            after_step(result[2])
        waiting.append((step, *on_its_way(result)))
        while len(waiting) > (LAG if result.is_cuda else 0):
            wanted |= read()
        if wanted:  # on all ranks at the same step, for all read the same result
            break
        if (step + 1) % log_every == 0 or step + 1 == first + 5:
            now = time.perf_counter()
            look(now - began)
            began = now
    while waiting:
        read()
    look(time.perf_counter() - began)
    return step + 1


def on_its_way(result):
    """A small tensor on its way to the host, and the event of its arrival; itself and None on the CPU."""
    if not result.is_cuda:
        return result, None
    host = torch.empty_like(result, device='cpu', pin_memory=True).copy_(result, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived


def to_device(tensor, device):
    """Without waiting; images channels last."""
    if device.type == 'cuda' and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.to(device, non_blocking=True).to(memory_format=layout)


class Normalise:
    """Images (B, C, H, W) as they were loaded, uint8 or float32 in [0, 1] -> on the device, float32, normalised, channels last.

    normalisation: (mean, std) of each channel. Equal to common.images.augmented.as_input of each image: to the last bit on the CPU.
    """

    def __init__(self, normalisation, device):
        self.device, (self.mean, self.std) = device, (
            torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1) for values in normalisation)

    def __call__(self, images):
        images = convert_image_dtype(to_device(images, self.device), torch.float32)
        return images.sub(self.mean).div_(self.std)  # torchvision's normalize looks at std, and a GPU would wait for that


def train_step(model, batches, accum, optimizer, guard, ranks, autocast, clip_grad, wishes):
    """One optimiser step on the next `accum` of the batches, of equal size.

    wishes as for train_one_epoch. Returns (loss, gradient norm, 1 if finite, how many ranks want to stop, to save), (5,) on
    the device. Whether the step is finite is decided on the device, alike on all ranks; if it is not, it changes nothing.
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
    verdict = ranks.all_reduce(torch.cat([torch.stack([total, (~torch.isfinite(total + norm)).float()]), wishes()]))
    off = verdict[1] > 0
    optimizer.found_inf, optimizer.grad_scale = off.float(), None
    optimizer.step()
    guard.restore(before, off)
    return torch.cat([torch.stack([verdict[0] / ranks.size, norm.float(), 1 - off.float()]), verdict[2:]])


def fit_accumulation(model, arguments, share, ranks, autocast, least=1):
    """The smallest power of two that a rank's batch of `share` images must be cut into to fit in memory; on all ranks alike.

    arguments(n): those of model(...) -> loss for n images, on the device. Tried with a forward and backward pass of the plain
    network (a rank that failed alone would leave the others waiting in SyncBatchNorm), beside as much memory as the gradients
    in flight and the optimiser will take. least: images that a part must have; a rank that has fewer in all, whose norms share
    their statistics, cuts nothing. Raises ValueError.
    """
    if share < least:
        return 1
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
        if share % (accum * 2) or share // (accum * 2) < least:
            norm = ' (BatchNorm needs two at a time in this network)' if share // accum == least > 1 else ''
            do_not_fit = f'{counted(share // accum, "image at a time does", "images at a time do")} not fit in memory'
            raise ValueError(f'{do_not_fit}, and the {share} of a rank cannot be halved further{norm}: give a smaller --bs or '
                             '--input_size')
        accum *= 2
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return accum
