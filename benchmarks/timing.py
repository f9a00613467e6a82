"""Fair timing on a shared machine: alternating runs, medians, ratios of runs that follow each other."""
import argparse
import platform
import statistics
import time

import torch


def alternate(cases, rounds, device):
    """cases: {name: function}. Runs them in turn, `rounds` times after one to warm up; Times."""
    times = {name: [] for name in cases}
    for i in range(rounds + 1):
        for name, run in cases.items():
            if device.type == 'cuda':
                torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            if i:
                times[name].append(time.perf_counter() - began)
    return Times(times)


class Times(dict):
    """{name: median seconds} of alternating runs."""

    def __init__(self, seconds):
        super().__init__((name, statistics.median(each)) for name, each in seconds.items())
        self.seconds = seconds

    def ratio(self, name, other):
        """The median of the rounds' ratios: what slows the machine down for a while slows down both."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[other]))


def machine(device):
    """What the numbers were measured on."""
    if device.type == 'cuda':
        return f'{torch.cuda.get_device_name(device)}, torch {torch.__version__}'
    name = platform.processor() or platform.machine()
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            name = next((line.split(':')[1].strip() for line in file if line.startswith('model name')), name)
    except OSError:
        pass
    vectors = torch.backends.cpu.get_cpu_capability()  # which tells processors apart that share a name, such as 'AVX2'
    threads = torch.get_num_threads()
    return f'{name} ({vectors}), {threads} thread{"s" * (threads != 1)}, torch {torch.__version__}'


def parse_arguments(parser, models, argv=None, mask_ratio=0.6):
    """The parser's arguments with those that benchmarks of networks share, and the device.

    models, mask_ratio: what is measured if nothing else is given.
    """
    parser.add_argument('models', nargs='*', default=models, help='timm names')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--mask_ratio', type=float, default=mask_ratio)
    parser.add_argument('--rounds', type=int, default=7)
    return parser.parse_args(argv), torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def arguments(description, models):
    return parse_arguments(argparse.ArgumentParser(description=description, allow_abbrev=False), models)


def described_settings(args, device):
    """What was measured, for the first line."""
    precision = 'bf16' if device.type == 'cuda' else 'fp32'
    return f'{precision}, batch {args.batch}, {args.input_size} px, mask ratio {args.mask_ratio}'
