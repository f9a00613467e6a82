"""Pretrain a CNN on images.

    bash pretrain/main.sh my_run --data_path=DIR --model=resnet50        # one GPU, all GPUs, many nodes, or the CPU
    python -m pretrain.main --name=my_run --data_path=DIR                # one process
    torchrun --nproc_per_node=8 -m pretrain.main --name=my_run ...       # the same as main.sh

The same command again goes on where the run stopped. From Python: `pretrain(Options(...), dataset=...)`.
"""
import sys
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from common.checkpoint import git_commit, load_run, open_folder, plain_state, refuse_changes, save
from common.cli import errors_in_one_sentence
from common.data import Augmented, CentreCrop, RandomCrop, Steps, check_dataset, loader, without_failures
from common.distributed import data_parallel, distributed, synchronise_batchnorm
from common.engine import fit_accumulation, train_one_epoch
from common.log import RunLog
from common.optim import BufferGuard, build_optimizer, parameter_groups
from common.schedule import seed_for
from common.weights import load_init
from pretrain.config import parse_options
from pretrain.data import find_held_out, find_images
from pretrain.engine import evaluate, masked
from pretrain.progress import Progress
from pretrain.run import Run
from pretrain.spark import build_spark


def pretrain(options, dataset=None, val_dataset=None, build=build_spark):
    """Run, or go on with, a pretraining; returns the run folder.

    dataset, val_dataset: map-style data sets of your own instead of the paths in the options; see common.data.Augmented.
    build: what makes the network, with the arguments of `build_spark`.
    Raises ValueError, before any work, for whatever does not fit together.
    """
    with distributed() as ranks:
        images = check_dataset(dataset, options.in_chans) if dataset is not None else \
            find_images(options.data_path, options.dataset, options.in_chans)
        held_out = check_dataset(val_dataset, options.in_chans) if val_dataset is not None else \
            find_held_out(options.data_path, options.val_path, options.in_chans)
        run = Run(options, ranks, len(images))
        torch.manual_seed(seed_for('weights', options.seed))
        spark = build(options.model, options.input_size, options.mask_ratio, options.drop_path, options.cell_size,
                      options.in_chans, options.decoder_width, levels=options.levels and options.levels.split(','))
        saved = None if options.fresh else load_run(options.resume, run.checkpoint, ranks)
        loaded = None
        if saved:
            refuse_changes(options, saved, images=len(images))
            spark.load_state_dict(saved.pop('model'))  # popped: not kept in memory for days
        elif options.init:
            loaded = load_init(spark, options.init, options.model)
        aside = open_folder(run.folder, options.fresh, ranks, run.checkpoint)
        with RunLog(run.folder, ranks.rank, 'pretrain_log.txt', options, saved['step'] + 1 if saved else 0) as log:
            if aside:
                log.say(f'What was in {run.folder} is in {aside} now.')
            if loaded:
                log.say(f'{options.init}: {loaded}')
            if saved and saved['step'] >= run.steps:
                log.say(f'This run is finished: {options.epochs} epochs, {saved["path"]}. For more, start another from its '
                        'weights with --init; --fresh starts it over.')
            else:
                train(run, spark, images, held_out, saved, log)
        return run.folder


