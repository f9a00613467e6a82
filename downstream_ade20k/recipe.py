"""Batch, iterations and learning rate of a segmentation run where they are not given: --recipe=paper or auto.

`paper` is the published recipe for the network, or for its kind (published.py): batches of 16, 160,000 iterations,
measured ten times. It is the default on GPUs for 4,000 images or more; ADE20K has 20,210. `auto` is a rule for the rest:

* batch: the largest power of two, from 4 to 16, with which a pass over the images has 16 iterations or more; on a CPU
  4. Pooled to 1 x 1, UperNet's features have one value of each channel an image, and BatchNorm needs a few of them.
* iterations: 20,000 on GPUs, or fewer where that is more than 200 passes over the images; 2,000 on a CPU, likewise.
* peak rate: the recipe's, times the root of the batch over 16. A --base_lr that is given is multiplied by the batch
  over 16 instead.
* warm-up: a tenth of the iterations, and 1,500 at most.

The validation images are measured after each tenth of the iterations, or after the nearest number that divides them. If
that is far from a tenth, the number of iterations is refused.
"""
from common.training import recipe
from downstream_ade20k.published import BATCH, CHOSEN, EVALUATIONS, iterations_between_evaluations, recipe_of

ITERATIONS_ON_GPUS = 20_000
MOST_PASSES = 200
WARMUP = 1500


class Recipe(recipe.Recipe):
    """Those of a segmentation run."""
    chosen = CHOSEN
    before = {'lr': None, 'accum': 1}
    words = {'batch_size': 'batches of {:,}', 'iterations': '{:,} iterations',
             'lr': 'a peak learning rate of {:g}'}
    least_batch = 4
    fewest_images = 4000

    def paper(self, options):
        published = {name: value for name, value in recipe_of(options.model, options.opt).items() if name in CHOSEN}
        length = length_of(options, published['iterations'])
        return {**published, **length, 'warmup_iterations': min(published['warmup_iterations'], length['iterations'] // 10)}

    def most_batch(self, options, published, device):
        return published['batch_size'] if device.type == 'cuda' else self.least_batch

    def duration(self, options, published, images, on_gpus):
        most = ITERATIONS_ON_GPUS if on_gpus else recipe.STEPS_ON_A_CPU
        return length_of(options, min(most, MOST_PASSES * -(-images // options.batch_size)))

    def rate(self, options, published, images):
        return published['base_lr'] * (options.batch_size / BATCH) ** 0.5

    def rest(self, options, published, images):
        return {'warmup_iterations': min(WARMUP, options.iterations // 10)}

    def going_on(self, options, saved):
        """As of all programs. Raises ValueError for iterations that are no multiple of the run's val_every."""
        every, total = saved['val_every'], options.iterations
        if total is not None and total % every and options.val_every in (None, every):
            raise ValueError(f'the run goes on with an evaluation after each {every} iterations, which do not divide '
                             f'{total}: give --iterations={-(-total // every) * every}')
        return super().going_on(options, saved)


def length_of(options, iterations):
    """{'iterations', 'val_every'} of a run of so many iterations, or of those in the options.

    Where only one of the two is given, the other one fits it: val_every divides the iterations. Raises ValueError.
    """
    if options.iterations is not None:
        every = options.val_every or iterations_between_evaluations(options.iterations)
        return {'iterations': options.iterations, 'val_every': every}
    every = options.val_every or max(1, round(iterations / EVALUATIONS))
    return {'iterations': max(1, round(iterations / every)) * every, 'val_every': every}
