"""Is it right and fast on a GPU? One command, at most six minutes on one GPU, and one table.

    python -m benchmarks.gpu [--quick] [--json FILE] [--device cpu] [--total 350] [--parts golden steps]

Each part runs in a process of its own with a time limit: what fails or hangs costs its own lines. A part
begins while its limit fits into what is left of the total, the important ones first; the table says which
were skipped. --quick takes three minutes. --device cpu runs all of it on tiny networks, with longer limits,
which shows that the script works, and nothing else. The exit code is 1 if a part failed, hung, or found a
number that is not as it should be.

The parts (benchmarks/gpu_parts.py):

* golden: the official implementation's numbers in float64, on this device;
* steps: step times and peak memory, bf16, of the forms of the step beside the network's own supervised step;
* agreement: losses and weights after 20 steps of a CUDA graph beside eager steps, drop path on, and a resume;
* compilation: what compiling takes with an empty and with a filled cache, and what it gains;
* convmae: ConvMAE-B on strips, beside the original's way, which runs convolutions over whole images; batches
  of 128, 75 % hidden;
* one_rank: SyncBatchNorm and DDP with NCCL in a group of one;
* real_run: pretrain/main.sh on JPEGs of 500 x 375: first steps, and the time spent waiting for images;
* fp16, optimisers: --precision=fp16; LAMB, AdamW and SGD in a graph beside eager steps;
* fallback: a step that cannot be captured goes on eagerly.

"MiB an image" is the peak of what a step takes besides the weights and the images. Official SparK is not run:
what it is compared with was measured once on an H200, and is quoted.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch

from benchmarks.gpu_parts import PARTS, ROOT, last_line
from benchmarks.gpu_training import sizes_for
from benchmarks.timing import machine

TOTAL, QUICK_TOTAL = 350, 175  # seconds
SLOWER = {'cuda': 1, 'cpu': 4}  # by which all limits are longer
GRACE = 5  # seconds between asking a part to end and making it
MODELS = {'cuda': ('resnet50', 'convnext_base'), 'cpu': ('test_resnet', 'test_convnext')}
# Official SparK on an H200, fp32 with TF32 convolutions, as it trains: images/s, peak MiB an image. Quoted.
OFFICIAL = {'resnet50': (342, 184), 'convnext_base': (179, 342)}
# Aims: at most so many times the supervised step under a graph; at least so many times official's images/s.
AIMS = {'resnet50': (1.25, 8), 'convnext_base': (1.5, 7)}
OURS = ('graph', 'compiled, graph')  # the cases that the aims are about


@dataclass(frozen=True)
class Part:
    """A measurement in a process of its own. command: what Python is given. limit: seconds."""
    name: str
    command: tuple
    limit: float
    environment: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a part. problem: a sentence, or None."""
    part: Part
    rows: list
    seconds: float = 0.0
    problem: str | None = None
    is_skipped: bool = False

    @property
    def is_wrong(self):
        """Whether the part failed, hung, or found a number that is not as it should be."""
        return bool(self.problem and not self.is_skipped) or any(row['met'] is False for row in self.rows)


def parts_for(device, is_quick, folder):
    """The parts, the important ones first. Files that parts share lie in the folder.

    The limits of the first few (5 of the quick ones, else 6) together fit into the total: these always run.
    """
    one, other = MODELS[device]

    def part(limit, name, *arguments, more=(), **environment):
        command = ('-m', 'benchmarks.gpu_parts', name, *arguments, *more, '--device', device)
        command += ('--quick',) if is_quick else ()
        return Part(' '.join((name, *arguments)), command, limit * SLOWER[device], environment)

    def compilation(limit, model, cache):
        return part(limit, 'compilation', model, cache, TORCHINDUCTOR_CACHE_DIR=f'{folder}/compiled_{model}')

    def real_run(limit, decode):
        return part(limit, 'real_run', decode, more=(str(folder),))

    if is_quick:
        return [part(25, 'golden'), part(30, 'steps', one), part(35, 'steps', other), part(35, 'agreement'),
                compilation(50, one, 'cold'), real_run(40, 'pillow'), part(30, 'one_rank', one)]
    return [part(40, 'golden'), part(60, 'steps', one), part(70, 'steps', other), part(50, 'agreement'),
            compilation(80, one, 'cold'), real_run(45, 'pillow'), compilation(90, other, 'cold'),
            part(40, 'one_rank', one), part(40, 'convmae'), part(30, 'fp16'), compilation(40, one, 'warm'),
            *([real_run(45, 'gpu')] if device == 'cuda' else []), part(25, 'fallback'), part(30, 'optimisers'),
            real_run(45, 'fast'),
            compilation(40, other, 'warm')]


def run_parts(parts, total, folder, ended):
    """Run the parts whose limits fit into what is left of `total` seconds. Returns their Outcomes.

    ended(outcomes) is called after each.
    """
    began, outcomes = time.monotonic(), []
    for part in parts:
        left = total - (time.monotonic() - began)
        if part.limit > left:
            problem = f'skipped: it may take {part.limit:.0f} s, and {max(left, 0):.0f} s were left'
            outcome = Outcome(part, [], problem=problem, is_skipped=True)
        else:
            outcome = run_part(part, folder)
        outcomes.append(outcome)
        ended(outcomes)
    return outcomes


