"""Fine-tune a CNN on images with labels, and measure its accuracy.

    bash downstream_imagenet/main.sh my_tune --data_path=DIR --model=resnet50 --finetune_from=FILE   # from any folder
    torchrun --nproc_per_node=8 main.py --exp_name=my_tune ...                                       # in this folder
    python -m downstream_imagenet.main --name=my_tune ...                                            # one process

The same command again goes on where the run stopped. From Python: `fine_tune(Options(...), dataset=...,
val_dataset=...)`.
"""
import dataclasses
import sys
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.cli import errors_in_one_sentence, reader_may_leave
from common.networks.users import register
from common.start import say_loading
from downstream_imagenet.config import check_options, parse_options


def fine_tune(options, dataset=None, val_dataset=None):
    """Run, or go on with, a fine-tuning; returns the run folder, or with options.eval the accuracies.

    dataset, val_dataset: map-style data sets of your own that yield (image, class), instead of the paths in
    the options. Raises ValueError, before any work, for whatever does not fit together.
    """
    # These load torch, which takes seconds: by now the options are known to be right.
    from common.distributed import distributed
    from common.images.datasets import same_images
    from common.training.recipe import saved_options
    from downstream_imagenet.evaluation import evaluate_file
    from downstream_imagenet.labelled import labelled_images, with_part
    from downstream_imagenet.recipe import Recipe
    from downstream_imagenet.run import Run
    from downstream_imagenet.training import ClassifierTraining

    with distributed(options.stall_minutes, options.folder) as ranks:
        register(options.register)
        if options.eval:
            if dataset is not None:
                _, val_dataset = with_part(dataset, val_dataset, options)
            return evaluate_file(options, ranks, val_dataset)
        images, val, classes = labelled_images(options, dataset, val_dataset)
        if options.resume and not is_own_run(options.resume):
            if options.finetune_from not in (None, options.resume):
                raise ValueError(f'--resume={options.resume} holds weights, and --finetune_from others: give one of them')
            options = dataclasses.replace(options, resume=None, finetune_from=options.resume)
        if options.fresh and options.resume:
            raise ValueError('--fresh starts over and --resume goes on: give one of them')
        saved = saved_options(options, Run.checkpoint_of(options), ranks)
        options, chosen = Recipe().settled(options, len(images), ranks, saved)
        run = Run(options, ranks, len(images), same_images(images, ranks), recipe=chosen)
        return ClassifierTraining(run, images, val, classes).fit()


def is_own_run(path):
    """Whether a file is the checkpoint of a fine-tuning run of this program, not weights, nor of another program's run."""
    from common.reliability.checkpoint import is_run, read_plain
    content = read_plain(path)
    return is_run(content, path) and {'finetune_from', 'smoothing'} <= content['config'].keys()


def check(argv=None):
    """Exits as `main` does if the options of a command line are wrong, or name what is not there.

    It does not load torch. common/launch.sh calls it before it starts processes.
    """
    options = check_options(argv)
    with errors_in_one_sentence(resumes=True):
        options.require_paths()


@reader_may_leave(ends=False)
def main(argv=None):
    """The command line: exits with 0, with 1 and one sentence for what does not fit, or with 2 for a wrong flag."""
    check(argv)
    say_loading()
    options = parse_options(argv)
    with errors_in_one_sentence(resumes=True):
        fine_tune(options)


if __name__ == '__main__':
    main()
