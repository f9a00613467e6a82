"""Train Mask R-CNN or Faster R-CNN with any timm CNN, on any images in COCO's format, and measure average precision.

    bash downstream_coco/main.sh my_run --data_path=DIR --model=resnet50 --finetune_from=FILE    # from any folder
    torchrun --nproc_per_node=8 -m downstream_coco.main --name=my_run ...                        # the same
    python -m downstream_coco.main --name=my_run ...                                             # one process

The same command again goes on where the run stopped. From Python: `train_detector(Options(...))`.
"""
import dataclasses
import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn

from common.cli import errors_in_one_sentence, reader_may_leave
from common.distributed import distributed
from common.images.files import same_images
from common.images.loading import loader, naming_the_file, without_failures
from common.networks.create import create_cnn, register
from common.networks.load import load_classifier, load_strictly
from common.reliability.checkpoint import load_run, open_folder, read_plain, refuse_changes
from common.training.finetuning import finetune
from common.training.layer_decay import default_decay, layers_of, parameter_groups, table
from common.training.log import RunLog
from common.training.optim import parameter_groups as plain_groups
from common.training.run import autocast, loading_processes
from common.training.schedule import seed_for
from common.training.training import Session, is_finished, rewinding
from common.words import counted
from downstream_coco.config import parse_options
from downstream_coco.data import CocoImages, Collate, Scenes, SimilarShapes, TrainingView, WholeView, moved
from downstream_coco.detector import SIDE, Detector
from downstream_coco.engine import average_precision, evaluate
from downstream_coco.run import Run


