"""Does pretraining help on photographs? Trains, fine-tunes and compares.

    make evidence DATA=DIR
    python -m benchmarks.evidence --data_path=DIR [FOLDER] [--plan] [--only=a,b,t] [--percents=10,1,100] [--seeds=3]
                                  [--device=cuda] [--jobs=2] [--minutes=60] [--stage_minutes=7] [--known=FILE]
    python -m benchmarks.evidence [FOLDER] --publish

DIR holds train/ and val/ with a folder for each class, or tars of such. The questions, what was expected of each, and the
stages are in benchmarks/evidence_stages.py. Each stage is an ordinary command; it goes on where it was stopped, and is not
done again when it is done.

FOLDER keeps all runs, a record of each stage, and the results: results.json, and results.md with the tables and a figure.
--plan says what there is to do, and how long it takes on this machine. --publish puts the results into docs/transfer.json, and
makes docs/transfer.md of that file.

If FOLDER is lost, --known=docs/transfer.json takes the published results instead of running their stages. Stages whose weights
are still needed are run again.

On a GPU that is lent for minutes, with photographs from benchmarks.evidence_pack:

    python -m benchmarks.evidence --data_path=PACK --device=cuda --only=a,b --percents=10 --seeds=1 --jobs=3 --minutes=9
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

from analysis.kept import write_json
from benchmarks.evidence_records import Records, check_records, common_machine, last_epoch
from benchmarks.evidence_report import answers, write
from benchmarks.evidence_runs import ROOT, Runner, environment, to_run
from benchmarks.evidence_stages import PERCENTS, QUESTIONS, SCALES, Plan
from common.reliability.checkpoint import git_commit
from common.training.run import cpu_is_fast_in, usable_cores
from common.words import number_and_first_of

PAGE = ROOT / 'docs' / 'transfer.md'
PUBLISHED = PAGE.with_suffix('.json')
TRIAL = 600  # images of the runs that measure the speed
# What a program takes beside its images: loading PyTorch, the network, the lists of files.
START_SECONDS = 15
# What results say of their images: the names that find_images has, and those in the file of results.
IN_RESULTS = {'train': 'images', 'val': 'validation', 'fingerprint': 'fingerprint'}
EMPTY_PAGE = ''.join(f'<!-- {mark} -->\n' for mark in ('answers', 'end of answers', 'results', 'end'))


def arguments(argv=None):
    parser = argparse.ArgumentParser('benchmarks.evidence', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('folder', nargs='?', help='where all is kept; evidence_output/DEVICE if not given')
    parser.add_argument('--data_path', help='images: train/ and val/, with a folder for each class, or tars of such')
    parser.add_argument('--only', default=','.join(QUESTIONS), help='letters of questions; all if not given')
    parser.add_argument('--percents', default=','.join(PERCENTS), help='shares of the labels in fine-tuning, in order')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'),
                        help='cpu: a small network; cuda: ResNet-50')
    parser.add_argument('--seeds', type=int, default=3, help='a number is quoted from three on')
    parser.add_argument('--jobs', type=int, help='programs at a time; a core each, or one on a GPU, if not given. With more '
                        'than one on a GPU, times cannot be compared: what is trained for equal time means nothing then')
    parser.add_argument('--minutes', type=float, help='stop after so many, and save; the same command goes on')
    parser.add_argument('--stage_minutes', type=float, help='the most minutes at a stretch for one stage')
    parser.add_argument('--known', metavar='FILE', help='file of earlier results, such as docs/transfer.json. Their stages are '
                        'not run, except those whose weights are needed')
    parser.add_argument('--plan', action='store_true', help='say what there is to do and how long it takes, and stop')
    parser.add_argument('--publish', action='store_true', help='put the results into docs/transfer.md, and stop')
    args = parser.parse_args(argv)
    for name, known in (('only', QUESTIONS), ('percents', PERCENTS)):
        given = tuple(getattr(args, name).split(','))
        setattr(args, name, given)
        if not set(given) <= set(known):
            parser.error(f'--{name} has some of {",".join(known)}, not {",".join(given)}')
    for name, least in (('seeds', 1), ('jobs', 1), ('minutes', 0), ('stage_minutes', 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f'--{name} must be {least} or more, not {value}')
    if not args.publish and args.data_path is None:
        parser.error('say where the images are: --data_path=DIR, or make evidence DATA=DIR')
    args.folder = Path(args.folder or Path('evidence_output', args.device)).resolve()
    args.jobs = args.jobs or (1 if args.device == 'cuda' else usable_cores())
    return args


def check_device(name):
    """Raise SystemExit if there is no such device. With 'cpu' no program that is started sees a GPU."""
    import torch
    if name == 'cuda' and not torch.cuda.is_available():
        sys.exit('error: torch finds no GPU here: leave --device=cuda away for the scale of a CPU')
    if name == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def link_images(data_path, folder):
    """Let `photos` in the folder be the images. Raises SystemExit if they are not there, or others than before."""
    source, link = Path(data_path).resolve(), folder / 'photos'
    for part in ('train', 'val'):
        if not (source / part).is_dir():
            sys.exit(f'error: there is no folder {Path(data_path, part)}: --data_path holds train/ and val/')
    folder.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and not link.exists():
        link.unlink()  # The folder was moved to another machine; check_folder compares the images.
    if not link.is_symlink():
        link.symlink_to(source)
    elif link.resolve() != source:
        sys.exit(f'error: {folder} has results for the images {link.resolve()}: give another folder for {source}')


def check_folder(folder, scale, images):
    """Raise SystemExit if a folder has results of a scale of another name, or of other images."""
    about = {'scale': scale, **images}
    file = folder / 'about.json'
    if not file.exists():
        write_json(file, about)
        return
    was = json.loads(file.read_text())
    was.setdefault('scale', was.pop('device', None))  # as it was called at first
    if was != about:
        sys.exit(f'error: {folder} has results for {was}, not for {about}: give another folder')


def scale_for(device):
    """The scale of a device; of CPUs in a precision that this one computes fast."""
    if device == 'cuda' or cpu_is_fast_in('bf16'):
        return SCALES[device]
    print('This CPU has no instructions for bf16: everything is trained in fp32. Results in bf16 are not mixed with these.')
    return SCALES['cpu_fp32']


def clock_of(scale):
    """By which seconds equal time is measured: one of evidence_records.COSTS."""
    return 'seconds' if scale.device == 'cuda' else 'cpu_seconds'


def known_results(file, scale, images):
    """{name of a stage: record} of a file of results.

    Raises SystemExit if the file has no results of this scale, or of other images.
    """
    try:
        known = json.loads(Path(file).read_text())[scale.name]
        about = {name: known[key] for name, key in IN_RESULTS.items()}
        stages = known['stages']
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f'error: {file} has no results of runs on a {scale.title} ({type(error).__name__}: {error}): leave --known '
                 'out, or give a file such as docs/transfer.json that has some')
    if about != images:
        sys.exit(f'error: {file} has results for other images: leave --known out, or give the images that it is about')
    return stages


def find_images(folder):
    """{'train': number of images, 'val': number of images, 'fingerprint': of both}."""
    from downstream_imagenet.class_folders import find_labelled
    images, val = find_labelled(folder / 'photos')
    return {'train': len(images), 'val': len(val), 'fingerprint': images.fingerprint() + val.fingerprint()}


def about_this(device):
    """What each record says of the machine and the program."""
    import timm
    import torch

    from benchmarks.timing import machine
    torch.set_num_threads(1)  # as the programs that are started have it (Runner)
    return {'machine': f'{machine(torch.device(device))}, timm {timm.__version__}', 'commit': git_commit()}


def speed(scale, folder, number):
    """{kind: images a second} of pretraining and fine-tuning, measured by short runs of the ordinary commands.

    number: of training images.
    """
    found = {}
    share = max(0.5, 1 - TRIAL / number)
    trial = ('--data_path=photos/train', f'--val_fraction={share:.4f}', '--epochs=3', '--fresh')
    programs = {'pretrain': ('pretrain.main', *scale.network, *scale.pretraining, *scale.decoder),
                'finetune': ('downstream_imagenet.main', *scale.network, *scale.fine_tuning)}
    for kind, words in programs.items():
        name = f'speed_{kind}'
        ended = subprocess.run([sys.executable, '-m', *words, f'--name={name}', *trial], cwd=folder, env=environment(),
                               capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f'error: the trial of {kind} failed:\n{ended.stderr[-2000:] or ended.stdout[-2000:]}')
        run_folder = folder / f'output_{name}'
        found[kind] = last_epoch(run_folder)['images_per_second']
        if found[kind] is None:  # A GPU's first steps are not timed.
            sys.exit(f'error: {number:,} training images are too few to measure how long {kind} takes')
        shutil.rmtree(run_folder)
    return found


def say_plan(plan, questions, records, images, jobs):
    """Print the stages that are left, by question, and the hours that they take."""
    check_records(plan.stages(questions), records, clock_of(plan.scale))
    rates = speed(plan.scale, records.folder, images['train'])
    print(f'{images["train"]:,} training and {images["val"]:,} validation images; measured here, one program: '
          f'{rates["pretrain"]:.0f} images/s in pretraining, {rates["finetune"]:.0f} in fine-tuning')
    stages = {stage.name: stage for stage in plan.stages(questions)}
    all_left = to_run(list(stages.values()), records)
    total = 0
    for letter in dict.fromkeys(stage.question for stage in stages.values()):
        own = [stage for stage in stages.values() if stage.question == letter]
        left = [stage for stage in all_left if stage.question == letter]
        hours = sum(seconds(stage, stages, rates, images) for stage in left) / 3600 / jobs
        total += hours
        print(f'({letter}) {QUESTIONS[letter].text}\n    expected: {QUESTIONS[letter].hypothesis}\n'
              f'    {len(own)} stages, {len(left)} of them left: {hours:.1f} hours')
    print(f'in all {total:.1f} hours with --jobs={jobs}')


def seconds(stage, stages, rates, images):
    """A guess at the seconds of a stage."""
    if stage.equal_time:
        budget, likes = stage.equal_time
        return sum(seconds(stages[name], stages, rates, images) for name in budget) / len(likes)
    if stage.kind == 'pretrain':
        return START_SECONDS + stage.images / rates['pretrain']
    if stage.kind in ('tune', 'finetune'):
        return START_SECONDS + (stage.images + images['val'] / 3) / rates['finetune']
    return START_SECONDS + (images['train'] + images['val']) / 3 / rates['finetune']  # A forward pass is a third of a step.


def keep_results(scale, seeds, records, images):
    """Write what is known: results.json, and results.md made of it."""
    about = {key: images[name] for name, key in IN_RESULTS.items()}
    content = {scale.name: {'seeds': seeds, **about, 'stages': records.all()}}
    file = records.folder / 'results.json'
    write_json(file, content)
    page = file.with_suffix('.md')
    page.write_text(EMPTY_PAGE)
    write(content, page)
    print(f'{answers(content)}\nThe tables are in {page}.')


def say_left(left, number, records):
    """Print how many stages are left, and why some of them cannot be run."""
    if left:
        print(f'{len(left)} of {number} stages are left: the same command goes on')
    for stage in left:
        if stage.equal_time and all(map(records.is_done, stage.after)) and common_machine(stage, records) is None:
            print(f'{stage.name} cannot be run: the times that its length follows from are of different machines. To measure '
                  'them here, run their stages in a new folder, without --known')


def publish(folder):
    """Put the results of a folder into docs/transfer.json, beside those of another scale, and make the page of that file.

    Raises SystemExit if results that are published would be lost.
    """
    file = folder / 'results.json'
    if not file.exists():
        sys.exit(f'error: there is no {file}: give the folder of a run of this program')
    content = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else {}
    found = json.loads(file.read_text())
    for name in content.keys() & found.keys():
        lost = content[name]['stages'].keys() - found[name]['stages'].keys()
        if lost:
            sys.exit(f'error: not in {folder}, but in {PUBLISHED.name}: {number_and_first_of(sorted(lost))}. Run with '
                     f'--known={PUBLISHED} first, or to drop these results, take {name!r} out of that file')
    content |= found
    write_json(PUBLISHED, content)
    write(content, PAGE)


def main(argv=None):
    args = arguments(argv)
    if args.publish:
        publish(args.folder)
        return
    check_device(args.device)
    link_images(args.data_path, args.folder)
    try:
        images = find_images(args.folder)
        records = Records(args.folder, about_this(args.device))
    except ValueError as error:
        sys.exit(f'error: {error}')
    scale = scale_for(args.device)
    check_folder(args.folder, scale.name, images)
    if args.known:
        records.take(known_results(args.known, scale, images))
    plan = Plan(scale, args.seeds, images['train'], args.percents)
    if args.plan:
        say_plan(plan, args.only, records, images, args.jobs)
        return
    stages = plan.stages(args.only)
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    stage_seconds = None if args.stage_minutes is None else 60 * args.stage_minutes
    runner = Runner(records, args.jobs, clock_of(plan.scale), deadline, stage_seconds)
    check_records(stages, records, runner.clock)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, runner.ask_to_stop)
    try:
        left = runner.run(stages)
    finally:
        keep_results(scale, args.seeds, records, images)
    say_left(left, len(stages), records)


if __name__ == '__main__':
    main()
