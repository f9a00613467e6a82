"""Train UPerNet with any timm CNN for semantic segmentation, on any images with masks, and measure mIoU.

    bash downstream_ade20k/main.sh my_segmenter --data_path=DIR --model=resnet50 --finetune_from=FILE    # from any folder
    torchrun --nproc_per_node=8 -m downstream_ade20k.main --name=my_segmenter ...                        # the same
    python -m downstream_ade20k.main --name=my_segmenter ...                                             # one process

The same command again goes on where the run stopped. From Python:
`train_segmenter(recommended(...))`, which takes what is not given from the recipe of the model, as the command line does.
"""
import sys
from pathlib import Path

if not __package__:  # started as a file: imports are absolute from the root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.cli import errors_in_one_sentence, reader_may_leave
from common.networks.users import register
from common.start import say_loading
from downstream_ade20k.config import check_options, parse_options


def train_segmenter(options):
    """Run, or go on with, a training; returns the run folder, or with options.eval the figures.

    Raises ValueError, before any work, for whatever does not fit together.
    """
    # These load torch, which takes seconds: by now the options are known to be right.
    from common.distributed import distributed
    from common.images.datasets import same_images
    from common.live_line import LiveLine
    from common.training.recipe import saved_entries
    from downstream_ade20k.classes import Classes
    from downstream_ade20k.data import training_and_validation
    from downstream_ade20k.evaluation import evaluate_file
    from downstream_ade20k.recipe import Recipe
    from downstream_ade20k.run import FINGERPRINTS, Run
    from downstream_ade20k.same_run import ENTRIES, refuse_another_run
    from downstream_ade20k.training import SegmenterTraining

    with distributed(options.stall_minutes, options.folder) as ranks:
        register(options.register)
        if options.eval:
            return evaluate_file(options, ranks)
        line = LiveLine(print if ranks.is_main else None)
        saved = saved_entries(options, Run.checkpoint_of(options), ranks, ENTRIES)
        refuse_another_run(options, saved, ranks)
        classes = Classes.from_data(saved['classes']) if saved.get('classes') else None
        images, val = training_and_validation(options, ranks, line, classes, [saved.get(name) for name in FINGERPRINTS])
        options, chosen = Recipe().settled(options, len(images), ranks, saved.get('config'))
        run = Run(options, ranks, len(images), same_images(images, ranks), recipe=chosen)
        same_images(val, ranks)
        return SegmenterTraining(run, images, val).fit()


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
        train_segmenter(options)


if __name__ == '__main__':
    main()
