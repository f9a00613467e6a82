"""Batch, epochs and learning rate of a detection run where they are not given: --recipe=paper or auto.

`paper` is the setting for COCO: batches of 16, 36 epochs, a peak rate of 2e-4. It is the default for 16,384
images or more on GPUs. `auto` is a rule for the rest:

* batch: the largest power of two, from 2 to 16, with which an epoch has 16 steps or more; on a CPU 2.
* epochs: as many as 10,000 steps take on GPUs and 2,000 on a CPU, and 300 at most.
* peak rate: 2e-4 * (batch / 16) ** (1/2).
"""
from common.training import recipe
from common.training.recipe import filled

PAPER = {'batch_size': 16, 'epochs': 36, 'base_lr': 2e-4}
MOST_EPOCHS = 300
STEPS_ON_GPUS = 10_000


class Recipe(recipe.Recipe):
    """Those of a detection run."""
    before = {**PAPER, 'lr': None, 'accum': 1}
    fewest_images = 1024 * PAPER['batch_size']

    def paper(self, options):
        return PAPER

    def automatic(self, options, images, ranks):
        on_gpus = ranks.device.type == 'cuda'
        batch = recipe.batch_for(images, ranks.size, PAPER['batch_size'] if on_gpus else 2, least=2)
        options = filled(options, {'batch_size': batch})
        steps = STEPS_ON_GPUS if on_gpus else recipe.STEPS_ON_A_CPU
        epochs = recipe.epochs_for(images, options.batch_size, steps, MOST_EPOCHS)
        options = filled(options, {'epochs': epochs})
        if options.base_lr is None:
            lr = PAPER['base_lr'] * (options.batch_size / PAPER['batch_size']) ** 0.5
            options = filled(options, {'lr': recipe.rounded(lr)})
        return filled(options, {'base_lr': PAPER['base_lr']})
