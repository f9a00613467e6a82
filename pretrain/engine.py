"""What pretraining adds to an epoch (common/engine.py): masks for the batches, the held-out loss, fitting the memory."""
from itertools import count

import torch
from torch import distributed as dist

from common.engine import to_device


def masked(images, draw_visible, start, accum, device):
    """(images, visible) on the device, `accum` times a step from `start` on: the arguments of spark(...).

    images yields (B / accum, C, H, W). draw_visible(step) -> LongTensor (B, k), this rank's part of the step's masks.
    """
    for step in count(start):
        for visible in draw_visible(step).chunk(accum):
            yield to_device(next(images), device), to_device(visible, device)


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
