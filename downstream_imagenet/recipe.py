"""Batch, epochs, learning rate and EMA of a fine-tuning where they are not given: --recipe=paper or auto.

`paper` is the paper's recipe for the network, or for another network that of a similar one (config.py). It is
made for ImageNet, and the default on GPUs for 32,768 images (16 batches of 2,048) to 2.5 million (twice
ImageNet). `auto` is a rule for the rest:

* batch: the largest power of two, from 8 to the paper's, with which an epoch has 16 steps or more; on a CPU
  32 at most.
* epochs: 100 on GPUs, or fewer where the run would see more images than the paper's. On a CPU as many as
  2,000 steps take, and 100 at most.
* peak rate: with LAMB the paper's, which moves a layer by a share of its own size whatever the batch; with other
  optimisers the paper's times the root of the batch over its batch.
* decay of the EMA: 1 - 10 / steps, at most the paper's. It then averages over a tenth of the run.
"""
from common.training import recipe
from downstream_imagenet.config import CHOSEN, recipe_of

EPOCHS = 100


class Recipe(recipe.Recipe):
    """Those of a fine-tuning."""
    chosen = CHOSEN
    before = {'lr': None, 'accum': 1}
    words = {**recipe.Recipe.words, 'ema': 'an EMA of decay {:g}'}
    fewest_images = recipe.STEPS_AN_EPOCH * 2048
    most_images = 2_500_000

    def paper(self, options):
        papers = papers_values(options)
        return {**papers, 'warmup_epochs': warmup(options.opt, papers, options.epochs or papers['epochs'])}

    def length(self, options, papers, on_gpus):
        steps = papers['epochs'] * -(-recipe.IMAGENET // options.batch_size) if on_gpus else recipe.STEPS_ON_A_CPU
        return steps, EPOCHS

    def rate(self, options, papers, images):
        share = 1.0 if options.opt == 'lamb' else (options.batch_size / papers['batch_size']) ** 0.5
        return papers['base_lr'] * papers['batch_size'] / 256 * share

    def rest(self, options, papers, images):
        steps = options.epochs * -(-images // options.batch_size)
        ema = max(0.0, min(papers['ema'], round(1 - 10 / steps, 6)))
        return {'ema': ema, 'warmup_epochs': warmup(options.opt, papers, options.epochs)}


def papers_values(options):
    """{name: value} of the paper's recipe for the model, of the options that are chosen here."""
    _, papers = recipe_of(options.model, options.input_size)
    return {name: papers[name] for name in CHOSEN if name in papers}


def warmup(opt, papers, epochs):
    """Epochs of warm-up: the paper's, and at most a tenth of all; of a linear probe with LARS those of MAE."""
    if opt == 'lars':
        return min(10.0, epochs / 9)
    return min(papers['warmup_epochs'], epochs / 10)
