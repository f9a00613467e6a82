"""What can be refused of a run that goes on before its masks are read: that it is another run than the saved one."""
from pathlib import Path

from common.reliability.checkpoint import refuse_others
from common.training.extension import shorter
from common.training.recipe import starts_over
from common.training.same_run import refuse_options, refuse_other_data
from common.training.unit import Unit
from downstream_ade20k.data import listed
from downstream_ade20k.published import CHOSEN
from downstream_ade20k.run import FINGERPRINTS, Run

# The entries of a checkpoint that are known before the images are.
ENTRIES = 'config', 'classes', 'images', 'path', 'ended_at', *FINGERPRINTS


def refuse_another_run(options, saved, ranks):
    """Raise a ValueError, on all ranks, if the run folder or the checkpoint is of another run than the options.

    Its classes are not those of these masks then, nor is what its recipe chose for these options.

    saved: {name: value} of the ENTRIES of the checkpoint that the run goes on from; empty if a run begins.
    """
    if not starts_over(options):
        ranks.on_main(lambda: refuse_others(Path(options.folder), Run.checkpoint_of(options)))
    if not saved:
        return
    refuse_options(options, saved, 'iterations', CHOSEN)
    iterations = saved['config']['iterations']
    if options.iterations is not None and options.iterations < iterations:
        raise ValueError(shorter(Unit('iteration', 'iterations'), saved, iterations, options.iterations))
    if not options.allow_changed_data:
        ranks.on_main(lambda: refuse_changed_data(options, saved))


def refuse_changed_data(options, saved):
    """Raise a ValueError if the files of the training images or of their masks are not those of the checkpoint."""
    images, _ = listed(options)
    refuse_other_data(saved, len(images), images.fingerprint(), Run.data_differ)
