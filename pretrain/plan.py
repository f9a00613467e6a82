"""What a pretraining will need, before a machine is rented: memory, accumulation, time, cost, disk, input.

    python -m pretrain.plan --model=resnet50 --gpus=8 --memory=80 --tflops=300 [--bs=4096 ... as for pretrain.main]

Memory is counted from the tensors of training steps of two and three images, on the CPU; what convolutions and matrix products
give there is zeros of the right shape (pretrain/planning/memory.py), so that it takes seconds. Speed comes from the log of a
short run on the machine in question (--log), from a few steps here (--measure), is given (--images_per_second), or is
predicted from the counted operations (--tflops). Each figure says where it comes from; predictions, how far off such ones were.
"""
from common.start import say, start_tool

if __name__ == '__main__':
    start_tool()

import dataclasses
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch

from common.about import About
from common.cli import errors_in_one_sentence, option, parse, reader_may_leave
from common.config import require
from common.distributed import Ranks
from common.networks.users import register
from common.training.log import duration
from common.training.recipe import IMAGENET
from common.training.run import precision_of
from common.words import counted
from pretrain.data import find_images
from pretrain.methods import DEFAULT, METHODS, method_of, options_of
from pretrain.options import named_method
from pretrain.planning.counts import Counts, Step
from pretrain.planning.memory import Line
from pretrain.planning.scaling import step_seconds
from pretrain.pretraining import Run
from pretrain.results.read_log import read_log

GIB = 2 ** 30
# How far off predictions were where they could be checked: on two cores of an AMD EPYC, torch 2.15 (docs/scale.md).
MEMORY_ERROR = 0.09  # benchmarks.plan: the most that steps of 8 and 16 images took above it, four networks, fp32
STEP_ERROR = 0.12  # benchmarks.plan: steps of 8 images from 2 and 4, on a core that nobody else used
SCALING_ERROR = {False: 0.06, True: 0.29}  # benchmarks.scale: steps of 2 and 4 processes of gloo; with shared BatchNorm
SMALL = {'cpu': (2, 4), 'cuda': (32, 64)}  # batches that are timed
SOURCES = ('images_per_second', 'log', 'measure', 'tflops')
ABOUT = About(
    __doc__.split('\n')[0],
    (('python -m pretrain.plan --model=resnet50 --gpus=8 --memory=80 --log=output_short_run/pretrain_log.txt',
      'with the speed of a short run on such a machine'),
     ('python -m pretrain.plan --model=resnet50 --gpus=8 --memory=80 --tflops=300',
      'with a speed that is predicted from counted operations')),
    ('model', 'input_size', 'batch_size', 'epochs', 'images', 'gpus', 'memory', 'log', 'measure', 'tflops'))


@dataclass(frozen=True)
class MachineOptions:
    """The machine that is thought of, and how fast it is: what a plan adds to the options of a run. Raises ValueError."""

    gpus: int = option(8, 'GPUs, all together', 'plan')
    memory: float = option(80.0, 'of a GPU, in GiB', 'plan')
    reserve: float = option(3.0, "GiB of it that are no tensors: CUDA's context, workspaces of kernels, NCCL's buffers, what "
                            'the allocator cannot use; an assumption', 'plan')
    images: int = option(None, 'in the data set; if not given, those in --data_path are counted, or else those of ImageNet '
                         'are meant', 'plan', parse=int)
    image_kilobytes: float = option(115.0, "of an image's file; ImageNet's mean if not given", 'plan')
    cost_per_gpu_hour: float = option(None, 'in any currency', 'plan', parse=float)
    images_per_second: float = option(None, 'that one GPU trains on', 'plan', parse=float)
    log: str = option(None, 'pretrain_log.txt of a short run on such GPUs, for its speed', 'plan', parse=str)
    measure: bool = option(False, 'time a few training steps on this machine, for its speed', 'plan')
    tflops: float = option(None, 'peak of one GPU in the precision of the run, to predict the speed from', 'plan', parse=float)
    utilisation: float = option(0.2, 'share of that peak that a step reaches; an assumption: 0.12 to 0.21 on an H200 '
                                '(docs/scale.md)', 'plan')
    bandwidth: float = option(None, "GB/s of an all-reduce between all GPUs, nccl-tests' busbw; without it none is counted",
                              'plan', parse=float)
    latency: float = option(5.0, 'microseconds of one of the 2 log2(GPUs) rounds of a collective; an assumption', 'plan')
    overlap: float = option(0.5, 'share of the computing beside which gradients travel; an assumption', 'plan')

    needs_folder = False

    def __post_init__(self):
        super().__post_init__()
        for field in ('gpus', 'images'):
            value = getattr(self, field)
            require(value is None or value >= 1, f'{field} must be 1 or more, not {value}')
        for field in ('memory', 'image_kilobytes', 'images_per_second', 'tflops', 'bandwidth'):
            value = getattr(self, field)
            require(value is None or 0 < value < float('inf'), f'{field} must be more than 0, not {value}')
        for field in ('latency', 'cost_per_gpu_hour'):
            value = getattr(self, field)
            require(value is None or 0 <= value < float('inf'), f'{field} must be 0 or more, not {value}')
        require(0 <= self.reserve < self.memory, f'reserve must be 0 or more and less than the {self.memory:g} GiB of '
                f'--memory, not {self.reserve:g}')
        require(0 < self.utilisation <= 1, f'utilisation must be more than 0 and at most 1, not {self.utilisation}')
        require(0 <= self.overlap <= 1, f'overlap must lie between 0 and 1, not {self.overlap}')
        given = [f'--{field}' for field in SOURCES if getattr(self, field)]
        require(len(given) < 2, f'{" and ".join(given)} each say how fast the run is: give one of them')


