"""Where a pretraining step spends its time, and what it keeps: by part, medians of alternating runs.

    python -m benchmarks.profile [resnet50 convnext_small ...] [--batch 8 --input_size 224 --mask_ratio 0.6]
                                 [--rounds 5] [--plain]

Each part runs by itself, forward and backward, on what the parts before it gave. bf16 autocast on CUDA, fp32
on the CPU. --plain: in the plain form on the CPU too, as it runs on CUDA.
"""
import argparse
from contextlib import nullcontext

import torch

from benchmarks.timing import alternate, described_settings, machine, parse_arguments
from common.training.memory import kept_for_backward
from common.training.optim import BufferGuard, build_optimizer, parameter_groups, set_schedule
from pretrain.accelerated.densify import FilledMap
from pretrain.spark import build_spark
from pretrain.spark_method import SparKMethod


def parts_of(name, args, device):
    """A SparK, and {part: (its forward, the tensors it is given)}."""
    spark = build_spark(name, args.input_size, args.mask_ratio).placed(device).train()
    spark.accelerated = False if args.plain else None
    images = torch.randn(args.batch, 3, args.input_size, args.input_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    visible = spark.draw_visible(args.batch).to(device)
    with autocast(device):
        geometry = spark.geometry(images, visible)
        strips = [detached(strip) for strip in spark.encoder(images, geometry)]
        levels = {stride: detached(level) for stride, level in spark.densify(strips, geometry).items()}
        reconstruction = detached(spark.decode(levels, geometry))
    return spark, {
        'encoder': (lambda: spark.encoder(images, spark.geometry(images, visible)), [images]),
        'densify': (lambda: tensors_of(spark.densify(strips, geometry)), strips),
        'decoder': (lambda: [spark.decode(levels, geometry)], tensors_of(levels)),
        'loss': (lambda: [spark.loss(images, reconstruction, visible)], [images, reconstruction]),
    }


def detached(level):
    """A tensor, or a FilledMap, without its history, that gets a gradient."""
    if isinstance(level, FilledMap):
        return FilledMap(level.geometry, detached(level.strip), detached(level.token))
    return level.detach().requires_grad_()


def tensors_of(levels):
    """The tensors of densified maps by stride."""
    tensors = []
    for level in levels.values():
        tensors += [level.strip, level.token] if isinstance(level, FilledMap) else [level]
    return tensors


def autocast(device):
    return torch.autocast('cuda', torch.bfloat16) if device.type == 'cuda' else nullcontext()


def optimise(spark, device):
    """What train_step does besides forward and backward."""
    groups = parameter_groups(spark, 0.05, SparKMethod.no_decay)
    optimizer = build_optimizer('lamb', groups, (0.9, 0.95))
    guard = BufferGuard(spark)
    set_schedule(optimizer, 1e-4, 0.05)
    for parameter in spark.parameters():
        parameter.grad = torch.randn_like(parameter) / 100

    def step():
        before = guard.snapshot()
        norm = torch.nn.utils.clip_grad_norm_(spark.parameters(), 5.0)
        optimizer.found_inf, optimizer.grad_scale = (~torch.isfinite(norm)).float(), None
        optimizer.step()
        guard.restore(before, optimizer.found_inf > 0)
    return step


def profile(name, args, device):
    spark, parts = parts_of(name, args, device)
    own, images = [*spark.parameters(), *spark.buffers()], args.batch

    def both_ways(forward):
        with autocast(device):
            outputs = forward()
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    def only_forward(forward):
        with autocast(device):
            forward()

    cases, kept = {}, {}
    for part, (forward, given) in parts.items():
        cases[part, 'forward'] = lambda forward=forward: only_forward(forward)
        cases[part, 'both'] = lambda forward=forward: both_ways(forward)
        with autocast(device):
            kept[part] = kept_for_backward(forward, [*own, *given])
    medians = alternate(cases, args.rounds, device)
    spark.zero_grad(set_to_none=True)
    optimiser = alternate({'': optimise(spark, device)}, args.rounds, device)['']
    whole = sum(medians[part, 'both'] for part in parts) + optimiser
    total = sum(kept.values()) / 2 ** 20 / images
    print(f'{name}: {1000 * whole:.0f} ms, {total:.1f} MiB an image kept for the backward pass (without what a '
          'part is given)')
    for part in parts:
        forward, both = medians[part, 'forward'], medians[part, 'both']
        backward = both - forward
        print(f'  {part:10} {1000 * both:6.0f} ms {both / whole:5.1%}  (forward {1000 * forward:.0f}, backward '
              f'{1000 * backward:.0f}), {kept[part] / 2 ** 20 / images:.1f} MiB an image')
    print(f'  {"optimiser":10} {1000 * optimiser:6.0f} ms {optimiser / whole:5.1%}', flush=True)


def main():
    parser = argparse.ArgumentParser('benchmarks.profile', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--plain', action='store_true', help='the plain form, on the CPU too')
    args, device = parse_arguments(parser, ['resnet50', 'convnext_small'])
    print(f'{machine(device)}; {described_settings(args, device)}{", plain" * args.plain}')
    for name in args.models:
        profile(name, args, device)


if __name__ == '__main__':
    main()
