"""The options of a pretraining run with ConvMAE. Nothing here needs torch.

The defaults are the recipe of ConvMAE's authors (arXiv 2205.03892), which is MAE's for another network.
--masks_per_image=4 is their FastConvMAE. Numbers of images and epochs, and the learning rate, are in
pretrain/convmae_recipe.py.
"""
from dataclasses import dataclass

from common.cli import option
from pretrain import mae_options
from pretrain.mae_options import MAEOptions

NAME = 'convmae'  # the value of --method
TITLE = 'ConvMAE: masked autoencoding of networks that end in attention after convolutions.'  # for --help


@dataclass(frozen=True)
class ConvMAEOptions(MAEOptions):
    """What a user decides of a pretraining run with ConvMAE. Raises ValueError."""

    model: str = option('convvit_base', 'a network of convolutions and then attention by its timm name: convvit_base is '
                        "the paper's; or your own in pretrain/models", 'method', parse=str)
    method: str = option(NAME, 'how the network is pretrained; --method=NAME --help shows the options of '
                         'another method', 'method', parse=str)

    own_method = NAME


recipe = mae_options.recipe  # the defaults are the rest of it
