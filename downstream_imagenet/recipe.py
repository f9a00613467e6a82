"""Batch, epochs, learning rate and EMA of a fine-tuning where they are not given: what --recipe chooses.

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

A named recipe (published.py) has its own batch, epochs, rate and EMA, on any images and any device. `unfit` says what
to give besides where it cannot work with them.
"""
import dataclasses

from common.training import recipe
from common.words import counted
from downstream_imagenet.config import CHOSEN
from downstream_imagenet.published import DROP_SHARES, NAMED, named_recipe, recipe_of

EPOCHS = 100


class Recipe(recipe.Recipe):
    """Those of a fine-tuning; published.py has those with a name."""
    chosen = CHOSEN
    before = {'lr': None, 'accum': 1}
    words = {**recipe.Recipe.words, 'ema': 'an EMA of decay {:g}'}
    fewest_images = recipe.STEPS_AN_EPOCH * 2048
    most_images = 2_500_000

    def paper(self, options):
        published = published_values(options)
        epochs = options.epochs or published['epochs']
        if options.recipe == 'linear_probe':
            published['lr_steps'] = tuple(round(share * epochs, 2) for share in DROP_SHARES)
        return {**published, 'warmup_epochs': warmup(options.opt, published, epochs)}

    def length(self, options, published, on_gpus):
        steps = published['epochs'] * -(-recipe.IMAGENET // options.batch_size) if on_gpus else recipe.STEPS_ON_A_CPU
        return steps, EPOCHS

    def rate(self, options, published, images):
        share = 1.0 if options.opt == 'lamb' else (options.batch_size / published['batch_size']) ** 0.5
        return published['base_lr'] * published['batch_size'] / 256 * share

    def going_on(self, options, saved):
        """As for all programs. A ConvViT's run that began when all of an image was evaluated from 384 px on keeps that."""
        options = super().going_on(options, saved)
        is_of_then = options.crop == 1.0 and 'crop' in saved and saved['crop'] is None
        return dataclasses.replace(options, crop=None) if is_of_then else options

    def in_words(self, given, options):
        return super().in_words(given, options if options.ema else dataclasses.replace(options, ema=None))

    def rest(self, options, published, images):
        steps = options.epochs * -(-images // options.batch_size)
        ema = max(0.0, min(published['ema'], round(1 - 10 / steps, 6)))
        return {'ema': ema, 'warmup_epochs': warmup(options.opt, published, options.epochs)}


def published_values(options):
    """{name: value} of the named recipe, or of the paper's for the model, of the options that are chosen here."""
    if options.recipe in NAMED:
        published = named_recipe(options.recipe, options.model)
    else:
        _, published = recipe_of(options.model, options.input_size)
    return {name: published[name] for name in CHOSEN if name in published}


def warmup(opt, published, epochs):
    """Epochs of warm-up: the paper's, and at most a tenth of all, or the share of them that the paper's are; of a
    linear probe with LARS those of MAE.
    """
    if opt == 'lars':
        return min(10.0, epochs / 9)
    share = max(0.1, published['warmup_epochs'] / published['epochs'])
    return min(published['warmup_epochs'], epochs * share if share > 0.1 else epochs / 10)


def unfit(options, images, ranks):
    """Yield a sentence if a named recipe is hardly made for so many images, or for a CPU, with what to give besides.

    options: settled ones. Of images that are fewer than a batch every run warns.
    """
    batch, on_gpus = options.batch_size, ranks.device.type == 'cuda'
    works = images >= recipe.STEPS_AN_EPOCH * batch if on_gpus else batch <= recipe.BATCH_ON_A_CPU
    if works or images < batch:
        return
    where = '' if on_gpus else ' on a CPU'
    yield (f'{options.recipe} is made for ImageNet and GPUs; here an epoch is '
           f'{counted(-(-images // batch), "step")} of {batch:,} images{where}. Give '
           f'{fitting(options, images, ranks)}')


def fitting(options, images, ranks):
    """What to give besides a named recipe, for a person: the numbers of the rule of `auto`, with the recipe's rate."""
    unset = dataclasses.replace(options, **dict.fromkeys((*Recipe.words, 'warmup_epochs', 'base_lr', 'lr_steps')))
    chosen = Recipe().automatic(unset, images, ranks)
    ema = f' --ema={chosen.ema:g}' if options.ema else ''
    return (f'--bs={chosen.batch_size} --ep={chosen.epochs} --lr={chosen.lr:g}{ema} with it, as --recipe=auto would '
            'choose')