@cache
def options_class(method):
    """The class of the options of a plan: those of a run with the method of this name, and MachineOptions."""
    @dataclass(frozen=True)
    class PlanOptions(MachineOptions, options_of(method).options):
        """The options of a run, and the machine that is thought of. Raises ValueError."""
    return PlanOptions


def plan_options(**given):
    """Options of a plan from Python; `method` among them names the method. Raises ValueError."""
    return options_class(given.get('method', DEFAULT))(**given)


@dataclass(frozen=True)
class Speed:
    """How long a step takes.

    seconds: of a step on one GPU, a Line over its images. how: where the number is from, for a person. ranks: how many ran
    together when it was measured.
    """
    seconds: Line
    how: str
    ranks: int = 1


def speed_of(options, counts, network):
    """The Speed of one GPU from what the options have; None if they have nothing. Raises ValueError."""
    if options.images_per_second:
        return Speed(Line(0, 1 / options.images_per_second), 'given')
    if options.log:
        return logged(options)
    if options.measure:
        accelerate(network, None)  # as a run on this machine has it
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        options = dataclasses.replace(options, precision=precision_of(options, Ranks(0, 1, device)))
        return measured(Step(network, options, device))
    if options.tflops:
        seconds = counts.operations / (options.tflops * 1e12 * options.utilisation)
        return Speed(Line(0, seconds), f'predicted: {options.utilisation:.0%} of {options.tflops:g} TFLOPS, a share that is '
                     'assumed')
    return None


def logged(options):
    """The Speed of a run, by its log. Raises ValueError if it is of another network or size, or has no epoch yet."""
    path = Path(options.log)
    log = read_log(path if path.is_dir() else path.parent)
    then = method_of(log.config, path).name
    require(then == options.method,
            f'{options.log} is of a run with --method={then}, and this plan has {options.method}: give the same')
    for field in ('model', 'input_size', 'mask_ratio', *METHODS[options.method].step_options):
        now, then = getattr(options, field), log.config.get(field, getattr(type(options), field))
        then = tuple(then) if isinstance(then, list) else then
        require(now == then, f'{options.log} is of a run with --{field}={then}, and this plan has {now}: give the same')
    rates = [entry['images_per_second'] for entry in log.epochs if entry['step'] > log.runs[-1]['step']]
    rates = [rate for rate in rates if rate]
    require(rates, f'{options.log} holds no epoch since the run was last started: let it finish one')
    run = log.runs[-1]
    return Speed(Line(0, run['ranks'] / median(rates)), f'measured, {options.log}: {run["ranks"]} x {run["machine"]}, '
                 f'{run["precision"].split(";")[0]}', run['ranks'])


