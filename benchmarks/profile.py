"""Where a pretraining step spends its time, and what it keeps: by part, medians of alternating runs.

    python -m benchmarks.profile [resnet50 convnext_small ...] [--batch 8 --input_size 224 --mask_ratio 0.6 --rounds 5]

Each part runs by itself, forward and backward, on what the parts before it gave. bf16 autocast on CUDA, fp32 on the CPU.
"""
import argparse
from contextlib import nullcontext

import torch

from benchmarks.timing import alternate, machine, on_machine, sizes
from common.training.optim import BufferGuard, build_optimizer, parameter_groups, set_schedule
from pretrain.accelerated.fused import Filled
from pretrain.planning.memory import kept_for_backward
from pretrain.spark import build_spark
from pretrain.spark_method import SparKMethod
from pretrain.sparse.strips import Geometry


def parts_of(name, args, device):
    """{part: (its forward, parameters and buffers, tensors it is given)}, and all of a step besides."""
    spark = build_spark(name, args.input_size, args.mask_ratio).placed(device).train()
    images = torch.randn(args.batch, 3, args.input_size, args.input_size, device=device).to(memory_format=torch.channels_last)
    visible = spark.draw_visible(args.batch).to(device)

    def detached(maps):
        return [Filled(x.geometry, *detached([x.strip, x.token])) if isinstance(x, Filled) else x.detach().requires_grad_()
                for x in maps]

    def tensors(levels):
        return [tensor for x in levels.values() for tensor in ((x.strip, x.token) if isinstance(x, Filled) else (x,))]

    with autocast(device):
        geometry = Geometry(visible, spark.encoder.grid)
        strips = detached(spark.encoder(images, geometry))
        levels = spark.densify(strips, geometry)
        levels = dict(zip(levels, detached(levels.values())))
        reconstruction, = detached([spark.dense_decoder(levels)])
    return spark, {
        'encoder': (lambda: spark.encoder(images, Geometry(visible, spark.encoder.grid)), [images]),
        'densify': (lambda: tensors(spark.densify(strips, geometry)), strips),
        'decoder': (lambda: [spark.dense_decoder(levels)], tensors(levels)),
        'loss': (lambda: [spark.loss(images, reconstruction, geometry)], [images, reconstruction]),
    }


def autocast(device):
    return torch.autocast('cuda', torch.bfloat16) if device.type == 'cuda' else nullcontext()


def optimise(spark, device):
    """What train_step does besides forward and backward."""
    optimizer, guard = build_optimizer('lamb', parameter_groups(spark, 0.05, SparKMethod.no_decay), (0.9, 0.95)), BufferGuard(spark)
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
    print(f'{name}: {1000 * whole:.0f} ms, {sum(kept.values()) / 2 ** 20 / images:.1f} MiB an image kept for the backward pass '
          '(without what a part is given)')
    for part in parts:
        forward, both = medians[part, 'forward'], medians[part, 'both']
        print(f'  {part:10} {1000 * both:6.0f} ms {both / whole:5.1%}  (forward {1000 * forward:.0f}, backward '
              f'{1000 * (both - forward):.0f}), {kept[part] / 2 ** 20 / images:.1f} MiB an image')
    print(f'  {"optimiser":10} {1000 * optimiser:6.0f} ms {optimiser / whole:5.1%}', flush=True)


def main():
    args, device = sizes(argparse.ArgumentParser('benchmarks.profile', description=__doc__.split('\n')[0], allow_abbrev=False),
                         ['resnet50', 'convnext_small'])
    print(f'{machine(device)}; {on_machine(args, device)}')
    for name in args.models:
        profile(name, args, device)


if __name__ == '__main__':
    main()
