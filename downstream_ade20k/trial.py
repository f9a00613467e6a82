"""A trial before the first step: can the largest validation images be measured in the memory that there is?

Without it, a run could end at its first evaluation, after hours.
"""
from contextlib import contextmanager

import numpy as np
import torch

from common.memory_errors import is_out_of_memory
from common.training.accumulation import BACKWARD, ranks_here
from common.training.memory import free_memory
from downstream_ade20k.evaluation import whole_view
from downstream_ade20k.inference import Inference
from downstream_ade20k.views import resized

IN_TRAINING = 3  # tensors as large as a trained parameter: its gradient and the two moments of AdamW


def require_memory_to_measure(network, val, options, ranks, autocast, example_batch=None):
    """Raise a ValueError on all ranks if the largest validation images cannot be measured.

    network: a Segmenter on its device, whose mode and buffers stay. val: SegmentationImages with shapes. autocast() ->
    the context of a forward pass. example_batch(): a part of a batch, on the device, whose step will be a CUDA graph,
    which keeps its memory; None if it will not.

    A GPU measures images of these sizes, beside as much memory as training will take. On a CPU, where a system that
    runs out of memory kills processes, the scores are counted, which are the larger part for many classes.
    """
    classes, inference = len(val.classes), Inference.of(options)
    for seen, size, name in largest_images(val, options):
        if ranks.device.type == 'cuda':
            failed = not can_measure(network, options.in_chans, seen, size, inference, autocast, example_batch)
        else:
            free = free_memory()
            failed = free is not None and ranks_here() * bytes_of_scores(classes, seen, size, inference) > free
        if ranks.any(failed):
            raise ValueError(f'the validation image {name}, {size[0]} x {size[1]} px, seen at {seen[0]} x {seen[1]}, with '
                             f'{classes} classes cannot be measured in the memory that there is: {remedy(options)}')


def largest_images(val, options):
    """[(height and width as the network sees it, height and width of the file, name)] of the image that is largest
    when it is resized, and of the one whose file is largest; one entry if they are the same.
    """
    view = whole_view(options)
    sizes, places = np.unique(val.shapes, axis=0, return_index=True)
    files = [tuple(map(int, size)) for size in sizes]
    seen = [resized(*size, view.short, view.long, view.keep_size) for size in files]
    chosen = {int(np.argmax(np.prod(sides, axis=1, dtype=float))) for sides in (seen, files)}
    return [(seen[number], files[number], val.name(int(places[number]))) for number in sorted(chosen)]


def bytes_of_scores(classes, seen, size, inference):
    """Bytes of the scores of an image: at the size that the network sees, and at that of the file where they are a mean.

    The arguments are numbers of classes and of pixels as in largest_images, and an Inference.
    """
    is_mean = inference.flip or len(inference.scales) > 1
    return 4 * classes * (seen[0] * seen[1] + is_mean * size[0] * size[1])


def can_measure(network, channels, seen, size, inference, autocast, example_batch=None):
    """Whether a GPU can measure an image, which is tried. The other arguments are those of require_memory_to_measure."""
    device = next(network.parameters()).device
    with evaluating(network):
        try:
            taken = taken_by_training(network, example_batch, autocast, device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return True  # It is not the image that is too large: the first step says what is.
        try:
            with autocast():
                inference.classes(network, torch.zeros(1, channels, *seen, device=device), size)
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            taken.clear()
            torch.cuda.empty_cache()


def taken_by_training(network, example_batch, autocast, device):
    """Tensors as large as what training keeps of a GPU's memory while images are measured."""
    taken = [] if example_batch is None else [memory_of_a_step(network, example_batch, autocast, device)]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return taken + [torch.empty_like(parameter) for parameter in trained for _ in range(IN_TRAINING)]


def memory_of_a_step(network, example_batch, autocast, device):
    """A tensor as large as what a step takes of a GPU's memory besides the gradients."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    batch = example_batch()
    with autocast():
        loss = network(*batch)  # The exchange of gradients between the ranks is not part of it: there is no backward pass.
    taken = torch.cuda.max_memory_allocated(device) - before
    del batch, loss
    return torch.empty(round(BACKWARD * taken), dtype=torch.uint8, device=device)


@contextmanager
def evaluating(network):
    """Context in which a network is in evaluation mode: ranks do not wait for each other, and no statistics change."""
    mode = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(mode)


def remedy(options):
    """What to give where an image cannot be measured."""
    found = [] if options.slide else ['--slide, with which it is seen in windows']
    found.append('--short_side in place of --keep_size' if options.keep_size else 'a smaller --short_side')
    if options.test_flip or len(options.test_scales) > 1:
        found.append('one scale alone as --test_scales, and no --test_flip')
    return f'give {"; or ".join(found)}'
