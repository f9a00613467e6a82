"""Recipes by names of a program's own, beside paper and auto."""
from dataclasses import dataclass

import pytest
import torch

from common.about import About
from common.cli import parse, parser_of
from common.config import EpochOptions, RunOptions, recipe_option
from common.distributed import Ranks
from common.training import recipe

PAPER = {'batch_size': 64, 'epochs': 90, 'base_lr': 1e-3}


@dataclass(frozen=True)
class Options(EpochOptions):
    recipe: str = recipe_option(short='a fifth of the epochs', other='as paper or auto')


class Recipe(recipe.Recipe):
    before = {**PAPER, 'lr': None, 'accum': 1}
    fewest_images = 1000

    def paper(self, options):
        return {**PAPER, 'epochs': 18} if options.recipe == 'short' else PAPER

    def to_the_letter(self, name, fits):
        return fits if name == 'other' else super().to_the_letter(name, fits)

    def length(self, options, published, on_gpus):
        return 500, published['epochs']

    def rate(self, options, published, images):
        return 1e-4


def settled(name, images, **given):
    options = Options(name='run', recipe=name, **given)
    done, words = Recipe().settled(options, images, Ranks(0, 1, torch.device('cuda')))
    return (done.batch_size, done.epochs, done.peak_lr, done.recipe), words


def test_a_named_recipe_holds_to_the_letter_whatever_the_images():
    for images in (100, 10_000):
        values, words = settled('short', images)
        assert values == (64, 18, 2.5e-4, 'short') and words == 'short: batches of 64, 18 epochs'
    assert settled('short', 100, epochs=3)[0] == (64, 3, 2.5e-4, 'short')
    assert settled(None, 10_000)[0] == (64, 90, 2.5e-4, 'paper')


def test_a_named_recipe_can_leave_the_batch_to_the_rule_where_there_are_few_images():
    assert settled('other', 10_000)[0] == (64, 90, 2.5e-4, 'other')
    values, words = settled('other', 100)
    assert values == (8, 38, 1e-4, 'other')
    assert words.startswith('other, for 100 images on GPUs: batches of 8, 38 epochs, a peak learning rate of 0.0001')


def test_the_command_line_knows_the_names(capsys):
    assert parse(Options, 'run', About('A program.'), ['--name=run', '--recipe=short']).recipe == 'short'
    with pytest.raises(SystemExit):
        parse(Options, 'run', About('A program.'), ['--name=run', '--recipe=long'])
    assert "'paper', 'auto', 'short', 'other'" in capsys.readouterr().err
    text = ' '.join(parser_of(Options, 'run', About('A program.')).format_help().split())
    assert '{paper,auto,short,other}' in text and 'short: a fifth of the epochs. other: as paper or auto' in text
    with pytest.raises(ValueError, match='recipe is one of'):
        RunOptions(name='run', recipe='short')
