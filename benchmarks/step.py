"""The whole pretraining step beside others, in alternating runs: images a second, ratios, and peak memory.

    python -m benchmarks.step [resnet50 convnext_small ...] [--batch 8 --input_size 224 --mask_ratio 0.6]
                              [--rounds 5] [--recompute decoder] [--compile]
                              [--decoder light] [--decoder_width 768]
                              [--cases pretraining supervised dense dense_plain plain a2mim convmae mae]

* supervised: the dense network's own training step, with its classifier;
* dense: the same pretraining with the encoder run densely over the whole image, and its maps given to the
  same decoder;
* dense_plain: that, with the plain form of the decoder;
* plain: the same pretraining in the plain form, which is what runs on CUDA;
* a2mim: pretraining with A2MIM, whose encoder is dense and whose decoder is one convolution;
* convmae, mae: pretraining with ConvMAE (of a ConvViT or another hybrid) and with MAE (of a ViT), with the
  decoder of their papers, which hide 75 %: --mask_ratio 0.75.

The methods other than SparK are measured where --cases names them, each with the networks that it takes:

    python -m benchmarks.step convvit_base --cases convmae supervised --mask_ratio 0.75

Each case runs in a process of its own, and waits for its turn: in one process, a case would find memory that
another has freed. (On a GPU all of them must fit beside each other, or fewer be named.) bf16 autocast on
CUDA, fp32 on the CPU.
"""
import argparse
import multiprocessing
import resource
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from benchmarks.timing import alternate, described_settings, machine, parse_arguments
from common.distributed import Ranks
from common.networks.convolutions import safe_convolutions
from common.networks.create import create_cnn
from common.training.compilation import compiled_at_first_call, repeated_blocks
from common.training.optim import BufferGuard, build_optimizer, parameter_groups, set_schedule
from common.training.trainer import train_step
from pretrain.a2mim import A2MIM, build_a2mim
from pretrain.convmae import ConvMAE, build_convmae
from pretrain.mae import MAE, build_mae
from pretrain.methods import METHODS
from pretrain.spark import SparK, build_spark

CASES = ('pretraining', 'supervised', 'dense', 'dense_plain', 'plain')  # that are measured if none are named
OTHER_METHODS = {'a2mim': build_a2mim, 'convmae': build_convmae, 'mae': build_mae}
METHOD = {SparK: 'spark', A2MIM: 'a2mim', ConvMAE: 'convmae', MAE: 'mae'}


def memory(device):
    """Peak bytes so far."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Dense(nn.Module):
    """SparK with its encoder run densely."""

    def __init__(self, spark):
        super().__init__()
        self.spark = spark

    def forward(self, images, visible):
        spark, levels = self.spark, {}
        maps = zip(reversed(spark.encoder.reductions), reversed(spark.encoder(images)))
        for (stride, x), norm, project in zip(maps, spark.densify_norms, spark.densify_projs):
            levels[stride] = project(norm(x))
        geometry = spark.geometry(images, visible)
        return spark.loss(images, spark.decode(levels, geometry), visible)


def build(case, name, args):
    """The masked network of a case."""
    if case in OTHER_METHODS:
        return OTHER_METHODS[case](name, args.input_size, args.mask_ratio)
    spark = build_spark(name, args.input_size, args.mask_ratio, decoder_width=args.decoder_width, decoder=args.decoder)
    spark.accelerated = False if case in ('plain', 'dense_plain') else None
    return spark


def prepare(case, name, args, device):
    """The case's network, its training step, a function, and the bytes that it found in memory."""
    torch.manual_seed(0)
    size = (args.batch, 3, args.input_size, args.input_size)
    images = torch.randn(size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (args.batch,), device=device)
    if case == 'supervised':
        net = create_cnn(name, input_size=args.input_size).to(device, memory_format=torch.channels_last).train()
    else:
        masked = build(case, name, args)
        masked.placed(device).train().recompute(args.recompute)
        net = Dense(masked) if case in ('dense', 'dense_plain') else masked
    optimizer, guard = build_optimizer('lamb', parameter_groups(net, 0.05), (0.9, 0.95)), BufferGuard(net)
    set_schedule(optimizer, 1e-4, 0.05)
    ranks, requests = Ranks(0, 1, device), torch.zeros(2, device=device)

    def autocast():
        return torch.autocast('cuda', torch.bfloat16) if device.type == 'cuda' else nullcontext()

    def pretrain():
        visible = masked.draw_visible(args.batch).to(device)
        train_step(net, [(images, visible)], 1, optimizer, guard, ranks, autocast, 5.0, lambda: requests)

    def supervise():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            with safe_convolutions(device):
                logits = net(images)
            loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()

    return net, supervise if case == 'supervised' else pretrain, memory(device)


def take_turns(case, name, args, device, connection):
    """A process: a step for each message that arrives, answered by the peak of memory so far, above what was there before."""
    net, step, base = prepare(case, name, args, device)
    if args.compile:
        parts = METHODS[METHOD[type(net)]].parts_to_compile(net) if type(net) in METHOD else repeated_blocks(net) or [net]
        with compiled_at_first_call(parts):
            step()
    while connection.recv():
        step()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        connection.send(memory(device) - base)


def measure(name, args, device):
    context, sides, peaks = multiprocessing.get_context('spawn'), {}, {}
    for case in args.cases:
        connection, other = context.Pipe()
        sides[case] = connection, context.Process(target=take_turns, args=(case, name, args, device, other), daemon=True)
        sides[case][1].start()
        other.close()

    def step(case):
        sides[case][0].send(True)
        peaks[case] = sides[case][0].recv()

    try:
        times = alternate({case: partial(step, case) for case in args.cases}, args.rounds, torch.device('cpu'))
    except (EOFError, OSError):
        raise SystemExit('error: a process of the benchmark ended, see above') from None
    for connection, process in sides.values():
        connection.send(False)
        process.join()
    first = args.cases[0]
    print(f'{name:20} images/s: ' + ', '.join(f'{case} {args.batch / seconds:.2f}' for case, seconds in times.items())
          + f'; time of {first}: ' + ', '.join(f'{times.ratio(first, case):.3f} of {case}' for case in args.cases[1:])
          + f'; peak of memory above the weights: {peaks[first] / 2 ** 20 / args.batch:.0f} MiB an image', flush=True)


def main():
    parser = argparse.ArgumentParser('benchmarks.step', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--recompute', default='none', choices=('none', 'decoder', 'all'))
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--decoder', default='unet', choices=('unet', 'light'))
    parser.add_argument('--decoder_width', type=int, default=768)
    parser.add_argument('--cases', nargs='+', default=CASES, choices=(*CASES, *OTHER_METHODS))
    args, device = parse_arguments(parser, ['resnet50', 'convnext_small'])
    print(f'{machine(device)}; {described_settings(args, device)}, recompute {args.recompute}{", compiled" * args.compile}, '
          f'decoder {args.decoder}, {args.decoder_width} wide', flush=True)
    for name in args.models:
        measure(name, args, device)


if __name__ == '__main__':
    main()
