"""What any run computes from its options, its data and its machines; none of it is an option."""
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from common.cli import changes
from common.config import RunOptions
from common.distributed import Ranks
from common.log import clock
from common.schedule import learning_rate, seed_for


def in_bf16(options, ranks):
    if options.precision is None:
        return ranks.device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return options.precision == 'bf16'


def autocast(options, ranks):
    """The context of a forward pass. Weights, optimiser, statistics and the loss stay in fp32."""
    return torch.autocast(ranks.device.type, torch.bfloat16) if in_bf16(options, ranks) else nullcontext()


def loading_processes(options, ranks):
    """Loading processes of a rank: on a GPU its share of the cores, 8 at most; on the CPU one beside the training."""
    if options.workers is not None:
        return options.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return min(8, max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))) if ranks.device.type == 'cuda' else 1


@dataclass(frozen=True)
class Run:
    """Options, ranks and number of images, and what follows from them. Raises ValueError if they do not fit."""
    options: RunOptions
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
    def workers(self):
        return loading_processes(self.options, self.ranks)

    @property
    def warmup_steps(self):
        return round(self.options.warmup * self.per_epoch)

    def learning_rate(self, step):
        return learning_rate(step, self.steps, self.warmup_steps, self.options.peak_lr)

    @property
    def machine(self):
        cuda = self.ranks.device.type == 'cuda'
        return f'{torch.cuda.get_device_name(self.ranks.device) if cuda else "CPU"}, {self.workers} loading ' \
               f'process{"es" * (self.workers != 1)} a rank'

    @property
    def precision(self):
        return 'bf16 autocast; weights, optimiser, statistics and loss in fp32' if in_bf16(self.options, self.ranks) else 'fp32'

    def batch(self, accum):
        """How the batch is divided, for a person."""
        ranks, parts = self.ranks.size, f', in {accum} parts' if accum > 1 else ''
        return f'{self.options.batch_size} = {ranks} rank{"s" * (ranks > 1)} x {self.share} images{parts}'

    def going_on(self, saved):
        """Where a run goes on, for a person; nothing where it begins."""
        return f', going on from step {saved["step"]:,}, epoch {saved["step"] / self.per_epoch:.2f}, of {saved["path"]}' \
            if saved else ''

    def autocast(self):
        return autocast(self.options, self.ranks)

    def generator(self, purpose, *numbers):
        return torch.Generator().manual_seed(seed_for(purpose, self.options.seed, *numbers))

    def stretches(self, epoch, start):
        """(first step, step behind the last) of the parts of an epoch, cut where checkpoints fall inside it."""
        begin, end, every = max(start, epoch * self.per_epoch), (epoch + 1) * self.per_epoch, self.options.save_every_steps
        stops = [step for step in range(begin + 1, end) if every and step % every == 0] + [end]
        return list(zip([begin, *stops], stops))

    def warnings(self, saved):
        """What is allowed and seldom meant."""
        options = self.options
        if saved:
            for name, now, then in changes(options, saved['config'], harmless=True):
                if name in ('base_lr', 'lr', 'clip_grad', 'precision', 'accum'):
                    yield f'{name} was {then} until now, and is {now} from here on'
            if options.resume and saved['path'] != options.resume:
                yield f'the run folder holds a later state than {options.resume}, which is not used'
        if self.images < options.batch_size:
            fitting = self.ranks.size * 2 ** max(int(self.images / self.ranks.size / 10).bit_length() - 1, 0)
            yield (f'{self.images} images are fewer than one batch of {options.batch_size}, which therefore repeats them. '
                   f'Give --bs={fitting} or so, for ten steps an epoch or more')

    def record(self, start, accum, commit, command):
        """The first line of a run, or of its continuation, in the log."""
        return {'run': self.options.name, 'step': start, 'time': clock(), 'commit': commit, 'command': command,
                'versions': {'python': sys.version.split()[0], 'torch': torch.__version__, 'timm': timm.__version__},
                'machine': self.machine, 'precision': self.precision, 'ranks': self.ranks.size, 'accum': accum,
                'config': self.options.as_dict()}
