"""Two commits in alternating runs: is one slower than the other?

    python -m benchmarks.compare main~5 main [resnet50 ...] [--batch 8 --input_size 224 --mask_ratio 0.6 --rounds 7]

Forward and backward of the whole SparK, by the interface that all commits have (build_spark), each commit in a process of its
own with its own copy of the code; the two take turns. bf16 autocast on CUDA, fp32 on the CPU. `.` is the working tree.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.timing import described_settings, machine, parse_arguments

ROOT = Path(__file__).resolve().parents[1]
DRIVER = """
import sys, time
import torch
from pretrain.spark import build_spark
name, batch, size, ratio = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
cuda = torch.cuda.is_available()
device = torch.device('cuda' if cuda else 'cpu')
torch.manual_seed(0)
spark = build_spark(name, size, ratio).to(device).to(memory_format=torch.channels_last).train()
images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
visible = spark.draw_visible(batch).to(device)
for line in sys.stdin:
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
        loss = spark(images, visible)
    loss.backward()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    spark.zero_grad(set_to_none=True)
    print(seconds, loss.item(), flush=True)
"""


class Side:
    """A commit's process, which takes a step when it is told to."""

    def __init__(self, folder, *arguments):
        self.process = subprocess.Popen([sys.executable, '-c', DRIVER, *map(str, arguments)], cwd=folder, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def step(self):
        """(seconds, loss)."""
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit('a side of the comparison failed, see above')
        return tuple(map(float, line.split()))

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def copy_of(commit, folder):
    """The folder of a commit's code."""
    if commit == '.':
        return ROOT
    archive = subprocess.run(['git', 'archive', commit], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise SystemExit(f'error: {commit} is no commit: {archive.stderr.decode().strip()}')
    folder.mkdir()
    subprocess.run(['tar', '-x', '-C', folder], input=archive.stdout, check=True)
    return folder


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.compare', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('before', help='a commit, or . for the working tree')
    parser.add_argument('after', help='another')
    args, device = parse_arguments(parser, ['resnet50', 'convnext_small'], argv)
    print(f'{machine(device)}; {described_settings(args, device)}')
    with tempfile.TemporaryDirectory() as temporary:
        folders = [copy_of(commit, Path(temporary, name)) for name, commit in (('before', args.before), ('after', args.after))]
        for name in args.models:
            sides = [Side(folder, name, args.batch, args.input_size, args.mask_ratio) for folder in folders]
            for side in sides:
                side.step()
            steps = [[side.step() for side in sides] for _ in range(args.rounds)]
            for side in sides:
                side.end()
            (before, after), ratios = ([median(step[i][0] for step in steps) for i in (0, 1)],
                                       sorted(new[0] / old[0] for old, new in steps))
            fastest = [min(step[i][0] for step in steps) for i in (0, 1)]
            print(f'{name:20} {args.before} {1000 * before:.0f} ms, {args.after} {1000 * after:.0f} ms: '
                  f'ratio {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), of the fastest '
                  f'{fastest[1] / fastest[0]:.3f}; loss {steps[0][0][1]:.6f} and {steps[0][1][1]:.6f}', flush=True)


if __name__ == '__main__':
    main()
