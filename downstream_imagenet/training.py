"""A fine-tuning run on images with labels: what `FineTuning` (common/training/finetuning.py) leaves to its subclasses."""
import torch

from common.images.augmented import Augmented, Steps
from common.images.datasets import not_looked_at
from common.images.files import ImageFiles
from common.images.loading import loader, without_failures
from common.networks.create import drop_path_of
from common.networks.load import load_classifier
from common.training.finetuning import FineTuning
from common.training.layer_decay import is_transformer, table
from common.training.layer_decay import parameter_groups as layer_groups
from common.training.optim import build_optimizer, parameter_groups
from common.words import counted, described, first_of
from downstream_imagenet.classifier import Classifier, build_classifier
from downstream_imagenet.data import (
    Mixing,
    erasing,
    evaluation_transform,
    labels_of,
    mixed,
    training_transform,
)
from downstream_imagenet.evaluation import MAX_EVAL_BATCH, evaluate
from downstream_imagenet.published import NAMED, is_mostly_batchnorm, published_recipe, relatives_recipe
from downstream_imagenet.recipe import unfit


class ClassifierTraining(FineTuning):
    """Trains a Classifier, or with the option `freeze` a LinearProbe.

    images, val_images: data sets of (image, class). classes: the names of the classes.
    """
    log_name = 'finetune_log.txt'
    project = 'spark'
    best_by = 'top1'
    best_called = 'top-1'
    value_suffix = ' %'

    def __init__(self, run, images, val_images, classes):
        super().__init__(run, images, val_images)
        self.classes = classes
        self.num_measured = None  # images of the last evaluation; unreadable ones are left out of it
        self.mixing = Mixing(run.options, len(classes))

    def build_network(self):
        return build_classifier(self.options, len(self.classes))

    def forward_one_image(self):
        self.network.logits(torch.zeros(1, self.options.in_chans, *self.options.size))

    def load_given_weights(self):
        options = self.options
        if not options.finetune_from:
            return 'No weights given (--finetune_from): training from random ones.'
        loaded = load_classifier(self.cnn, options.finetune_from, options.model, options.size, options.in_chans,
                                 options.adapt_input_conv)
        return f'{options.finetune_from}: {loaded}'

    def facts(self):
        return {'classes': self.classes}

    def trained_part(self):
        return self.network if self.options.freeze else self.cnn

    def example_batch(self, images):
        options, device = self.options, self.ranks.device
        example = torch.randn(images, options.in_chans, *options.size, device=device)
        targets = torch.rand(images, len(self.classes), device=device)
        return example.to(memory_format=torch.channels_last), targets

    @property
    def cnn(self):
        return self.network.cnn

    def build_optimizer(self):
        options = self.options
        groups = parameter_groups(self.network, options.weight_decay) if options.freeze else \
            layer_groups(self.cnn, options.weight_decay, self.layer_decay)
        return build_optimizer(options.opt, groups, official=options.official_lamb)

    def clip_grad(self):
        return self.options.clipping

    def make_datasets(self):
        options = self.options
        return (Augmented(self.images, training_transform(options), options.normalisation, options.seed, True,
                          erasing(options), timeout=options.read_timeout),
                Augmented(self.val_images, evaluation_transform(options), options.normalisation, labelled=True,
                          stand_ins=False, timeout=options.read_timeout))

    def make_batches(self):
        options, ranks, run = self.options, self.ranks, self.run
        steps = Steps(len(self.images), options.batch_size, options.epochs, options.seed, self.start, ranks.rank, ranks.size,
                      self.accum, max(options.repeats, 1), run.left_out)
        loaded = iter(loader(self.train_dataset, steps, run.workers, ranks.device))
        read = without_failures(loaded, self.train_dataset, self.unreadable, self.log)
        return mixed(read, self.mixing, options.seed, run.remaining_steps(self.start), self.accum, ranks), steps

    def measure(self, average):
        model = self.network
        if average is not None:
            model = average if self.options.freeze else Classifier(average, self.options.loss_name)
        batch = min(self.run.images_per_rank // self.accum, MAX_EVAL_BATCH)
        with self.counting(average) as count:
            found = evaluate(model, self.val_dataset, len(self.classes), batch, self.ranks, self.run.autocast,
                             self.run.workers, self.log.warn_once, self.session.go_on, count)
        if found is None:
            return None
        self.num_measured = found['images']
        return {'top1': found['top1'], 'top5': found['top5'], 'val_loss': found['loss']}

    # -- what is said ----------------------------------------------------------------------------------------

    def describe(self):
        options, run, val = self.options, self.run, self.val_images
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        ways = (('mixup', options.mixup), ('CutMix', options.cutmix))
        mixing = ' or '.join(f'{name} {alpha:g}' for name, alpha in ways if alpha) or 'nothing mixed'
        opt = options.opt + ' as in the original' * options.official_lamb
        crops = f'crops of {options.crop_scale[0]:g} to {options.crop_scale[1]:g} of the area'
        crops += '' if options.crop_retries else ', drawn once'
        where = f' (of {val.root})' if isinstance(val, ImageFiles) and val.root.name != 'val' else ''
        where = self.divided() or where
        layers = '' if options.freeze else table(self.cnn, self.layer_decay)
        return described([
            ('model', f'{options.model}: {trained / 1e6:.2f} M parameters are '
                      f'trained{" (frozen features)" * options.freeze}'),
            ('recipe', self.recipe()),
            ('chosen', run.recipe),
            ('images', f'{run.images:,} for training, {len(val):,} for validation{where}; '
             f'{counted(len(self.classes), "class", "classes")}'),
            ('', not_looked_at(self.images, val, 'validation')),
            *self.missing_classes(),
            ('steps', f'{run.per_epoch:,} an epoch, {run.steps:,} in {counted(options.epochs, "epoch")}'),
            ('batch', f'{run.batch(self.accum)}{f", each image {options.repeats} times" * (options.repeats > 1)}'),
            ('optimiser', f'{opt}, weight decay {options.weight_decay:g}, gradient {self.clipping()}'),
            ('rates', f'learning rate up to {options.peak_lr:.3g}, {self.fall_in_words()}; '
                      f'{counted(run.warmup_of(self.start), "step")} of warm-up'),
            ('loss', f'{options.loss_name}, label smoothing {options.smoothing:g}, {mixing}'),
            ('augmented', f'{crops}, augmentation {options.augmentation}, erasing {options.erase:g}'),
            *self.sizes(),
            ('drop path', drop_path_of(self.network)),
            ('average', self.average_in_words()),
            ('precision', run.precision),
            *self.surroundings(),
            ('', layers),
        ])

    def fall_in_words(self):
        """How the learning rate falls."""
        options = self.options
        if options.lr_steps is not None:
            return f'a tenth after each of the epochs {", ".join(f"{epoch:g}" for epoch in options.lr_steps)}'
        by_epoch = ' between epochs' * options.lr_by_epoch
        return f'a cosine{by_epoch} to {self.run.schedule(self.run.steps - 1)[0]:.3g}'

    def average_in_words(self):
        options = self.options
        rising = f', reached in {counted(options.ema_warmup, "epoch")}' if options.ema_warmup else ''
        return f'EMA of the weights, decay {options.ema:g}{rising}' if options.ema else 'none'

    def recipe(self):
        """Whose recipe the options come from, in words."""
        if self.options.recipe in NAMED:
            return f'{self.options.recipe}, under what was given'
        if self.options.freeze:
            return 'linear probe'
        own = published_recipe(self.options.model, self.options.input_size)
        whose = f"the paper's for {own}" if own else f'none of its own; that of {relatives_recipe(self.cnn)}'
        return f'{whose}, under what was given'

    def sizes(self):
        """A line, if validation images have another size than training images."""
        train, test = ('x'.join(map(str, size)) for size in (self.options.size, self.options.evaluated_size))
        return [('sizes', f'{train} px for training, {test} px for validation')] if train != test else []

    def missing_classes(self):
        """A line, if some classes have no validation images."""
        labels = set(labels_of(self.val_images) or range(len(self.classes)))
        missing = [name for label, name in enumerate(self.classes) if label not in labels]
        return [('note', f'no validation images of {len(missing):,} of the classes: '
                         f'{first_of(missing)}')] if missing else []

    def warnings(self):
        options, steps = self.options, self.run.steps
        yield from super().warnings()
        if not self.saved:
            yield from self.warnings_of_recipe()
        if options.ema and steps * (1 - options.ema) < 3:
            yield (f'the EMA averages over {1 / (1 - options.ema):,.0f} steps, and the run has {steps:,}: it '
                   f'stays near the weights at the start. Give --ema={max(1 - 10 / steps, 0):.3g} or so, or '
                   '--ema=0')
        if options.lr is None and options.batch_size < 512 and not options.freeze:
            yield (f'base_lr is meant for batches of thousands; with {options.batch_size} the learning rate '
                   f'goes up to {options.peak_lr:.2g}. If little is learned, give --lr')

    def warnings_of_recipe(self):
        """Sentences on a named recipe that is given to a network, images or a device for which it was not made."""
        name = self.options.recipe
        if name in ('rsb_a2', 'rsb_a3', 'a2mim_convnext') and is_transformer(self.cnn):
            yield f'{name} is for CNNs, and {self.options.model} is a vision transformer: --recipe=a2mim_vit is for such'
        elif name in ('a2mim_convnext', 'mae') and is_mostly_batchnorm(self.cnn):
            yield (f'{name} is for networks with LayerNorm, and {self.options.model} has BatchNorm: --recipe=rsb_a2 and '
                   'rsb_a3 are for such')
        if name in NAMED:
            yield from unfit(self.options, self.run.images, self.ranks)

    def headline(self):
        return f'Finished. On {self.num_measured:,} validation images:'

    def result(self, suffix):
        top1, top5 = self.last[f'top1{suffix}'], self.last[f'top5{suffix}']
        return f'top-1 {top1:.2f} %, top-5 {top5:.2f} % after the last epoch ({self.options.epochs})'
