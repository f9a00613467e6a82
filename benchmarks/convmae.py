"""ConvMAE on strips of visible cells beside the original's way, in alternating runs: time and kept memory.

    OMP_NUM_THREADS=1 python -m benchmarks.convmae [convvit_base ...] [--batch 8 --input_size 224]
                                                   [--mask_ratio 0.75 --rounds 7]

The original (Gao et al., NeurIPS 2022) runs the convolutions of ConvViT over the whole image, multiplies the
input of each 5x5 convolution by the mask, and drops hidden tokens in front of the transformer. That is
written here, for the same network with the same weights. Before anything is timed, latents and gradients of
the two ways are compared in float64.

Times are those of a forward and a backward pass: of the encoder with its fusion, and of the whole loss. They
are given in seconds of the processor, which other programs on the machine disturb less, and by the clock.
Ratios are medians over the rounds. The exit code is 1 if a ratio is above its bar. The bars are those of
ConvViT-B: beside a smaller network the decoder, which both ways have, is a larger part of a step. bf16
autocast on CUDA, fp32 on the CPU.
"""
import argparse
import copy
import sys
import time
from contextlib import nullcontext
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import described_settings, machine, parse_arguments
from common.convvit import ConvViT
from common.training.memory import kept_for_backward
from pretrain.convmae import build_convmae
from pretrain.masking import is_visible

BARS = {'encoder': 0.60, 'step': 0.70, 'memory': 0.60}  # ratios to the original's way that must not be exceeded
TOLERANCE = 1e-10  # of latents and gradients in float64, relative to the largest value of each tensor
MIB = 2 ** 20


class Original(nn.Module):
    """A ConvMAE around a ConvViT, encoding in the original's way. It shares the weights of `convmae`."""

    def __init__(self, convmae):
        super().__init__()
        self.convmae = convmae

    def forward(self, images, visible):
        """The loss."""
        convmae = self.convmae
        prediction = convmae.decode(self.latent(images, visible), visible)
        return convmae.loss(images, convmae.as_images(prediction), visible)

    def latent(self, images, visible):
        """What `ConvMAE.latent` returns, (B, k, width)."""
        convmae, cnn = self.convmae, self.convmae.encoder.cnn
        first = run_stage(cnn.blocks1, cnn.patch_embed1(images), visible, cnn.grid)
        second = run_stage(cnn.blocks2, cnn.patch_embed2(first), visible, cnn.grid)
        third = as_tokens(cnn.patch_embed3(second))
        tokens = cnn.patch_embed4(third) + cnn.pos_embed.to(third.dtype)
        latent = cnn.blocks3(at_visible(tokens, visible))
        for fuse, stage in ((convmae.stage1_output_decode, first), (convmae.stage2_output_decode, second)):
            fused = F.conv2d(stage, fuse.weight, fuse.bias, fuse.stride)
            latent = latent + at_visible(as_tokens(fused), visible)
        return convmae.norm(latent)


def run_stage(blocks, x, visible, grid):
    """Blocks of convolutions over whole images, with hidden positions 0 in front of each 5x5: (B, C, H, W)."""
    seen = is_visible(visible, grid[0] * grid[1]).unflatten(1, grid)[:, None].to(x.dtype)
    seen = F.interpolate(seen, x.shape[2:])  # each position as its cell
    for block in blocks:
        x = x + block.drop_path(block.conv2(block.attn(block.conv1(block.norm1(x)) * seen)))
        x = x + block.drop_path(block.mlp(block.norm2(x)))
    return x


def as_tokens(x):
    """(B, C, h, w) -> (B, h*w, C)."""
    return x.flatten(2).transpose(1, 2)


def at_visible(tokens, visible):
    """(B, L, C) -> (B, k, C)."""
    return tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[2]))


def largest_difference(strips, original, images, visible):
    """The largest difference of latents, and of the gradients of all parameters, in float64.

    Each is relative to the largest value of its tensor. strips, original: networks that have `latent`, and the
    same parameters in the same order.
    """
    compared = []
    for network in (strips, original):
        network = copy.deepcopy(network).double()
        latent = network.latent(images.double(), visible)
        weights = torch.linspace(-1, 1, latent.numel(), dtype=latent.dtype, device=latent.device)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad((latent.flatten() * weights).sum(), trained,
                                        materialize_grads=True, allow_unused=True)  # none for the decoder
        compared.append([latent.detach(), *gradients])
    differences = []
    for one, other in zip(*compared, strict=True):
        largest = other.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        differences.append((one - other).abs().max() / largest)
    return torch.stack(differences).max().item()  # NaN if one is NaN


