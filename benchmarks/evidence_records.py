"""What is known of the stages of benchmarks.evidence, in files, and what follows from it for those behind them."""
import json
import re
import sys
import time
from pathlib import Path

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
            file.write(json.dumps(what or {'began': time.strftime('%Y-%m-%d %H:%M:%S')}) + '\n')

    def cost(self, name):
        """{'seconds', 'cpu_seconds'} over all pieces of a stage.

        They are None if a piece has no end, since this program was killed while the stage ran.
        """
        lines = (self.folder / 'pieces' / f'{name}.jsonl').read_text().splitlines()
        pieces = [json.loads(line) for line in lines]
        ended = [piece for piece in pieces if 'seconds' in piece]
        if len(pieces) - len(ended) > len(ended):
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

    clock: one of COSTS, by which equal time is measured. Raises SystemExit if the time of a stage is not known, or those
    of several machines would be compared.
    """
    arguments = list(stage.arguments)
    if stage.rates:
        best = max(stage.rates, key=lambda rate: records.read(stage.rates[rate])['figures']['top1'])
        arguments.append(f'--lr={best}')
    if stage.epochs:
        epochs = stage.epochs
        if stage.equal_time:
            check_machine(stage, records)
            budget, likes = ([time_of(name, records, clock) for name in names] for names in stage.equal_time)
            epochs = round(epochs * sum(budget) / sum(likes))
        arguments.append(f'--epochs={epochs}')
    return arguments


def check_machine(stage, records):
    """Raises SystemExit if the times that a stage is to compare are of several machines."""
    names = [name for names in stage.equal_time for name in names]
    machines = {name: records.read(name).get('machine') for name in names}
    if len(set(machines.values())) > 1:
        sys.exit(f'error: {stage.name} would compare times of different machines ({machines}): delete in {records.folder} the '
                 'output folders, records and pieces of those that another machine did, to run them again')


def time_of(name, records, clock):
    found = records.read(name)[clock]
    if found is None:
        sys.exit(f'error: how long {name} took is not known, since this program was killed while it ran: delete '
                 f'output_{name}, records/{name}.json and pieces/{name}.jsonl in {records.folder} to run it again')
    return found


def check_records(stages, records, clock):
    """Raises SystemExit if a stage that is done was done by another command than the one that it has now."""
    for stage in stages:
        if not records.is_done(stage.name) or not all(map(records.is_done, stage.after)):
            continue
        was = records.read(stage.name)['command'][2:]
        now = command(stage, records, clock)
        if set(was) != set(now):
            changed = ' '.join(sorted(set(was) ^ set(now)))
            sys.exit(f'error: {stage.name} was run with other options than it has now ({changed}): give another '
                     f'folder, or delete output_{stage.name} and records/{stage.name}.json in {records.folder}')
