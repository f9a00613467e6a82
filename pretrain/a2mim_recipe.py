"""Batch, epochs, learning rate and Fourier group of a pretraining with A2MIM, where they are not given.

`paper` is the setting of A2MIM's authors: batches of 2,048 images, AdamW, and

* for CNNs 300 epochs with a peak rate of 1.5e-4 for each 256 images of the batch,
* for ViTs 800 epochs and 5e-5,
* for DeiT-S, on the 100 classes of ImageNet-100 at 192 px, 800 epochs and 1e-4.

It is the default on GPUs for 32,768 images (16 batches) to 2.5 million (twice ImageNet).

`auto` is a rule for the rest:

* batch: as for SparK (pretrain/recipe.py), at most 2,048.
* epochs: as for SparK, at most the paper's.
* peak rate of AdamW: the paper's times (batch / 2,048) ** (1/2) * (the paper's steps / steps) ** (1/2), at most 2.5
  times the paper's: fewer steps have to be longer ones to get as far. It was measured on drawn images alone
  (docs/learning_rate.md). LAMB has SparK's rule.

`simmim` is one of these two, with other losses. The Fourier group is 256 images, the paper's, or the largest
number below that fits the batch.
"""
import dataclasses

from common.words import counted
from pretrain.a2mim_options import SIMMIM, A2MIMOptions, family, models_recipe
from pretrain.adamw_recipe import AdamWRecipe
from pretrain.departures import differing, other_network, other_precision
from pretrain.group_sizes import PUBLISHED_GROUP, largest_group

CNN = {'batch_size': 2048, 'epochs': 300, 'base_lr': 1.5e-4}
VIT = {'batch_size': 2048, 'epochs': 800, 'base_lr': 5e-5}
DEIT = {**VIT, 'base_lr': 1e-4}
# Networks of the published runs. The authors' ViTs are BEiTs with absolute positions.
PUBLISHED = ('resnet50', 'resnet101', 'resnet152', 'resnet200', 'convnext_small', 'convnext_base',
             'beit_abs_small_patch16_224', 'beit_abs_base_patch16_224', 'beit_abs_large_patch16_224',
             'deit_small_patch16_224')
# The published runs of these had 128 images on a GPU.
LARGE = ('_base', '_large', '_huge', '_giant', '_gigantic')
# Options whose values a model's recipe has, or ResNet-50's: those of the method, and of the images and the optimiser.
COMPARED = ('mask_ratio', 'crop_scale', 'interpolation', 'drop_path', 'token', 'image_fill', 'spatial_loss',
            'fourier', 'fourier_weight', 'fourier_visible', 'fourier_fill', 'opt', 'beta2', 'lr_schedule',
            'token_lr_scale', 'weight_decay', 'last_weight_decay', 'clip_grad', 'token_at', 'cell_size', 'input_size',
            'flip', 'sync_bn')
OTHER_EPOCHS = {'resnet50': 100, 'resnet101': 800, 'resnet152': 800}  # of a second published run


class Recipe(AdamWRecipe):
    """Those of a pretraining with A2MIM."""
    chosen = (*AdamWRecipe.chosen, 'fourier_group')
    words = {**AdamWRecipe.words, 'fourier_group': 'spectra averaged over {:,} images'}
    fewest_images = 16 * CNN['batch_size']

    def paper(self, options):
        return published_values(options.model)

    def to_the_letter(self, name, fits):
        return fits if name == SIMMIM else super().to_the_letter(name, fits)

    def going_on(self, options, saved):
        """As for all methods; a group is for the focal loss alone, which may not be what is asked for now."""
        if options.fourier != 'focal':
            saved = {name: value for name, value in saved.items() if name != 'fourier_group'}
        return super().going_on(options, saved)

    def completed(self, options, ranks):
        """With the Fourier group, unless memory is to say first into how many parts a batch is cut."""
        return options if options.accum == 'auto' else with_group(options, options.accum, ranks)


def with_group(options, parts, ranks):
    """The options with a Fourier group that fits the parts of a batch, if they need one and have none."""
    if options.fourier != 'focal' or options.fourier_group is not None:
        return options
    group = largest_group(options.batch_size, ranks.size, parts, published_group(options.model))
    return dataclasses.replace(options, fourier_group=group)


def published_values(model):
    """{name: value} of what the authors used for a model."""
    return {'vit': VIT, 'deit': DEIT}.get(family(model), CNN)


def published_group(model):
    """The images whose spectra were averaged in the published run of a model: those of a GPU."""
    is_large = family(model) in ('vit', 'deit') and any(size in model for size in LARGE)
    return 128 if is_large else PUBLISHED_GROUP


def published_precision(model):
    """The precision in which the authors trained a model; None if it is not known."""
    return {'resnet': 'fp32', 'convnext': 'fp16', 'deit': 'fp16'}.get(family(model))


def departures(options, precision):
    """How a run differs from the paper's run of its model, or of its family, or else of ResNet-50: texts.

    options: settled. precision: 'bf16', 'fp16' or 'fp32'.
    """
    model = options.model
    size = 192 if family(model) == 'deit' else 224
    published = A2MIMOptions(**{**published_values(model), 'name': 'paper', 'model': model, 'input_size': size,
                             **models_recipe(model)})
    if options.epochs == OTHER_EPOCHS.get(model):
        published = dataclasses.replace(published, epochs=options.epochs)
    found = [*differing(options, published, COMPARED), *other_network(model, PUBLISHED)]
    group, usual = options.fourier_group, published_group(model)
    if options.fourier == 'focal' and group != usual:
        found.append(f'spectra averaged over {counted(group, "image")} (not {usual}){much_larger(usual / group)}')
    found += other_precision(precision, published_precision(model))
    if family(model) not in ('vit', 'deit'):  # their original has the same rule
        found.append('no weight decay on any one-dimensional parameter, bias, token and gain, and one rate for '
                     'the last two (the original chose by names, with exceptions)')
    return found


def much_larger(times):
    """How much larger the loss on spectra is, as it is where residuals do not depend on each other; '' if hardly."""
    return f': the loss on spectra is about {times:.0f} times as large' if times >= 1.5 else ''
