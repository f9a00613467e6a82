"""Pretrain a CNN on images.

    bash pretrain/main.sh my_run --data_path=DIR --model=resnet50        # one GPU, all GPUs, many nodes, or the CPU
    python -m pretrain.main --name=my_run --data_path=DIR                # one process
    torchrun --nproc_per_node=8 -m pretrain.main --name=my_run ...       # the same as main.sh

The same command again goes on where the run stopped. From Python:

    from pretrain.main import pretrain
    from pretrain.methods import recommended
    pretrain(recommended(name='my_run', model='resnet50'), dataset=...)
"""
import sys
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.cli import errors_in_one_sentence, reader_may_leave
from common.start import said_if_long, say_loading
from pretrain.options import DEFAULT, parse_options


def pretrain(options, dataset=None, val_dataset=None, method=None):
    """Run, or go on with, a pretraining; returns the run folder.

    dataset, val_dataset: map-style data sets of your own instead of the paths in the options, of PIL images
    or tensors; see `Augmented` in common/images/augmented.py. method: see pretrain/methods.py; that of the
    options if not given. Raises ValueError, before any work, for whatever does not fit together; Stopped or
    Unwritten (common/reliability/stopping.py) where a signal or the disk ends it.
    """
    # These load torch, which takes seconds: by now the options are known to be right.
    from common.distributed import distributed
    from common.images.datasets import check_dataset, same_images
    from common.images.held_out import with_held_out
    from common.networks.users import register
    from common.training.recipe import saved_options
    from pretrain.methods import METHODS
    from pretrain.pretraining import Pretraining, Run

    with distributed(options.stall_minutes, options.folder) as ranks:
        register(options.register)
        images = training_images(options) if dataset is None else check_dataset(dataset, options.in_chans)
        held_out = held_out_images(options) if val_dataset is None else check_dataset(val_dataset, options.in_chans)
        images, held_out = with_held_out(images, held_out, options.val_fraction, options.seed)
        method = method or METHODS[options.method]
        saved = saved_options(options, Run.checkpoint_of(options), ranks)
        then = saved.get('method', DEFAULT) if saved else method.name
        if then != method.name:
            raise ValueError(f'{options.resume or options.folder} is of another run: method was {then} and is {method.name} '
                             f'now. Give --method={then}, another name, or --fresh to start over')
        options, chosen = method.recipe.settled(options, len(images), ranks, saved)
        run = Run(options, ranks, len(images), same_images(images, ranks), recipe=chosen, curve=method.curve(options))
        if not saved:
            run.parts(None)  # raises ValueError, before the network is built, if a batch cannot be cut into --accum parts
        return Pretraining(run, images, held_out, method).fit()


def training_images(options):
    from pretrain.data import find_images
    with said_if_long(f'Looking for images in {options.data_path or options.dataset}'):
        return find_images(options.data_path, options.dataset, options.in_chans, options.list_root, options.reading)


def held_out_images(options):
    from pretrain.data import find_held_out
    with said_if_long('Looking for held-out images'):
        return find_held_out(options.data_path, options.val_path, options.in_chans, options.list_root, options.reading)


def check(argv=None):
    """The options of a command line; exits as `main` does if they are wrong, or name what is not there.

    It does not load torch. common/launch.sh calls it before it starts processes.
    """
    options = parse_options(argv, 'pretrain.main')
    with errors_in_one_sentence(resumes=True):
        options.require_paths()
    return options


@reader_may_leave(ends=False)
def main(argv=None):
    """The command line: exits with 0, with 1 and one sentence for what does not fit, or with 2 for a wrong flag."""
    options = check(argv)
    say_loading()
    with errors_in_one_sentence(resumes=True):
        pretrain(options)


if __name__ == '__main__':
    main()
