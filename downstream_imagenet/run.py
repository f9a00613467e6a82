"""What a fine-tuning run computes from its options and images: learning rate, and decay of the average, by step."""
from dataclasses import dataclass

from common.training.finetuning import FineTuningRun
from common.training.schedule import cosine_by_epoch, tenths
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

    def schedule(self, step):
        options = self.options
        begin, end = self.learning_rate_ends
        if options.final_lr is not None:
            end = options.final_lr / options.peak_lr
        if options.lr_steps is not None:
            rate = self.rate_in_tenths(step, begin)
        elif options.lr_by_epoch:
            rate = self.rate_by_epoch(step, begin, end)
        else:
            rate = self.learning_rate(step, begin, end)
        return rate, options.weight_decay

    def rate_by_epoch(self, step, begin, end):
        """The learning rate of a step with --lr_by_epoch. begin, end: shares of the peak.

        A run that was given more epochs goes on from where its rate had ended.
        """
        peak = self.options.peak_lr
        first, stop = self.span(step)
        epochs = -(-(stop - first) // self.per_epoch)
        return cosine_by_epoch(step - first, self.per_epoch, epochs, self.warmup_of(step), peak,
                               end if first else begin, end * peak)

    def rate_in_tenths(self, step, begin):
        """The learning rate of a step with --lr_steps. begin: a share of the peak.

        A run that was given more epochs falls at the same shares of them.
        """
        first, stop = self.span(step)
        stretch = self.per_epoch * (stop - first) / self.first_end
        drops = [epochs * stretch for epochs in self.options.lr_steps]
        return tenths(step - first, drops, self.warmup_of(step), self.options.peak_lr,
                      0.1 ** len(drops) if first else begin)

    def ema_decay(self, step):
        """The decay of the average at a step: within --ema_warmup it rises from 0.9 of --ema, linearly."""
        steps = self.options.ema_warmup * self.per_epoch
        return self.options.ema * (0.9 + 0.1 * step / steps if step < steps else 1.0)