def train(run, spark, images, held_out, saved, log):
    """The run itself, from the state that was saved or from the beginning, to the exported encoder."""
    options, ranks, start = run.options, run.ranks, saved['step'] if saved else 0
    for name in spark.encoder.unused:  # DDP waits for the gradient of everything that may have one
        spark.encoder.cnn.get_parameter(name).requires_grad_(False)
    spark = spark.to(ranks.device)
    for part in (spark.encoder, spark.densify_projs, spark.dense_decoder):  # mask tokens would only confuse DDP's strides
        part.to(memory_format=torch.channels_last)
    accum = options.accum
    if accum == 'auto':
        alike = saved and saved['ranks'] == ranks.size
        accum = saved['accum'] if alike else fit_accumulation(
            spark, lambda n: (torch.randn(n, options.in_chans, *spark.encoder.input_size, device=ranks.device).to(
                memory_format=torch.channels_last),), run.share, ranks, run.autocast)
    if ranks.size > 1 and options.sync_bn:
        spark = synchronise_batchnorm(spark)
    betas = (0.9, run.beta2(spark))
    optimizer = build_optimizer(options.opt, parameter_groups(spark, options.weight_decay), betas)
    if saved:
        optimizer.load_state_dict(saved.pop('optimizer'))
    if options.compile:
        spark.compile()
    torch.backends.cudnn.benchmark = True  # shapes never change
    model = data_parallel(spark, ranks, same_buffers=options.sync_bn)

    size = spark.encoder.input_size
    augmented = Augmented(images, RandomCrop(size, options.crop_scale, options.flip), options.normalisation, options.seed)
    watched = Augmented(images if held_out is None else held_out, CentreCrop(size), options.normalisation)
    steps = Steps(len(images), options.batch_size, options.epochs, options.seed, start, ranks.rank, ranks.size, accum)
    unreadable = set()
    read = without_failures(loader(augmented, steps, run.workers, ranks.device), augmented, unreadable, log)
    batches = masked((x for x, _ in read), lambda step: run.draw_visible(spark, step), start, accum, ranks.device)
    progress = Progress(run, log, saved['sums'] if saved else None)
    guard = BufferGuard(spark)

    def held_out_loss():
        if held_out is None:
            return None
        mine, size = range(ranks.rank, len(held_out), ranks.size), run.share // accum
        places = [list(mine[i:i + size]) for i in range(0, len(mine), size)]
        batches = loader(watched, [[(0, place) for place in part] for part in places], run.workers, ranks.device)
        return evaluate(spark, (x for x, _ in without_failures(batches, watched, unreadable, log)), places,
                        spark.draw_visible(len(held_out), run.generator('held-out')), ranks, run.autocast)

    def save_checkpoint(step):
        if ranks.is_main:
            save(run.checkpoint, {'version': 1, 'step': step, 'sums': progress.sums, 'images': len(images), 'accum': accum,
                                  'ranks': ranks.size, 'config': options.as_dict(), 'model': plain_state(spark),
                                  'optimizer': optimizer.state_dict()})

    log.forget_after(start if saved else -1)
    log.say(run.describe(spark, accum, images, held_out, saved))
    for warning in run.warnings(saved, spark.encoder.uncompiled) if ranks.is_main else ():
        log.warn(warning)
    if ranks.is_main:
        log.record(run.record(start, accum, git_commit(), sys.argv))
    if start == 0:
        progress.before(held_out_loss())
    for epoch in range(start // run.per_epoch, options.epochs):
        progress.start_epoch()
        for first, stop in run.stretches(epoch, start):
            train_one_epoch(model, batches, range(first, stop), optimizer=optimizer, guard=guard, ranks=ranks,
                            seed=options.seed, schedule=run.schedule, autocast=run.autocast, accum=accum,
                            clip_grad=options.clip_grad, log_every=options.log_every, look=progress.look)
            if stop % run.per_epoch:
                save_checkpoint(stop)
        done, final = epoch + 1, epoch + 1 == options.epochs
        val_loss = held_out_loss() if final or done % options.val_every == 0 else None
        unreadable |= ranks.union(unreadable)
        progress.end_epoch(done, {'val_loss': val_loss}, len(unreadable),
                           '' if val_loss is None else f'held-out {val_loss:.4f}  ')
        if ranks.is_main and options.picture_every and (final or done % options.picture_every == 0):
            progress.picture(done, spark, watched)
        if ranks.is_main and final:
            save(run.exported, plain_state(spark.encoder.cnn))
        if final or done % options.save_every == 0:
            save_checkpoint(done * run.per_epoch)
    log.say(f'Finished. The pretrained {options.model} is in {run.exported}')


def main(argv=None):
    """The command line: exits with 0, with 1 and one sentence for what does not fit, or with 2 for a wrong flag."""
    options = parse_options(argv)
    with errors_in_one_sentence(options.accum):
        pretrain(options)


if __name__ == '__main__':
    main()
