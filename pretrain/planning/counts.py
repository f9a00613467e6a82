"""What one training step holds and computes, counted from steps of two and three images on the CPU (pretrain/plan.py)."""
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.distributed import Ranks
from common.training.memory import kept_for_backward
from common.training.optim import (
    BufferGuard,
    build_optimizer,
    optimizer_size,
    set_schedule,
    weights_size,
)
from common.training.trainer import train_step
from pretrain.methods import METHODS
from pretrain.planning.memory import AsCUDA, Line, Live, ShapesOnly
from pretrain.planning.operations import OPERATIONS

BATCHES = (2, 3)  # a BatchNorm after a global pool takes no single image


class Step:
    """A training step of the run on one process. inputs(batch) -> random images and masks; step(images, visible) trains.

    The learning rate is 0, so that nothing is lost where numbers are random.
    """

    def __init__(self, network, options, device):
        self.network, self.options, self.device = network.placed(device).train(), options, device
        groups = METHODS[options.method].parameter_groups(self.network, options)
        self.optimizer = build_optimizer(options.opt, groups)
        set_schedule(self.optimizer, 0.0, options.weight_decay)
        self.guard = BufferGuard(network)

    def inputs(self, batch):
        images = torch.randn(batch, self.options.in_chans, *self.network.input_size, device=self.device)
        return images.to(memory_format=torch.channels_last), self.network.draw_masks(batch).to(self.device)

    def autocast(self):
        """bf16 unless fp32 is asked for: that is what a GPU does."""
        return nullcontext() if self.options.precision == 'fp32' else torch.autocast(self.device.type, torch.bfloat16)

    def loss(self, images, visible):
        with self.autocast():
            return self.network(images, visible)

    def __call__(self, images, visible):
        return train_step(self.network, [(images, visible)], 1, self.optimizer, self.guard, Ranks(0, 1, self.device),
                          self.autocast, self.options.clip_grad, lambda: torch.zeros(2, device=self.device))


@dataclass(frozen=True)
class Counts:
    """What was counted of a run's training step, in bytes and operations.

    weights: with BatchNorm's statistics. state: the optimiser's. image: one input. kept: for the backward
    pass, a Line. live: what a step has made and still holds after each of its operations, a Line of arrays;
    reached: the gradients in that, (operations,). forward: what a forward pass without gradients holds at its
    fullest moment, a Line. operations: floating-point ones, of one image. norms: channels of each BatchNorm
    that is trained.
    """
    weights: int
    gradients: int
    state: int
    image: int
    checkpoint: int
    kept: Line
    live: Line
    reached: np.ndarray
    forward: Line
    operations: float
    norms: tuple

    @classmethod
    def of(cls, options, network, shapes_only=True):
        """Of steps on the CPU. Raises ValueError if the network does something else with another number of images.

        shapes_only: leave convolutions and matrix products out, which changes no count: see ShapesOnly.
        """
        with ShapesOnly() if shapes_only else nullcontext():
            return cls.counted(options, network)

    @classmethod
    def counted(cls, options, network):
        """As `of`, in the contexts that stand already."""
        step = Step(network, options, torch.device('cpu'))
        own = [*network.parameters(), *network.buffers()]
        trained = [p for p in network.parameters() if p.requires_grad]
        with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
            step(*step.inputs(BATCHES[0]))  # makes the optimiser's state besides
        kept, live, forward = [], [], []
        for batch in BATCHES:
            images, visible = step.inputs(batch)
            step.optimizer.zero_grad(set_to_none=True)
            with nullcontext() if options.precision == 'fp32' else AsCUDA():
                kept.append(kept_for_backward(lambda i=images, v=visible: step.loss(i, v), [*own, images, visible]))
                with torch.no_grad(), Live() as seen:
                    step.loss(images, visible)
                forward.append(int(seen.bytes.max()))
                with Live() as seen:
                    step(images, visible)
            live.append(seen.bytes)
        if len(live[0]) != len(live[1]):
            raise ValueError(f'{options.model} does other operations on {BATCHES[1]} images than on '
                             f'{BATCHES[0]}, so that nothing can be said of larger batches: try one on a '
                             'GPU, with --accum=auto')
        reached = np.zeros_like(live[1])
        for parameter in trained:
            reached[seen.made_at(parameter.grad):] += size(parameter.grad)
        state = [value for entry in step.optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]
        return cls(sum(map(size, own)), sum(map(size, trained)), sum(map(size, state)), size(images) // BATCHES[1],
                   weights_size(network) + optimizer_size(step.optimizer), Line.through(BATCHES, kept),
                   Line.through(BATCHES, live), reached, Line.through(BATCHES, forward),
                   counter.get_total_flops() / BATCHES[0],
                   tuple(module.num_features for module in network.modules() if isinstance(
                       module, nn.modules.batchnorm._BatchNorm) and getattr(module.weight, 'requires_grad', True)))

    def temporary(self, alone):
        """What a step has made after each operation, a Line. alone: no gradients stand there before it, as in
        DDP or parts.
        """
        return self.live if alone else Line(self.live.constant - self.reached + self.gradients, self.live.an_image)

    def beside_graph(self, inputs):
        """Bytes that a CUDA graph of a step on so many images in all asks for, a Line of the images at a time.

        Its inputs stay, and its memory is its own: what is measured between the steps takes other memory.
        """
        return Line(self.image * inputs + self.forward.constant, self.forward.an_image) if inputs else Line(0, 0)

    def held(self, batch, alone, inputs=0):
        """Bytes of tensors at a step's fullest moment, on so many images at a time. inputs: see `beside_graph`;
        0 for eager steps.
        """
        return self.weights + self.state + self.image * batch + int(self.temporary(alone).at(batch).max()) \
            + self.beside_graph(inputs).at(batch)

    def largest(self, room, alone, inputs=0):
        """The most images at a time for which `held` fits into so many bytes; 0 if not even one does."""
        line, beside = self.temporary(alone), self.beside_graph(inputs)
        left = room - self.weights - self.state - line.constant - beside.constant
        return max(int((left // (self.image + line.an_image + beside.an_image)).min()), 0)


def size(tensor):
    return tensor.numel() * tensor.element_size()