def run_part(part, folder):
    """Run a part to its end, or to its limit. The rows that it had written till then are kept."""
    rows, said = Path(folder, 'rows.jsonl'), Path(folder, 'said.txt')
    rows.write_text('')
    began = time.monotonic()
    with said.open('w') as file:
        # A session of its own: a part starts processes too, to compile or to load images.
        process = subprocess.Popen(
            [sys.executable, *part.command, '--rows', str(rows)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **part.environment}, start_new_session=True)
        problem = None
        try:
            if process.wait(part.limit):
                problem = f'failed: {last_line(said.read_text(errors="replace"))}'
        except subprocess.TimeoutExpired:
            problem = f'ended after its limit of {part.limit:.0f} s'
        finally:
            end(process)
    found = [json.loads(line) for line in rows.read_text().splitlines() if line.endswith('}')]
    return Outcome(part, found, time.monotonic() - began, problem)


def end(process):
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def aims(outcomes, device_name):
    """Rows that compare what was measured with the aims, for each network of which enough was measured."""
    rows = []
    for model in AIMS:
        cases = {row['case']: row for outcome in outcomes if model in outcome.part.command
                 for row in outcome.rows if 'ms' in row}
        best = min((cases[case] for case in OURS if case in cases), key=lambda row: row['ms'], default=None)
        if best:
            rows += aims_of(model, best, cases.get('supervised, graph'), 'H200' in device_name)
    return rows


def aims_of(model, best, supervised, is_h200):
    """The rows of one network. best, supervised: rows of its fastest step and of its supervised step, or None."""
    most, times = AIMS[model]
    rate, memory = OFFICIAL[model]
    case = f'{model}: {best["case"]}'
    rows = []
    if supervised:
        ratio = best['ms'] / supervised['ms']
        rows.append({'case': f'{case}, over the supervised step', 'text': f'{ratio:.2f} times',
                     'aim': f'at most {most}', 'met': ratio <= most})
    ratio = best['images_per_s'] / rate
    rows.append({'case': f"{case}, over official's {rate} images/s", 'text': f'{ratio:.1f} times',
                 'aim': f'at least {times}, on an H200', 'met': ratio >= times if is_h200 else None})
    if 'mib' in best:
        rows.append({'case': f"{case}, peak (official's: {memory} MiB an image)", 'text': f'{best["mib"]:.0f} MiB',
                     'aim': f'under {memory // 2}', 'met': best['mib'] < memory / 2})
    return rows


def table(outcomes, device_name):
    """All rows of all parts, as text."""
    lines = []
    for outcome in outcomes:
        lines += ['', f'{outcome.part.name} ({outcome.seconds:.0f} s)', *map(line_of, outcome.rows)]
        lines += [f'  {outcome.problem}'] if outcome.problem else []
    found = aims(outcomes, device_name)
    if found:
        lines += ['', "aims (official SparK's figures are of an H200, quoted: it is not run)", *map(line_of, found)]
    return '\n'.join(lines)


def line_of(row):
    verdict = {True: ': met', False: ': MISSED', None: ''}[row['met']]
    aim = f'   [{row["aim"]}{verdict}]' if row.get('aim') else ''
    return f'  {row["case"]:58} {row["text"]}{aim}'


def described(device, is_quick):
    sizes = sizes_for(device, is_quick)
    precision = 'bf16' if device.type == 'cuda' else 'fp32; tiny networks, whose times say nothing'
    return (f'{machine(device)}, timm {timm.__version__}, CUDA {torch.version.cuda}; batch {sizes.batch}, '
            f'{sizes.input_size} px, mask ratio 0.6, LAMB, {precision}')


def arguments(argv):
    parser = argparse.ArgumentParser('benchmarks.gpu', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=('cuda', 'cpu'))
    parser.add_argument('--quick', action='store_true', help='three minutes: the most important parts')
    parser.add_argument('--total', type=float, help=f'seconds for all; {TOTAL}, or {QUICK_TOTAL} with --quick')
    parser.add_argument('--json', help='file for the results')
    parser.add_argument('--parts', nargs='+', choices=PARTS, help='the parts to run; all if not given')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch finds no GPU here: give --device=cpu for a trial on tiny networks')
    args.total = args.total or (QUICK_TOTAL if args.quick else TOTAL) * SLOWER[args.device]
    return args


def save(path, about, device_name, outcomes):
    """Write what is known so far as JSON."""
    parts = [{'part': outcome.part.name, 'seconds': outcome.seconds, 'problem': outcome.problem,
              'rows': outcome.rows} for outcome in outcomes]
    content = {'machine': about, 'aims': aims(outcomes, device_name), 'parts': parts}
    Path(path).write_text(json.dumps(content, indent=1) + '\n')


def main(argv=None):
    args = arguments(argv)
    device = torch.device(args.device)
    about, name = described(device, args.quick), machine(device)
    print(about, flush=True)

    def ended(outcomes):
        last = outcomes[-1]
        print(f'{last.part.name}: {last.problem or "done"} ({last.seconds:.0f} s)', flush=True)
        if args.json:
            save(args.json, about, name, outcomes)

    with tempfile.TemporaryDirectory(prefix='benchmarks_gpu_') as folder:
        parts = [part for part in parts_for(args.device, args.quick, folder)
                 if not args.parts or part.name.split()[0] in args.parts]
        outcomes = run_parts(parts, args.total, folder, ended)
    print(table(outcomes, name), flush=True)
    return int(any(outcome.is_wrong for outcome in outcomes))


if __name__ == '__main__':
    sys.exit(main())
