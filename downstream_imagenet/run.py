"""What a fine-tuning run computes besides (common/training/run.py): its files, its schedule, what it says at the start."""
from dataclasses import dataclass

from timm.layers import DropPath

from common.images.files import ImageFiles, not_looked_at
from common.training import run
from common.words import counted, first_of
from downstream_imagenet.config import Options, papers_recipe, relatives_recipe
from downstream_imagenet.data import labels_of


@dataclass(frozen=True)
class Run(run.Run):
    """Options, ranks and number of training images, and what follows from them."""
    options: Options

    def file(self, which):
        return self.folder / f'{self.options.model}_1kfinetuned_{which}.pth'

    @property
    def checkpoint(self):
        return self.file('last')

    def schedule(self, step):
        """(learning rate, weight decay) of a step."""
        return self.learning_rate(step), self.options.weight_decay

    def describe(self, model, accum, images, val, classes, layers, saved):
        """What the run will do, for a person."""
        options = self.options
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        drop_path = max((module.drop_prob or 0 for module in model.modules() if isinstance(module, DropPath)), default=0)
        own = papers_recipe(options.model, options.input_size)
        ways = (('mixup', options.mixup), ('CutMix', options.cutmix))
        mixing = ' or '.join(f'{name} {alpha:g}' for name, alpha in ways if alpha) or 'nothing mixed'
        whose = f"the paper's for {own}" if own else f'none of its own; that of {relatives_recipe(model.cnn)}'
        recipe = 'linear probe' if options.freeze else f'{whose}, under what was given'
        clipping = 'not clipped' if options.clipping == float('inf') else f'clipped to norm {options.clipping:g}'
        opt = options.opt + ' as in the original' * options.official_lamb
        crops = f'crops of {options.crop_scale[0]:g} to {options.crop_scale[1]:g} of the area'
        where = f' (of {val.root})' if isinstance(val, ImageFiles) and val.root.name != 'val' else ''
        labels = set(labels_of(val) or range(len(classes)))
        without = [name for label, name in enumerate(classes) if label not in labels]
        notes = not_looked_at(images, val, 'validation')
        if without:
            notes += f'note        no validation images of {len(without):,} of the classes: {first_of(without)}\n'
        return f'''
model       {options.model}: {trained / 1e6:.2f} M parameters are trained{" (frozen features)" * options.freeze}
recipe      {recipe}
images      {self.images:,} for training, {len(val):,} for validation{where}; {counted(len(classes), "class", "classes")}
{notes}steps       {self.per_epoch:,} an epoch, {self.steps:,} in {counted(options.epochs, "epoch")}
batch       {self.batch(accum)}{f", each image {options.repeats} times" * (options.repeats > 1)}
optimiser   {opt}, weight decay {options.weight_decay:g}, gradient {clipping}
rates       learning rate up to {options.peak_lr:.3g}; {counted(options.warmup, "epoch")} of warm-up
loss        {options.loss_name}, label smoothing {options.smoothing:g}, {mixing}
augmented   {crops}, augmentation {options.augmentation}, erasing {options.erase:g}
drop path   {f"up to {drop_path:g}" if drop_path else "none"}
average     {f"EMA of the weights, decay {options.ema:g}" if options.ema else "none"}
precision   {self.precision}
machine     {self.machine}
folder      {self.folder}{self.going_on(saved)}
{layers}'''

    def warnings(self, saved, model, accum):
        """What is allowed and seldom meant."""
        options = self.options
        yield from super().warnings(saved, accum)
        if options.ema and self.steps * (1 - options.ema) < 3:
            yield (f'the EMA averages over {1 / (1 - options.ema):,.0f} steps, and the run has {self.steps:,}: it stays near '
                   f'the weights at the start. Give --ema={max(1 - 10 / self.steps, 0):.3g} or so, or --ema=0')
        if options.lr is None and options.batch_size < 512 and not options.freeze:
            yield (f'base_lr is meant for batches of thousands; with {options.batch_size} the learning rate goes up to '
                   f'{options.peak_lr:.2g}. If little is learned, give --lr')
        if saved and options.finetune_from and options.finetune_from != saved['config']['finetune_from']:
            yield f'--finetune_from={options.finetune_from} is not used: the run goes on from {saved["path"]}'
