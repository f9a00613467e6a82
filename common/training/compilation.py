"""Compilation of a network by parts: its repeated blocks, each by itself, with torch.compile.

A CNN repeats a few blocks: a ResNet-50 has 16 of 8 shapes, a ConvNeXt-B 36 of 5. Blocks of the same shapes
share one compiled graph, so that compiling them takes a fraction of what compiling the whole network does
("regional compilation"). What stands between the blocks runs as it is.

Everything is compiled by one step on random images before training begins (`compile_network`). A network that
does not compile is found out there, and runs uncompiled. Evaluation runs uncompiled as well (`uncompiled`):
its batches have other sizes.
"""
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch._dynamo
from timm.layers import DropPath
from torch import nn

from common.memory_errors import is_out_of_memory
from common.recompute import frozen_statistics
from common.words import counted

# From these on it pays. A ResNet-50 on an H200: its blocks took 83 s to compile, of which some 20 s are those of any
# first step, and a step of 64 images then took 28.0 ms for 34.1. That is 83 s after 13,600 steps: 870,000 images.
WORTH_IMAGES = 1_000_000
LEAST_SHARE = 0.05  # of a network's parameters that the blocks of a class hold
GRAPHS = 128  # of one forward at most; torch's own limit, 8, is less than the shapes of blocks that CNNs have
SHARED = 'its BatchNorms share their statistics between ranks, which is not compiled'
NOTHING = 'no part of this network is compiled with these options (on a CPU, none beside --recompute)'
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Compiled:
    """What became of a network's compilation.

    is_wanted: whether it was to be compiled. parts: number of modules that are; 0 if it runs uncompiled.
    seconds: what that took. shared: number of modules that are not, since their BatchNorms share their
    statistics between ranks. reason: why nothing is compiled although it was wanted, or None. is_unexpected:
    whether that is worth a warning.
    """
    is_wanted: bool = False
    parts: int = 0
    seconds: float = 0.0
    shared: int = 0
    reason: str | None = None
    is_unexpected: bool = False

    @property
    def is_on(self):
        return self.parts > 0

    def described(self):
        """Lines (word, text) for the start message of a run; none if compilation was not wanted."""
        if self.reason:
            return [('compiled', f'no: {self.reason}')]
        if not self.is_on:
            return []
        shared = f', but not {self.shared} whose BatchNorms share their statistics between ranks' if self.shared else ''
        return [('compiled', f'{counted(self.parts, "part")} of the network, in {self.seconds:.0f} s{shared}')]

    def warnings(self):
        if self.is_unexpected:
            yield f'{self.reason}: the run goes on uncompiled, which --compile=False asks for'


def is_wanted(given, saved, device, images, fixed_shapes):
    """Whether to compile.

    In falling order: what the option --compile says (`given`, None if it is not given); no elsewhere than on
    CUDA; what the run that is resumed wanted (`saved`, its checkpoint or None); and else yes for networks whose
    input always has the same shape, if a rank has at least WORTH_IMAGES `images` left to train on.
    """
    if given is not None:
        return given
    if device.type != 'cuda':
        return False
    if saved and 'compiled' in saved:
        return saved['compiled']
    return fixed_shapes and images >= WORTH_IMAGES


