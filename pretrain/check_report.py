"""What the checks of all methods share: the page that is printed, and networks that are ready to be compared.

An `encoder` here is a SparseEncoder, a DenseEncoder or a ViTEncoder.
"""
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.words import first_line
from pretrain.planning.operations import OPERATIONS
from pretrain.sparse.proof import randomise_scales, switch_off_dropout


@dataclass(frozen=True)
class Part:
    """One thing that was asked. found: what came out. error: the largest relative error, if it has one."""
    holds: bool
    asked: str
    found: str
    error: float = 0.0


@dataclass
class Report:
    """What a check found; `str(report)` is the page that is printed, `ok` whether all parts hold."""
    name: str
    refused: str = ''
    facts: list = field(default_factory=list)
    notes: tuple = ()
    parts: list = field(default_factory=list)  # of Part
    praise: str = 'exact'  # what a network is called of which all parts hold

    @property
    def ok(self):
        return not self.refused and bool(self.parts) and all(part.holds for part in self.parts)

    @property
    def worst(self):
        """The largest relative error."""
        return max((part.error for part in self.parts), default=0.0)

    def __str__(self):
        if self.refused:
            return f'{self.name}: refused\n\n  {self.refused}\n'
        verdict = (self.praise + (', with a note' if self.notes else '')) if self.ok else 'WRONG'
        lines = [f'{self.name}: {verdict}', '', *(f'  {what:<15}{value}' for what, value in self.facts)]
        lines += [f'  {"note":<15}{note}' for note in self.notes]
        lines.append('')
        for part in self.parts:
            lines.append(f'  {"ok   " if part.holds else "WRONG"}  {part.asked:<62}{part.found}')
        return '\n'.join(lines) + '\n'


def tried(ask, asked, subject):
    """The Part of a question ask(subject, images), on two images, or on eight if it does not hold on two.

    BatchNorm over few values magnifies rounding, which more images settle; an error stays.
    """
    for images in (2, 8):
        torch.manual_seed(0)
        try:
            part = ask(subject, images)
        except Exception as failure:  # whatever a network of the user's can raise
            part = Part(False, asked, f'{type(failure).__name__}: {failure}')
        if part.holds:
            break
    return part


def prepared(cnn, seed=0):
    """The network in training mode and float64, with random scales and no dropout. Raises ValueError.

    Zero-initialised branches, small layer scales and dropout would hide errors.
    """
    if any(parameter.is_meta for parameter in cnn.parameters()):
        raise ValueError(f'{type(cnn).__name__} is on the meta device, without values: make it on a real one')
    with torch.no_grad():
        randomise_scales(cnn.cpu(), seed)
    switch_off_dropout(cnn)
    for parameter in cnn.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return cnn.double().train()


def check_no_random_numbers(encoder):
    """Raise a ValueError that names the module if the network draws random numbers in training."""
    drawn = []
    images = inputs(encoder, 2)
    before = torch.get_rng_state()

    def look(name, module, inputs, output):
        if not drawn and not torch.equal(torch.get_rng_state(), before):
            drawn.append(f'"{name or "(top)"}" ({type(module).__name__})')

    handles = [module.register_forward_hook(partial(look, name))
               for name, module in encoder.cnn.named_modules()]
    buffers = {key: value.clone() for key, value in encoder.cnn.named_buffers()}
    with torch.no_grad():
        encoder.pyramid(images)
    restore(encoder.cnn, buffers)
    for handle in handles:
        handle.remove()
    if drawn:
        raise ValueError(f'{type(encoder.cnn).__name__} draws random numbers in training, in its module '
                         f'{drawn[0]}, so that nothing can be compared: set its rate to 0 for the check')


def multiply_adds(encoder, cells=None):
    """Of one image; run on two, since a BatchNorm after a global pool takes no single one.

    cells: which are visible, as the encoder takes them; None runs it densely.
    """
    buffers = {key: value.clone() for key, value in encoder.cnn.named_buffers()}
    with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:  # under no_grad torch 2.14 fails on CaiT here
        encoder(inputs(encoder, 2), cells)
    restore(encoder.cnn, buffers)
    return counter.get_total_flops() / 4  # operations are two, images too


def inputs(encoder, batch):
    return torch.randn(batch, encoder.in_chans, *encoder.input_size, dtype=torch.float64)


def restore(cnn, buffers):
    with torch.no_grad():
        for key, value in cnn.named_buffers():
            value.copy_(buffers[key])


def from_the_same_state(module, run):
    """What run() returns; the running statistics of the module are as before."""
    buffers = {key: value.clone() for key, value in module.named_buffers()}
    found = run()
    restore(module, buffers)
    return found


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def parameters_of(encoder):
    """How many parameters of the network are pretrained, and which are not, in words."""
    left_out = encoder.left_out()
    outside = sum(left_out.values())
    inside = f'{(count(encoder.cnn) - outside) / 1e6:.2f} M of the network'
    return f'{inside}, {outside / 1e6:.2f} M outside, not pretrained ({", ".join(left_out)})' if left_out else inside


def gradients_of(scalar, named, asked):
    """Whether a scalar has finite gradients for all of some parameters, [(name, parameter)]. A Part."""
    found = torch.autograd.grad(scalar, [p for _, p in named], allow_unused=True)
    without = [key for (key, _), g in zip(named, found) if g is None or not g.isfinite().all()]
    if not without:
        return Part(True, asked, f'{len(named)} of {len(named)}')
    return Part(False, asked, f'not {", ".join(without[:4])}{", ..." if len(without) > 4 else ""}')


@torch.no_grad()
def exported(encoder, other, is_same, said=('which gives the same features', 'whose features differ')):
    """(e): the state_dict in another copy of the network, which then gives the same. A Part.

    is_same(images) compares what the two give in evaluation mode. said: the finding, if they are the same and if not.
    """
    asked = '(e) its weights load strictly into a plain network'
    try:
        other.load_state_dict(encoder.cnn.state_dict(), strict=True)
    except RuntimeError as failure:
        return Part(False, asked, first_line(failure))
    images = inputs(encoder, 2)
    encoder.eval()
    other.eval()
    same = is_same(images)
    encoder.train()
    return Part(same, asked, said[not same])
