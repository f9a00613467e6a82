"""What pretraining adds to an epoch (common/training/engine.py): masks for the batches, and the held-out loss."""
import torch

from common.training.engine import to_device


def masked(images, normalise, draw_visible, steps, accum):
    """(images, visible) on the device, `accum` times for each of the steps: the arguments of spark(...).

    images yields (B / accum, C, H, W) as they were loaded; normalise: common.training.engine.Normalise. draw_visible(step) -> LongTensor
    (B, k), this rank's part of the step's masks.
    """
    for step in steps:
        for visible in draw_visible(step).chunk(accum):
            yield normalise(next(images)), to_device(visible, normalise.device)


@torch.no_grad()
def evaluate(spark, batches, normalise, places, visible, ranks, autocast, go_on=None):
    """The mean loss over a data set, each image counted once; on all ranks alike.

    batches yields this rank's images as they were loaded, places their indices; normalise: common.training.engine.Normalise; visible
    (N, k) are the masks of the whole set. go_on() -> whether to go on with the next batch; if not, the loss means nothing.
    """
    ranks.broadcast(spark.buffers())  # without sync_bn the ranks' running statistics differ: rank 0's are those saved
    spark.eval()
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for images, part in zip(batches, places):
        with autocast():  # not compiled: the last batch is smaller
            loss = spark.forward(normalise(images), to_device(visible[part], ranks.device))
        total += loss.double() * len(images)
        if go_on and not go_on():
            break
    spark.train()
    return ranks.all_reduce(total).item() / len(visible)
