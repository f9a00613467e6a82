"""Runs the stages of benchmarks.evidence, several at a time, and keeps what each of them gave and cost.

A stage that is stopped goes on where it was, since the programs do. What is done is not done again.
"""
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120  # seconds in which a program that is told to stop has to save what it has


class Records:
    """What is known of the stages, in a folder.

    `records/NAME.json` is written when a stage is done. `pieces/NAME.jsonl` has a line for each time that it ran, with its
    seconds and CPU seconds.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        for name in ('records', 'pieces', 'logs'):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def path(self, name):
        return self.folder / 'records' / f'{name}.json'

    def is_done(self, name):
        return self.path(name).exists()

    def read(self, name):
        """The record of a stage that is done, a dict."""
        return json.loads(self.path(name).read_text())

    def all(self):
        """{name: record} of the stages that are done."""
        return {path.stem: self.read(path.stem) for path in sorted((self.folder / 'records').glob('*.json'))}

    def pieces(self, name):
        path = self.folder / 'pieces' / f'{name}.jsonl'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def add_piece(self, name, seconds, cpu_seconds):
        with open(self.folder / 'pieces' / f'{name}.jsonl', 'a') as file:
            file.write(json.dumps({'seconds': round(seconds, 2), 'cpu_seconds': round(cpu_seconds, 2)}) + '\n')

    def keep(self, stage, words):
        """Write the record of a stage that has run to its end."""
        cost = {key: round(sum(piece[key] for piece in self.pieces(stage.name)), 2) for key in ('seconds', 'cpu_seconds')}
        record = {'command': ['python', '-m', *words], **cost, 'figures': self.figures(stage)}
        part = self.path(stage.name).with_suffix('.part')
        part.write_text(json.dumps(record, indent=1) + '\n')
        part.rename(self.path(stage.name))

    def figures(self, stage):
        """What a stage measured, a dict."""
        if stage.kind in ('pretrain', 'tune', 'finetune'):
            log = 'pretrain_log.txt' if stage.kind == 'pretrain' else 'finetune_log.txt'
            lines = (self.folder / f'output_{stage.name}' / log).read_text().splitlines()
            last = json.loads(lines[-1])
            return {key: last[key] for key in ('epoch', 'step', 'loss', 'top1', 'top5') if key in last}
        if stage.kind == 'norms':
            return json.loads((self.folder / f'{stage.name}.json').read_text())
        text = (self.folder / 'logs' / f'{stage.name}.txt').read_text()
        pattern = r'k = 20: top-1 ([\d.]+)' if stage.kind == 'knn' else r'linear probe: top-1 ([\d.]+)'
        return {'top1': float(re.findall(pattern, text)[-1])}


def command(stage, records, clock):
    """The words of a stage's command, with what follows from earlier stages: learning rate and epochs.

    clock: 'seconds' or 'cpu_seconds', by which stages are compared that are to take equal time.
    """
    words = list(stage.words)
    if stage.rates:
        best = max(stage.rates, key=lambda rate: records.read(stage.rates[rate])['figures']['top1'])
        words.append(f'--lr={best}')
    if stage.epochs:
        epochs = stage.epochs
        if stage.time:
            others, twin = stage.time
            epochs *= sum(records.read(name)[clock] for name in others) / records.read(twin)[clock]
        words.append(f'--epochs={max(1, round(epochs))}')
    return words


class Runner:
    """Runs stages, `jobs` at a time, each with its share of the cores.

    clock: as of `command`. until: the time.monotonic() at which all are stopped; None for never. longest: seconds after which
    a single stage is stopped; None for never.
    """

    def __init__(self, records, jobs, clock, until=None, longest=None):
        self.records = records
        self.jobs = jobs
        self.clock = clock
        self.until = until
        self.longest = longest
        self.running = []  # of Running
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self.environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': str(threads)}

    def run(self, stages):
        """Run all that are not done. Returns those that were stopped or not begun. Raises SystemExit if one fails."""
        todo = [stage for stage in stages if not self.records.is_done(stage.name)]
        number = len(todo)
        began = time.monotonic()
        stopped = []
        try:
            while True:
                while not self.is_over() and len(self.running) < self.jobs and (ready := self.ready(todo)):
                    todo.remove(ready)
                    words = command(ready, self.records, self.clock)
                    self.running.append(Running(ready, words, self.records, self.environment))
                if not self.running:
                    return stopped + todo
                for running in self.ended():
                    if running.was_stopped:
                        stopped.append(running.stage)
                        continue
                    done = number - len(todo) - len(self.running) - len(stopped)
                    print(f'{done:3} of {number}  {running.stage.name:40} {running.seconds:7.0f} s, '
                          f'{(time.monotonic() - began) / 60:.0f} min in all', flush=True)
                time.sleep(0.2)
        finally:
            for running in self.running:
                running.stop()

    def is_over(self):
        return self.until is not None and time.monotonic() >= self.until

    def ready(self, todo):
        """The first stage whose needs are done, or None."""
        return next((stage for stage in todo if all(self.records.is_done(name) for name in stage.after)), None)

    def ended(self):
        """Those that have ended since the last call, or whose time is over. Raises SystemExit if one failed."""
        found = []
        for running in list(self.running):
            too_long = self.longest is not None and running.seconds > self.longest
            if self.is_over() or too_long:
                running.stop()
            elif not running.has_ended():
                continue
            self.running.remove(running)
            if running.code and not running.was_stopped:
                sys.exit(f'error: {running.stage.name} failed: see {running.log}')
            found.append(running)
        return found


class Running:
    """A stage that runs, in a session of its own: Ctrl-C reaches this program alone, which tells the stage to stop, once."""

    def __init__(self, stage, words, records, environment):
        self.stage = stage
        self.words = words
        self.records = records
        self.log = records.folder / 'logs' / f'{stage.name}.txt'
        self.was_stopped = False
        self.code = None
        self.began = time.monotonic()
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen([sys.executable, '-m', *words], cwd=records.folder, env=environment, stdout=log,
                                            stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def seconds(self):
        return time.monotonic() - self.began

    def has_ended(self):
        """Whether it has. What it cost is kept then, and what it gave, if it ran to its end."""
        ended, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not ended:
            return False
        self.process.returncode = self.code = os.waitstatus_to_exitcode(status)
        self.records.add_piece(self.stage.name, self.seconds, usage.ru_utime + usage.ru_stime)
        if self.code == 0:
            self.was_stopped = False
            self.records.keep(self.stage, self.words)
        return True

    def stop(self):
        """Let the program save and stop; kill it if it does not within PATIENCE."""
        self.was_stopped = True
        self.process.terminate()
        until = time.monotonic() + PATIENCE
        while not self.has_ended():
            if time.monotonic() > until:
                self.process.kill()
            time.sleep(0.1)
