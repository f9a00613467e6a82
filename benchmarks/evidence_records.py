"""What is known of the stages of benchmarks.evidence, in files, and what follows from it for those after them."""
import json
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from analysis.kept import write_json
from common.reliability.lock import FolderLock

COSTS = 'seconds', 'cpu_seconds'


def last_epoch(run_folder):
    """What the log of a training says of its last epoch, a dict."""
    [log] = run_folder.glob('*_log.txt')
    return json.loads(log.read_text().splitlines()[-1])


class Records:
    """The records of stages in a folder, which is locked for one program.

    `records/NAME.json` is written when a stage has ended well. `pieces/NAME.jsonl` has two lines for each time
    that it ran: that it began, and what it cost. about: what each record says besides, a dict.

    A record can be there without the weights that the stage made: records are kept longer, and can be taken from
    published results (`take`).

    Raises ValueError if another program has the folder.
    """

    def __init__(self, folder, about=None):
        self.folder = Path(folder)
        self.about = about or {}
        for name in ('records', 'pieces', 'logs'):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.lock = FolderLock(self.folder)

    def path(self, name):
        return self.folder / 'records' / f'{name}.json'

    def is_done(self, name):
        return self.path(name).exists()

    def take(self, records):
        """Keep records of another folder, of stages that have none here. records: {name: record}."""
        for name, record in records.items():
            if not self.is_done(name):
                write_json(self.path(name), record)

    def lacks_weights(self, stage):
        """Whether a stage is done, and the weights that it made are gone."""
        return self.is_done(stage.name) and bool(stage.weights) and not (self.folder / stage.weights).exists()

    def read(self, name):
        """The record of a stage that is done, a dict: 'command', 'figures', COSTS, and what `about` says."""
        return json.loads(self.path(name).read_text())

    def all(self):
        """{name: record} of the stages that are done."""
        return {path.stem: self.read(path.stem) for path in sorted((self.folder / 'records').glob('*.json'))}

    def add_piece(self, name, **what):
        """Note that a stage begins, or with seconds and cpu_seconds what it cost until it ended."""
        with open(self.folder / 'pieces' / f'{name}.jsonl', 'a') as file:
            began = {'began': time.strftime('%Y-%m-%d %H:%M:%S'), 'machine': self.about.get('machine')}
            file.write(json.dumps(what or began) + '\n')

    def forget_pieces(self, name):
        """Let the cost of a stage begin anew."""
        (self.folder / 'pieces' / f'{name}.jsonl').unlink(missing_ok=True)

    def cost(self, name):
        """{'seconds', 'cpu_seconds'} over all pieces of a stage.

        They are None if a piece has no end, since this program was killed while the stage ran, or if the pieces are of several
        machines.
        """
        lines = (self.folder / 'pieces' / f'{name}.jsonl').read_text().splitlines()
        pieces = [json.loads(line) for line in lines]
        ended = [piece for piece in pieces if 'seconds' in piece]
        began = [piece for piece in pieces if 'began' in piece]
        if len(began) > len(ended) or len({piece.get('machine') for piece in began}) > 1:
            return dict.fromkeys(COSTS)
        return {key: round(sum(piece[key] for piece in ended), 2) for key in COSTS}

    def keep(self, stage, arguments):
        """Write the record of a stage that has ended well.

        If it had one, and ran for its weights alone, that record stays as it is, since commands of later stages may follow
        from it. The new one is added to it, as one of 'again'.
        """
        record = {**self.about, **self.cost(stage.name), 'figures': self.figures(stage)}
        if self.is_done(stage.name):
            first = self.read(stage.name)
            record = {**first, 'again': [*first.get('again', ()), record]}
        else:
            record = {'command': ['python', '-m', *arguments], **record}
        write_json(self.path(stage.name), record)

    def figures(self, stage):
        """What a stage measured, a dict."""
        if stage.kind in ('pretrain', 'tune', 'finetune'):
            last = last_epoch(self.folder / f'output_{stage.name}')
            return {key: last[key] for key in ('epoch', 'step', 'loss', 'top1', 'top5') if key in last}
        if stage.kind == 'norms':
            return json.loads((self.folder / f'{stage.name}.json').read_text())
        text = (self.folder / 'logs' / f'{stage.name}.txt').read_text()
        pattern = r'k = 20: top-1 ([\d.]+)' if stage.kind == 'knn' else r'linear probe: top-1 ([\d.]+)'
        return {'top1': float(re.findall(pattern, text)[-1])}


def command(stage, records, clock):
    """The arguments of a stage's command, with the learning rate and the epochs that follow from earlier ones.

    clock: one of COSTS, by which equal time is measured. Raises SystemExit if it is not known how long a kind of stage takes.
    """
    arguments = list(stage.arguments)
    if stage.rates:
        best = max(stage.rates, key=lambda rate: records.read(stage.rates[rate])['figures']['top1'])
        arguments.append(f'--lr={best}')
    if stage.epochs:
        epochs = stage.epochs
        if stage.equal_time:
            machine = common_machine(stage, records)
            budget, likes = (mean_time(names, records, clock, machine) for names in stage.equal_time)
            epochs = round(epochs * budget / likes)
        arguments.append(f'--epochs={epochs}')
    return arguments


def runs_of(record):
    """What is known of each time that a stage was run to its end; of one that ran again for its weights too."""
    return [record, *record.get('again', ())]


def common_machine(stage, records):
    """The machine on which all times were measured that a stage of equal time is made of; None if there is no such machine.

    All of these stages must be done.
    """
    names = [name for names in stage.equal_time for name in names]
    machines = [[run.get('machine') for run in runs_of(records.read(name))] for name in names]
    return next((machine for machine in machines[0] if all(machine in each for each in machines)), None)


def mean_time(names, records, clock, machine):
    """The seconds that one seed takes on a machine, the sum over the kinds of stages.

    names: of stages, such as sparse_0. What is before the seed is the kind, whose time is the mean over the seeds that have
    a known one. Raises SystemExit if a kind has none.
    """
    times = {}
    for name in names:
        run = next((run for run in runs_of(records.read(name)) if run.get('machine') == machine), {})
        times.setdefault(name.rpartition('_')[0], []).append(run.get(clock))
    for kind, found in times.items():
        if not any(found):
            name = f'{kind}_0'
            sys.exit(f'error: how long {kind} took is not known of any seed: this program was killed while it ran, or it ran '
                     f'on two machines. To run one again, delete output_{name}, records/{name}.json and pieces/{name}.jsonl in '
                     f'{records.folder}, and leave --known out')
    return sum(statistics.mean(time for time in found if time) for found in times.values())


def check_records(stages, records, clock):
    """Raises SystemExit if a stage that is done was done by another command than the one that it has now."""
    for stage in stages:
        if not records.is_done(stage.name):
            continue
        if not all(map(records.is_done, stage.after)):
            if stage.equal_time:
                sys.exit(f'error: the epochs of {stage.name} follow from the times of fewer seeds: give as many --seeds as '
                         'before, or another folder')
            continue
        was = records.read(stage.name)['command'][2:]
        now = command(stage, records, clock)
        if set(was) != set(now):
            changed = ' '.join(sorted(set(was) ^ set(now)))
            sys.exit(f'error: {stage.name} was run with other options than it has now ({changed}): give another folder, '
                     'without --known')


def packed(right):
    """A bool array as hexadecimal digits, a text; `unpacked` gives it back."""
    return np.packbits(right).tobytes().hex()


def unpacked(text, number):
    """The first `number` values of `packed`, bool (number,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=number).astype(bool)
