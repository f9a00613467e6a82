"""What a detection run computes besides (common/training/run.py): its files, its schedule, what it says at the start."""
from dataclasses import dataclass

from torch import nn

from common.training import run
from common.words import counted
from downstream_coco.config import Options

WARMUP = 500  # steps


@dataclass(frozen=True)
class Run(run.Run):
    """Options, ranks and number of training images, and what follows from them."""
    options: Options

    def file(self, which):
        return self.folder / f'{self.options.model}_coco_{which}.pth'

    @property
    def checkpoint(self):
        return self.file('last')

    @property
    def warmup_steps(self):
        given = self.options.warmup_epochs
        return min(WARMUP, self.steps // 10) if given is None else round(given * self.per_epoch)

    def schedule(self, step):
        """(learning rate, weight decay) of a step."""
        return self.learning_rate(step), self.options.weight_decay

    def describe(self, model, accum, images, val, layers, saved):
        """What the run will do, for a person."""
        options, pyramid = self.options, model.backbone
        total, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or not only) for only in (False, True))
        levels = ', '.join(f'{stride} ({counted(one.in_channels, "channel")})' for stride, one in
                           zip(pyramid.strides, (block[0] for block in pyramid.fpn.inner_blocks)))
        unused = ', '.join(dict.fromkeys('.'.join(name.split('.')[1:-1][:2]) for name in model.unused))
        kind = 'Mask R-CNN' if model.roi_heads.has_mask() else 'Faster R-CNN'
        norms = 'frozen' if options.freeze or options.frozen_bn else 'shared by the ranks' \
            if options.sync_bn and self.ranks.size > 1 else 'of the images of a rank'
        categories = counted(len(images.categories), 'category', 'categories')
        crops = '' if options.crop_scale == (1.0, 1.0) else f', crops of {options.crop_scale[0]:g} to {options.crop_scale[1]:g}'
        clipping = 'not clipped' if options.clip_grad == float('inf') else f'clipped to norm {options.clip_grad:g}'
        return f'''
model       {kind} on {options.model}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained
pyramid     maps of stride {levels}, and one pooled; {counted(options.fpn_channels, "channel")}
unused      {unused or "nothing"}
images      {self.images:,} for training, {len(val):,} for validation; {categories}
left out    {images.notes or "nothing"}; of validation, {val.notes or "nothing"}
size        short side {options.short_sides[0]} to {options.short_sides[1]} px, {options.input_size} in evaluation; long side \
{options.long_side} at most{crops}
steps       {self.per_epoch:,} an epoch, {self.steps:,} in {counted(options.epochs, "epoch")}
batch       {self.batch(accum)}
optimiser   {options.opt}, weight decay {options.weight_decay:g}, gradient {clipping}
rates       learning rate up to {options.peak_lr:.3g}; {counted(self.warmup_steps, "step")} of warm-up
BatchNorm   {norms if has_batchnorm(model) else "none" if not options.frozen_bn else norms}
average     {f"EMA of the weights, decay {options.ema:g}" if options.ema else "none"}
precision   {self.precision}
machine     {self.machine}
folder      {self.folder}{self.going_on(saved)}
{layers}'''

    def warnings(self, saved, model, accum):
        """What is allowed and seldom meant."""
        options = self.options
        yield from super().warnings(saved, accum)
        together = self.share // accum * (self.ranks.size if options.sync_bn else 1)
        if has_batchnorm(model) and not options.freeze and together < 8:
            yield (f'the BatchNorms of {options.model} see {together} images at a time, which is few for good statistics: give '
                   'a larger --bs, fewer parts (--accum), or --frozen_bn')
        if not saved and not options.finetune_from:
            yield 'no weights given (--finetune_from): the CNN ' + (
                'stays as random as it is' if options.freeze else 'is trained from random ones')
        if saved and options.finetune_from and options.finetune_from != saved['config']['finetune_from']:
            yield f'--finetune_from={options.finetune_from} is not used: the run goes on from {saved["path"]}'


def has_batchnorm(model):
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
