"""What a pretraining run computes besides (common/training/run.py): its schedule, its masks, what it says at the start."""
from dataclasses import dataclass

import torch
from timm.layers import DropPath

from common.images.files import ImageFiles, not_looked_at
from common.training import run
from common.training.schedule import weight_decay
from common.words import counted
from pretrain.config import Options
from pretrain.results.pictures import TARGETS


@dataclass(frozen=True)
class Run(run.Run):
    """Options, ranks and number of images, and what follows from them. Raises ValueError if they do not fit."""
    options: Options

    @property
    def checkpoint(self):
        return self.folder / f'{self.options.model}_still_pretraining.pth'

    @property
    def exported(self):
        return self.folder / f'{self.options.model}_1kpretrained.pth'

    def beta2(self, spark):
        return {'bn': 0.95, 'ln': 0.999}[spark.encoder.norm] if self.options.beta2 is None else self.options.beta2

    def schedule(self, step):
        """(learning rate, weight decay) of a step."""
        options = self.options
        return self.learning_rate(step), weight_decay(step, self.steps, options.weight_decay, options.weight_decay_end)

    def draw_visible(self, spark, step, accum):
        """This rank's share (B, k) of the masks of the whole batch, as Steps has its images."""
        batch = self.options.batch_size
        own = torch.arange(batch).view(accum, self.ranks.size, -1)[:, self.ranks.rank].flatten()
        return spark.draw_visible(batch, self.generator('mask', step), own)

    def describe(self, spark, accum, images, held_out, saved):
        """What the run will do, for a person."""
        options, encoder = self.options, spark.encoder
        inside = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        outside = sum(p.numel() for p in spark.parameters() if p.requires_grad) - inside
        (h, w), (height, width) = encoder.grid, encoder.input_size
        drop_path = max((module.drop_prob or 0 for module in spark.modules() if isinstance(module, DropPath)), default=0)
        held = 'none held out' if held_out is None else f'{len(held_out):,} held out'
        if isinstance(held_out, ImageFiles) and held_out.root.name != 'val':
            held += f' ({held_out.root})'
        warmup = counted(options.warmup, 'epoch')
        if options.warmup_epochs is None:
            warmup += ' (not given: 40, or a tenth of fewer than 400)'
        notes = ''.join(f'note        {note}\n' for note in encoder.notes)
        left_out = not_looked_at(images, held_out, 'held-out')
        return f'''
model       {options.model}: {inside / 1e6:.1f} M parameters, and {outside / 1e6:.1f} M in densify and {options.decoder} decoder
pyramid     strides {", ".join(map(str, encoder.reductions))}; channels {", ".join(map(str, encoder.channels))}
cells       {encoder.cell_size} px: {h} x {w} = {spark.cells} in an image of {height} x {width}, {spark.visible_cells} visible
target      {TARGETS[options.target]}
{notes}images      {self.images:,} of {getattr(images, "root", type(images).__name__)}, {held}
{left_out}steps       {self.per_epoch:,} an epoch, {self.steps:,} in {counted(options.epochs, "epoch")}
batch       {self.batch(accum)}
optimiser   {options.opt}, beta2 {self.beta2(spark)}, gradient clipped to norm {options.clip_grad:g}
rates       learning rate up to {options.peak_lr:.3g}; weight decay {options.weight_decay} to {options.weight_decay_end}
warm-up     {warmup}
drop path   {f"up to {drop_path:g}" if drop_path else "none"}
precision   {self.precision}
machine     {self.machine}
folder      {self.folder}{self.going_on(saved)}
'''

    def warnings(self, saved, accum, uncompiled=False):
        """What is allowed and seldom meant."""
        options = self.options
        if options.compile and uncompiled:
            yield ('only the decoder is compiled: this network pads in its forward, or is read by hooks (levels), which '
                   'torch.compile hides from the rules of the encoder')
        if saved and options.init and options.init != saved['config']['init']:
            yield f'--init={options.init} is not used: the run goes on from {saved["path"]}'
        yield from super().warnings(saved, accum)
        if options.lr is None and options.batch_size < 1024:
            yield (f'base_lr is meant for batches of thousands; with {options.batch_size} the learning rate goes up to '
                   f'{options.peak_lr:.2g} only, at which little is learned. Give --lr (README, "Learning rate")')

