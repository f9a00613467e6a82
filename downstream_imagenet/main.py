"""Fine-tune a CNN on images with labels, and measure its accuracy.

    bash downstream_imagenet/main.sh my_tune --data_path=DIR --model=resnet50 --finetune_from=FILE   # from any folder
    torchrun --nproc_per_node=8 main.py --exp_name=my_tune ...                                       # in this folder
    python -m downstream_imagenet.main --name=my_tune ...                                            # one process

The same command again goes on where the run stopped. From Python: `fine_tune(Options(...), dataset=..., val_dataset=...)`.
"""
import dataclasses
import sys
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from common.cli import errors_in_one_sentence, reader_may_leave
from common.distributed import distributed
from common.images.augmented import Augmented, Steps
from common.images.files import mostly_unread, notes_of, same_images
from common.images.loading import loader, naming_the_file, without_failures
from common.images.look import warn_of
from common.networks.create import create_cnn, register, try_size
from common.networks.load import load_classifier, load_whole
from common.reliability.checkpoint import is_run, load_run, open_folder, read_plain, refuse_changes
from common.training.finetuning import finetune
from common.training.layer_decay import default_decay, layers_of, parameter_groups, table
from common.training.log import RunLog
from common.training.optim import parameter_groups as plain_groups
from common.training.run import autocast, loading_processes
from common.training.schedule import seed_for
from common.training.training import Session, is_finished, rewinding
from common.words import counted
from downstream_imagenet.config import parse_options
from downstream_imagenet.data import (
    LabelledFolder,
    Mixing,
    check_labelled,
    class_names,
    erasing,
    evaluation_transform,
    find_labelled,
    find_validation,
    mixed,
    share_of,
    training_transform,
)
from downstream_imagenet.engine import Classifier, LinearProbe, evaluate, pooled_features
from downstream_imagenet.run import Run

AT_A_TIME = 256  # images of an evaluation on a rank, at most


def fine_tune(options, dataset=None, val_dataset=None):
    """Run, or go on with, a fine-tuning; returns the run folder, or with options.eval the accuracies.

    dataset, val_dataset: map-style data sets of your own that yield (image, class), instead of the paths in the options.
    Raises ValueError, before any work, for whatever does not fit together.
    """
    with distributed(options.stall_minutes, options.folder) as ranks:
        register(options.register)
        if options.eval:
            return measure(options, ranks, val_dataset)
        images, val = (dataset, val_dataset) if dataset is not None else \
            find_labelled(options.data_path, options.val_path, options.dataset, options.in_chans, options.reading)
        if val is None:
            raise ValueError('give a val_dataset beside dataset: an accuracy needs images that are not trained on')
        classes = class_names(images, options.num_classes)
        check_labelled(images, options, len(classes)), check_labelled(val, options, len(classes))
        images = share_of(images, options.label_fraction, options.seed)
        if options.resume and not is_own_run(options.resume):
            options = dataclasses.replace(options, resume=None, finetune_from=options.resume)
        if options.fresh and options.resume:
            raise ValueError('--fresh starts over and --resume goes on: give one of them')
        run = Run(options, ranks, len(images), same_images(images, ranks))

        def attempt(fresh, left_out):
            model = build(options, len(classes))
            saved, loaded = None if fresh else load_run(options.resume, run.checkpoint, ranks), None
            image = torch.zeros(1, options.in_chans, *options.size)
            now = run.without(saved, left_out).with_norms(saved, model, lambda: model.logits(image))
            if saved:
                refuse_changes(run, saved, classes=classes)
            elif options.finetune_from:
                loaded = load_classifier(model.cnn, options.finetune_from, options.model, options.size, options.in_chans,
                                         options.adapt_input_conv)
            aside = open_folder(run.folder, fresh, ranks, run.checkpoint)
            with RunLog(run.folder, ranks.rank, 'finetune_log.txt', options, saved['step'] + 1 if saved else 0) as log:
                if aside:
                    log.say(f'What was in {run.folder} is in {aside} now.')
                if ranks.is_main and mostly_unread(images):
                    log.warn(mostly_unread(images))
                if loaded:
                    log.say(f'{options.finetune_from}: {loaded}')
                elif not saved and not options.finetune_from:
                    log.say('No weights given (--finetune_from): training from random ones.')
                if is_finished(run, saved):
                    log.say(f'This run is finished: {counted(options.epochs, "epoch")}, {saved["path"]}. '
                            '--fresh starts it over.')
                else:
                    with Session(now, log, saved).opened() as session:
                        set_up_and_train(now, model, images, val, classes, saved, log, session)

        rewinding(attempt, options)
        return run.folder


