"""Train Mask R-CNN or Faster R-CNN with any timm CNN, on any images in COCO's format, and measure average precision.

    bash downstream_coco/main.sh my_detector --data_path=DIR --model=resnet50 --finetune_from=FILE    # from any folder
    torchrun --nproc_per_node=8 -m downstream_coco.main --name=my_detector ...                        # the same
    python -m downstream_coco.main --name=my_detector ...                                             # one process

The same command again goes on where the run stopped. From Python: `train_detector(Options(...))`.
"""
import sys
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.cli import errors_in_one_sentence, reader_may_leave
from common.networks.users import register
from common.start import say_loading
from downstream_coco.config import parse_options


def train_detector(options):
    """Run, or go on with, a training; returns the run folder, or with options.eval the average precisions.

    Raises ValueError, before any work, for whatever does not fit together.
    """
    # These load torch, which takes seconds: by now the options are known to be right.
    from common.distributed import distributed
    from common.images.datasets import same_images
    from common.live_line import LiveLine
    from common.training.recipe import saved_options
    from downstream_coco.data import CocoImages, divided_images
    from downstream_coco.evaluation import average_precision, evaluate_file
    from downstream_coco.recipe import Recipe
    from downstream_coco.training import DetectorTraining, Run

    with distributed(options.stall_minutes, options.folder) as ranks:
        register(options.register)
        if options.eval:
            return evaluate_file(options, ranks)
        line = LiveLine(print if ranks.is_main else None)
        masks = {'mask': True, 'box': False}.get(options.heads)
        if options.val_fraction is not None:
            images, val = divided_images(options, masks, line=line)
        else:
            images = CocoImages(*options.files('train'), options.in_chans, keep_empty=options.keep_empty, masks=masks,
                                reading=options.reading, line=line)
            val = CocoImages(*options.files('val'), options.in_chans, images.categories, True, images.has_masks,
                             options.reading, line)
        average_precision(val.annotations, [], val.ids, val.has_masks, dry=True)  # what it cannot take ends the run here
        saved = saved_options(options, Run.checkpoint_of(options), ranks)
        options, chosen = Recipe().settled(options, len(images), ranks, saved)
        run = Run(options, ranks, len(images), same_images(images, ranks), recipe=chosen)
        same_images(val, ranks)
        return DetectorTraining(run, images, val).fit()


def check(argv=None):
    """The options of a command line; exits as `main` does if they are wrong, or name what is not there.

    It does not load torch. common/launch.sh calls it before it starts processes.
    """
    options = parse_options(argv)
    with errors_in_one_sentence(resumes=True):
        options.require_paths()
    return options


@reader_may_leave(ends=False)
def main(argv=None):
    """The command line: exits with 0, with 1 and one sentence for what does not fit, or with 2 for a wrong flag."""
    options = check(argv)
    say_loading()
    with errors_in_one_sentence(resumes=True):
        train_detector(options)


if __name__ == '__main__':
    main()