def measured(step, rounds=5):
    """The Speed of this machine: the line through the median times of two batches, taken in turn."""
    batches = SMALL[step.device.type]
    times = {batch: [] for batch in batches}
    for i in range(rounds + 1):
        for batch in batches:
            inputs = step.inputs(batch)
            began = time.perf_counter()
            step(*inputs).tolist()  # waits for the device
            if i:  # The first round warms up.
                times[batch].append(time.perf_counter() - began)
    cuda, threads = step.device.type == 'cuda', torch.get_num_threads()
    name = torch.cuda.get_device_name(step.device) if cuda else f'{threads} thread{"s" * (threads > 1)} of a CPU'
    error = 'with eager steps: the CUDA graph of a run is faster, docs/speed.md says by how much' if cuda else \
        f'off by {STEP_ERROR:.0%} at most where that was checked'
    return Speed(Line.through(batches, [median(times[batch]) for batch in batches]),
                 f'predicted from {batches[0]} and {batches[1]} images, measured on {name}; {error}')


@dataclass(frozen=True)
class Plan:
    """What follows from the options, what was counted, and a Speed or None. Raises ValueError if the run does not fit.

    smallest: images that a part must have.
    """
    options: MachineOptions
    counts: Counts
    speed: Speed | None
    smallest: int = 1

    def __post_init__(self):
        options, share = self.options, self.run.images_per_rank
        least = options.accum if isinstance(options.accum, int) else 1
        alone = self.room(options.gpus == 1 and least == 1)
        fitting = [parts for parts in range(least, share + 1) if self.run.allows(parts)
                   and self.smallest <= share // parts <= (alone if parts == 1 else self.room(False))]
        if not fitting:
            need = self.counts.held(self.smallest, False, self.inputs) * (1 + MEMORY_ERROR) / GIB + options.reserve
            few = 'one image at a time takes' if self.smallest == 1 else \
                f'{self.smallest} images at a time, which the norms of this network need, take'
            smaller = ' or '.join(f'--{name}' for name in ('input_size', *widths_of(options)))
            if any(share % parts == 0 and not self.run.allows(parts) for parts in range(least, share + 1)):
                raise ValueError(f'the smallest part that the options allow does not fit in {options.memory:g} GiB: give '
                                 f'{options.against_memory(False)}')
            raise ValueError(f'{few} {need:.1f} GiB of a GPU, and --memory says {options.memory:g}: give a smaller '
                             f'{smaller}, or a GPU with more')
        object.__setattr__(self, 'parts', fitting[0])

    @property
    def run(self):
        """Steps and shares as the run itself computes them."""
        return Run(self.options, Ranks(0, self.options.gpus, torch.device('cpu')), self.options.images)

    def room(self, alone):
        """The images at a time that fit even if memory is predicted too low by MEMORY_ERROR."""
        room = (self.options.memory - self.options.reserve) * GIB / (1 + MEMORY_ERROR)
        return self.counts.largest(room, alone, self.inputs)

    @property
    def inputs(self):
        """Images whose inputs a CUDA graph keeps; 0 for eager steps, which --graph=False asks for."""
        return 0 if self.options.graph is False else self.run.images_per_rank

    @property
    def alone(self):
        return self.options.gpus == 1 and self.parts == 1

    @property
    def collectives(self):
        """(number, bytes handed to each other rank) of a step's in SyncBatchNorm.

        It gathers mean and variance of all ranks in the forward pass of a layer, and reduces two sums in its backward pass
        (common/sync_batchnorm.py).
        """
        norms = self.counts.norms * (self.parts if self.options.sync_bn else 0)
        return 2 * len(norms), 4 * sum(2 * channels for channels in norms)

    @property
    def part(self):
        """Images at a time."""
        return self.run.images_per_rank // self.parts

    @property
    def computing(self):
        """Seconds of a step without communication."""
        return self.speed.seconds.at(self.run.images_per_rank)

    @property
    def seconds(self):
        """Of a step; communication is counted if the bandwidth is given and the speed is not of as many ranks."""
        options = self.options
        if options.bandwidth is None or self.speed.ranks == options.gpus:
            return self.computing
        return step_seconds(self.computing, self.counts.gradients, options.gpus, options.bandwidth * 1e9,
                            options.latency * 1e-6, options.overlap / self.parts, *self.collectives)

    @property
    def rate(self):
        """Images a second, on all GPUs."""
        return self.options.batch_size / self.seconds

    def __str__(self):
        options, (height, width) = self.options, self.options.size
        title = f'{options.model}, {height} x {width} px, {options.mask_ratio:.0%} hidden, ' \
                f'{METHODS[options.method].in_words(options)}, {options.precision or "bf16"}, {options.opt}: ' \
                f'{counted(options.batch_size, "image")} a step on {counted(options.gpus, "GPU")} of {options.memory:g} GiB\n'
        tables = (('memory of a GPU', self.memory()), ('batch', self.batch()), ('run', self.time()), ('files', self.files()))
        return title + ''.join(f'\n{name}\n' + ''.join(f'  {what:<30}{value:>16}   {how}\n' for what, value, how in rows)
                               for name, rows in tables)

    def memory(self):
        options, counts, part = self.options, self.counts, self.part
        return [
            ('weights and statistics', gib(counts.weights), 'measured'),
            ('gradients', gib(counts.gradients), 'measured'),
            ("DDP's buckets", gib(0), 'measured: they are the gradients'),
            (f'state of {options.opt}', gib(counts.state), 'measured'),
            ('an image', mib(counts.image), 'measured'),
            ('kept for its backward pass', mib(counts.kept.an_image), 'measured, of each image'),
            ('kept whatever the batch', gib(counts.kept.constant), 'measured'),
            ('largest temporary', gib(self.largest_temporary()), f'predicted, at {counted(part, "image")}'),
            ("beside a step's CUDA graph", gib(counts.beside_graph(self.inputs).at(part)),
             'predicted: its inputs, and what is measured between the steps'),
            ('all of it', gib(counts.held(part, self.alone, self.inputs)),
             f'predicted, at {counted(part, "image")}; up to {MEMORY_ERROR:.0%} more where that was checked (CPU)'),
            ('kept free', f'{options.reserve:.2f} GiB', 'assumed: CUDA, workspaces of kernels, NCCL, fragmentation')]

    def batch(self):
        options = self.options
        return [
            ('largest at a time', counted(self.room(self.alone), 'image'),
             'predicted, with room for that and what is kept free'),
            ("a GPU's share", counted(self.run.images_per_rank, 'image'),
             f'given, or chosen by --recipe: --bs={options.batch_size}'),
            ('parts', f'--accum={self.parts}', f'predicted, of {counted(self.part, "image")}{self.seen_by_norms()}')]

    def seen_by_norms(self):
        """What BatchNorm sees, in words; '' for a network that has none."""
        of_all = ' of all GPUs' * (self.options.sync_bn and self.options.gpus > 1)
        return f'; BatchNorm sees those{of_all}' if self.counts.norms else ''

    def largest_temporary(self):
        """Bytes of the fullest moment beyond what is kept for the backward pass and the gradients that stand there."""
        fullest = int(self.counts.temporary(self.alone).at(self.part).max())
        return max(fullest - self.counts.gradients * (not self.alone) - self.counts.kept.at(self.part), 0)

    def time(self):
        options, run, counts = self.options, self.run, self.counts
        epochs = f'{counted(options.epochs, "epoch")} of {counted(options.images, "image")}'
        rows = [('steps', f'{run.steps:,}', f'given, or chosen by --recipe: {epochs}'),
                ('operations of an image', f'{counts.operations / 1e9:.1f} G', 'measured, forward and backward; a '
                 'multiply-accumulate is two')]
        if self.speed is None:
            return [*rows, ('speed', 'not predicted', 'give --log or --images_per_second of one GPU, --measure, or --tflops')]
        rows.append(('one GPU', f'{run.images_per_rank / self.computing:,.1f} images/s', self.speed.how))
        if options.gpus > 1:
            rows.append(('efficiency of all', f'{self.computing / self.seconds:.1%}', self.communication()))
        rows += [('all GPUs', f'{self.rate:,.0f} images/s', 'predicted from these'),
                 ('time', duration(run.steps * self.seconds), 'predicted, without evaluation and restarts')]
        if options.cost_per_gpu_hour is not None:
            hours = options.gpus * run.steps * self.seconds / 3600
            rows.append(('cost', f'{hours * options.cost_per_gpu_hour:,.0f}', f'predicted: {hours:,.0f} GPU-hours at '
                         f'{options.cost_per_gpu_hour:g}'))
        return rows

    def communication(self):
        """Where the efficiency of all GPUs is from."""
        if self.speed.ranks == self.options.gpus:
            return f'measured: the log is of {self.speed.ranks} ranks'
        if self.options.bandwidth is None:
            return 'not predicted, communication is not counted: give --bandwidth'
        error = SCALING_ERROR[self.options.sync_bn]
        return f'predicted: {self.counts.gradients / 1e6:.0f} MB of gradients at {self.options.bandwidth:g} GB/s, ' \
               f'{self.collectives[0]} small collectives; within {error:.0%} where that was checked (CPU)'

    def files(self):
        options, size = self.options, self.counts.checkpoint
        rows = [('a checkpoint', f'{size / 1e6:,.0f} MB', 'measured: what goes into it'),
                ('run folder', f'{(options.keep + 1) * size / 1e9:.2f} GB', f'predicted: {options.keep} that stay, one that is '
                 'being written')]
        if self.speed:
            rows.append(('input', f'{self.rate * options.image_kilobytes / 1e3:,.1f} MB/s', f'predicted: {self.rate:,.0f} '
                         f'images/s of {options.image_kilobytes:g} kB, for all GPUs'))
        return rows


def gib(size):
    return f'{size / GIB:.2f} GiB'


def mib(size):
    return f'{size / 2 ** 20:.1f} MiB'


def widths_of(options):
    """Names of the numbers among the method's own options that time and memory of a step depend on."""
    return [name for name in METHODS[options.method].step_options if isinstance(getattr(options, name), int)]


def build(options):
    """The network in its plain form, which is what GPUs run, so that its memory and operations are theirs."""
    register(options.register)
    network = METHODS[options.method].build(options)
    accelerate(network, False)
    return network


def accelerate(network, accelerated):
    """Choose the form of a network that has one for CPUs besides: see SparK.accelerated."""
    if hasattr(network, 'accelerated'):
        network.accelerated = accelerated


def training_images(options):
    """The number of images to train on: as given, or as there are in --data_path or --dataset, or as ImageNet has."""
    images = options.images
    if images is None and options.data_path is None and options.dataset is None:
        images = IMAGENET
    elif images is None:
        images = len(find_images(options.data_path, options.dataset, options.in_chans, options.list_root, options.reading))
    if options.val_fraction is None:
        return images
    return max(1, images - max(1, round(options.val_fraction * images)))


def plan(options):
    """The Plan of a run with these options. Raises ValueError."""
    options = dataclasses.replace(options, images=training_images(options))
    is_cpu = options.measure and not torch.cuda.is_available()  # the plan is of this machine
    ranks = Ranks(0, options.gpus, torch.device('cpu' if is_cpu else 'cuda'))
    # What depends on the parts of a batch is not chosen yet: how many there are is found out here.
    undivided = dataclasses.replace(options, accum=options.accum or 'auto')
    settled, _ = METHODS[options.method].recipe.settled(undivided, options.images, ranks)
    options = dataclasses.replace(settled, accum=options.parts)
    speed = logged(options) if options.log else None  # first: the rest takes a while
    network = build(options)
    run = Run(options, Ranks(0, options.gpus, torch.device('cpu')), options.images)
    names = network.single_valued if options.accum == 'auto' else \
        [name for name in network.single_valued if not run.shares(network.get_submodule(name))]
    smallest = 2 if names and run.images_per_rank > 1 else 1
    if run.images_per_rank == 1 or run.images_per_rank == options.accum:
        image = torch.zeros(1, options.in_chans, *options.size)
        run.with_norms(None, network, lambda: network(image))  # refuses parts of one image where they cannot be trained
    counts = Counts.of(options, network)
    return Plan(options, counts, speed or speed_of(options, counts, network), smallest)


@reader_may_leave()
def main(argv=None):
    """The command line: exits with 0, with 1 and one sentence for what does not fit, or with 2 for a wrong flag."""
    name = named_method(sys.argv[1:] if argv is None else argv)
    options = parse(options_class(name), 'pretrain.plan', ABOUT, argv, options_of(name).recipe)
    with errors_in_one_sentence():
        say('Counting the memory and the operations of steps of two and three images ...', sys.stderr)
        print(plan(options))


if __name__ == '__main__':
    main()
