"""The whole pretraining step beside three others, in alternating runs: images a second, ratios, and peak memory.

    python -m benchmarks.step [resnet50 convnext_small ...] [--batch 8 --input_size 224 --mask_ratio 0.6 --rounds 5]
                              [--recompute decoder] [--compile] [--decoder light] [--decoder_width 768]

* supervised: the dense network's own training step, with its classifier;
* dense: the same pretraining with the encoder run densely over the whole image, and its maps given to the same decoder;
* plain: that, with the decoder's layers one by one, as they are written down.

Each network runs in a process of its own, so that its peak memory is its own. bf16 autocast on CUDA, fp32 on the CPU.
"""
import argparse
import copy
import multiprocessing
import resource
from contextlib import nullcontext

import torch
from torch import nn

from benchmarks.timing import alternate, machine, on_machine, sizes
from common.distributed import Ranks
from common.engine import train_step
from common.optim import BufferGuard, build_optimizer, parameter_groups, set_schedule
from pretrain.spark import build_spark


def memory(device):
    """Peak bytes so far."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Dense(nn.Module):
    """SparK with its encoder run densely; plainly: the decoder layer by layer."""

    def __init__(self, spark, plainly):
        super().__init__()
        self.spark, self.plainly = spark, plainly

    def forward(self, images, visible):
        spark = self.spark
        levels, maps = {}, reversed(spark.encoder(images))
        for stride, x, norm, project in zip(reversed(spark.encoder.reductions), maps, spark.densify_norms, spark.densify_projs):
            levels[stride] = project(norm(x))
        decode = self.layer_by_layer if self.plainly else spark.dense_decoder
        return spark.loss(images, decode(levels), spark.geometry(images, visible))

    def layer_by_layer(self, levels):
        decoder, x = self.spark.dense_decoder, 0
        finest = decoder.strides[-1]
        for stride, block in zip(decoder.strides, decoder.dec):
            x = block.conv(block.up_sample(x + levels[stride] if stride in levels else x))
        return torch.pixel_shuffle(decoder.proj(x + levels[finest] if finest in levels else x), finest)


def measure(name, args, device):
    size = (args.batch, 3, args.input_size, args.input_size)
    images = torch.randn(size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (args.batch,), device=device)
    spark = build_spark(name, args.input_size, args.mask_ratio, decoder_width=args.decoder_width, decoder=args.decoder)
    plain = copy.deepcopy(spark.encoder.cnn).to(device, memory_format=torch.channels_last).train()
    spark = spark.placed(device).train()
    spark.recompute(args.recompute)
    ranks, others = Ranks(0, 1, device), {}

    def autocast():
        return torch.autocast('cuda', torch.bfloat16) if device.type == 'cuda' else nullcontext()

    def optimizer_of(net):
        optimizer = build_optimizer('lamb', parameter_groups(net, 0.05), (0.9, 0.95))
        set_schedule(optimizer, 1e-4, 0.05)
        return optimizer

    def pretraining(net):
        optimizer, guard = optimizer_of(net), BufferGuard(net)
        if args.compile:
            net.compile()
        wishes = torch.zeros(2, device=device)

        def step():
            visible = spark.draw_visible(args.batch).to(device)
            train_step(net, [(images, visible)], 1, optimizer, guard, ranks, autocast, 5.0, lambda: wishes)
        return step

    sparse = pretraining(spark)
    base = memory(device)
    sparse()
    peak = memory(device)
    optimizer = optimizer_of(plain)
    if args.compile:
        plain.compile()

    def supervised():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = nn.functional.cross_entropy(plain(images), labels)
        loss.backward()
        optimizer.step()

    for case, plainly in (('dense', False), ('plain', True)):
        others[case] = pretraining(Dense(copy.deepcopy(spark), plainly))
    medians = alternate({'pretraining': sparse, 'supervised': supervised, **others}, args.rounds, device)
    rates = ', '.join(f'{case} {args.batch / seconds:.2f}' for case, seconds in medians.items())
    ratios = ', '.join(f'{medians.ratio("pretraining", case):.3f} of {case}' for case in ('supervised', *others))
    print(f'{name:20} images/s: {rates}; time of the step: {ratios}; peak memory of the first pretraining step '
          f'{peak / 2 ** 30:.2f} GiB, {(peak - base) / 2 ** 20 / args.batch:.0f} MiB an image above the networks', flush=True)


def main():
    parser = argparse.ArgumentParser('benchmarks.step', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--recompute', default='none', choices=('none', 'decoder', 'all'))
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--decoder', default='unet', choices=('unet', 'light'))
    parser.add_argument('--decoder_width', type=int, default=768)
    args, device = sizes(parser, ['resnet50', 'convnext_small'])
    print(f'{machine(device)}; {on_machine(args, device)}, recompute {args.recompute}{", compiled" * args.compile}, '
          f'decoder {args.decoder}, {args.decoder_width} wide', flush=True)
    for name in args.models:
        process = multiprocessing.get_context('spawn').Process(target=measure, args=(name, args, device))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == '__main__':
    main()
