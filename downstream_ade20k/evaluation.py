"""How a segmenter is measured: mIoU and accuracies, each image looked at once, on any number of processes.

--eval measures a file.
"""
import sys

import torch

from common.images.held_out import warn_of_division
from common.images.loading import each_once, naming_the_file
from common.live_line import LiveLine
from common.training.device import to_device, untimed_kernels
from common.training.run import autocast, loading_processes
from common.words import counted
from downstream_ade20k.checkpoints import read_segmenter, restore
from downstream_ade20k.confusion import Confusion, class_table
from downstream_ade20k.data import validation_images
from downstream_ade20k.inference import Inference, largest
from downstream_ade20k.views import Segmented, WholeView, collate_whole


def confusion(model, segmented, ranks, autocast, inference, workers=0, warn=print, go_on=None, count=None):
    """The Confusion of a model on a data set, the same on all ranks. Each image is looked at once, by itself.

    model: a Segmenter. segmented: a Segmented of whole images, without stand-ins; what cannot be read is left
    out, and warn(text) told. autocast() -> the context of a forward pass. inference: an Inference.
    workers: loading processes of a rank. go_on() -> whether to go on with the next image; if not, on some
    rank, None is returned. count: a Count of the images, if given. Raises ValueError, on all ranks, if no image can be read.
    """
    # without sync_bn the ranks' running statistics differ: rank 0's are those saved
    ranks.broadcast(model.buffers())
    mode = model.training
    model.eval()
    pixels = Confusion(len(segmented.images.classes), ranks.device)
    with untimed_kernels():
        for image, (target,) in each_once(segmented, 1, workers, ranks, warn, collate_whole, None, go_on, count):
            truth = to_device(target['mask'], ranks.device)
            with autocast():
                found = inference.classes(model, to_device(image, ranks.device), tuple(truth.shape))
            pixels.add(found, truth)
    model.train(mode)
    if ranks.any(go_on is not None and not go_on()):
        return None
    pixels.reduce(ranks)
    if not pixels.images:
        raise ValueError('none of the validation images can be read')
    return pixels


def whole_view(options):
    """The view of an image in which it is handed to the Inference of these options."""
    scale = largest(options)
    short, long = (round(scale * side) for side in (options.resized_short_side, options.resized_long_side))
    return WholeView(short, long, options.keep_size)


def whole_images(options, val):
    """Images as they are measured: whole, and none stands in for one that cannot be read."""
    return Segmented(val, whole_view(options), options.normalisation, stand_ins=False,
                     timeout=options.read_timeout)


def described_size(options):
    """How large whole images are, in words."""
    if options.keep_size:
        return 'the size of their files'
    return f'a short side of {options.resized_short_side} px, a long side of {options.resized_long_side} at most'


def described_inference(options):
    """How images are measured, in words."""
    inference = Inference.of(options)
    window = 'whole'
    if inference.crop is not None:
        height, width = inference.crop
        window = f'in windows of {height} x {width} px that move by {inference.stride[0]} px'
    scales = ', '.join(f'{scale:g}' for scale in options.test_scales)
    scales = f', at the scales {scales}' if options.test_scales != (1.0,) else ''
    return f'{window}{scales}{", mirrored too" * options.test_flip}'


def evaluate_file(options, ranks):
    """--eval: {which: metrics and those of each class} of a run's file, of its weights and of their average.

    Prints how images are measured, the figures, and a table of the classes. Raises ValueError.
    """
    content = read_segmenter(options.eval)
    options, models, classes = restore(content, options)
    line = LiveLine(print if ranks.is_main else None)
    warn = line.say if ranks.is_main else print
    val = validation_images(options, classes, ranks, line)
    if ranks.is_main:
        ignored = ', '.join(map(str, val.classes.ignored)) or 'nothing'
        print(f'measured: images with {described_size(options)}, {described_inference(options)}; ignored: {ignored}')
        warn_of_division(options, content['config'])
        for remark in (*val.remarks, *options.unused()):
            print(f'warning: {remark}', file=sys.stderr)
    seen, results = whole_images(options, val), {}
    for which, model in models.items():
        model = model.to(ranks.device, memory_format=torch.channels_last)
        what = 'validation images' if which == 'model' else 'validation images (EMA)'
        with naming_the_file(seen), line.counting(what, len(val)) as count:
            pixels = confusion(model, seen, ranks, lambda: autocast(options, ranks), Inference.of(options),
                               loading_processes(options, ranks), warn, count=count)
        metrics, of_classes = pixels.metrics(), pixels.of_classes()
        results[which] = {**metrics, **of_classes}
        if ranks.is_main:
            print(f'{which}: {figures(metrics)} on {counted(metrics["images"], "image")}')
            print(class_table(of_classes, classes.names))
    return results


def figures(metrics, suffix=''):
    """mIoU and the accuracies for a person, in percent as the field has it. suffix: of the metrics' names."""
    values = [metrics[f'{name}{suffix}'] for name in ('mIoU', 'mAcc', 'aAcc')]
    if None in values:
        return 'mIoU not measured: the masks ignore every pixel'
    return 'mIoU {:.2f} (mAcc {:.2f}, aAcc {:.2f})'.format(*values)
