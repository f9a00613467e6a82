"""Does pretraining help on photographs? Trains, fine-tunes and compares.

    make evidence DATA=DIR
    python -m benchmarks.evidence --data_path=DIR [FOLDER] [--plan] [--only=a,b] [--device=cuda] [--seeds=3]
                                  [--jobs=2] [--minutes=60] [--stage_minutes=7]
    python -m benchmarks.evidence [FOLDER] --publish

DIR holds train/ and val/ with a folder for each class, or tars of such. The questions, what was expected of each, and the
stages are in benchmarks/evidence_stages.py. Each stage is an ordinary command; it goes on where it was stopped, and is not
done again when it is done.

FOLDER keeps all runs, a record of each stage, and the results: results.json, and results.md with the tables and a figure.
--plan says what there is to do, and how long it takes on this machine. --publish puts the results into docs/transfer.json, and
makes docs/transfer.md of that file.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.evidence_report import answers, write
from benchmarks.evidence_runs import ROOT, Records, Runner
from benchmarks.evidence_stages import QUESTIONS, SCALES, Plan

PAGE = ROOT / 'docs' / 'transfer.md'
PUBLISHED = PAGE.with_suffix('.json')
TRIAL = 600  # images of the runs that measure the speed
# What a program takes beside its images: loading PyTorch, the network, the lists of files.
START_SECONDS = 15


def arguments(argv=None):
    parser = argparse.ArgumentParser('benchmarks.evidence', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('folder', nargs='?', default='evidence_output', help='where all is kept')
    parser.add_argument('--data_path', help='images: train/ and val/, with a folder for each class, or tars of such')
    parser.add_argument('--only', default=','.join(QUESTIONS), help='letters of questions; all if not given')
    parser.add_argument('--device', default='cpu', choices=tuple(SCALES),
                        help='the scale: a small network on the CPU, ResNet-50 on a GPU')
    parser.add_argument('--seeds', type=int, default=3, help='a number is quoted from three on')
    parser.add_argument('--jobs', type=int, help='programs at a time; a core each, or one on a GPU, if not given')
    parser.add_argument('--minutes', type=float, help='stop after so many, and save; the same command goes on')
    parser.add_argument('--stage_minutes', type=float, help='the most minutes at a stretch for one stage')
    parser.add_argument('--plan', action='store_true', help='say what there is to do and how long it takes, and stop')
    parser.add_argument('--publish', action='store_true', help='put the results into docs/transfer.md, and stop')
    args = parser.parse_args(argv)
    args.only = tuple(args.only.split(','))
    unknown = [letter for letter in args.only if letter not in QUESTIONS]
    if unknown:
        parser.error(f'--only has the letters {", ".join(QUESTIONS)}, not {", ".join(unknown)}')
    if args.seeds < 1:
        parser.error(f'--seeds must be 1 or more, not {args.seeds}')
    if not args.publish and args.data_path is None:
        parser.error('say where the images are: --data_path=DIR, or make evidence DATA=DIR')
    return args


def check_device(name):
    """Raise SystemExit if there is no such device, or if a GPU would be used at the scale of a CPU."""
    import torch
    found = torch.cuda.is_available()
    if name == 'cuda' and not found:
        sys.exit('error: torch finds no GPU here: leave --device=cuda away for the scale of a CPU')
    if name == 'cpu' and found:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # of the programs that are started


def link_images(data_path, folder):
    """Let `photos` in the folder be the images. Raises SystemExit if they are not there, or others than before."""
    source, link = Path(data_path).resolve(), folder / 'photos'
    for part in ('train', 'val'):
        if not (source / part).is_dir():
            sys.exit(f'error: there is no folder {Path(data_path, part)}: --data_path holds train/ and val/')
    folder.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(source)
    elif link.resolve() != source:
        sys.exit(f'error: {folder} has results for the images {link.resolve()}: give another folder for {source}')


def count_images(folder):
    """{'train': number of images, 'val': number of images}."""
    from downstream_imagenet.class_folders import find_labelled
    images, val = find_labelled(folder / 'photos')
    return {'train': len(images), 'val': len(val)}


def machine(device):
    """Words for the machine and the versions."""
    import timm
    import torch

    from benchmarks.timing import machine as described
    return f'{described(torch.device(device))}, timm {timm.__version__}, {os.cpu_count()} cores'


def speed(plan, records, images):
    """{kind: images a second} of pretraining and fine-tuning, measured by short runs of the ordinary commands."""
    scale, found = plan.scale, {}
    share = max(0.5, 1 - TRIAL / images['train'])
    trial = ('--data_path=photos/train', f'--val_fraction={share:.4f}', '--epochs=3', '--fresh')
    programs = {'pretrain': ('pretrain.main', *scale.network, *scale.pretraining, *scale.decoder),
                'finetune': ('downstream_imagenet.main', *scale.network, *scale.fine_tuning)}
    for kind, words in programs.items():
        name = f'speed_{kind}'
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1' if scale.name == 'cpu' else '8'}
        done = subprocess.run([sys.executable, '-m', *words, f'--name={name}', *trial], cwd=records.folder, env=environment,
                              capture_output=True, text=True)
        if done.returncode:
            sys.exit(f'error: the trial of {kind} failed:\n{done.stderr[-2000:] or done.stdout[-2000:]}')
        log = records.folder / f'output_{name}' / ('pretrain_log.txt' if kind == 'pretrain' else 'finetune_log.txt')
        found[kind] = json.loads(log.read_text().splitlines()[-1])['images_per_second']
        shutil.rmtree(log.parent)
    return found


def say_plan(plan, stages, records, images, jobs):
    """Print the stages that are left, by question, and the hours that they take."""
    rates = speed(plan, records, images)
    print(f'{images["train"]:,} training and {images["val"]:,} validation images; measured here, one program: '
          f'{rates["pretrain"]:.0f} images/s in pretraining, {rates["finetune"]:.0f} in fine-tuning')
    total = 0
    for letter, question in QUESTIONS.items():
        own = [stage for stage in stages if stage.question == letter]
        left = [stage for stage in own if not records.is_done(stage.name)]
        if not own:
            continue
        hours = sum(seconds(stage, rates, images) for stage in left) / 3600 / jobs
        total += hours
        print(f'({letter}) {question.text}\n    {len(own)} stages, {len(left)} of them left: {hours:.1f} hours')
        print(f'    expected: {question.hypothesis}')
    print(f'in all {total:.1f} hours with --jobs={jobs}')


def seconds(stage, rates, images):
    """A guess at the seconds of a stage. One that is to take another's time is counted as it is without that."""
    if stage.kind == 'pretrain':
        return START_SECONDS + stage.images / rates['pretrain']
    if stage.kind in ('tune', 'finetune'):
        return START_SECONDS + (stage.images + images['val'] / 3) / rates['finetune']
    return START_SECONDS + (images['train'] + images['val']) / 3 / rates['finetune']  # A forward pass is a third of a step.


