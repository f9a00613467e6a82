"""Into how many parts a batch must be cut to fit in memory."""
import os

import torch
from torch.utils._pytree import tree_leaves

from common.memory_errors import is_out_of_memory
from common.recompute import frozen_statistics
from common.training.memory import free_memory, kept_for_backward
from common.words import counted, first_line

BACKWARD = 1.25  # memory of a step, as a multiple of what its forward pass keeps


def fit_accumulation(network, example_batch, images_per_rank, ranks, autocast, smallest_part=1, keeps_inputs=False,
                     reason_against_parts=lambda parts: None, remedy=None):
    """The smallest power of two that a rank's batch must be cut into to fit in memory; the same on all ranks.

    network: forward(*batch) -> loss, without the exchange between ranks: a rank that failed alone would leave
    the others waiting. example_batch(n): a batch of n images, on the device. images_per_rank: of the batch.
    smallest_part: images that a part must have; a rank that has fewer in all, whose norms share their
    statistics, cuts nothing. keeps_inputs: whether the inputs of all parts stay in memory during a step, as
    those of a CUDA graph do. reason_against_parts(parts): why a batch cannot be cut into so many, in a sentence with
    the remedy; None if it can. remedy: what can be given where that does not let it be cut far enough.

    On a GPU it is tried with a forward and backward pass, beside as much memory as the gradients in flight
    and the optimiser will take. A CPU is not tried like that: a system that runs out of memory kills the
    process, or others. There it is counted, see `needed_on_host`. Raises ValueError if nothing fits.
    """
    if images_per_rank < smallest_part:
        return 1
    halved = [2 ** power for power in range(images_per_rank.bit_length()) if images_per_rank % 2 ** power == 0]
    possible = [accum for accum in halved if images_per_rank // accum >= smallest_part]
    allowed = [accum for accum in possible if reason_against_parts(accum) is None]
    if not allowed:
        raise ValueError(reason_against_parts(1))
    with frozen_statistics(network):
        for accum in allowed:
            # With DDP, the gradients of all parts but the last stand beside its buckets.
            copies = 4 if ranks.size > 1 and accum > 1 else 3
            why_not = reason_against_step(network, example_batch, images_per_rank // accum, ranks, autocast,
                                          images_per_rank if keeps_inputs else 0, copies)
            if why_not is None:
                return accum
    finer = [other for other in possible if other > accum]
    raise does_not_fit(images_per_rank, accum, smallest_part, why_not, remedy if finer else None)


def reason_against_step(network, example_batch, images, ranks, autocast, kept=0, copies=3):
    """Why a training step of so many images does not fit in the memory of every rank, in words; None if it does.

    kept: images whose inputs a CUDA graph keeps. Its memory is its own, so that there must be room besides for
    a forward pass of what is measured between the steps. copies: of the weights, that stand beside them on a GPU:
    gradients, and the state of the optimiser.
    """
    reason = None
    if ranks.device.type == 'cpu':
        needed, free = needed_and_free(network, example_batch, images, autocast)
        if needed > free:
            reason = f'{needed / 2 ** 30:,.1f} GiB needed, {free / 2 ** 30:,.1f} GiB free'
        return reason_of_any(ranks, reason)
    try:
        reserve = [torch.empty_like(p) for p in network.parameters() if p.requires_grad for _ in range(copies)]
        batch = example_batch(images)
        if kept:
            reserve += [*example_batch(kept), reserve_forward_memory(network, batch, autocast, ranks.device)]
        with autocast():
            loss = network(*batch)
        loss.backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    batch = loss = reserve = None  # noqa: F841  (give the memory back before the next try)
    network.zero_grad(set_to_none=True)
    if ranks.device.type == 'cuda':
        torch.cuda.empty_cache()
    return reason_of_any(ranks, reason)


def reason_of_any(ranks, reason):
    """`reason`, a text or None, or that another rank has one; None if no rank has."""
    return (reason or 'on another rank') if ranks.any(reason is not None) else None


def needed_on_host(network, example_batch, images, autocast):
    """Bytes that a training step of so many images will take of a computer's memory, about.

    They are counted from what a forward pass of two images keeps for its backward pass. Kernels and the backward
    pass take a quarter more at most (1.16 was the most that was measured, of five networks). Gradients, the
    state of the optimiser and the copy of a checkpoint take six times the weights; the batches that are loaded
    in advance, and this one, three times the images.
    """
    few = min(images, 2)
    batch = example_batch(few)
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]

    def loss():
        with autocast():
            return network(*batch)

    kept = kept_for_backward(loss, [*network.parameters(), *network.buffers(), *tensors])
    weights = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    inputs = sum(tensor.nbytes for tensor in tensors)
    return (BACKWARD * kept + 3 * inputs) * images / few + 6 * weights


def needed_and_free(network, example_batch, images, autocast):
    """Bytes that a step of so many images takes of this computer's memory on all its ranks, and bytes that are free.

    Where nobody says how many are free, it is as many as are needed.
    """
    needed = needed_on_host(network, example_batch, images, autocast) * ranks_here()
    free = free_memory()
    return needed, needed if free is None else free


def ranks_here():
    """The ranks on this computer."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1))


def require_memory(network, example_batch, images_per_rank, accum, ranks, autocast, remedy):
    """Raise a ValueError if a step of the parts that were given will not fit in a computer's memory.

    A GPU says so itself, without harm. Parts of one or two images are not checked. images_per_rank: of the
    batch; accum: the parts that it is cut into. remedy: what can be given, as the last words of a sentence.
    """
    images = images_per_rank // accum
    if ranks.device.type != 'cpu' or images <= 2:
        return
    with frozen_statistics(network):
        needed, free = needed_and_free(network, example_batch, images, autocast)
    if ranks.any(needed > free):
        raise ValueError(f'a step on {images:,} images at a time would take about {needed / 2 ** 30:,.1f} GiB of '
                         f'memory, and {free / 2 ** 30:,.1f} GiB are free: {remedy}')


@torch.no_grad()
def reserve_forward_memory(network, batch, autocast, device):
    """A tensor as large as what a forward pass without gradients takes of a GPU's memory; empty elsewhere."""
    if device.type != 'cuda':
        return torch.empty(0)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with autocast():
        network(*batch)
    taken = torch.cuda.max_memory_allocated(device) - before
    return torch.empty(taken, dtype=torch.uint8, device=device)


def does_not_fit(images_per_rank, accum, smallest_part, why_not, remedy=None):
    """The ValueError for a batch that cannot be cut further. why_not: why its part does not fit, in words. remedy: what can
    be given where the batch cannot be cut for another reason than its size.
    """
    images = images_per_rank // accum
    too_many = counted(images, 'image at a time does', 'images at a time do')
    if remedy:
        return ValueError(f'{too_many} not fit in memory ({why_not}), and the options do not allow that a rank\'s batch '
                          f'of {images_per_rank} is cut further: give {remedy}')
    norm = ' (BatchNorm needs two at a time in this network)' if images == smallest_part > 1 else ''
    return ValueError(f'{too_many} not fit in memory ({why_not}), and a rank\'s batch of {images_per_rank} cannot be halved '
                      f'further{norm}: give a smaller --bs or --input_size')
