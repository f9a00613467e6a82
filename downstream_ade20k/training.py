"""A segmentation run: what `FineTuning` (common/training/finetuning.py) leaves to its subclasses."""
from functools import cached_property, partial

import torch
from torch import nn

from common.images.datasets import fingerprint
from common.images.loading import loader, without_failures
from common.training.compilation import uncompiled
from common.training.device import to_device
from common.training.finetuning import FineTuning
from common.training.layer_decay import parameter_groups as layer_groups
from common.training.layer_decay import table
from common.training.optim import build_optimizer, parameter_groups
from common.words import counted, described
from downstream_ade20k.checkpoints import build_segmenter
from downstream_ade20k.confusion import class_table
from downstream_ade20k.evaluation import confusion, described_inference, described_size, figures, whole_images
from downstream_ade20k.inference import Inference
from downstream_ade20k.sampling import Passes
from downstream_ade20k.trial import require_memory_to_measure
from downstream_ade20k.views import Segmented, TrainingView, collate

SHOWN = 12  # names of classes that are told at the start


class SegmenterTraining(FineTuning):
    """Trains a Segmenter on the images of two SegmentationImages data sets."""
    log_name = 'ade20k_log.txt'
    project = 'spark'
    best_by = 'mIoU'
    best_called = 'mIoU'
    value_suffix = ' %'

    def build_network(self):
        network, self.loaded = build_segmenter(self.options, len(self.images.classes), load=self.saved is None)
        step = network.backbone.size_step
        if any(side % step for side in self.options.size):
            height, width = (-(-side // step) * step for side in self.options.size)
            raise ValueError(f'{self.options.model} takes images whose sides are multiples of {step}: give '
                             f'--input_size={height if height == width else f"{height},{width}"}')
        return network

    def forward_one_image(self):
        self.network.scores(torch.zeros(1, self.options.in_chans, *self.options.size))

    def load_given_weights(self):
        """They are in the network since it was built: its other parts are made for them."""
        return f'{self.options.finetune_from}: {self.loaded}' if self.loaded else None

    def facts(self):
        return {'classes': self.images.classes.as_data()}

    @cached_property
    def val_fingerprint(self):
        return fingerprint(self.val_images)

    def checkpoint_content(self):
        return {**super().checkpoint_content(), 'val_fingerprint': self.val_fingerprint}

    def image_remarks(self):
        return [*super().image_remarks(), *self.images.remarks, *self.val_images.remarks]

    def example_batch(self, images):
        options, device = self.options, self.ranks.device
        masks = torch.randint(len(self.images.classes), (images, *options.size), dtype=torch.int16, device=device)
        return torch.randn(images, options.in_chans, *options.size, device=device), masks

    @property
    def cnn(self):
        return self.network.backbone.cnn

    def build_optimizer(self):
        options, network = self.options, self.network
        groups = layer_groups(self.cnn, options.weight_decay, self.layer_decay, self.by_stages)
        rest = nn.ModuleList(module for name, module in network.named_children() if name != 'backbone')
        if network.backbone.is_extended:
            rest.append(network.backbone.extra)
        return build_optimizer(options.opt, groups + parameter_groups(rest, options.weight_decay))

    @property
    def by_stages(self):
        """Whether a stage of the network counts as a layer, rather than a few blocks."""
        return self.options.layer_decay_by == 'stages'

    def make_datasets(self):
        options = self.options
        view = TrainingView(options.size, options.resized_short_side, options.resized_long_side, options.scales,
                            options.most_of_one, options.flip, options.distort, options.keep_size)
        return (Segmented(self.images, view, options.normalisation, options.seed, timeout=options.read_timeout),
                whole_images(options, self.val_images))

    def make_batches(self):
        options, ranks, run = self.options, self.ranks, self.run
        steps = Passes(len(self.images), options.batch_size, run.steps, options.seed, self.start, ranks.rank, ranks.size,
                       self.accum, run.left_out)
        loaded = iter(loader(self.train_dataset, steps, run.workers, ranks.device, collate))
        batches = without_failures(loaded, self.train_dataset, self.unreadable, self.log)
        return ((to_device(images, ranks.device), to_device(masks, ranks.device)) for images, masks in batches), steps

    def is_measured_after(self, epoch):
        return True

    def measure(self, average):
        with self.counting(average) as count:
            pixels = confusion(average or self.network, self.val_dataset, self.ranks, self.run.autocast,
                               Inference.of(self.options), self.run.workers, self.log.warn_once, self.session.go_on, count)
        if pixels is None:
            return None
        self.of_classes['model' if average is None else 'ema'] = pixels.of_classes()
        return pixels.metrics()

    def place_network(self):
        super().place_network()
        self.of_classes = {}  # {'model', 'ema'}: the figures of each class after the last evaluation

    def after_epoch(self, epoch, is_last):
        """Write the figures of each class to the log."""
        names = self.images.classes.names
        for which, of_classes in self.of_classes.items():
            table = {name: dict(zip(names, values)) for name, values in of_classes.items()}
            iteration = self.run.unit.number(epoch)
            self.log.record({'iteration': iteration, 'step': iteration, 'classes_of': which, **table})

    def before_training(self):
        part = partial(self.example_batch, self.run.images_per_rank // self.accum) if self.is_graphed else None
        with uncompiled(), self.log.line.counting('measuring the largest image'):
            require_memory_to_measure(self.network, self.val_images, self.options, self.ranks, self.run.autocast, part)
        return super().before_training()

    # -- what is said ----------------------------------------------------------------------------------------

    def describe(self):
        options, run, network = self.options, self.run, self.network
        backbone = network.backbone
        total = sum(p.numel() for p in network.parameters())
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        sizes = [counted(width, 'channel') for width in backbone.widths]
        sizes[-1] += ', made from the one before' * backbone.is_extended
        levels = ', '.join(f'{stride} ({size})' for stride, size in zip(backbone.strides, sizes))
        unused = ', '.join(dict.fromkeys('.'.join(name.split('.')[1:-1][:2]) for name in network.unused))
        auxiliary = 'no auxiliary head'
        if network.auxiliary is not None:
            stride = backbone.strides[network.auxiliary_level]
            auxiliary = f'an auxiliary head on the map of stride {stride}, weight {options.aux_weight:g}'
        head = 'UPerNet' if options.head == 'upernet' else 'a light FPN head'
        return described([
            ('model', f'{head} on {options.model}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained'),
            ('pyramid', f'maps of stride {levels}'),
            ('head', f'{counted(options.head_channels, "channel")}, {auxiliary}'),
            ('unused', unused or 'nothing'),
            ('recipe', run.recipe),
            ('images', f'{run.images:,} for training, {len(self.val_images):,} for validation{self.divided()}'),
            ('classes', f'{len(self.images.classes):,}: {shortened(self.images.classes.names)}'),
            ('left out', f'{self.images.notes or "nothing"}; of validation, {self.val_images.notes or "nothing"}'),
            ('size', self.sizes()),
            ('measured', f'every {counted(options.val_every, "iteration")}, {described_inference(options)}'),
            ('length', f'{counted(run.steps, "iteration")}, in which each image is seen {run.passes:.3g} times'),
            ('batch', run.batch(self.accum)),
            ('optimiser', f'{options.opt}, weight decay {options.weight_decay:g}, gradient {self.clipping()}'),
            ('rates', f'learning rate up to {options.peak_lr:.3g}, then down to {options.end_lr:.3g} by a polynomial of '
                      f'power {options.power:g}; {counted(run.warmup_of(self.start), "iteration")} of warm-up'),
            ('BatchNorm', self.batchnorm()),
            ('average', f'EMA of the weights, decay {options.ema:g}' if options.ema else 'none'),
            ('precision', run.precision),
            *self.surroundings(),
            ('', '' if options.freeze else table(self.cnn, self.layer_decay, self.by_stages)),
        ])

    def sizes(self):
        """How large images are, in words."""
        options = self.options
        height, width = options.size
        low, high = options.scales
        return f'{described_size(options)}, times {low:g} to {high:g}; crops of {height} x {width} px'

    def batchnorm(self):
        """What the statistics of BatchNorm are taken over, in words."""
        if self.options.freeze or self.options.frozen_bn:
            return f'frozen in the network; {self.run.norm_statistics} in the head'
        return self.run.norm_statistics

    def warnings(self):
        options = self.options
        yield from super().warnings()
        yield from options.unused()
        together = self.run.images_per_rank // self.accum * (self.ranks.size if options.sync_bn else 1)
        if together < 4:
            yield (f'the BatchNorms of the head see {together} images at a time, which is few for good statistics: give a '
                   'larger --bs, or fewer parts (--accum)')
        if not self.saved and not options.finetune_from:
            yield 'no weights given (--finetune_from): the network ' + (
                'stays as random as it is' if options.freeze else 'is trained from random ones')

    def headline(self):
        images = counted(self.last['images'], 'validation image')
        return f'{class_table(self.of_classes["model"], self.images.classes.names)}\nFinished. On {images}:'

    def result(self, suffix):
        return f'{figures(self.last, suffix)} after the last iteration'


def shortened(names):
    """The first of many names, as text."""
    return ', '.join(names[:SHOWN]) + ', ...' * (len(names) > SHOWN)
