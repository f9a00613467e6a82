"""Looks for layers of torch that compute wrong numbers on this CPU, or that write outside of their memory.

    python -m benchmarks.scan_torch [--limit 4000 --seed 0 --threads 1]

Each case is a plain layer with a batch of images. It runs forward and backward in a process of its own, several times, and
is compared with the same layer in float64, which torch computes with other kernels. A process that a signal ends has
written outside of its memory. Where the C library's checks of its heap can be loaded (glibc: libc_malloc_debug.so.0), they
are on, so that most such writes are found at the next release of memory.

The cases are drawn from the product of what networks for images are built from: small and odd channels, batches, sizes,
both memory layouts, float32 and bfloat16. Of strided 1x1 convolutions in float32, all are tried with batches of 2 and 3, and
sides of 13 and 64.
"""
import argparse
import ctypes
import itertools
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import torch
from torch import nn

from benchmarks.timing import machine

CHANNELS = (1, 2, 3, 4, 5, 8, 12, 15, 16, 17, 24, 33)
REPEATS = 10
SECONDS = 60  # of a case, after which its process is ended: damaged memory can make it hang
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 1e-1}  # of the largest value, or of 1
HEAP_CHECKS = 'libc_malloc_debug.so.0'


def layers():
    """Yield (name, function that makes the layer, channels of its input)."""
    for channels, out, kernel, stride in itertools.product(CHANNELS, (1, 8, 48), (1, 2, 3, 5, 7), (1, 2, 3, 4)):
        for padding in {0, kernel // 2}:
            given = {'kernel_size': kernel, 'stride': stride, 'padding': padding}
            name = f'Conv2d({channels}, {out}, {kernel}, stride={stride}, padding={padding})'
            yield name, lambda c=channels, o=out, given=given: nn.Conv2d(c, o, **given), channels
            if out == 8:
                depthwise = f'Conv2d({channels}, {channels}, {kernel}, stride={stride}, padding={padding}, groups={channels})'
                yield depthwise, lambda c=channels, given=given: nn.Conv2d(c, c, groups=c, **given), channels
                transposed = f'ConvTranspose2d({channels}, 8, {kernel}, stride={stride})'
                yield transposed, lambda c=channels, k=kernel, s=stride: nn.ConvTranspose2d(c, 8, k, stride=s), channels
    for channels in (1, 3, 5, 16, 33):
        for kernel, stride in ((2, 2), (3, 2), (3, 1)):
            yield f'MaxPool2d({kernel}, {stride})', lambda k=kernel, s=stride: nn.MaxPool2d(k, s, k // 2), channels
            yield f'AvgPool2d({kernel}, {stride})', lambda k=kernel, s=stride: nn.AvgPool2d(k, s, k // 2), channels
        yield f'BatchNorm2d({channels})', lambda c=channels: nn.BatchNorm2d(c), channels
        yield f'GroupNorm(1, {channels})', lambda c=channels: nn.GroupNorm(1, c), channels
        yield 'AdaptiveAvgPool2d(1)', lambda: nn.AdaptiveAvgPool2d(1), channels
        yield 'Upsample(2)', lambda: nn.Upsample(scale_factor=2), channels
        yield "Upsample(2, 'bilinear')", lambda: nn.Upsample(scale_factor=2, mode='bilinear'), channels
        yield 'PixelUnshuffle(2)', lambda: nn.PixelUnshuffle(2), channels


def cases(limit, seed):
    """(layer's name, maker, channels, batch, side, memory format, precision): `limit` of them at the most, in random order."""
    formats = (torch.contiguous_format, torch.channels_last)
    product = [(*layer, *rest) for layer in layers() for rest in itertools.product(
        (1, 2, 3, 5), (8, 13, 32, 64), formats, (torch.float32, torch.bfloat16))]
    product = [case for case in product if not ('BatchNorm' in case[0] and case[5] is torch.bfloat16)]  # which runs in float32
    strided = [case for case in product if case[0].startswith('Conv2d') and ', 1, stride=' in case[0]
               and 'stride=1' not in case[0] and case[3] in (2, 3) and case[4] in (13, 64) and case[6] is torch.float32]
    others = random.Random(seed).sample(product, min(limit, len(product)))
    return others + strided


def try_case(make, channels, batch, side, layout, precision):
    """Runs a layer in this process and returns what is wrong with it, a text; empty if nothing is."""
    torch.manual_seed(0)
    layer = make().to(precision).float().to(memory_format=layout)  # values that the precision has, so that rounding is no error
    exact = make().double()
    exact.load_state_dict({key: value.double() for key, value in layer.state_dict().items()})
    for _ in range(REPEATS):
        values = torch.randn(batch, channels, side, side).to(precision).float()
        y = values.double().requires_grad_()
        x = values.to(memory_format=layout).requires_grad_()
        layer.zero_grad()
        exact.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=precision is torch.bfloat16):
            out = layer(x)
        expected = exact(y)
        weight = torch.randn(expected.shape).to(precision).double()
        out.backward(weight.to(out))
        expected.backward(weight)
        found = {'output': (out, expected), 'gradient of the input': (x.grad, y.grad)}
        found |= {f'gradient of the {name}': (p.grad, q.grad) for (name, p), q in
                  zip(layer.named_parameters(), exact.parameters())}
        for what, (ours, theirs) in found.items():
            error = (ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1)
            if not error <= TOLERANCES[precision]:
                return f'{what} is wrong by {error.item():.1e}'
    return ''


def in_a_process(*case):
    """What is wrong with a case, or how the process ended that tried it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what glibc says before it aborts
        try:
            fault = try_case(*case)
        except Exception as error:
            fault = f'{type(error).__name__}: {error}'
        os.write(write, fault.encode()[:500])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, 'rb') as pipe:
        fault = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return f'ended by {signal.Signals(os.WTERMSIG(status)).name}' if os.WIFSIGNALED(status) else fault


def with_heap_checks():
    """Start this program again with the C library's checks of its heap, where there are such."""
    if HEAP_CHECKS in os.environ.get('LD_PRELOAD', ''):
        return
    try:
        ctypes.CDLL(HEAP_CHECKS)
    except OSError:
        print(f'{HEAP_CHECKS} is not here: writes outside of the memory are found only where they end the process')
        return
    environment = {**os.environ, 'LD_PRELOAD': HEAP_CHECKS, 'MALLOC_CHECK_': '3'}
    sys.exit(subprocess.run([sys.executable, '-m', 'benchmarks.scan_torch', *sys.argv[1:]], env=environment).returncode)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument('--limit', type=int, default=4000, help='cases besides the strided 1x1 convolutions')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    with_heap_checks()
    torch.set_num_threads(args.threads)
    found, tried = Counter(), Counter()
    everything = cases(args.limit, args.seed)
    print(f'{machine(torch.device("cpu"))}: {len(everything):,} cases', flush=True)
    for name, make, channels, batch, side, layout, precision in everything:
        fault = in_a_process(make, channels, batch, side, layout, precision)
        kind = name.split('(')[0]
        tried[kind] += 1
        if fault:
            found[kind] += 1
            order = 'channels last' if layout is torch.channels_last else 'channels first'
            print(f'{name}: batch {batch}, {channels} channels of {side} x {side}, {order}, {precision}: {fault}', flush=True)
    for kind, number in tried.items():
        print(f'{kind}: {found[kind]:,} of {number:,} cases are at fault')


if __name__ == '__main__':
    main()