def keep_results(args, records, images):
    """Write what is known: results.json, and results.md made of it."""
    file = records.folder / 'results.json'
    before = json.loads(file.read_text())[args.device] if file.exists() else {}
    machines = list(dict.fromkeys([*before.get('machines', ()), machine(args.device)]))
    content = {args.device: {'seeds': args.seeds, 'images': images['train'], 'validation': images['val'], 'machines': machines,
                             'stages': records.all()}}
    write_json(file, content)
    page = file.with_suffix('.md')
    page.write_text('\n'.join(f'<!-- {mark} -->' for mark in ('answers', 'end of answers', 'results', 'end')))
    write(content, page)
    print(f'{answers(content)}\nThe tables are in {page}.')


def publish(folder):
    """Put the results of a folder into docs/transfer.json, beside those of another scale, and make the page of that file."""
    file = folder / 'results.json'
    if not file.exists():
        sys.exit(f'error: there is no {file}: give the folder of a run of this program')
    content = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else {}
    content |= json.loads(file.read_text())
    write_json(PUBLISHED, content)
    write(content, PAGE)


def write_json(path, content):
    path.write_text(json.dumps(content, indent=1) + '\n')


def main(argv=None):
    args = arguments(argv)
    folder = Path(args.folder).resolve()
    if args.publish:
        publish(folder)
        return
    check_device(args.device)
    link_images(args.data_path, folder)
    images = count_images(folder)
    records = Records(folder)
    plan = Plan(SCALES[args.device], args.seeds, images['train'])
    stages = plan.stages(args.only)
    jobs = args.jobs or (1 if args.device == 'cuda' else os.cpu_count() or 1)
    if args.plan:
        say_plan(plan, stages, records, images, jobs)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped: the same command goes on'))
    until = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    longest = None if args.stage_minutes is None else 60 * args.stage_minutes
    clock = 'seconds' if args.device == 'cuda' else 'cpu_seconds'
    try:
        left = Runner(records, jobs, clock, until, longest).run(stages)
    finally:
        keep_results(args, records, images)
    if left:
        print(f'{len(left)} of {len(stages)} stages are left: the same command goes on')


if __name__ == '__main__':
    main()
