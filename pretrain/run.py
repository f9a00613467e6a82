"""What a run computes from its options, its data and its machines; none of it is an option."""
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.layers import DropPath

from common.cli import changes
from common.distributed import Ranks
from common.log import clock
from common.schedule import learning_rate, seed_for, weight_decay
from pretrain.config import Options


@dataclass(frozen=True)
class Run:
    """Options, ranks and number of images, and what follows from them. Raises ValueError if they do not fit."""
    options: Options
    ranks: Ranks
    images: int

    def __post_init__(self):
        batch, ranks = self.options.batch_size, self.ranks.size
        parts = 1 if self.options.accum == 'auto' else self.options.accum
        if batch % (ranks * parts):
            near = [b for b in (batch // (ranks * parts) * ranks * parts, -(-batch // (ranks * parts)) * ranks * parts) if b]
            raise ValueError(f'a batch of {batch} images cannot be divided among {ranks} rank{"s" * (ranks > 1)}'
                             + (f' in {parts} parts each' if parts > 1 else '')
                             + f': give --bs={" or --bs=".join(map(str, near))}')

    @property
    def share(self):
        """Images that a rank takes a step."""
        return self.options.batch_size // self.ranks.size

    @property
    def per_epoch(self):
        return -(-self.images // self.options.batch_size)

    @property
    def steps(self):
        return self.options.epochs * self.per_epoch

    @property
    def folder(self):
        return Path(self.options.folder)

    @property
    def checkpoint(self):
        return self.folder / f'{self.options.model}_still_pretraining.pth'

    @property
    def exported(self):
        return self.folder / f'{self.options.model}_1kpretrained.pth'

    @property
    def bf16(self):
        if self.options.precision is None:
            return self.ranks.device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
        return self.options.precision == 'bf16'

    @property
    def workers(self):
        """Loading processes of a rank: on a GPU its share of the cores, 8 at most; on the CPU one beside the training."""
        if self.options.workers is not None:
            return self.options.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        return min(8, max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))) if self.ranks.device.type == 'cuda' else 1

    def autocast(self):
        """The context of a forward pass. Weights, optimiser, statistics and the loss stay in fp32."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def beta2(self, spark):
        return {'bn': 0.95, 'ln': 0.999}[spark.encoder.norm] if self.options.beta2 is None else self.options.beta2

    def schedule(self, step):
        """(learning rate, weight decay) of a step."""
        options, warmup = self.options, round(self.options.warmup * self.per_epoch)
        return (learning_rate(step, self.steps, warmup, options.peak_lr),
                weight_decay(step, self.steps, options.weight_decay, options.weight_decay_end))

    def generator(self, purpose, *numbers):
        return torch.Generator().manual_seed(seed_for(purpose, self.options.seed, *numbers))

    def draw_visible(self, spark, step):
        """This rank's part (B, k) of the masks of a step, drawn for the whole batch: alike on any number of ranks."""
        masks = spark.draw_visible(self.options.batch_size, self.generator('mask', step))
        return masks[self.ranks.rank * self.share:(self.ranks.rank + 1) * self.share]

    def stretches(self, epoch, start):
        """(first step, step behind the last) of the parts of an epoch, cut where checkpoints fall inside it."""
        begin, end, every = max(start, epoch * self.per_epoch), (epoch + 1) * self.per_epoch, self.options.save_every_steps
        stops = [step for step in range(begin + 1, end) if every and step % every == 0] + [end]
        return list(zip([begin, *stops], stops))

    def describe(self, spark, accum, images, held_out, saved):
        """What the run will do, for a person."""
        options, ranks, encoder = self.options, self.ranks, spark.encoder
        inside = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        outside = sum(p.numel() for p in spark.parameters() if p.requires_grad) - inside
        machine = torch.cuda.get_device_name(ranks.device) if ranks.device.type == 'cuda' else 'CPU'
        (h, w), (height, width) = encoder.grid, encoder.input_size
        going_on = f', going on from step {saved["step"]:,}, epoch {saved["step"] / self.per_epoch:.2f}, of {saved["path"]}' \
            if saved else ''
        drop_path = max((module.drop_prob or 0 for module in spark.modules() if isinstance(module, DropPath)), default=0)
        held = f'{len(held_out):,}' if held_out is not None else 'none'
        parts = f', in {accum} parts' if accum > 1 else ''
        notes = ''.join(f'note        {note}\n' for note in encoder.notes)
        return f'''
model       {options.model}: {inside / 1e6:.1f} M parameters, and {outside / 1e6:.1f} M in densify and decoder
pyramid     strides {", ".join(map(str, encoder.reductions))}; channels {", ".join(map(str, encoder.channels))}
cells       {encoder.cell_size} px: {h} x {w} = {spark.cells} in an image of {height} x {width}, {spark.visible_cells} visible
{notes}images      {self.images:,} of {getattr(images, "root", type(images).__name__)}, {held} held out
steps       {self.per_epoch:,} an epoch, {self.steps:,} in {options.epochs:,} epochs
batch       {options.batch_size} = {ranks.size} rank{"s" * (ranks.size > 1)} x {self.share} images{parts}
optimiser   {options.opt}, beta2 {self.beta2(spark)}, gradient clipped to norm {options.clip_grad:g}
rates       learning rate up to {options.peak_lr:.3g}; weight decay {options.weight_decay} to {options.weight_decay_end}
warm-up     {options.warmup:g} epochs{" (not given: 40, or a tenth of fewer than 400)" * (options.warmup_epochs is None)}
drop path   {f"up to {drop_path:g}" if drop_path else "none"}
precision   {"bf16 autocast; weights, optimiser, statistics and loss in fp32" if self.bf16 else "fp32"}
machine     {machine}, {self.workers} loading process{"es" * (self.workers != 1)} a rank
folder      {self.folder}{going_on}
'''

    def warnings(self, saved, uncompiled=False):
        """What is allowed and seldom meant."""
        options = self.options
        if options.compile and uncompiled:
            yield ('only the decoder is compiled: this network pads in its forward, or is read by hooks (levels), which '
                   'torch.compile hides from the rules of the encoder')
        if saved:
            for name, now, then in changes(options, saved['config'], harmless=True):
                if name in ('base_lr', 'lr', 'clip_grad', 'precision', 'accum'):
                    yield f'{name} was {then} until now, and is {now} from here on'
            if options.init and options.init != saved['config']['init']:
                yield f'--init={options.init} is not used: the run goes on from {saved["path"]}'
            if options.resume and saved['path'] != options.resume:
                yield f'the run folder holds a later state than {options.resume}, which is not used'
        if self.images < options.batch_size:
            fitting = self.ranks.size * 2 ** max(int(self.images / self.ranks.size / 10).bit_length() - 1, 0)
            yield (f'{self.images} images are fewer than one batch of {options.batch_size}, which therefore repeats them. '
                   f'Give --bs={fitting} or so, for ten steps an epoch or more')
        if options.lr is None and options.batch_size < 1024:
            yield (f'base_lr is meant for batches of thousands; with {options.batch_size} the learning rate goes up to '
                   f'{options.peak_lr:.2g} only, at which little is learned. Give --lr (README, "Learning rate")')

    def record(self, start, accum, commit, command):
        """The first line of a run, or of its continuation, in the log."""
        return {'run': self.options.name, 'step': start, 'time': clock(), 'commit': commit, 'command': command,
                'versions': {'python': sys.version.split()[0], 'torch': torch.__version__, 'timm': timm.__version__},
                'ranks': self.ranks.size, 'accum': accum, 'config': self.options.as_dict()}
