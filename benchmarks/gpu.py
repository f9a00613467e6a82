"""Is it right and fast on a GPU? One command, at most six minutes on one GPU, and one table.

    python -m benchmarks.gpu [--quick] [--json FILE] [--device cpu] [--total 355] [--parts golden 'steps resnet50']

Each part runs in a process of its own with a time limit: what fails or hangs costs its own lines. A part
begins if what it usually takes is left of the total, the important ones first; the table says which were
skipped. --quick takes three minutes; --total=1200 is enough for all. --parts names some, which run in that
order. --device cpu runs all of it on tiny networks, with longer limits, which shows that the script works, and
nothing else. The exit code is 1 if a part failed, hung, or found a number that is not as it should be.

The parts (benchmarks/gpu_parts.py):

* golden: the official implementation's numbers in float64, on this device;
* steps: step times and peak memory, bf16, as CUDA graphs and eagerly, beside the network's own supervised step;
* agreement: losses and weights after 20 steps of a CUDA graph beside eager steps, drop path on, and a resume;
* real_run: pretrain/main.sh on JPEGs of 500 x 375: when it says what, and the time spent waiting for images;
* resumed_run: such a run that is stopped in its first steps, and goes on to its end;
* compilation: what compiling takes with an empty and with a filled cache, and what it gains;
* one_rank: SyncBatchNorm and DDP with NCCL in a group of one;
* fallback: a step that cannot be captured goes on eagerly;
* fp16, optimisers: --precision=fp16; LAMB, AdamW and SGD in a graph beside eager steps;
* convmae: ConvMAE-B on strips, beside the original's way, which runs convolutions over whole images; batches
  of 128, 75 % hidden;
* segmentation: UperNet on a network, crops of 512 px, batches of 16 (downstream_ade20k);
* recomputed, accelerated: step times and memory with --recompute, and of the form that CPUs run.

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

from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_report import read_rows
from benchmarks.gpu_run import ROOT, last_line
from benchmarks.gpu_sizes import sizes_for
from benchmarks.timing import machine

TOTAL, QUICK_TOTAL = 355, 178  # seconds
SLOWER = {'cuda': 1, 'cpu': 4}  # by which all limits are longer
GRACE = 5  # seconds between asking a part to end and making it
TOLD = 60  # lines that are shown of what a part said that failed or hung
MODELS = {'cuda': ('resnet50', 'convnext_base'), 'cpu': ('test_resnet', 'test_convnext')}
# Official SparK on an H200, fp32 with TF32 convolutions, as it trains: images/s, peak MiB an image. Quoted.
OFFICIAL = {'resnet50': (342, 184), 'convnext_base': (179, 342)}
# Aims: at most so many times the supervised step under a graph; at least so many times official's images/s.
AIMS = {'resnet50': (1.25, 8), 'convnext_base': (1.5, 7)}
OURS = ('graph', 'compiled, graph')  # the cases that the aims are about


@dataclass(frozen=True)
class Part:
    """A measurement in a process of its own.

    command: what Python is given. usual: seconds that it takes on an H200 with 16 cores, about; it is begun if so
    many are left. limit: seconds after which it is ended.
    """
    name: str
    command: tuple
    usual: float
    limit: float
    environment: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a part. problem: a sentence, or None. said: its last lines, if there is a problem."""
    part: Part
    rows: list
    seconds: float = 0.0
    problem: str | None = None
    is_skipped: bool = False
    said: tuple = ()

    @property
    def is_wrong(self):
        """Whether the part failed, hung, or found a number that is not as it should be."""
        return bool(self.problem and not self.is_skipped) or any(row['met'] is False for row in self.rows)


def parts_for(device, is_quick, folder):
    """The parts, the important ones first. Files that parts share lie in the folder.

    The first few (5 of the quick ones, else 6) together usually fit into the total.
    """
    one, other = MODELS[device]
    small = sizes_for(device, is_quick).small_models

    def part(usual, limit, name, *arguments, more=(), **environment):
        command = ('-m', 'benchmarks.gpu_parts', name, *arguments, *more, '--device', device)
        command += ('--quick',) if is_quick else ()
        return Part(' '.join((name, *arguments)), command, usual * SLOWER[device], limit * SLOWER[device], environment)

    def compilation(usual, limit, model, cache):
        return part(usual, limit, 'compilation', model, cache, TORCHINDUCTOR_CACHE_DIR=f'{folder}/compiled_{model}')

    def real_run(usual, limit, decode):
        return part(usual, limit, 'real_run', decode, more=(str(folder),))

    if is_quick:
        return [part(17, 40, 'golden'), part(35, 60, 'steps', one), part(35, 60, 'steps', other),
                part(35, 60, 'agreement'), real_run(54, 80, 'pillow'), part(30, 45, 'one_rank', one)]
    on_gpus = [real_run(45, 80, 'gpu')] if device == 'cuda' else []
    return [part(17, 40, 'golden'), part(45, 70, 'steps', one), part(45, 70, 'steps', other),
            part(35, 60, 'agreement'), real_run(54, 100, 'pillow'), part(80, 150, 'resumed_run', more=(str(folder),)),
            compilation(155, 240, one, 'cold'), part(30, 45, 'one_rank', one), part(26, 50, 'fallback'),
            part(16, 30, 'fp16'), part(100, 150, 'convmae'), part(45, 80, 'segmentation', small[0]),
            part(49, 80, 'segmentation', small[1]), part(34, 60, 'optimisers'), *on_gpus,
            compilation(45, 80, one, 'warm'), part(35, 60, 'recomputed', one), part(35, 60, 'recomputed', other),
            real_run(45, 80, 'fast'), compilation(155, 240, other, 'cold'), compilation(45, 80, other, 'warm'),
            part(30, 60, 'accelerated', one)]


