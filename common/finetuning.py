"""A fine-tuning run of any kind: train, average, measure, keep the last state and the best weights."""
import sys

from timm.utils import ModelEmaV3
from torch import channels_last

from common.checkpoint import git_commit, plain_state, save
from common.distributed import data_parallel, synchronise_batchnorm
from common.engine import fit_accumulation, train_one_epoch
from common.optim import BufferGuard, build_optimizer
from common.progress import Progress


def finetune(run, log, saved, model, trained, *, batches, measure, groups, arguments, describe, facts, chosen):
    """Train on from the state that was saved, or from the beginning; (metrics after the last epoch, {which: best epoch's}).

    model: forward(*batch) -> loss; trained: the part of it whose weights are saved and averaged. batches(accum) -> (those of
    train_one_epoch, the set of images that could not be read). measure(averaged weights or None, accum) -> {name: number, or
    None}; chosen: the name of the number by which the best epoch is picked; epochs are 'model' and, of the average, 'ema'.
    groups() -> the optimiser's parameter groups. arguments(n): those of model(...) for n images, to try what fits in memory.
    describe(accum) -> what the run says at its start. facts: what the files hold besides.
    """
    options, ranks, start = run.options, run.ranks, saved['step'] if saved else 0
    if saved:
        trained.load_state_dict(saved.pop('model'))  # popped: not kept in memory for days
    model = model.to(ranks.device, memory_format=channels_last)
    ema = ModelEmaV3(trained, decay=options.ema) if options.ema else None
    if ema and saved:
        ema.module.load_state_dict(saved.pop('ema'))
    accum = options.accum
    if accum == 'auto':
        alike = saved and saved['ranks'] == ranks.size
        accum = saved['accum'] if alike else fit_accumulation(model, arguments, run.share, ranks, run.autocast)
    if ranks.size > 1 and options.sync_bn:
        model = synchronise_batchnorm(model)
    optimizer = build_optimizer(options.opt, groups(), official=getattr(options, 'official_lamb', False))
    if saved:
        optimizer.load_state_dict(saved.pop('optimizer'))
    if options.compile:
        model.compile()
    parallel = data_parallel(model, ranks, same_buffers=options.sync_bn)
    read, unreadable = batches(accum)
    progress = Progress(run, log, saved['sums'] if saved else None)
    guard, best, last = BufferGuard(model), saved['best'] if saved else {}, {}

    def save_checkpoint(step):
        if ranks.is_main:
            save(run.checkpoint, {'version': 1, 'step': step, 'sums': progress.sums, 'images': run.images, 'accum': accum,
                                  'ranks': ranks.size, 'config': options.as_dict(), 'model': plain_state(trained),
                                  'ema': plain_state(ema.module) if ema else None, 'optimizer': optimizer.state_dict(),
                                  'best': best, **facts})

    log.forget_after(start if saved else -1)
    log.say(describe(accum))
    for warning in run.warnings(saved, model, accum) if ranks.is_main else ():
        log.warn(warning)
    if ranks.is_main:
        log.record(run.record(start, accum, git_commit(), sys.argv))
    for epoch in range(start // run.per_epoch, options.epochs):
        progress.start_epoch()
        for first, stop in run.stretches(epoch, start):
            train_one_epoch(parallel, read, range(first, stop), optimizer=optimizer, guard=guard, ranks=ranks,
                            seed=options.seed, schedule=run.schedule, autocast=run.autocast, accum=accum,
                            clip_grad=options.clipping, log_every=options.log_every, look=progress.look,
                            after_step=(lambda: ema.update(trained)) if ema else None)
            if stop % run.per_epoch:
                save_checkpoint(stop)
        done, final = epoch + 1, epoch + 1 == options.epochs
        metrics, said = {}, ''
        if final or done % options.val_every == 0:
            for which, module in (('model', None), ('ema', ema and ema.module)):
                if which == 'ema' and not ema:
                    continue
                found, suffix = measure(module, accum), '' if which == 'model' else '_ema'
                metrics |= {f'{name}{suffix}': value for name, value in found.items()}
                value = found[chosen] or 0.0
                said += f'{which} {value:.2f} %  '
                if value > best.get(which, {chosen: -1.0})[chosen]:
                    best[which] = {'epoch': done, **found, chosen: value}
                    if ranks.is_main:
                        save(run.file(f'best{suffix}'), {'model': plain_state(module or trained), 'config': options.as_dict(),
                                                         **best[which], **facts})
            last = metrics
        unreadable |= ranks.union(unreadable)
        progress.end_epoch(done, metrics, len(unreadable), said)
        if final or done % options.save_every == 0:
            save_checkpoint(done * run.per_epoch)
    return last, best
