"""A fine-tuning run of any kind: train, average, measure, keep the last state and the best weights."""
from functools import partial
from itertools import chain

import torch
from timm.utils import ModelEmaV3
from torch import channels_last

from common.distributed import data_parallel, synchronise_batchnorm
from common.images.loading import naming_the_file
from common.images.look import warn_of
from common.networks.load import load_strictly
from common.reliability.checkpoint import plain_state, save
from common.training.engine import fit_accumulation
from common.training.optim import build_optimizer, load_state
from common.training.progress import Progress
from common.training.training import train


class Average(ModelEmaV3):
    """timm's average of the weights, which a step that was called off leaves as it was."""

    @torch.no_grad()
    def update(self, model, finite):
        """finite: 0-dim tensor on the device, 1 or 0."""
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values()))
        mine, theirs = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        steps = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(steps, (1 - self.decay) * finite)
        torch._foreach_add_(mine, steps)
        for kept, value in pairs:
            if not kept.is_floating_point():
                kept.copy_(value)  # a count of BatchNorm's, which a step that is called off does not change either


def finetune(run, log, session, saved, model, trained, *, images, batches, measure, groups, arguments, describe, facts, chosen):
    """Train on from the state that was saved, or from the beginning; (metrics after the last epoch, {which: best epoch's}).

    model: forward(*batch) -> loss; trained: the part of it whose weights are saved and averaged. images: all data sets that are
    read, as common.images.augmented.Augmented, the training images first. batches(accum, set of images that cannot be read, which grows) ->
    (those of train_one_epoch, their Steps). measure(averaged weights or None, accum) -> {name: number, or None}; chosen: the
    name of the number by which the best epoch is picked; epochs are 'model' and, of the average, 'ema'. groups() -> the
    optimiser's parameter groups. arguments(n): those of model(...) for n images, to try what fits in memory. describe(accum) ->
    what the run says at its start. facts: what the files hold besides.
    """
    options, ranks = run.options, run.ranks
    if saved:
        load_strictly(trained, saved.pop('model'))  # popped: not kept in memory for days
    model = model.to(ranks.device, memory_format=channels_last)
    ema = Average(trained, decay=options.ema) if options.ema else None
    if ema and saved:
        load_strictly(ema.module, saved.pop('ema') or {})
    accum = run.parts(saved) or fit_accumulation(model, arguments, run.share, ranks, run.autocast, run.least)
    if ranks.size > 1 and options.sync_bn:
        model = synchronise_batchnorm(model)
    optimizer = build_optimizer(options.opt, groups(), official=getattr(options, 'official_lamb', False))
    if saved:
        load_state(optimizer, saved.pop('optimizer'))
    if options.compile:
        model.compile()
    parallel = data_parallel(model, ranks, same_buffers=options.sync_bn, in_bf16=options.bf16_gradients)
    unreadable = set(saved.get('unreadable', ())) if saved else set()
    read, steps = batches(accum, unreadable)
    progress = Progress(run, log, saved, lambda step: [images[0].name(index) for _, index in steps.batch_of(step)])
    best, last = saved['best'] if saved else {}, {}

    def content():
        return {'model': plain_state(trained), 'ema': plain_state(ema.module) if ema else None, 'best': dict(best), **facts}

    def measure_epoch(epoch, final):
        metrics, said = {}, ''
        for which, module in (('model', None), ('ema', ema and ema.module)):
            if not final and epoch % options.val_every or which == 'ema' and not ema:
                continue
            found, suffix = measure(module, accum), '' if which == 'model' else '_ema'
            if session.asked_to_stop():
                return None
            metrics |= {f'{name}{suffix}': value for name, value in found.items()}
            value = found[chosen] or 0.0
            said += f'{which} {value:.2f} %  '
            if value > best.get(which, {chosen: -1.0})[chosen]:
                best[which] = {'epoch': epoch, **found, chosen: value}
                if ranks.is_main:
                    state = {'model': plain_state(module or trained), 'config': options.as_dict(), **best[which], **facts}
                    path = run.file(f'best{suffix}')
                    session.put(path, partial(save, path, state))
        last.update(metrics)
        return None if session.asked_to_stop() else (metrics, said)

    with naming_the_file(*images):
        train(run, log, session, saved, progress, parallel=parallel, module=model, optimizer=optimizer, accum=accum,
              clip_grad=options.clipping, description=describe(accum),
              warnings=chain(run.warnings(saved, model, accum), warn_of(images[0].images, options)),
              batches=session.batches(read), unreadable=unreadable, content=content, measure=measure_epoch,
              after_step=(lambda finite: ema.update(trained, finite)) if ema else None)
    return last, best