def chosen(parts, names):
    """The parts of these names, or of these first words, in the order of the names. Raises ValueError."""
    found = []
    for name in names:
        some = [part for part in parts if name in (part.name, part.name.split()[0]) and part not in found]
        if not some:
            raise ValueError(f'--parts: {name!r} is none of {", ".join(repr(part.name) for part in parts)}')
        found += some
    return found


def run_parts(parts, total, folder, ended):
    """Run the parts which usually fit into what is left of `total` seconds. Returns their Outcomes.

    ended(outcomes) is called after each.
    """
    began, outcomes = time.monotonic(), []
    for part in parts:
        left = total - (time.monotonic() - began)
        if part.usual > left:
            problem = f'skipped: it usually takes {part.usual:.0f} s, and {max(left, 0):.0f} s were left'
            outcome = Outcome(part, [], problem=problem, is_skipped=True)
        else:
            outcome = run_part(part, min(part.limit, left), folder)
        outcomes.append(outcome)
        ended(outcomes)
    return outcomes


def run_part(part, limit, folder):
    """Run a part to its end, or for so many seconds. The rows that it had written till then are kept."""
    rows, said = Path(folder, 'rows.jsonl'), Path(folder, 'said.txt')
    rows.write_text('')
    began = time.monotonic()
    with said.open('w') as file:
        # A session of its own: a part starts processes too, to compile or to load images.
        process = subprocess.Popen(
            [sys.executable, *part.command, '--began', str(began), '--rows', str(rows)], cwd=ROOT, stdout=file,
            stderr=subprocess.STDOUT, env={**os.environ, **part.environment}, start_new_session=True)
        problem = None
        try:
            if process.wait(limit):
                problem = f'failed: {last_line(said.read_text(errors="replace"))}'
        except subprocess.TimeoutExpired:
            problem = f'ended after its limit of {limit:.0f} s'
        finally:
            end(process)
    seconds = time.monotonic() - began
    lines = said.read_text(errors='replace').splitlines()[-TOLD:] if problem else []
    return Outcome(part, read_rows(rows.read_text()), seconds, problem, said=tuple(lines))


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
        lines += [f'    | {line}' for line in outcome.said]
    found = aims(outcomes, device_name)
    if found:
        lines += ['', "aims (official SparK's figures are of an H200, quoted: it is not run)", *map(line_of, found)]
    return '\n'.join(lines)


def line_of(row):
    verdict = {True: ': met', False: ': MISSED', None: ''}[row['met']]
    aim = f'   [{row["aim"]}{verdict}]' if row.get('aim') else ''
    return f'  {row["case"]:58} {row["text"]}{aim}'


def described(device, is_quick):
    sizes = sizes_for(device.type, is_quick)
    precision = 'bf16' if device.type == 'cuda' else 'fp32; tiny networks, whose times say nothing'
    return (f'{machine(device)}, timm {timm.__version__}, CUDA {torch.version.cuda}; batch {sizes.batch}, '
            f'{sizes.input_size} px, mask ratio 0.6, LAMB, {precision}')


def arguments(argv):
    parser = argparse.ArgumentParser('benchmarks.gpu', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=('cuda', 'cpu'))
    parser.add_argument('--quick', action='store_true', help='three minutes: the most important parts')
    parser.add_argument('--total', type=float, help=f'seconds for all; {TOTAL}, or {QUICK_TOTAL} with --quick')
    parser.add_argument('--json', help='file for the results')
    parser.add_argument('--parts', nargs='+', metavar='PART',
                        help=f'the parts to run, in this order; all if not given: {", ".join(PARTS)}, or one of its cases, '
                        "such as 'steps resnet50'")
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch finds no GPU here: give --device=cpu for a trial on tiny networks')
    args.total = args.total or (QUICK_TOTAL if args.quick else TOTAL) * SLOWER[args.device]
    return args


def save(path, about, device_name, outcomes):
    """Write what is known so far as JSON."""
    parts = [{'part': outcome.part.name, 'seconds': outcome.seconds, 'problem': outcome.problem,
              'rows': outcome.rows, 'said': outcome.said} for outcome in outcomes]
    content = {'machine': about, 'aims': aims(outcomes, device_name), 'parts': parts}
    Path(path).write_text(json.dumps(content, indent=1) + '\n')


def main(argv=None):
    args = arguments(argv)
    device = torch.device(args.device)
    about, name = described(device, args.quick), machine(device)

    def ended(outcomes):
        last = outcomes[-1]
        print(f'{last.part.name}: {last.problem or "done"} ({last.seconds:.0f} s)', flush=True)
        if args.json:
            save(args.json, about, name, outcomes)

    with tempfile.TemporaryDirectory(prefix='benchmarks_gpu_') as folder:
        parts = parts_for(args.device, args.quick, folder)
        try:
            parts = chosen(parts, args.parts) if args.parts else parts
        except ValueError as error:
            sys.exit(f'error: {error}')
        print(about, flush=True)
        outcomes = run_parts(parts, args.total, folder, ended)
    print(table(outcomes, name), flush=True)
    return int(any(outcome.is_wrong for outcome in outcomes))


if __name__ == '__main__':
    sys.exit(main())
