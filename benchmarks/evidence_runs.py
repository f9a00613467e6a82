"""Runs the stages of benchmarks.evidence, several at a time.

A stage that is stopped goes on where it was, since the programs do. What is done is not done again.
"""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.evidence_records import command, common_machine

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120  # seconds in which programs that are told to stop have to save what they have
SAVED = 75  # exit status of a program of ours that a signal stopped (docs/reliability.md)


def environment():
    """The environment of the programs that are started: they find this project, and compute in one thread each.

    glibc keeps the memory of a step for the next one: a step on a CPU then takes 0.87 of the time (docs/speed.md).
    """
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'MALLOC_MMAP_MAX_': '0',
            'MALLOC_TRIM_THRESHOLD_': '4000000000'}


class Runner:
    """Runs stages, `jobs` at a time.

    clock: as of `command`. deadline: the time.monotonic() at which all are stopped; None for never.
    stage_seconds: after which a single stage is stopped; None for never.
    """

    def __init__(self, records, jobs, clock, deadline=None, stage_seconds=None):
        self.records = records
        self.jobs = jobs
        self.clock = clock
        self.deadline = deadline
        self.stage_seconds = stage_seconds
        self.running = []  # of Running
        self.left = set()  # names of stages that have not ended well yet
        self.asked_to_stop = False

    def run(self, stages):
        """Run all that are not done. Returns those that were stopped or not begun. Raises SystemExit if one fails.

        The records of those that are done must be of the same commands (`check_records`).
        """
        todo = to_run(stages, self.records)
        self.left = {stage.name for stage in todo}
        number = len(todo)
        began = time.monotonic()
        stopped = []
        try:
            while True:
                while not self.is_over() and len(self.running) < self.jobs and (ready := self.ready(todo)):
                    todo.remove(ready)
                    arguments = command(ready, self.records, self.clock)
                    self.running.append(Running(ready, arguments, self.records))
                if not self.running:
                    return stopped + todo
                for running in self.ended():
                    if not running.is_done:
                        stopped.append(running.stage)
                        continue
                    self.left.remove(running.stage.name)
                    print(f'{number - len(self.left):3} of {number}  {running.stage.name:40} {running.seconds:7.0f} s, '
                          f'{(time.monotonic() - began) / 60:.0f} min in all', flush=True)
                time.sleep(0.2)
        finally:
            stop(self.running)

    def ask_to_stop(self, number=None, frame=None):
        """Let `run` stop all programs and return. A handler of signals: however many come, programs get one."""
        self.asked_to_stop = True

    def is_over(self):
        return self.asked_to_stop or self.deadline is not None and time.monotonic() >= self.deadline

    def ready(self, todo):
        """The first stage that can begin, or None."""
        return next((stage for stage in todo if self.can_begin(stage)), None)

    def can_begin(self, stage):
        """Whether all that a stage follows from is known, the weights that it reads are there, and times are comparable."""
        if not all(map(self.records.is_done, stage.after)) or not self.left.isdisjoint(stage.needs):
            return False
        return not stage.equal_time or common_machine(stage, self.records) is not None

    def ended(self):
        """Those that have ended since the last call, or whose time is over. Raises SystemExit if one failed."""
        limit = float('inf') if self.stage_seconds is None else self.stage_seconds
        stop([running for running in self.running if self.is_over() or running.seconds > limit])
        found = [running for running in self.running if running.has_ended()]
        for running in found:
            self.running.remove(running)
        failed = [running for running in found if not running.is_done and not running.was_stopped]
        if failed:
            sys.exit(f'error: {failed[0].stage.name} failed: see {failed[0].log}')
        return found


class Running:
    """A stage that runs. It has a session of its own, so that Ctrl-C reaches this program alone, which tells it to stop."""

    def __init__(self, stage, arguments, records):
        self.stage = stage
        self.arguments = arguments
        self.records = records
        self.log = records.folder / 'logs' / f'{stage.name}.txt'
        self.was_stopped = False
        self.code = None  # exit status; -n if signal n ended it
        self.began = time.monotonic()
        if records.lacks_weights(stage) and not (records.folder / f'output_{stage.name}').exists():
            records.forget_pieces(stage.name)  # It runs again, from its beginning.
        records.add_piece(stage.name)
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen([sys.executable, '-m', *arguments], cwd=records.folder, env=environment(),
                                            stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def seconds(self):
        return time.monotonic() - self.began

    @property
    def is_done(self):
        return self.code == 0

    def has_ended(self):
        """Whether it has. What it cost is kept then, and what it gave, if it ended well."""
        if self.code is not None:
            return True
        # Not by the Popen: its poll() would take the exit status away, and the CPU seconds with it.
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return False
        self.process.returncode = self.code = os.waitstatus_to_exitcode(status)
        self.was_stopped = self.was_stopped or self.code == SAVED
        self.records.add_piece(self.stage.name, seconds=round(self.seconds, 2),
                               cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2))
        if self.is_done:
            self.records.keep(self.stage, self.arguments)
        return True

    def signal(self, number):
        """Send a signal, if it has not ended."""
        if not self.has_ended():
            self.was_stopped = True
            os.kill(self.process.pid, number)


def to_run(stages, records):
    """The stages that are not done, in order; before each of them those that are done, but lack the weights that it reads.

    stages: each after what it needs.
    """
    named = {stage.name: stage for stage in stages}
    found = {}

    def add(stage):
        lacking = [named[name] for name in stage.needs if name in named and records.lacks_weights(named[name])]
        for needed in lacking:
            add(needed)
        found[stage.name] = stage

    for stage in stages:
        if not records.is_done(stage.name):
            add(stage)
    return list(found.values())


def stop(those_running):
    """Let programs save and stop, all at once; kill those that have not ended within PATIENCE."""
    for running in those_running:
        running.signal(signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while [running for running in those_running if not running.has_ended()]:
        if time.monotonic() > until:
            for running in those_running:
                running.signal(signal.SIGKILL)
        time.sleep(0.1)