def train_detector(options):
    """Run, or go on with, a training; returns the run folder, or with options.eval the average precisions.

    Raises ValueError, before any work, for whatever does not fit together.
    """
    with distributed(options.stall_minutes, options.folder) as ranks:
        register(options.register)
        if options.eval:
            return measure(options, ranks)
        say = partial(print, flush=True) if ranks.is_main else None
        images = CocoImages(*options.files('train'), options.in_chans, keep_empty=options.keep_empty,
                            masks={'mask': True, 'box': False}.get(options.heads), reading=options.reading, say=say)
        val = CocoImages(*options.files('val'), options.in_chans, images.categories, True, images.has_masks,
                         options.reading, say)
        average_precision(val.annotations, [], val.ids, val.has_masks, dry=True)  # what it cannot take ends the run here
        run = Run(options, ranks, len(images), same_images(images, ranks))
        same_images(val, ranks)
        facts = {'categories': images.categories, 'masks': images.has_masks}

        def attempt(fresh, left_out):
            model, loaded = build(options, len(images.categories), images.has_masks)
            saved = None if fresh else load_run(options.resume, run.checkpoint, ranks)
            least = min(options.short_sides[0], options.long_side)
            side = -(-least // model.stride) * model.stride  # of the smallest image, padded
            image = torch.zeros(1, options.in_chans, side, side)
            now = run.without(saved, left_out).with_norms(saved, model, lambda: model.backbone(image))
            if saved:
                refuse_changes(run, saved, **facts)
            aside = open_folder(run.folder, fresh, ranks, run.checkpoint)
            with RunLog(run.folder, ranks.rank, 'coco_log.txt', options, saved['step'] + 1 if saved else 0) as log:
                if aside:
                    log.say(f'What was in {run.folder} is in {aside} now.')
                if loaded and not saved:
                    log.say(f'{options.finetune_from}: {loaded}')
                for remark in [*images.remarks, *val.remarks] if ranks.is_main else ():
                    log.warn_once(remark)
                if is_finished(run, saved):
                    log.say(f'This run is finished: {counted(options.epochs, "epoch")}, {saved["path"]}. '
                            '--fresh starts it over.')
                else:
                    with Session(now, log, saved).opened() as session:
                        set_up_and_train(now, model, images, val, facts, saved, log, session)

        rewinding(attempt, options)
        return run.folder


def build(options, classes, masks):
    """(a Detector with the CNN's weights in it, what was loaded or None). Raises ValueError."""
    torch.manual_seed(seed_for('weights', options.seed))
    cnn, loaded = create_cnn(options.model, options.in_chans, options.drop_path), None
    if options.finetune_from and not options.eval:
        loaded = load_classifier(cnn, options.finetune_from, options.model, (SIDE, SIDE), options.in_chans,
                                 options.adapt_input_conv)
    return Detector(cnn, classes, masks, options.in_chans, options.fpn_channels, options.head_channels, options.mask_layers,
                    options.rois, options.detections, options.freeze, options.frozen_bn), loaded


def scenes(options, val):
    return Scenes(val, WholeView(options.input_size, options.long_side), options.normalisation, stand_ins=False,
                  timeout=options.read_timeout)


def set_up_and_train(run, model, images, val, facts, saved, log, session):
    """The run itself, from the state that was saved or from the beginning."""
    options, ranks, start = run.options, run.ranks, saved['step'] if saved else 0
    pyramid = model.backbone
    decay = default_decay(layers_of(pyramid.cnn)[1]) if options.layer_decay is None else options.layer_decay
    augmented = Scenes(images, TrainingView(options.short_sides, options.long_side, options.crop_scale, options.flip),
                       options.normalisation, options.seed, timeout=options.read_timeout)
    collate, watched = Collate(model.stride), scenes(options, val)

    def arguments(n):
        side = max(options.short_sides)
        long = min(options.long_side, round(side * options.long_side / options.input_size))
        height, width = (-(-one // collate.stride) * collate.stride for one in (side, long))
        boxes = torch.tensor([[0.0, 0.0, side / 2, side / 2]]).expand(images.most, 4)
        one = {'boxes': boxes, 'labels': torch.ones(len(boxes), dtype=torch.int64), 'size': (height, width)}
        if facts['masks']:
            one['masks'] = torch.ones(len(boxes), height, width, dtype=torch.uint8)
        return next(moved([(torch.randn(n, options.in_chans, height, width), [one] * n)], ranks.device))

    def groups():
        rest = nn.ModuleList([pyramid.fpn, model.rpn, model.roi_heads])
        return parameter_groups(pyramid.cnn, options.weight_decay, decay) + plain_groups(rest, options.weight_decay)

    def batches(accum, unreadable):
        steps = SimilarShapes(images.upright, options.batch_size, options.epochs, options.seed, start, ranks.rank, ranks.size,
                              accum, left_out=run.left_out)
        read = loader(augmented, steps, run.workers, ranks.device, collate)
        return moved(without_failures(read, augmented, unreadable, log), ranks.device), steps

    def measure(averaged, accum):
        return evaluate(averaged or model, watched, max(run.share // accum, 1), ranks, run.autocast, run.workers,
                        log.warn_once, session.go_on)

    def describe(accum):
        return run.describe(model, accum, images, val, '' if options.freeze else table(pyramid.cnn, decay), saved)

    chosen = 'mask_AP' if facts['masks'] else 'box_AP'
    last, best = finetune(run, log, session, saved, model, model, images=(augmented, watched), batches=batches, measure=measure,
                          groups=groups, arguments=arguments, describe=describe, facts=facts, chosen=chosen)
    log.say(verdict(last, best, chosen))


def verdict(last, best, chosen):
    """The average precisions of a finished run, and what was chosen on what."""
    lines = [f'Finished. On {last["images"]:,} validation images, {chosen.replace("_", " ")} picks the best epoch:']
    for which, suffix, what in (('model', '', 'the weights'), ('ema', '_ema', 'their average (EMA)')):
        if which in best:
            lines.append(f'  {what}: {figures(last, suffix)} after the last epoch; best {chosen.replace("_", " ")} '
                         f'{best[which][chosen]:.2f} % after epoch {best[which]["epoch"]}')
    return '\n'.join([*lines, 'The best epoch was chosen on these same images, so it is no test result: report the last.'])


def figures(metrics, suffix=''):
    """AP and AP50 of boxes, and of masks where there are some, for a person."""
    return ', '.join(f'{kind} AP {metrics[f"{kind}_AP{suffix}"] or 0:.2f} % (AP50 {metrics[f"{kind}_AP50{suffix}"] or 0:.2f} %)'
                     for kind in ('box', 'mask') if f'{kind}_AP{suffix}' in metrics)


def read_detector(path):
    """What a run of this program wrote. Raises ValueError for any other file."""
    content = read_plain(path)
    kinds = {'config': dict, 'model': dict, 'categories': list, 'masks': bool}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()) or not all(
            isinstance(one, dict) and one.keys() >= {'id', 'name'} for one in content['categories']):
        raise ValueError(f'{path} holds no detector of downstream_coco')
    return content


def restore(content, options):
    """(options, a Detector for each of the file's weights, its categories, whether it finds masks). Raises ValueError.

    The network's options are those of the file; so are those of its images unless others than the defaults were given.
    """
    fixed = {name: value for name, value in content['config'].items() if name in
             ('model', 'in_chans', 'fpn_channels', 'head_channels', 'mask_layers', 'rois', 'freeze', 'frozen_bn', 'drop_path')}
    default = {field.name: field.default for field in dataclasses.fields(options)}
    fixed |= {name: content['config'].get(name, default[name]) for name in
              ('input_size', 'long_side', 'mean', 'std', 'pixel_range')
              if getattr(options, name) == default[name]}
    options, models = dataclasses.replace(options, **fixed, finetune_from=None), {}
    for which, state in (('model', content['model']), ('ema', content.get('ema'))):
        if state is not None:
            models[which], _ = build(options, len(content['categories']), content['masks'])
            load_strictly(models[which], state)
    return options, models, content['categories'], content['masks']


def measure(options, ranks):
    """--eval: {which: average precisions} of a run's file, of its weights and of their average."""
    options, models, categories, masks = restore(read_detector(options.eval), options)
    images = CocoImages(*options.files('val'), options.in_chans, categories, True, masks, options.reading,
                        say=partial(print, flush=True) if ranks.is_main else None)
    if ranks.is_main:
        for remark in images.remarks:
            print(f'warning: {remark}', file=sys.stderr)
    seen, results = scenes(options, images), {}
    for which, model in models.items():
        model = model.to(ranks.device, memory_format=torch.channels_last)
        with naming_the_file(seen):
            results[which] = evaluate(model, seen, max(options.batch_size // ranks.size, 1), ranks,
                                      lambda: autocast(options, ranks), loading_processes(options, ranks))
        if ranks.is_main:
            print(f'{which}: {figures(results[which])} on {counted(results[which]["images"], "image")}')
    return results


@reader_may_leave(ends=False)
def main(argv=None):
    """The command line: exits with 0, with 1 and one sentence for what does not fit, or with 2 for a wrong flag."""
    options = parse_options(argv)
    with errors_in_one_sentence(options.accum):
        train_detector(options)


if __name__ == '__main__':
    main()
