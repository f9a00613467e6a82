"""What any run computes from its options, its data and its machines; none of it is an option."""
import dataclasses
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
from common.networks.norms import refused, single_valued
from common.seeds import seed_for
from common.sync_batchnorm import can_share
from common.training.log import clock
from common.training.same_run import is_other_data, refuse_options, refuse_other_data
from common.training.unit import Unit
from common.words import counted

SHORT_WARMUP = 50  # steps; a warm-up of fewer is warned of, unless the run is short


def nearest_divisors(batch, number):
    """The divisors of a batch that are nearest to a number, below and above, for a person."""
    divisors = [divisor for divisor in range(1, batch + 1) if batch % divisor == 0]
    below = [divisor for divisor in divisors if divisor <= number][-1:]
    above = [divisor for divisor in divisors if divisor > number][:1]
    return ' or '.join(map(str, below + above))


def nearest_batches(batch, unit):
    """The multiples of a unit that are nearest to a batch, below and above, as flags."""
    multiples = batch // unit * unit, -(-batch // unit) * unit
    return ' or '.join(f'--bs={multiple}' for multiple in multiples if multiple)


def precision_of(options, ranks):
    """'bf16', 'fp16' or 'fp32'."""
    if options.precision:
        return options.precision
    has_bf16 = ranks.device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    return 'bf16' if has_bf16 else 'fp32'


def cpu_is_fast_in(precision):
    """Whether oneDNN, which computes convolutions on a CPU, has kernels of a precision for this processor.

    x86 processors without AVX-512 have none of 'bf16' and 'fp16': PyTorch then computes element by element.
    True where it is not known, in a PyTorch without oneDNN.
    """
    if precision not in ('bf16', 'fp16'):
        return True
    is_supported = getattr(torch.ops.mkldnn, f'_is_mkldnn_{precision}_supported', None)
    return is_supported is None or is_supported()


def autocast(options, ranks):
    """The context of a forward pass. Weights, optimiser, statistics and the loss stay in fp32."""
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': None}[precision_of(options, ranks)]
    return nullcontext() if dtype is None else torch.autocast(ranks.device.type, dtype)


def loading_processes(options, ranks):
    """Loading processes of a rank: on a GPU its share of the cores, at most 8; on the CPU one."""
    if options.workers is not None:
        return options.workers
    if ranks.device.type != 'cuda':
        return 1
    return min(8, max(1, usable_cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))))


