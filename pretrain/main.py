"""Pretrain a CNN on images.

    bash pretrain/main.sh my_run --data_path=DIR --model=resnet50        # one GPU, all GPUs, many nodes, or the CPU
    python -m pretrain.main --name=my_run --data_path=DIR                # one process
    torchrun --nproc_per_node=8 -m pretrain.main --name=my_run ...       # the same as main.sh

The same command again goes on where the run stopped. From Python: `pretrain(Options(...), dataset=...)`.
"""
import sys
from itertools import chain
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from common.cli import errors_in_one_sentence, reader_may_leave
from common.distributed import data_parallel, distributed, synchronise_batchnorm
from common.images.augmented import Augmented, CentreCrop, RandomCrop, Steps
from common.images.fast_decode import FastDecode
from common.images.files import check_dataset, mostly_unread, same_images
from common.images.loading import loader, naming_the_file, without_failures
from common.images.look import warn_of
from common.networks.load import load_strictly
from common.reliability.checkpoint import load_run, open_folder, plain_state, refuse_changes, save
from common.training.engine import Normalise, fit_accumulation
from common.training.log import RunLog
from common.training.optim import build_optimizer, load_state, parameter_groups
from common.training.schedule import seed_for
from common.training.training import Session, is_finished, rewinding, train
from common.words import counted
from pretrain.config import parse_options
from pretrain.data import find_held_out, find_images
from pretrain.engine import evaluate, masked
from pretrain.progress import Progress
from pretrain.run import Run
from pretrain.spark import build_spark
from pretrain.spark_weights import load_init


def pretrain(options, dataset=None, val_dataset=None, build=build_spark):
    """Run, or go on with, a pretraining; returns the run folder.

    dataset, val_dataset: map-style data sets of your own instead of the paths in the options; see common.images.augmented.Augmented.
    build: what makes the network, with the arguments of `build_spark`.
    Raises ValueError, before any work, for whatever does not fit together; Stopped or Unwritten (common.reliability.stopping) where a
    signal or the disk ends it.
    """
    with distributed(options.stall_minutes, options.folder) as ranks:
        images = check_dataset(dataset, options.in_chans) if dataset is not None else \
            find_images(options.data_path, options.dataset, options.in_chans, options.list_root, options.reading)
        held_out = check_dataset(val_dataset, options.in_chans) if val_dataset is not None else \
            find_held_out(options.data_path, options.val_path, options.in_chans, options.list_root, options.reading)
        run = Run(options, ranks, len(images), same_images(images, ranks))

        def attempt(fresh, left_out):
            torch.manual_seed(seed_for('weights', options.seed))
            spark = build(**options.network)
            saved, loaded = None if fresh else load_run(options.resume, run.checkpoint, ranks), None
            image = torch.zeros(1, options.in_chans, *options.size)
            now = run.without(saved, left_out).with_norms(saved, spark, lambda: spark(image))
            if saved:
                refuse_changes(run, saved)
                load_strictly(spark, saved.pop('model'))  # popped: not kept in memory for days
            elif options.init:
                loaded = load_init(spark, options.init, options.model, options.adapt_input_conv)
            aside = open_folder(run.folder, fresh, ranks, run.checkpoint)
            with RunLog(run.folder, ranks.rank, 'pretrain_log.txt', options, saved['step'] + 1 if saved else 0) as log:
                if aside:
                    log.say(f'What was in {run.folder} is in {aside} now.')
                if ranks.is_main and mostly_unread(images):
                    log.warn(mostly_unread(images))
                if loaded:
                    log.say(f'{options.init}: {loaded}')
                if is_finished(run, saved):
                    log.say(f'This run is finished: {counted(options.epochs, "epoch")}, {saved["path"]}. For more, start '
                            'another from its weights with --init; --fresh starts it over.')
                else:
                    with Session(now, log, saved).opened() as session:
                        set_up_and_train(now, spark, images, held_out, saved, log, session)

        rewinding(attempt, options)
        return run.folder