def build(options, num_classes):
    """The Classifier, or LinearProbe, of the options, with random weights. Raises ValueError."""
    torch.manual_seed(seed_for('weights', options.seed))
    cnn = create_cnn(options.model, options.in_chans, options.drop_path, num_classes=num_classes)
    try_size(cnn, options.model, options.size, options.in_chans)
    if not options.freeze:
        return Classifier(cnn, options.loss_name)
    with torch.no_grad():
        channels = pooled_features(cnn.eval(), torch.zeros(1, options.in_chans, *options.size)).shape[1]
    return LinearProbe(cnn, options.loss_name, channels, num_classes)


def is_own_run(path):
    """Whether a file is the checkpoint of a fine-tuning run, not weights, nor a pretraining run."""
    content = read_plain(path)
    return is_run(content, path) and 'finetune_from' in content['config']


def set_up_and_train(run, model, images, val, classes, saved, log, session):
    """The run itself, from the state that was saved or from the beginning."""
    options, ranks, start = run.options, run.ranks, saved['step'] if saved else 0
    decay = default_decay(layers_of(model.cnn)[1]) if options.layer_decay is None else options.layer_decay
    augmented = Augmented(images, training_transform(options), options.normalisation, options.seed, True, erasing(options),
                          timeout=options.read_timeout)
    watched = Augmented(val, evaluation_transform(options), options.normalisation, labelled=True, stand_ins=False,
                        timeout=options.read_timeout)
    mixing = Mixing(options, len(classes))
    torch.backends.cudnn.benchmark = True  # shapes never change

    def arguments(n):
        return (torch.randn(n, options.in_chans, *options.size, device=ranks.device).to(memory_format=torch.channels_last),
                torch.rand(n, len(classes), device=ranks.device))

    def groups():
        return plain_groups(model, options.weight_decay) if options.freeze else \
            parameter_groups(model.cnn, options.weight_decay, decay)

    def batches(accum, unreadable):
        steps = Steps(len(images), options.batch_size, options.epochs, options.seed, start, ranks.rank, ranks.size, accum,
                      max(options.repeats, 1), run.left_out)
        read = without_failures(loader(augmented, steps, run.workers, ranks.device), augmented, unreadable, log)
        return mixed(read, mixing, options.seed, run.todo(start), accum, ranks), steps

    def measure(averaged, accum):
        of = model if averaged is None else averaged if options.freeze else Classifier(averaged, options.loss_name)
        found = evaluate(of, watched, len(classes), min(run.share // accum, AT_A_TIME), ranks, run.autocast, run.workers,
                         log.warn_once, session.go_on)
        return {'top1': found['top1'], 'top5': found['top5'], 'val_loss': found['loss']}

    def describe(accum):
        layers = '' if options.freeze else table(model.cnn, decay)
        return run.describe(model, accum, images, val, classes, layers, saved)

    last, best = finetune(run, log, session, saved, model, model if options.freeze else model.cnn, images=(augmented, watched),
                          batches=batches, measure=measure, groups=groups, arguments=arguments, describe=describe,
                          facts={'classes': classes}, chosen='top1')
    log.say(verdict(last, best, options.epochs, len(val)))


def verdict(last, best, epochs, images):
    """The accuracies of a finished run, and what was chosen on what."""
    lines = [f'Finished. On {images:,} validation images:']
    for which, suffix, what in (('model', '', 'the weights'), ('ema', '_ema', 'their average (EMA)')):
        if which in best:
            top1, top5, chosen = last[f'top1{suffix}'], last[f'top5{suffix}'], best[which]
            lines.append(f'  {what}: top-1 {top1:.2f} %, top-5 {top5:.2f} % after the last epoch ({epochs}); best top-1 '
                         f'{chosen["top1"]:.2f} % after epoch {chosen["epoch"]}')
    return '\n'.join([*lines, 'The best epoch was chosen on these same images, so it is no test result: report the last.'])


def options_and_classes(content, path):
    """(options, names of the classes or None) that a file's content names; ({}, None) for weights alone.

    Raises ValueError.
    """
    config, classes = content.get('config', {}), content.get('classes')
    if not isinstance(config, dict) or not isinstance(classes, list | None) or \
            not all(isinstance(name, str) for name in classes or ()):
        raise ValueError(f'{path} is no file of fine-tuning: its options or its classes are not as runs '
                         'write them')
    return config, classes


def load_trained(model, state, options, path):
    """Fill a Classifier or LinearProbe with weights of which nothing is missing. Raises ValueError."""
    if options.freeze:
        load_whole(model, state, path)
        return
    loaded = load_classifier(model.cnn, state, options.model, options.size, options.in_chans, options.adapt_input_conv)
    if loaded.missing or loaded.left_out:
        raise ValueError(f'{path} holds no classifier for these classes ({loaded}): there is nothing to '
                         'measure or to predict with. Fine-tune first, with --finetune_from')


def measure(options, ranks, val_dataset=None):
    """--eval: the accuracies of a run's file, of its best weights, or of any weights of this network with its classes.

    The classes are those that the file names, else those of the training images.
    """
    content = read_plain(options.eval)
    content = content if isinstance(content, dict) else {}
    then, classes = options_and_classes(content, options.eval)
    if val_dataset is not None:
        val, classes = val_dataset, classes or class_names(val_dataset, options.num_classes)
    elif classes and options.dataset is None:
        if not (options.val_path or options.data_path):
            raise ValueError('say where the images are: --val_path=DIR, or --data_path=DIR with val/ in it')
        val = LabelledFolder(find_validation(options.data_path, options.val_path), options.in_chans, classes, options.reading)
    else:
        images, val = find_labelled(options.data_path, options.val_path, options.dataset, options.in_chans, options.reading)
        found = class_names(images, options.num_classes)
        if classes and list(classes) != found:
            raise ValueError(f'{options.eval} tells {len(classes)} classes apart ({", ".join(classes[:3])}, ...), the images '
                             f'have others ({", ".join(found[:3])}, ...)')
        classes = found
    check_labelled(val, options, len(classes))
    if ranks.is_main and notes_of(val):
        print(f'not looked at  {notes_of(val)}')
    for warning in warn_of(val, options) if ranks.is_main else ():
        print(f'warning: {warning}', file=sys.stderr)
    options = dataclasses.replace(options, freeze=then.get('freeze', options.freeze))
    for name in ('input_size', 'crop', 'mean', 'std', 'pixel_range'):
        if name in then and then[name] != getattr(options, name) and ranks.is_main:
            print(f'note: {name} was {then[name]} in training, and is {getattr(options, name)} here')
    watched = Augmented(val, evaluation_transform(options), options.normalisation, labelled=True, stand_ins=False,
                        timeout=options.read_timeout)
    model, results = build(options, len(classes)).to(ranks.device, memory_format=torch.channels_last), {}
    averaged = {'ema': content['ema']} if isinstance(content.get('ema'), dict) else {}
    for which, state in {'model': content, **averaged}.items():
        load_trained(model, state, options, options.eval)
        batch = min(max(options.batch_size // ranks.size, 1), AT_A_TIME)
        with naming_the_file(watched):
            results[which] = evaluate(model, watched, len(classes), batch, ranks, lambda: autocast(options, ranks),
                                      loading_processes(options, ranks))
        if ranks.is_main:
            print(f'{which}: top-1 {results[which]["top1"]:.2f} %, top-5 {results[which]["top5"]:.2f} % on '
                  f'{counted(results[which]["images"], "image")}')
    return results


@reader_may_leave(ends=False)
def main(argv=None):
    """The command line: exits with 0, with 1 and one sentence for what does not fit, or with 2 for a wrong flag."""
    options = parse_options(argv)
    with errors_in_one_sentence(options.accum):
        fine_tune(options)


if __name__ == '__main__':
    main()