def check(strips, original, images, visible):
    """Raise SystemExit unless the two ways compute the same. Returns how much they differ."""
    difference = largest_difference(strips, original, images, visible)
    if not difference <= TOLERANCE:
        raise SystemExit(f'error: latents or gradients of the two ways differ by {difference:.1e} of their '
                         'largest values in float64. They do not compute the same, so they are not timed')
    return difference


def autocast(device):
    return torch.autocast('cuda', torch.bfloat16) if device.type == 'cuda' else nullcontext()


def encode(network, images, visible):
    """A number whose gradient reaches all that `latent` is made of."""
    return network.latent(images, visible).float().abs().mean()


def step(network, images, visible):
    """The loss."""
    return network(images, visible)


def in_turns(cases, rounds, device):
    """{case: function} -> {case: [(seconds of the processor, seconds by the clock) of each round]}.

    There is one more round first, to warm up.
    """
    seconds = {case: [] for case in cases}
    for number in range(rounds + 1):
        for case, run in cases.items():
            began = time.process_time(), time.perf_counter()
            run()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            if number:
                seconds[case].append((time.process_time() - began[0], time.perf_counter() - began[1]))
    return seconds


def ratios(seconds, clock):
    """The rounds' ratios, strips over the original's way, ascending. clock: 0 the processor's seconds, 1 the clock's."""
    return sorted(one[clock] / other[clock] for one, other in zip(seconds['strips'], seconds['original']))


def compare(convmae, images, rounds, show):
    """Compare the two ways for one ConvMAE. Returns {what: ratio} of times and memory.

    images: (B, C, H, W), on the network's device. show: called with lines of text.
    """
    device, ways = images.device, {'strips': convmae, 'original': Original(convmae)}
    visible = convmae.draw_visible(len(images)).to(device)
    few = min(len(images), 2)
    difference = check(*ways.values(), images[:few], visible[:few])
    show(f'latent and gradients of the two ways differ by {difference:.1e} of their largest values in float64')

    def forward(network, part):
        with autocast(device):
            return part(network, images, visible)

    def both_passes(network, part):
        forward(network, part).backward()
        convmae.zero_grad(set_to_none=True)

    found, own = {}, [*convmae.parameters(), *convmae.buffers(), images, visible]
    for name, part in (('encoder', encode), ('step', step)):
        cases = {way: partial(both_passes, network, part) for way, network in ways.items()}
        seconds = in_turns(cases, rounds, device)
        kept = {way: kept_for_backward(partial(forward, network, part), own) / MIB / len(images)
                for way, network in ways.items()}
        found[name] = show_times(name, seconds, device, show)
        memory = found[f'memory, {name}'] = kept['strips'] / kept['original']
        show(f'  kept for the backward pass: {kept["strips"]:.1f} of {kept["original"]:.1f} MiB an image: '
            f'{memory:.3f} {verdict(memory, BARS["memory"])}')
    return found


def show_times(name, seconds, device, show):
    """Say what was measured of a part. Returns the ratio that counts: on a GPU by the clock, else by the processor."""
    counts = 1 if device.type == 'cuda' else 0
    show(f'{name}:')
    for clock, title in enumerate(('of the processor', 'by the clock')):
        one, other = (median(each[clock] for each in seconds[way]) for way in ('strips', 'original'))
        each = ratios(seconds, clock)
        bar = f' {verdict(median(each), BARS[name])}' if clock == counts else ''
        show(f'  {one:.2f} of {other:.2f} s {title}: {median(each):.3f} ({each[0]:.3f} to {each[-1]:.3f}){bar}')
    return median(ratios(seconds, counts))


def verdict(ratio, bar):
    return f'[at most {bar:.2f}: {"met" if ratio <= bar else "MISSED"}]'


def are_met(found):
    """Whether all of what `compare` returns is within its bar."""
    return all(ratio <= BARS[name.split(',')[0]] for name, ratio in found.items())


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.convmae', description=__doc__.split('\n')[0], allow_abbrev=False)
    args, device = parse_arguments(parser, ['convvit_base'], argv, mask_ratio=0.75)
    print(f'{machine(device)}; {described_settings(args, device)}', flush=True)
    all_met = True
    for name in args.models:
        torch.manual_seed(0)
        convmae = build_convmae(name, args.input_size, args.mask_ratio).placed(device).train()
        if not isinstance(convmae.encoder.cnn, ConvViT):
            raise SystemExit(f"error: {name} is no ConvViT, for which alone the original's way is written here: "
                             'give convvit_base, or another name that begins so')
        images = torch.randn(args.batch, 3, args.input_size, args.input_size, device=device)
        images = images.to(memory_format=torch.channels_last)
        print(name, flush=True)
        found = compare(convmae, images, args.rounds, partial(print, flush=True))
        all_met = all_met and are_met(found)
    return 0 if all_met else 1


if __name__ == '__main__':
    sys.exit(main())
