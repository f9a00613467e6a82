"""Batch, epochs and learning rate of a pretraining with MAE, where they are not given, and how a run departs from the
authors' run.

`paper` is the setting of MAE's authors (arXiv 2111.06377, appendix A.1): batches of 4,096 images, 800 epochs, AdamW with
a peak rate of 1.5e-4 for each 256 images of the batch. They published runs of 1,600 epochs too. It is the default on
GPUs for 65,536 images (16 batches) to 2.5 million (twice ImageNet).

`auto` is a rule for the rest:

* batch: as for SparK (pretrain/recipe.py), at most the paper's.
* epochs: as for SparK, at most the paper's.
* peak rate: the rule for AdamW in pretrain/adamw_recipe.py. It was measured with A2MIM, not with this method; it is the
  best that is known here.

With --masks_per_image=n an image counts as n images: there are 1/n of the images in a batch, 1/n of the epochs, and n
times the rate for each 256 images. That is how the authors of FastConvMAE changed the recipe of ConvMAE.
"""
import dataclasses

from common.training.recipe import most_on
from pretrain.adamw_recipe import AdamWRecipe
from pretrain.departures import differing, other_precision

PAPER = {'batch_size': 4096, 'epochs': 800, 'base_lr': 1.5e-4}
BATCH_MULTIPLE = 64  # of the batches that the paper's setting has with several masks, so that ranks can share them
PUBLISHED_PRECISION = 'fp16'  # of MAE's program and of those that derive from it
# Options whose defaults are the recipe.
COMPARED = ('model', 'mask_ratio', 'masks_per_image', 'crop_scale', 'interpolation', 'flip', 'input_size', 'drop_path',
            'target', 'decoder_width', 'decoder_depth', 'decoder_heads', 'opt', 'beta2', 'weight_decay',
            'last_weight_decay', 'clip_grad')


class Recipe(AdamWRecipe):
    """Those of a pretraining with MAE; ConvMAE's derives from it.

    published: the authors' setting. of_several: the one that is divided by the number of masks where an image has several.
    published_masks: how many masks an image the authors had, where they had several. models: names of networks that they
    published. other_epochs: of further published runs.
    """
    published = of_several = PAPER
    published_masks = 1
    models = ('vit_base_patch16_224', 'vit_large_patch16_224', 'vit_huge_patch14_224')
    other_epochs = (1600,)
    fewest_images = 16 * PAPER['batch_size']

    def paper(self, options):
        masks = options.masks_per_image
        if masks == 1:
            return self.published
        return divided(self.published if options.recipe == 'auto' else self.of_several, masks)

    def most_batch(self, options, published, device):
        most = most_on(device, published['batch_size'])
        return most if device.type == 'cuda' else most // options.masks_per_image

    def departures(self, options, precision):
        """How a run differs from the authors' run: texts.

        options: settled. precision: 'bf16', 'fp16' or 'fp32'.
        """
        return [*differing(options, self.published_options(options), COMPARED),
                *other_precision(precision, PUBLISHED_PRECISION)]

    def published_options(self, options):
        """The options of that run of the authors that is nearest to a run with these options."""
        masks = 1 if options.masks_per_image == 1 else self.published_masks
        published = type(options)(name='paper', recipe='paper', masks_per_image=masks)
        published = dataclasses.replace(published, warmup_epochs=published.published_warmup, **self.paper(published))
        if masks == 1 and options.epochs in self.other_epochs:
            published = dataclasses.replace(published, epochs=options.epochs)
        if options.model.split('.')[0] in self.models:
            published = dataclasses.replace(published, model=options.model)
        return published


def divided(values, masks):
    """Values of a recipe for one mask an image, as they are for several."""
    batch = max(values['batch_size'] // masks, 1)
    multiple = BATCH_MULTIPLE if batch > BATCH_MULTIPLE else 1
    return {'batch_size': batch - batch % multiple, 'epochs': max(round(values['epochs'] / masks), 1),
            'base_lr': values['base_lr'] * masks}
