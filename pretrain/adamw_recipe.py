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

    def rate(self, options, published, images):
        if options.opt == 'lamb':
            return super().rate(options, published, images)
        batch, published_batch = options.batch_size, published['batch_size']
        steps = options.epochs * -(-images // batch)
        published_steps = published['epochs'] * -(-IMAGENET // published_batch)
        share = (batch / published_batch * published_steps / steps) ** 0.5
        return published['base_lr'] * published_batch / 256 * min(share, self.highest_share)