def set_up_and_train(run, spark, images, held_out, saved, log, session):
    """The run itself, from the state that was saved or from the beginning, to the exported encoder."""
    options, ranks, start = run.options, run.ranks, saved['step'] if saved else 0
    spark = spark.placed(ranks.device)
    spark.recompute(options.recompute)
    accum = run.parts(saved) or fit_accumulation(
        spark, lambda n: (torch.randn(n, options.in_chans, *spark.encoder.input_size, device=ranks.device).to(
            memory_format=torch.channels_last),), run.share, ranks, run.autocast, run.least)
    if ranks.size > 1 and options.sync_bn:
        spark = synchronise_batchnorm(spark)
    betas = (0.9, run.beta2(spark))
    optimizer = build_optimizer(options.opt, parameter_groups(spark, options.weight_decay), betas)
    if saved:
        load_state(optimizer, saved.pop('optimizer'))
    if options.compile:
        spark.compile()
    torch.backends.cudnn.benchmark = True  # shapes never change
    model = data_parallel(spark, ranks, same_buffers=options.sync_bn, in_bf16=options.bf16_gradients)

    size = spark.encoder.input_size
    augmented = (FastDecode if options.fast_decode else Augmented)(
        images, RandomCrop(size, options.crop_scale, options.flip), None, options.seed, timeout=options.read_timeout)
    watched = Augmented(images if held_out is None else held_out, CentreCrop(size), None, timeout=options.read_timeout)
    normalise = Normalise(options.normalisation, ranks.device)
    steps = Steps(len(images), options.batch_size, options.epochs, options.seed, start, ranks.rank, ranks.size, accum,
                  left_out=run.left_out)
    unreadable = set(saved.get('unreadable', ())) if saved else set()
    read = without_failures(loader(augmented, steps, run.workers, ranks.device), augmented, unreadable, log)
    batches = masked((x for x, _ in read), normalise, lambda step: run.draw_visible(spark, step, accum), run.todo(start), accum)
    progress = Progress(run, log, saved, lambda step: [augmented.name(index) for _, index in steps.batch_of(step)])

    def held_out_loss():
        if held_out is None:
            return None
        mine, size = range(ranks.rank, len(held_out), ranks.size), run.share // accum
        places = [list(mine[i:i + size]) for i in range(0, len(mine), size)]
        batches = loader(watched, [[(0, place) for place in part] for part in places], run.workers, ranks.device)
        return evaluate(spark, (x for x, _ in without_failures(batches, watched, unreadable, log)), normalise, places,
                        spark.draw_visible(len(held_out), run.generator('held-out')), ranks, run.autocast, session.go_on)

    def before():
        val_loss = held_out_loss()
        if session.asked_to_stop():
            return False
        progress.before(val_loss)
        return True

    def measure(epoch, final):
        val_loss = held_out_loss() if final or epoch % options.val_every == 0 else None
        return None if session.asked_to_stop() else \
            ({'val_loss': val_loss}, '' if val_loss is None else f'held-out {val_loss:.4f}  ')

    def finish_epoch(epoch, final):
        if options.picture_every and (final or epoch % options.picture_every == 0):
            progress.picture(epoch, spark, watched, normalise)
        if final:
            state = plain_state(spark.encoder.cnn)
            session.put(run.exported, lambda: save(run.exported, state))

    with naming_the_file(augmented, watched):
        train(run, log, session, saved, progress, parallel=model, module=spark, optimizer=optimizer, accum=accum,
              clip_grad=options.clip_grad, description=run.describe(spark, accum, images, held_out, saved),
              warnings=chain(run.warnings(saved, accum, spark.encoder.uncompiled), warn_of(images, options)),
              batches=session.batches(batches), unreadable=unreadable, content=lambda: {'model': plain_state(spark)},
              measure=measure, before=before, finish_epoch=finish_epoch)
    log.say(f'Finished. The pretrained {options.model} is in {run.exported}')


@reader_may_leave(ends=False)
def main(argv=None):
    """The command line: exits with 0, with 1 and one sentence for what does not fit, or with 2 for a wrong flag."""
    options = parse_options(argv)
    with errors_in_one_sentence(options.accum):
        pretrain(options)


if __name__ == '__main__':
    main()
