"""What the recipes of those methods have in common whose papers train with AdamW: the rule for the peak rate where it
is not given, and how a run's departures from the paper's run are told.

The rule is the paper's peak rate times (batch / the paper's batch) ** (1/2) * (the paper's steps / steps) ** (1/2), at
most 2.5 times the paper's: fewer steps have to be longer ones to get as far. It was measured with A2MIM, on drawn
images alone (docs/learning_rate.md). LAMB has SparK's rule.
"""
from common.training.recipe import IMAGENET
from pretrain import recipe

# Names of numbers, and what a person calls them.
NUMBERS = {'batch_size': 'batches of', 'epochs': 'epochs', 'peak_lr': 'peak learning rate',
           'warmup': 'epochs of warm-up'}


class AdamWRecipe(recipe.Recipe):
    """The recipes of a method whose paper trains with AdamW."""
    highest_share = 2.5  # of the paper's peak rate, which the rule chooses

    def rate(self, options, papers, images):
        if options.opt == 'lamb':
            return super().rate(options, papers, images)
        batch, papers_batch = options.batch_size, papers['batch_size']
        steps = options.epochs * -(-images // batch)
        papers_steps = papers['epochs'] * -(-IMAGENET // papers_batch)
        share = (batch / papers_batch * papers_steps / steps) ** 0.5
        return papers['base_lr'] * papers_batch / 256 * min(share, self.highest_share)


def differing_numbers(options, papers):
    """How batch, epochs and rate differ from those of other options, in one text, in a list; [] if they do not."""
    return in_one_text([(word, f'{getattr(options, name):,g}', f'{getattr(papers, name):,g}')
                        for name, word in NUMBERS.items()])


def differences(options, papers, names):
    """How options of some names differ from others, in one text, in a list; [] if they do not."""
    return in_one_text([(name, getattr(options, name), getattr(papers, name)) for name in names])


def in_one_text(compared):
    """The differences among (name, value, the paper's value) in one text, in a list; an empty one if there are none."""
    texts = [f'{name} {value} ({"chosen there" if usual is None else f"not {usual}"})'
             for name, value, usual in compared if value != usual]
    return [', '.join(texts)] if texts else []
