"""What a segmentation run computes from its options, its images and its machines."""
from dataclasses import dataclass

from common.training.finetuning import FineTuningRun
from common.training.recipe import batch_for
from common.training.schedule import Polynomial
from common.training.unit import Unit
from downstream_ade20k.config import Options
from downstream_ade20k.published import WARMUP_START
from downstream_ade20k.recipe import Recipe

# The entries of a checkpoint that tell whether training and validation images are those of before.
FINGERPRINTS = 'fingerprint', 'val_fingerprint'


@dataclass(frozen=True)
class Run(FineTuningRun):
    """Options, ranks and number of training images, and what follows from them.

    Its rounds are the iterations between two evaluations.
    """
    options: Options
    word = 'ade20k'
    data_differ = 'images or their masks have other names or sizes'

    @property
    def per_epoch(self):
        return self.options.val_every

    @property
    def epochs(self):
        return self.options.iterations // self.options.val_every

    def epochs_in(self, config):
        return config['iterations'] // config['val_every']

    @property
    def unit(self):
        return Unit('iteration', 'iterations', self.options.val_every)

    def place(self, step):
        return f'iteration {step:,}'

    @property
    def warmup_steps(self):
        return self.options.warmup_iterations

    @property
    def has_short_warmup(self):
        return False  # A recipe chooses it, and whoever gives another means it.

    @property
    def advised_batch(self):
        """The smallest batch that the rule chooses: BatchNorm needs a few images at a time."""
        return batch_for(self.images, self.ranks.size, Recipe.least_batch, Recipe.least_batch)

    @property
    def has_few_images(self):
        return super().has_few_images and self.options.batch_size > self.advised_batch

    def against_few_images(self):
        return f'Give --bs={self.advised_batch}'

    @property
    def curve(self):
        return Polynomial(self.options.power, self.options.end_lr, WARMUP_START)

    def refuse_changes(self, saved, classes):
        """As in any run. The ids of the classes are compared: `data.classes_to_go_on_with` says what else may change."""
        super().refuse_changes({**saved, 'classes': saved['classes']['ids']}, classes=classes['ids'])

    @property
    def passes(self):
        """How often the run sees each image."""
        return self.steps * self.options.batch_size / self.images
