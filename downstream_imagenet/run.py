"""What a fine-tuning run computes from its options and images: learning rate, and decay of the average, by step."""
from dataclasses import dataclass

from common.training.finetuning import FineTuningRun
from common.training.schedule import Cosine, CosineToRate, Drop, HalfCosine
from downstream_imagenet.config import Options
from downstream_imagenet.published import NAMED
from downstream_imagenet.recipe import fitting


@dataclass(frozen=True)
class Run(FineTuningRun):
    """Options, ranks and number of training images, and what follows from them."""
    options: Options
    word = '1kfinetuned'
    learning_rate_ends = 0.005, 0.001  # official SparK's fine-tuning

    def __post_init__(self):
        super().__post_init__()
        final, peak = self.options.final_lr, self.options.peak_lr
        if final is not None and final >= peak:
            raise ValueError(f'the learning rate falls to --final_lr={final:g}, which is not below its peak of {peak:g}: '
                             'give a smaller one, or a larger --lr')

    @property
    def has_short_warmup(self):
        return super().has_short_warmup and not self.options.freeze  # There are no weights to be spoilt.

    def against_few_images(self):
        if self.options.recipe in NAMED:
            return f'Give {fitting(self.options, self.images, self.ranks)}'
        return super().against_few_images()

    @property
    def curve(self):
        options = self.options
        start, end = self.learning_rate_ends
        if options.lr_steps is not None:
            epochs = self.first_end / self.per_epoch  # A run that was given more falls at the same shares of them.
            return Drop(tuple(epoch / epochs for epoch in options.lr_steps), start)
        if options.lr_schedule == 'mae':
            return HalfCosine((options.final_lr or 0.0) / options.peak_lr)
        if options.final_lr is None and not options.lr_by_epoch:
            return Cosine(start, end)
        final = end * options.peak_lr if options.final_lr is None else options.final_lr
        return CosineToRate(start, final, self.per_epoch if options.lr_by_epoch else None)

    def ema_decay(self, step):
        """The decay of the average at a step: within --ema_warmup it rises from 0.9 of --ema, linearly."""
        steps = self.options.ema_warmup * self.per_epoch
        return self.options.ema * (0.9 + 0.1 * step / steps if step < steps else 1.0)