def usable_cores():
    """The cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@dataclass(frozen=True)
class Run:
    """Options, ranks and images, and what follows from them. Raises ValueError if they do not fit.

    What is called an epoch here and in the trainer is a round, see common/training/unit.py: the steps between two
    lines of the log. In most programs it is a pass over the images.

    Subclasses define `checkpoint_of(options)` and `checkpoint` (paths), `curve` (the learning rate, see
    common/training/schedule.py) and `schedule(step)`, which returns its learning rate and weight decay.

    images: their number. fingerprint: of common.images.datasets, None if they have none. left_out: ((first
    step, step after the last), ...) that are not trained on, since they went wrong. smallest_part: images
    that a part must have, see `with_norms`. ended_at: the steps, ascending, at which the run was finished
    before it was given more epochs (common/training/extension.py), and first_warmup the steps of rising
    learning rate with which it began, None if it was not. recipe: a sentence on the options that were chosen,
    see `Recipe`.

    data_differ: what differs in other training data of as many images, for a person; as the fingerprint tells it.
    """
    data_differ = 'images have other names or sizes'
    options: RunOptions
    ranks: Ranks
    images: int
    fingerprint: str | None = None
    left_out: tuple = ()
    smallest_part: int = 1
    ended_at: tuple = ()
    first_warmup: int | None = None
    recipe: str = ''

    def __post_init__(self):
        batch, ranks = self.options.batch_size, self.ranks.size
        if batch % ranks:
            raise ValueError(f'a batch of {batch} images cannot be divided among {ranks} ranks: give '
                             f'{nearest_batches(batch, ranks)}; or, to go on with a run of that batch, start '
                             f'{nearest_divisors(batch, ranks)} process{"es" * (batch > 1)}')

    def parts(self, saved):
        """Parts that a rank cuts its batch into; None: as few as memory allows, which is to be found out.
        Raises ValueError.

        A run that goes on with another number of ranks may need more parts than it was given.
        """
        parts = self.options.parts
        if parts == 'auto':
            return saved['accum'] if self.keeps_parts(saved) else None
        if self.allows(parts):
            return parts
        if saved and saved['ranks'] != self.ranks.size:
            more = next((more for more in range(parts, self.images_per_rank + 1) if self.allows(more)), None)
            if more:
                return more
        batch = self.options.batch_size
        if self.images_per_rank % parts == 0:
            raise ValueError(self.options.reason_against_parts(self.ranks.size, parts, bool(saved)))
        raise ValueError(f'a batch of {batch} images cannot be divided among '
                         f'{counted(self.ranks.size, "rank")} in {parts} parts each: give '
                         f'{nearest_batches(batch, self.ranks.size * parts)}')

    def keeps_parts(self, saved):
        """Whether a resumed run with --accum=auto takes the number of parts from its checkpoint.

        It does if auto found that number, on as many ranks. A number that was given is not taken: auto is asked for
        where it was too small.
        """
        return bool(saved) and saved['ranks'] == self.ranks.size and saved['config'].get('accum') in (None, 'auto')

    def allows(self, parts):
        """Whether a rank can cut its batch into so many parts."""
        return self.images_per_rank % parts == 0 and self.options.reason_against_parts(self.ranks.size, parts) is None

    def with_norms(self, saved, model, forward_one_image):
        """The same run, whose parts have two images at least if the norms of its model need them.

        A norm that sees a single value of each channel of an image (common/networks/norms.py) cannot be
        trained on one image. forward_one_image() takes one image through the model; it is called where a part
        may have one. Raises ValueError if the parts are of one image, and the ranks do not share the
        statistics of such a norm.
        """
        parts = self.parts(saved)
        if parts is not None and self.images_per_rank // parts > 1:
            return self
        names = single_valued(model.train(), forward_one_image)
        alone = refused(model, [name for name in names if not self.shares(model.get_submodule(name))])
        if alone and (parts is not None or self.images_per_rank == 1):
            norm = model.get_submodule(alone)
            raise ValueError(f'{alone} ({type(norm).__name__}) sees a single value of each channel where one '
                             'image at a time is trained on, and that has no deviation: '
                             f'{self.remedy(saved, parts, norm)}')
        return dataclasses.replace(self, smallest_part=2) if refused(model, names) else self

    def shares(self, norm):
        """Whether a norm will have its statistics over several ranks."""
        return self.ranks.size > 1 and self.options.sync_bn and can_share(norm)

    @property
    def norm_statistics(self):
        """What the BatchNorms that are trained have their statistics over, in words."""
        return 'shared by the ranks' if self.ranks.size > 1 and self.options.sync_bn else 'of the images of a rank'

    def remedy(self, saved, parts, norm):
        """What gives a norm more than one image at a time. A run that goes on keeps its batch and its sizes."""
        found = []
        ranks = self.ranks.size
        if self.images_per_rank > 1:
            fewer = max(number for number in range(1, self.images_per_rank) if self.images_per_rank % number == 0)
            found.append(f'--accum={fewer}' + ' or less' * (fewer > 1))
        if self.images_per_rank == 1 and ranks > 1:
            found.append('fewer processes')
            if can_share(norm) and not saved:
                found.append('--sync_bn=True')
        if not saved:
            found.append(f'a larger --bs, {2 * ranks * (parts or 1)} or more')
            found.append('if it does not stand after a global pool, a larger --input_size')
        return 'give ' + '; or '.join(found or ['another --name, and with it a larger --bs'])

    @property
    def images_per_rank(self):
        """Images that a rank takes a step."""
        return self.options.batch_size // self.ranks.size

    @property
    def per_epoch(self):
        return -(-self.images // self.options.batch_size)

    @property
    def steps(self):
        return self.epochs * self.per_epoch

    @property
    def epochs(self):
        """The number of rounds."""
        return self.options.epochs

    def epochs_in(self, config):
        """The number of rounds of a run with these options, as a dictionary."""
        return config['epochs']

    @property
    def unit(self):
        """The Unit in which rounds are told."""
        return Unit()

    @property
    def folder(self):
        return Path(self.options.folder)

    @property
    def workers(self):
        return loading_processes(self.options, self.ranks)

    @property
    def warmup_steps(self):
        return round(self.options.warmup * self.per_epoch)

    @property
    def first_end(self):
        """The number of steps that the run had before it was given more epochs; all of them if it was not."""
        return self.ended_at[0] if self.ended_at else self.steps

    def span(self, step):
        """(first step, step after the last) of the run or of that extension of it which a step is in."""
        first = max((end for end in self.ended_at if end <= step), default=0)
        stop = min((end for end in self.ended_at if end > step), default=self.steps)
        return first, stop

    def warmup_of(self, step):
        """The steps of rising learning rate in the span of a step; in an extension at most a tenth of it."""
        first, stop = self.span(step)
        at_first = self.warmup_steps if self.first_warmup is None else self.first_warmup
        return min(at_first, (stop - first) // 10) if first else at_first

    @property
    def advised_batch(self):
        """A batch with which few images have ten steps an epoch or more."""
        return self.ranks.size * 2 ** max(int(self.images / self.ranks.size / 10).bit_length() - 1, 0)

    def against_memory(self, saved, accum):
        """What to give if a step of `accum` parts does not fit in memory. A run that goes on keeps its batch and its sizes."""
        most = self.images_per_rank // self.smallest_part
        finer = next((parts for parts in range(accum + 1, most + 1) if self.allows(parts)), None)
        number = f'{finer} or more' if self.options.parts == 'auto' or self.keeps_parts(saved) else 'auto'
        parts = f'--accum={number}, which cuts the batch into parts'
        if saved:
            return f'give {parts}' if finer else ('start more processes (--ngpu_per_node), so that each takes fewer images: '
                                                  f'their number has to divide {self.options.batch_size}')
        if self.images < self.options.batch_size:
            return (f'there are {counted(self.images, "image")}, fewer than a batch, so leave --bs away, or give '
                    f'--bs={self.advised_batch} or so')
        return f'give a smaller --bs or --input_size, or {parts}' if finer else f'give {self.options.against_memory(False)}'

    @property
    def has_few_images(self):
        """Whether the images are fewer than a batch, which is seldom meant."""
        return self.images < self.options.batch_size

    def against_few_images(self):
        """What to give if the images are fewer than a batch."""
        if self.options.recipe == 'paper':
            return '--recipe=auto is for so few'
        return f'Give --bs={self.advised_batch} or so, for ten steps an epoch or more'

    @property
    def has_short_warmup(self):
        """Whether the learning rate rises so fast that the weights can be spoilt."""
        return self.options.recipe != 'paper' and self.warmup_steps < min(SHORT_WARMUP, self.steps // 20)

    def advised_warmup(self):
        """Epochs of warm-up that have 50 steps, or a twentieth of a short run."""
        return float(f'{min(SHORT_WARMUP, self.steps / 20) / self.per_epoch:.2g}')

    def along(self, curve, step):
        """(share of the peak, floor) of the learning rate of a step on a curve (common/training/schedule.py).

        An extension starts where the learning rate has ended.
        """
        first, stop = self.span(step)
        return (curve.again if first else curve).parts(step - first, stop - first, self.warmup_of(step))

    def floor(self, step):
        """The part of the learning rate of a step that does not depend on its peak."""
        _, floor = self.along(self.curve, step)
        return floor

    @property
    def machine(self):
        device = torch.cuda.get_device_name(self.ranks.device) if self.ranks.device.type == 'cuda' else 'CPU'
        return f'{device}, {counted(self.workers, "loading process", "loading processes")} a rank'

    def launching(self, is_graphed):
        """How the kernels of a step are launched, for a person."""
        if not is_graphed:
            return 'eagerly, one by one'
        if self.ranks.device.type == 'cuda':
            return 'as one CUDA graph, captured after the first steps'
        return 'eagerly, on static inputs; a CUDA graph needs a GPU'

    @property
    def precision(self):
        precision = precision_of(self.options, self.ranks)
        if precision == 'fp32':
            return 'fp32'
        scaled = ', the loss scaled' if self.is_scaled else ''
        return f'{precision} autocast{scaled}; weights, optimiser, statistics and loss in fp32'

    @property
    def is_scaled(self):
        """Whether the loss is scaled, so that its gradients are not too small for fp16."""
        return precision_of(self.options, self.ranks) == 'fp16'

    @property
    def is_graphed(self):
        """Whether a step of fixed shapes runs as one CUDA graph."""
        given = self.options.graph
        return self.ranks.device.type == 'cuda' if given is None else given

    def batch(self, accum):
        """How the batch is divided, for a person."""
        parts = f', in {accum} parts' if accum > 1 else ''
        return (f'{self.options.batch_size} = {counted(self.ranks.size, "rank")} x '
                f'{counted(self.images_per_rank, "image")}{parts}')

    def going_on(self, saved):
        """Where a run goes on, for a person; nothing where it begins."""
        if not saved:
            return ''
        return f', going on from {self.place(saved["step"])}, of {saved["path"]}'

    def place(self, step):
        """Where the run is after so many steps, for a person."""
        return f'step {step:,}, epoch {step / self.per_epoch:.2f}'

    def autocast(self):
        return autocast(self.options, self.ranks)

    def generator(self, purpose, *numbers):
        return torch.Generator().manual_seed(seed_for(purpose, self.options.seed, *numbers))

    def refuse_changes(self, saved, **facts):
        """Raise a ValueError that lists what differs from the run that was saved: options, and other facts by name.

        The training images, by their number and fingerprint, may differ with the option allow_changed_data,
        unless there are so few now that nothing of the run would be left. If the epochs alone differ, it is for
        `extended` (common/training/extension.py) to decide.
        """
        refuse_options(self.options, saved, self.unit.option,
                       facts=[(name, value, saved.get(name)) for name, value in facts.items()])
        if not self.options.allow_changed_data:
            refuse_other_data(saved, self.images, self.fingerprint, self.data_differ)
        if self.images != saved['images'] and saved['step'] >= self.steps:
            raise ValueError(f'{saved["path"]} is of step {saved["step"]:,}; with '
                             f'{counted(self.images, "image")} the run has {counted(self.steps, "step")} '
                             'only. Start another from its weights, with --init or --finetune_from')

    def data_changed(self, saved):
        """Whether the training images are not those of the run that was saved, as far as both know their fingerprint."""
        return is_other_data(saved, self.images, self.fingerprint)

    def without(self, saved, left_out):
        """The same run without the steps that were left out until now, and more of them."""
        known = [tuple(pair) for pair in (saved or {}).get('left_out', ())]
        return dataclasses.replace(self, left_out=tuple(dict.fromkeys([*known, *left_out])))

    def is_left_out(self, step):
        return any(first <= step < stop for first, stop in self.left_out)

    def remaining_steps(self, start):
        """The steps from `start` on, but for those that are left out."""
        return (step for step in range(start, self.steps) if not self.is_left_out(step))

    def saves_at(self, step):
        """Whether a checkpoint falls on the end of a step inside an epoch."""
        every = self.options.save_every_steps
        return bool(every) and step % every == 0 and step % self.per_epoch != 0

    def segments(self, epoch, start):
        """[(first step, step after the last)]: an epoch (counted from 0) from `start` on, cut where checkpoints fall.

        Steps that are left out are in none of the parts.
        """
        begin = max(start, epoch * self.per_epoch)
        end = (epoch + 1) * self.per_epoch
        borders = {border for pair in self.left_out for border in pair}
        inside = [step for step in range(begin + 1, end) if self.saves_at(step) or step in borders]
        cuts = [begin, *inside, end]
        return [(first, stop) for first, stop in zip(cuts, cuts[1:]) if first < stop and not self.is_left_out(first)]

    def warnings(self, saved, accum):
        """What is allowed and seldom meant."""
        options = self.options
        if self.ranks.device.type == 'cuda' and options.precision is None and self.precision == 'fp32':
            yield 'this GPU has no bf16, so that the run trains in fp32: --precision=fp16 is faster'
        if self.ranks.device.type == 'cpu' and not cpu_is_fast_in(options.precision):
            yield (f'this CPU has no instructions for {options.precision}: convolutions take ten times as long as in fp32, or '
                   'longer. Leave --precision out to train in fp32')
        if self.ranks.device.type == 'cpu' and torch.backends.mps.is_available():
            yield ("this computer's GPU is not used, but its CPU: Apple's MPS has no float64, in which losses and "
                   "rates are kept here, and nothing was tried on it")
        if options.parts not in ('auto', accum):
            yield (f'{counted(self.images_per_rank, "image")} a rank cannot be cut into {options.accum} parts, but '
                   f'into {accum}, and BatchNorm sees those')
        if self.left_out:
            parts = ', '.join(f'{first:,} to {stop - 1:,}' for first, stop in self.left_out)
            yield f'the steps {parts} are left out: they were not finite'
        if saved:
            for name, now, then in changes(options, saved['config'], may_change=True):
                if name in ('base_lr', 'lr', 'clip_grad', 'precision', 'accum', 'bf16_gradients'):
                    yield f'{name} was {then} until now, and is {now} from here on'
            if self.data_changed(saved):
                yield (f'the training data are not those of before ({saved["images"]:,} images then, '
                       f'{self.images:,} now); the run goes on with them from here on')
                if options.val_fraction is not None:
                    yield ('of other images, others are held out: some that are measured on now were trained on before, '
                           'so that what is measured is too good')
            if options.resume and saved['path'] != options.resume:
                yield f'the run folder holds a later state than {options.resume}, which is not used'
        if not saved and self.has_short_warmup:
            yield (f'the learning rate rises to its peak within {counted(self.warmup_steps, "step")}, in which the '
                   f'weights can be spoilt: give --warmup_epochs={self.advised_warmup():g} or so')
        if self.has_few_images:
            yield (f'{counted(self.images, "image is", "images are")} fewer than one batch of '
                   f'{options.batch_size}, which therefore repeats {"them" if self.images > 1 else "it"}. '
                   f'{self.against_few_images()}')

    def record(self, start, accum, commit, command):
        """The first line of a run, or of its continuation, in the log."""
        return {'run': self.options.name, 'step': start, 'time': clock(), 'commit': commit, 'command': command,
                'versions': {'python': sys.version.split()[0], 'torch': torch.__version__, 'timm': timm.__version__},
                'machine': self.machine, 'precision': self.precision, 'ranks': self.ranks.size, 'accum': accum,
                'left_out': self.left_out, 'config': self.options.as_dict()}
