"""What pretraining is worth, measured on the drawn picture world: the paper's claim and three of its ablations, at small scale.

    make transfer       or       python -m benchmarks.transfer [FOLDER] [--jobs=2]

Pretrains `your_convnet` three times, and compares it with the same network untrained: k-NN, linear probe, fine-tuning with 1,
4, 10 and 100 % of the labels. Learning rates of fine-tuning are chosen for each side on other images, by runs with another
seed.
Every stage is a job that resumes; what is done is not done again. Writes the tables and the plot of docs/transfer.md.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common.demo_world import write_world

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'transfer.md'
EPOCHS, SEEDS, TUNING_SEED = 50, (0, 1, 2), 3
IMAGES = 2400  # for validation
MODEL = ('--model=your_convnet', '--input_size=64')
PRETRAINING = (*MODEL, '--decoder_width=64', '--bs=32', '--lr=3e-2', '--picture_every=0', '--val_every=10', f'--ep={EPOCHS}')
ABLATIONS = {'zeroed': 'hidden pixels zeroed, dense network', 'single_level': 'decoder sees the smallest map only',
             'mask_40': 'mask ratio 0.4', 'mask_75': 'mask ratio 0.75',
             'light': 'decoder light', 'narrow': 'decoder half as wide'}
MORE_SEEDS = {'light': (0, 1)}  # of ablations; the others have the first only
OPTIONS = {'mask_40': '--mask=0.4', 'mask_75': '--mask=0.75', 'light': '--decoder=light', 'narrow': '--decoder_width=32'}
# percent: (share of the labels, epochs)
FRACTIONS = {'1': ('0.01', 150), '4': ('0.04', 150), '10': ('0.1', 100), '100': ('1', 30)}
RATES = ('3e-3', '1e-2', '3e-2', '1e-1', '3e-1')
FINE_TUNING = (*MODEL, '--bs=24', '--ema=0', '--mixup=0', '--cutmix=0', '--augment=none', '--crop_scale=0.5,1',
               '--layer_decay=1', '--wp_ep=1', '--val_every=1000')
MEASURES = {'knn': 'k-NN', 'linear': 'linear probe', '1': '1 % of labels', '4': '4 % of labels', '10': '10 % of labels',
            '100': 'all labels'}
PROBES = ('knn', 'linear', '4', '10')  # of the ablations


@dataclass(frozen=True)
class Job:
    """A program to run once, after others; command(folder) -> its words."""
    name: str
    needs: tuple
    command: object


def module(name, *words):
    return [sys.executable, '-m', name, *words]


def weights(folder, start):
    """The flag that says where a network starts: a pretraining of that name, or random weights."""
    return f'--weights={folder}/output_{start}/your_convnet_1kpretrained.pth'


def jobs():
    """All jobs, in the order in which they are begun."""
    found = []
    for seed in SEEDS:
        found.append(Job(f'pretrain_{seed}', (), lambda f, seed=seed: module(
            'pretrain.main', f'--name=pretrain_{seed}', f'--seed={seed}', f'--data_path={f}/world', *PRETRAINING)))
    for percent in ('1', '4', '10'):
        found += [finetune('tune', start, percent, TUNING_SEED, rate)
                  for start in ('pretrain_0', 'untrained') for rate in RATES]
    for seed in SEEDS:
        for start in (f'pretrain_{seed}', 'untrained'):
            found += probes(start, seed)
            found += [finetune('final', start, percent, seed) for percent in FRACTIONS]
    for ablation, seed, start in ((name, *one) for name in ABLATIONS for one in starts(name)):
        program = ('pretrain.main',) if ablation in OPTIONS else ('benchmarks.ablations', ablation)
        own = [OPTIONS[ablation]] if ablation in OPTIONS else []  # last, since it may say otherwise what others say too
        found.append(Job(start, (), lambda f, program=program, start=start, seed=seed, own=own: module(
            *program, f'--name={start}', f'--seed={seed}', f'--data_path={f}/world', *PRETRAINING, *own)))
        found += probes(start, seed)
        found += [finetune('final', start, percent, seed) for percent in PROBES if percent in FRACTIONS]
    return found


def starts(name):
    """[(seed, name of the pretraining)] of an ablation."""
    return [(seed, f'{name}_{seed}' if seed else name) for seed in MORE_SEEDS.get(name, SEEDS[:1])]


def probes(start, seed):
    """k-NN and linear probe of one start."""
    def command(folder, kind):
        source = ['--random'] if start == 'untrained' else [weights(folder, start)]
        return module(f'downstream_imagenet.{kind}', *MODEL, f'--data_path={folder}/world', f'--seed={seed}', *source)
    needs = () if start == 'untrained' else (start,)
    return [Job(f'{kind}_{start}_{seed}', needs, lambda f, kind=kind: command(f, kind)) for kind in ('knn', 'linear')]


def finetune(stage, start, percent, seed, rate=None):
    """A fine-tuning. stage 'tune': with a rate, on the tuning images; 'final': with the rate that was best there."""
    share, epochs = FRACTIONS[percent]
    name = f'{stage}_{percent}_{start}_{seed}' + (f'_{rate}' if rate else '')
    side = 'untrained' if start == 'untrained' else 'pretrain_0'
    tuned_on = min(percent, '10', key=int)  # the rate of 10 % serves all labels too

    def command(folder):
        lr = rate or max(RATES, key=lambda r: result(folder, f'tune_{tuned_on}_{side}_{TUNING_SEED}_{r}'))
        images = f'{folder}/tune/val' if stage == 'tune' else f'{folder}/world/val'
        return module('downstream_imagenet.main', f'--name={name}', f'--seed={seed}', f'--data_path={folder}/world',
                      f'--val_path={images}', f'--label_fraction={share}', f'--ep={epochs}', f'--lr={lr}', *FINE_TUNING,
                      *([] if start == 'untrained' else [weights(folder, start).replace('--weights', '--finetune_from')]))
    needs = () if start == 'untrained' else (start,)
    if stage == 'final':
        needs += tuple(f'tune_{tuned_on}_{side}_{TUNING_SEED}_{r}' for r in RATES)
    return Job(name, needs, command)


def result(folder, name):
    """The accuracy in percent that a job left behind."""
    log = folder / f'output_{name}' / 'finetune_log.txt'
    if log.exists():
        return [json.loads(line) for line in log.read_text().splitlines()][-1]['top1']
    text = (folder / 'logs' / f'{name}.txt').read_text()
    pattern = r'k = 20: top-1 ([\d.]+)' if name.startswith('knn') else r'linear probe: top-1 ([\d.]+)'
    return float(re.search(pattern, text).group(1))


def run(folder, parallel):
    """Run what is not done yet, so many jobs at a time; raises SystemExit if one fails."""
    todo, running = [job for job in jobs() if not (folder / 'done' / job.name).exists()], {}
    everything, started = len(jobs()), time.monotonic()
    threads = max(1, (os.cpu_count() or 1) // parallel)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': str(threads)}
    for name in ('logs', 'done'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    while todo or running:
        ready = [job for job in todo if all((folder / 'done' / need).exists() for need in job.needs)]
        while ready and len(running) < parallel:
            job = ready.pop(0)
            todo.remove(job)
            with open(folder / 'logs' / f'{job.name}.txt', 'w') as log:
                process = subprocess.Popen([*job.command(folder), '--workers=0'], cwd=folder, env=environment, stdout=log,
                                           stderr=subprocess.STDOUT)
            running[job.name] = process, time.monotonic()
        time.sleep(0.2)
        for name, (process, start) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode:
                for other, _ in running.values():
                    other.terminate()
                sys.exit(f'error: {name} failed; see {folder}/logs/{name}.txt')
            (folder / 'done' / name).write_text(f'{time.monotonic() - start:.0f} s\n')
            print(f'{everything - len(todo) - len(running):3} of {everything}  {name:32} {time.monotonic() - start:6.0f} s, '
                  f'{(time.monotonic() - started) / 60:.0f} min in all', flush=True)


def collect(folder):
    """{(side, measure): [accuracy of each seed]} and {(ablation, measure): [accuracy of each seed]}."""
    main, ablations = {}, {}
    for seed in SEEDS:
        for side, start in (('untrained', 'untrained'), ('pretrained', f'pretrain_{seed}')):
            for measure in MEASURES:
                stage = measure if measure in ('knn', 'linear') else f'final_{measure}'
                main.setdefault((side, measure), []).append(result(folder, f'{stage}_{start}_{seed}'))
    for name in ('pretrain_0', *ABLATIONS):
        for measure in PROBES:
            stage = measure if measure in ('knn', 'linear') else f'final_{measure}'
            ablations[name, measure] = [result(folder, f'{stage}_{start}_{seed}')
                                        for seed, start in ([(0, name)] if name == 'pretrain_0' else starts(name))]
    return main, ablations


def page(main, ablations, images):
    """The tables, in Markdown."""
    def cell(values):
        return f'{statistics.mean(values):.1f}' + (f' +- {statistics.stdev(values):.1f}' if len(values) > 1 else '')

    lines = [f'Top-1 accuracy in percent on {images:,} other images, mean and standard deviation of {len(SEEDS)} seeds:',
             '',
             '| | ' + ' | '.join(MEASURES.values()) + ' |', '|' + '---|' * (len(MEASURES) + 1)]
    for side in ('untrained', 'pretrained'):
        lines.append(f'| {side} | ' + ' | '.join(cell(main[side, measure]) for measure in MEASURES) + ' |')
    gains = [statistics.mean(main['pretrained', m]) - statistics.mean(main['untrained', m]) for m in MEASURES]
    lines += ['| gain | ' + ' | '.join(f'{gain:+.1f}' for gain in gains) + ' |', '',
              'Ablations, one pretraining (seed 0) each, or two where there is a deviation:', '',
              '| | ' + ' | '.join(MEASURES[m] for m in PROBES) + ' |', '|' + '---|' * (len(PROBES) + 1)]
    for name, words in {'pretrain_0': 'as in the paper (mask ratio 0.6)', **ABLATIONS}.items():
        lines.append(f'| {words} | ' + ' | '.join(cell(ablations[name, m]) for m in PROBES) + ' |')
    return '\n'.join([*lines, '', f'![accuracies]({PAGE.stem}.svg)'])


def plot(main, path):
    """Bars with standard deviations, as SVG."""
    import matplotlib
    matplotlib.use('svg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7, 3))
    for i, side in enumerate(('untrained', 'pretrained')):
        values = [main[side, measure] for measure in MEASURES]
        axes.bar([x + 0.4 * i for x in range(len(MEASURES))], [statistics.mean(v) for v in values], width=0.38, label=side,
                 yerr=[statistics.stdev(v) for v in values], capsize=3)
    axes.set_xticks([x + 0.2 for x in range(len(MEASURES))], list(MEASURES.values()))
    axes.set_ylabel('top-1 accuracy (%)')
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None})


def main():
    parser = argparse.ArgumentParser('benchmarks.transfer', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('folder', nargs='?', default='transfer_output')
    parser.add_argument('--jobs', type=int, default=2, help='programs at a time')
    args = parser.parse_args()
    folder = Path(args.folder).resolve()
    for where, train, val, seed in (('world', 3000, IMAGES, 0), ('tune', 0, 600, 1)):
        if not (folder / where / 'complete').exists():
            write_world(folder / where, train, val, 64, seed)
            (folder / where / 'complete').touch()
    run(folder, args.jobs)
    main_table, ablations = collect(folder)
    tables = page(main_table, ablations, IMAGES)
    PAGE.write_text(re.sub(r'(<!-- results -->\n).*(<!-- end -->)', lambda match: f'{match[1]}{tables}\n{match[2]}',
                           PAGE.read_text(), flags=re.S))
    plot(main_table, PAGE.with_suffix('.svg'))
    print(tables)


if __name__ == '__main__':
    main()
