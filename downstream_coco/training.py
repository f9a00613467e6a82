"""A detection run: what `FineTuning` (common/training/finetuning.py) leaves to its subclasses."""
from dataclasses import dataclass

import torch
from torch import nn

from common.images.loading import loader, without_failures
from common.training.finetuning import FineTuning, FineTuningRun
from common.training.layer_decay import parameter_groups as layer_groups
from common.training.layer_decay import table
from common.training.optim import build_optimizer, parameter_groups
from common.words import counted, described
from downstream_coco.checkpoints import build_detector
from downstream_coco.config import Options
from downstream_coco.evaluation import evaluate, figures, whole_scenes
from downstream_coco.scenes import Collate, Scenes, SimilarShapes, TrainingView, largest_size, moved

WARMUP = 500  # steps


@dataclass(frozen=True)
class Run(FineTuningRun):
    """Options, ranks and number of training images, and what follows from them."""
    options: Options
    word = 'coco'
    data_differ = 'images have other names, sizes or objects'
    learning_rate_ends = 0.005, 0.001

    @property
    def warmup_steps(self):
        given = self.options.warmup_epochs
        return min(WARMUP, self.steps // 10) if given is None else round(given * self.per_epoch)


class DetectorTraining(FineTuning):
    """Trains a Detector on the scenes of two CocoImages data sets."""
    log_name = 'coco_log.txt'
    project = 'spark'
    fixed_shapes = False

    @property
    def best_by(self):
        return 'mask_AP' if self.images.has_masks else 'box_AP'

    @property
    def best_called(self):
        return self.best_by.replace('_', ' ')

    def build_network(self):
        network, self.loaded = build_detector(self.options, len(self.images.categories), self.images.has_masks,
                                              load=self.saved is None)
        return network

    def forward_one_image(self):
        """The smallest image that the run trains on, padded."""
        stride = self.network.stride
        smallest = min(self.options.short_sides[0], self.options.long_side)
        side = -(-smallest // stride) * stride
        self.network.backbone(torch.zeros(1, self.options.in_chans, side, side))

    def load_given_weights(self):
        """They are in the network since it was built: its other parts are made for them."""
        return f'{self.options.finetune_from}: {self.loaded}' if self.loaded else None

    def facts(self):
        return {'categories': self.images.categories, 'masks': self.images.has_masks}

    def image_remarks(self):
        return [*self.images.remarks, *self.val_images.remarks]

    def example_batch(self, images):
        """The largest batch of so many images, each with as many objects as the image that has most."""
        options, stride = self.options, self.network.stride
        size = largest_size(self.images.shapes, self.training_view(), images)
        height, width = (-(-side // stride) * stride for side in size)
        boxes = torch.tensor([[0.0, 0.0, width / 2, height / 2]]).expand(self.images.most, 4)
        target = {'boxes': boxes, 'labels': torch.ones(len(boxes), dtype=torch.int64), 'size': (height, width)}
        if self.images.has_masks:
            target['masks'] = torch.ones(len(boxes), height, width, dtype=torch.uint8)
        batch = torch.randn(images, options.in_chans, height, width), [target] * images
        return next(moved([batch], self.ranks.device))

    def parts_to_compile(self):
        """The CNN with the pyramid; the shapes of what follows depend on what is found."""
        return [self.network.backbone]

    @property
    def cnn(self):
        return self.network.backbone.cnn

    def build_optimizer(self):
        options, network = self.options, self.network
        groups = layer_groups(self.cnn, options.weight_decay, self.layer_decay)
        rest = nn.ModuleList([network.backbone.fpn, network.rpn, network.roi_heads])
        return build_optimizer(options.opt, groups + parameter_groups(rest, options.weight_decay))

    def training_view(self):
        options = self.options
        return TrainingView(options.short_sides, options.long_side, options.crop_scale, options.flip)

    def make_datasets(self):
        options = self.options
        return (Scenes(self.images, self.training_view(), options.normalisation, options.seed, timeout=options.read_timeout),
                whole_scenes(options, self.val_images))

    def make_batches(self):
        options, ranks, run = self.options, self.ranks, self.run
        steps = SimilarShapes(self.images.upright, options.batch_size, options.epochs, options.seed, self.start, ranks.rank,
                              ranks.size, self.accum, left_out=run.left_out)
        loaded = iter(loader(self.train_dataset, steps, run.workers, ranks.device, Collate(self.network.stride)))
        return moved(without_failures(loaded, self.train_dataset, self.unreadable, self.log), ranks.device), steps

    def measure(self, average):
        batch = max(self.run.images_per_rank // self.accum, 1)
        with self.counting(average) as count:
            return evaluate(average or self.network, self.val_dataset, batch, self.ranks, self.run.autocast,
                            self.run.workers, self.log.warn_once, self.session.go_on, count)

    # -- what is said ----------------------------------------------------------------------------------------

    def describe(self):
        options, run, network = self.options, self.run, self.network
        pyramid = network.backbone
        total = sum(p.numel() for p in network.parameters())
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        kind = 'Mask R-CNN' if network.roi_heads.has_mask() else 'Faster R-CNN'
        widths = [block[0].in_channels for block in pyramid.fpn.inner_blocks]
        sizes = [counted(width, 'channel') for width in widths]
        sizes[-1] += ', pooled from the one before' * pyramid.is_pooled
        levels = ', '.join(f'{stride} ({size})' for stride, size in zip(pyramid.strides, sizes))
        unused = ', '.join(dict.fromkeys('.'.join(name.split('.')[1:-1][:2]) for name in network.unused))
        categories = counted(len(self.images.categories), 'category', 'categories')
        crops = '' if options.crop_scale == (1.0, 1.0) else f', crops of {options.crop_scale[0]:g} to {options.crop_scale[1]:g}'
        return described([
            ('model', f'{kind} on {options.model}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of '
                      'them trained'),
            ('pyramid', f'maps of stride {levels}, and one pooled from the last; '
                        f'{counted(options.fpn_channels, "channel")}'),
            ('unused', unused or 'nothing'),
            ('recipe', run.recipe),
            ('images', f'{run.images:,} for training, {len(self.val_images):,} for validation{self.divided()}; {categories}'),
            ('left out', f'{self.images.notes or "nothing"}; of validation, '
                         f'{self.val_images.notes or "nothing"}'),
            ('size', f'short side {options.short_sides[0]} to {options.short_sides[1]} px, '
                     f'{options.input_size} in evaluation; '
             f'long side {options.long_side} at most{crops}'),
            ('steps', f'{run.per_epoch:,} an epoch, {run.steps:,} in {counted(options.epochs, "epoch")}'),
            ('batch', run.batch(self.accum)),
            ('optimiser', f'{options.opt}, weight decay {options.weight_decay:g}, gradient {self.clipping()}'),
            ('rates', f'learning rate up to {options.peak_lr:.3g}; {counted(run.warmup_of(self.start), "step")} of '
                      'warm-up'),
            ('BatchNorm', self.batchnorm()),
            ('average', f'EMA of the weights, decay {options.ema:g}' if options.ema else 'none'),
            ('precision', run.precision),
            *self.surroundings(),
            ('', '' if options.freeze else table(self.cnn, self.layer_decay)),
        ])

    def batchnorm(self):
        """What the statistics of BatchNorm are taken over, in words."""
        options = self.options
        if not has_batchnorm(self.network) and not options.frozen_bn:
            return 'none'
        if options.freeze or options.frozen_bn:
            return 'frozen'
        return self.run.norm_statistics

    def warnings(self):
        options = self.options
        yield from super().warnings()
        together = self.run.images_per_rank // self.accum * (self.ranks.size if options.sync_bn else 1)
        if has_batchnorm(self.network) and not options.freeze and together < 8:
            yield (f'the BatchNorms of {options.model} see {together} images at a time, which is few for '
                   'good statistics: give a larger --bs, fewer parts (--accum), or --frozen_bn')
        if not self.saved and not options.finetune_from:
            yield 'no weights given (--finetune_from): the CNN ' + (
                'stays as random as it is' if options.freeze else 'is trained from random ones')

    def headline(self):
        return f'Finished. On {self.last["images"]:,} validation images, {self.best_called} picks the best epoch:'

    def result(self, suffix):
        return f'{figures(self.last, suffix)} after the last epoch'


def has_batchnorm(model):
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
