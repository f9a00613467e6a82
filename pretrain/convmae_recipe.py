"""Batch, epochs and learning rate of a pretraining with ConvMAE, where they are not given.

`paper` is the setting of ConvMAE's authors (arXiv 2205.03892; their instructions): batches of 3,072 images, 1,600
epochs, AdamW with a peak rate of 1.5e-4 for each 256 images of the batch. (One of them says that the released weights
were trained with batches of 2,048.) They published a run of 200 epochs too. It is the default on GPUs for 49,152 images
(16 batches) to 2.5 million (twice ImageNet).

With --masks_per_image=4 it is that of their FastConvMAE: batches of 512 images, 50 epochs of which 10 warm up, and a peak
rate of 6e-4 for each 256 images. As each image is used four times, this is a run of 200 epochs with batches of 2,048 and
a rate of 1.5e-4; so the same is done for other numbers of masks.

`auto`, for all other numbers of images, is the rule of pretrain/mae_recipe.py with ConvMAE's numbers.
"""
from pretrain import mae_recipe

PAPER = {'batch_size': 3072, 'epochs': 1600, 'base_lr': 1.5e-4}
FAST = {'batch_size': 2048, 'epochs': 200, 'base_lr': 1.5e-4}  # FastConvMAE's, before division by its four masks


class Recipe(mae_recipe.Recipe):
    """Those of a pretraining with ConvMAE."""
    published = PAPER
    of_several = FAST
    published_masks = 4
    models = ('convvit_base',)
    other_epochs = (200,)
    fewest_images = 16 * PAPER['batch_size']
