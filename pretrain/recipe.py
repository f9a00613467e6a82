"""Batch, epochs and learning rate of a pretraining with SparK where they are not given: --recipe=paper or auto.

`paper` is the official setting to the letter: batches of 4,096 images, 1,600 epochs, LAMB with a peak rate of
2e-4 for each 256 images of the batch. It is the default on GPUs for 65,536 images (16 batches) to 2.5 million
(twice ImageNet).

`auto` is a rule for the rest (docs/your_images.md says what was measured):

* batch: the largest power of two, from 8 to 4,096, with which an epoch has 16 steps or more; on a CPU 32 at
  most.
* epochs: 1,600 on GPUs, or fewer where the run would see more images than 1,600 epochs of ImageNet have. On a
  CPU as many as 2,000 steps take.
* peak rate of LAMB: 3.2e-3 * (500,000 / steps) ** (1/3), at most 0.03: the paper's for as many steps as the
  paper's run has, and more for fewer. LAMB moves a layer by a share of its own size, the rate, in each step;
  fewer steps have to be longer ones to get as far. Other optimisers: 3.2e-3 * (batch / 4,096) ** (1/2).
"""
import dataclasses

from common.training import recipe
from pretrain.departures import differing, other_network, other_precision
from pretrain.spark_options import DROP_PATH, SparKOptions
from pretrain.spark_options import recipe as models_recipe

PAPER = {'batch_size': 4096, 'epochs': 1600, 'base_lr': 2e-4}
PAPER_384 = {**PAPER, 'batch_size': 2048, 'base_lr': 4e-4}  # with images of 384 px
PUBLISHED_PRECISION = 'fp32'
# Options whose defaults are the paper's.
COMPARED = ('input_size', 'mask_ratio', 'cell_size', 'levels', 'decoder', 'decoder_width', 'target', 'crop_scale',
            'interpolation', 'flip', 'drop_path', 'opt', 'beta2', 'weight_decay', 'last_weight_decay', 'clip_grad', 'sync_bn')
PUBLISHED_LR = 3.2e-3  # its peak rate
PUBLISHED_STEPS = 500_000  # of its 1,600 epochs of ImageNet
HIGHEST_LR = 0.03


class Recipe(recipe.Recipe):
    """Those of a pretraining with SparK; other methods derive from it."""
    chosen = (*recipe.Recipe.chosen, 'drop_path')
    before = {**PAPER, 'lr': None, 'accum': 1}
    fewest_images = recipe.STEPS_AN_EPOCH * PAPER['batch_size']
    most_images = 2_500_000

    def settled(self, options, images, ranks, saved=None):
        """As for all programs. Without a drop path that was given, a run that begins has none.

        timm has one for some networks if it is not told. A run that was saved with None has that, and goes on with it.
        """
        if not saved:
            options = recipe.filled(options, {'drop_path': 0.0})
        return super().settled(options, images, ranks, saved)

    def paper(self, options):
        return PAPER

    def departures(self, options, precision):
        """How a run differs from the paper's run of its model: texts. See `Method` in pretrain/methods.py."""
        model = options.model
        setting = {'input_size': 384, 'mask_ratio': 0.75, **PAPER_384} if options.size == (384, 384) else PAPER
        # What follows from the network where it is not given.
        by_network = {'beta2': 0.999 if model.startswith('convnext') else 0.95, 'cell_size': 32}
        published = SparKOptions(**{'name': 'paper', 'model': model, **setting, **by_network,
                                    **models_recipe({'model': model})})
        height, width = options.size
        own = recipe.filled(dataclasses.replace(options, input_size=height if height == width else options.size), by_network)
        return [*differing(own, published, COMPARED), *other_network(model, DROP_PATH),
                *other_precision(precision, PUBLISHED_PRECISION)]

    def length(self, options, published, on_gpus):
        steps = published['epochs'] * -(-recipe.IMAGENET // options.batch_size) if on_gpus else recipe.STEPS_ON_A_CPU
        return steps, published['epochs']

    def rate(self, options, published, images):
        return rate_for(options, images)

    def advised_rate(self, options, images):
        """The peak learning rate from which another should not be far; None if none is known."""
        return rate_for(options, images) if options.opt == 'lamb' else None


def rate_for(options, images):
    """The peak learning rate for the optimiser, batch and epochs of the options, and a number of images."""
    if options.opt != 'lamb':
        return recipe.rounded(PUBLISHED_LR * (options.batch_size / PAPER['batch_size']) ** 0.5)
    steps = options.epochs * -(-images // options.batch_size)
    return recipe.rounded(min(PUBLISHED_LR * (PUBLISHED_STEPS / steps) ** (1 / 3), HIGHEST_LR))
