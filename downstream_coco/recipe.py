"""Batch, epochs and learning rate of a detection run where they are not given: --recipe=paper or auto.

`paper` is ConvNeXt's setting for COCO: batches of 16, 36 epochs, a peak rate of 2e-4. It is the default for 16,384
images or more on GPUs. `auto` is a rule for the rest:

* batch: the largest power of two, from 2 to 16, with which an epoch has 16 steps or more; on a CPU 2.
* epochs: as many as 10,000 steps take on GPUs and 2,000 on a CPU, and 300 at most.
* peak rate: 2e-4 * (batch / 16) ** (1/2).
"""
from common.training import recipe

PAPER = {'batch_size': 16, 'epochs': 36, 'base_lr': 2e-4}
MOST_EPOCHS = 300
STEPS_ON_GPUS = 10_000


class Recipe(recipe.Recipe):
    """Those of a detection run."""
    before = {**PAPER, 'lr': None, 'accum': 1}
    least_batch = 2
    fewest_images = 1024 * PAPER['batch_size']

    def paper(self, options):
        return PAPER

    def most_batch(self, options, published, device):
        return PAPER['batch_size'] if device.type == 'cuda' else 2

    def length(self, options, published, on_gpus):
        return STEPS_ON_GPUS if on_gpus else recipe.STEPS_ON_A_CPU, MOST_EPOCHS

    def rate(self, options, published, images):
        return PAPER['base_lr'] * (options.batch_size / PAPER['batch_size']) ** 0.5
