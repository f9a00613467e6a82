"""What the recipes of those methods have in common whose papers train with AdamW: the rule for the peak rate where it
is not given.

The rule is the paper's peak rate times (batch / the paper's batch) ** (1/2) * (the paper's steps / steps) ** (1/2), at
most 2.5 times the paper's: fewer steps have to be longer ones to get as far. It was measured with A2MIM, on drawn
images alone (docs/learning_rate.md). LAMB has SparK's rule.
"""
from common.training.recipe import IMAGENET
from pretrain import recipe


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
