"""What data parallelism costs: a model of an all-reduce, and of a training step with one (docs/scale.md).

Seconds and bytes throughout; a bandwidth is in bytes a second, as nccl-tests gives its bus bandwidth.
"""
import math

BUCKET = 25 * 2 ** 20  # bytes of gradients that DDP reduces at once


def all_reduce_seconds(size, ranks, bandwidth, latency):
    """An all-reduce of `size` bytes: each rank sends and receives 2 (n - 1) / n of them, in 2 log2(n) rounds
    of a latency.
    """
    rounds = 2 * math.ceil(math.log2(ranks))
    return rounds * latency + 2 * (ranks - 1) / ranks * size / bandwidth


def step_seconds(compute, gradients, ranks, bandwidth, latency, overlap, collectives=0, gathered=0):
    """A step that computes for `compute` seconds on each rank, and averages so many bytes of gradients.

    overlap: the share of the computing beside which gradients travel; what does not fit there is waited for.
    collectives: small ones that the computing waits for, as in SyncBatchNorm. gathered: bytes that each rank
    hands to every other in them.
    """
    if ranks == 1:
        return compute
    buckets = math.ceil(gradients / BUCKET)
    travel = all_reduce_seconds(gradients, ranks, bandwidth, 0) + buckets * all_reduce_seconds(0, ranks, bandwidth, latency)
    waits = collectives * all_reduce_seconds(0, ranks, bandwidth, latency) + (ranks - 1) * gathered / bandwidth
    return compute + max(travel - overlap * compute, 0) + waits