def compile_network(network, parts, example_batch, run, saved, accum, fixed_shapes=True):
    """Compile parts of a network if that is wanted (`is_wanted`), and try them. Returns Compiled.

    Args:
        network: forward(*batch) returns the loss; on its device, without the exchange between ranks, which a
            rank that fails alone would leave waiting.
        parts: parts() lists the modules to compile, each by itself, none inside another.
        example_batch: example_batch(n) is a batch of n images, on the device. run: Run.
        saved: the checkpoint that the run goes on from, or None.
        accum: the parts into which a rank cuts its batch.
        fixed_shapes: whether all batches have the same shape.

    All ranks do the same: the main rank decides, and where one of them fails, none is compiled. Parts with
    norms that will share their statistics between ranks are left out.
    """
    ranks = run.ranks
    left = (run.steps - (saved['step'] if saved else 0)) * run.images_per_rank
    if not ranks.broadcast_object(is_wanted(run.options.compile, saved, ranks.device, left, fixed_shapes)):
        return Compiled()
    asked = run.options.compile is True
    wanted = parts()
    alone = [part for part in wanted if not any(run.shares(module) for module in part.modules())]
    shared = len(wanted) - len(alone)
    if not alone:
        return Compiled(True, shared=shared, reason=SHARED if shared else NOTHING, is_unexpected=asked)
    began = time.perf_counter()
    with compiled_at_first_call(alone, dynamic=not fixed_shapes) as undo:
        reasons = ranks.gather(failures(network, example_batch(run.images_per_rank // accum), run.autocast, ranks.device))
        if reasons:
            undo()
            return Compiled(True, reason=f'this network does not compile ({reasons[0]})', is_unexpected=True)
    return Compiled(True, len(alone), time.perf_counter() - began, shared)


@contextmanager
def compiled_at_first_call(parts, dynamic=False):
    """Have modules compile themselves when they are called first, which should be inside of this context.

    Yields a function that undoes it. dynamic: whether one graph serves all shapes. Keys of a state_dict stay.
    """
    replaced = [replacement for part in parts for replacement in share_drop_paths(part)]
    for part in parts:
        part.compile(dynamic=dynamic)

    def undo():
        for part in parts:
            part.compile(disable=True)
        for parent, name, module in replaced:
            setattr(parent, name, module)

    with torch._dynamo.config.patch(recompile_limit=GRAPHS):
        yield undo


def failures(network, batch, autocast, device):
    """What a step fails for, in words; an empty list if it does not.

    Raises what says that memory is full: no compiler is to blame.
    """
    try:
        try_step(network, batch, autocast, device)
    except Exception as error:  # whatever a compiler can raise
        if is_out_of_memory(error):
            raise
        return [reason_of(error)]
    finally:
        network.zero_grad(set_to_none=True)
    return []


def try_step(network, batch, autocast, device):
    """A forward and a backward pass in training mode, after which buffers and random state are as before."""
    devices = [device] if device.type == 'cuda' else []
    with frozen_statistics(network), torch.random.fork_rng(devices=devices):
        network.train()
        with autocast():
            loss = network(*batch)
        loss.backward()


def uncompiled():
    """Context in which compiled modules run as they are, for batches of other sizes than those of training."""
    return torch.compiler.set_stance('force_eager')


def reason_of(error):
    """The kind of an error and the first two lines of its message, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {" ".join(lines[:2])}'


# -- what is compiled ----------------------------------------------------------------------------------------

def repeated_blocks(network):
    """The blocks of a network, in its order, none inside another; empty if it repeats nothing.

    Two modules of a class of blocks have parameters of the same names and shapes, or of the same names where
    no two have the same shapes. They hold other modules, stand inside no other block, and the modules of the
    class hold LEAST_SHARE of the parameters. (Stages are of one class, too, but each has its own shapes.)
    """
    return blocks_of_same(parameter_shapes, network) or blocks_of_same(parameter_names, network)


def blocks_of_same(structure, network):
    """`repeated_blocks` of which two are the same by structure(module)."""
    counts = Counter(map(structure, network.modules()))
    classes = {type(module) for module in outermost(network, lambda module: counts[structure(module)] > 1)}
    least = LEAST_SHARE * parameter_count(network)
    held = Counter()
    for block in outermost(network, lambda module: type(module) in classes):
        held[type(block)] += parameter_count(block)
    return outermost(network, lambda module: held[type(module)] > least)


def outermost(network, is_sought):
    """The modules inside a network that are sought, hold others, are no containers, and stand inside no such module."""
    found = []
    for child in network.children():
        if any(True for _ in child.children()) and not isinstance(child, CONTAINERS) and is_sought(child):
            found.append(child)
        else:
            found += outermost(child, is_sought)
    return found


def parameter_shapes(module):
    """The class of a module, and the names and shapes of its parameters."""
    return type(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def parameter_names(module):
    """The class of a module, and the names of its parameters."""
    return type(module), tuple(name for name, _ in module.named_parameters())


def parameter_count(module):
    return sum(p.numel() for p in module.parameters())


class SharedDropPath(DropPath):
    """timm's DropPath (stochastic depth) with its probability in a tensor.

    torch.compile makes a graph for each number that it meets in Python, and each block of a network has a
    probability of its own. It draws other random numbers than timm's from the same seed.
    """

    def __init__(self, drop_prob, scale_by_keep, device):
        super().__init__(drop_prob, scale_by_keep)
        self.register_buffer('keep_prob', torch.tensor(1 - drop_prob, device=device), persistent=False)

    def forward(self, x):
        if not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = (torch.rand(shape, device=x.device) < self.keep_prob).float()
        if self.scale_by_keep:
            kept = kept / self.keep_prob
        return x * kept.to(x.dtype)


def share_drop_paths(part):
    """Put a SharedDropPath in the place of every DropPath inside a module.

    Returns [(parent, name, what stood there)].
    """
    places = [(parent, name, module) for parent in part.modules() for name, module in parent.named_children()
              if type(module) is DropPath and module.drop_prob]
    device = next((p.device for p in part.parameters()), None)
    for parent, name, module in places:
        shared = SharedDropPath(module.drop_prob, module.scale_by_keep, device)
        setattr(parent, name, shared.train(module.training))
    return places
