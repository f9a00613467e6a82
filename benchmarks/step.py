"""The whole pretraining step against the dense supervised step of the same network: images a second, and peak memory.

    python -m benchmarks.step [resnet50 convnext_small ...] [--batch 8 --input_size 224 --mask_ratio 0.6 --rounds 5]

Each network runs in a process of its own, so that its peak memory is its own. bf16 autocast on CUDA, fp32 on the CPU.
"""
import copy
import multiprocessing
import resource
from contextlib import nullcontext

import torch

from benchmarks.timing import alternate, arguments, machine
from common.distributed import Ranks
from common.engine import train_step
from common.optim import BufferGuard, build_optimizer, parameter_groups, set_schedule
from pretrain.spark import build_spark


def memory(device):
    """Peak bytes so far."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name, args, device):
    size = (args.batch, 3, args.input_size, args.input_size)
    images = torch.randn(size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (args.batch,), device=device)
    spark = build_spark(name, args.input_size, args.mask_ratio)
    plain = copy.deepcopy(spark.encoder.cnn).to(device, memory_format=torch.channels_last).train()
    for key in spark.encoder.unused:
        spark.encoder.cnn.get_parameter(key).requires_grad_(False)
    spark = spark.to(device, memory_format=torch.channels_last).train()
    ranks, guard = Ranks(0, 1, device), BufferGuard(spark)

    def autocast():
        return torch.autocast('cuda', torch.bfloat16) if device.type == 'cuda' else nullcontext()

    optimizers = [build_optimizer('lamb', parameter_groups(net, 0.05), (0.9, 0.95)) for net in (spark, plain)]
    for optimizer in optimizers:
        set_schedule(optimizer, 1e-4, 0.05)

    def pretraining():
        train_step(spark, [(images, spark.draw_visible(args.batch).to(device))], 1, optimizers[0], guard, ranks, autocast, 5.0,
                   lambda: torch.zeros(2, device=device))

    def supervised():
        optimizers[1].zero_grad(set_to_none=True)
        with autocast():
            loss = torch.nn.functional.cross_entropy(plain(images), labels)
        loss.backward()
        optimizers[1].step()

    base = memory(device)
    pretraining()
    peak = memory(device)
    medians = alternate({'pretraining': pretraining, 'supervised': supervised}, args.rounds, device)
    rates = {case: args.batch / seconds for case, seconds in medians.items()}
    print(f'{name:20} pretraining {rates["pretraining"]:.1f} images/s, supervised dense {rates["supervised"]:.1f} images/s, '
          f'ratio {rates["pretraining"] / rates["supervised"]:.2f}; peak memory of the first pretraining step '
          f'{peak / 2 ** 30:.2f} GiB, {(peak - base) / 2 ** 20 / args.batch:.0f} MiB an image above the networks', flush=True)


def main():
    args, device = arguments(__doc__, ['resnet50', 'convnext_small'])
    precision = 'bf16' if device.type == 'cuda' else 'fp32'
    print(f'{machine(device)}; {precision}, batch {args.batch}, {args.input_size} px, mask ratio {args.mask_ratio}', flush=True)
    for name in args.models:
        process = multiprocessing.get_context('spawn').Process(target=measure, args=(name, args, device))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == '__main__':
    main()
