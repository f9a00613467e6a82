"""Processes that come to a halt are named, and ended."""
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from common.distributed import Ranks
from common.reliability import heartbeat as heartbeat_module
from common.reliability.heartbeat import AT_ITS_END, SILENCE, TRAINING, Heartbeat
from common.reliability.stopping import STALLED
from tests.common.runs import ALONE, until
from tests.conftest import ROOT


class Clock:
    """Stands in for the module `time` in common/reliability/heartbeat.py: `now` changes only where a test changes it."""

    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    one = Clock()
    monkeypatch.setattr(heartbeat_module, 'time', one)
    return one


def test_the_watch_says_which_rank_the_others_wait_for(tmp_path, clock):
    said, now = [], clock.now
    ranks = Ranks(0, 4, torch.device('cpu'))
    watch = Heartbeat(tmp_path, ranks, 30, said.append, None)
    watch.now(TRAINING)
    watch.write()
    about = {'host': 'node7', 'pid': 4711, 'step': 56}
    for rank, doing, since, sign in ((1, TRAINING, 300, 5), (2, TRAINING, 300, 300), (3, 'waiting for the images', 200, 5)):
        (tmp_path / f'heartbeat/rank_{rank:05}.json').write_text(
            json.dumps({'rank': rank, 'doing': doing, 'since': now - since, 'time': now - sign, **about}))
    first, second, third = watch.describe_ranks().split('; ')
    assert first.startswith('rank 2 (process 4711 on node7) has given no sign of life for 300 s')
    assert second.startswith('rank 3') and 'is waiting for the images since 200 s, the last step done being 56' in second
    assert third.startswith('rank 0') and 'and 1 more is in the computation since 0 s' in third
    assert third.endswith('no step done yet, which waits for the device or for the other ranks')


class Pauses:
    """Stands in for the event that ends a watch: its pauses take so many seconds of a clock, and then it is ended."""

    def __init__(self, clock, seconds):
        self.clock = clock
        self.seconds = list(seconds)

    def wait(self, pause):
        if not self.seconds:
            return True
        self.clock.now += self.seconds.pop(0)
        return False


def test_a_process_without_progress_is_ended_by_its_watch_but_not_one_that_was_stopped_itself(tmp_path, clock, monkeypatch):
    """Patience 30 minutes, pauses of 30 s. What takes longer than ten of them was no pause: the process was stopped."""
    said = []
    ended = []
    monkeypatch.setattr(Heartbeat, 'end', lambda self, still: ended.append(still))
    watch = Heartbeat(tmp_path, ALONE, 30, said.append, None)
    watch.ended = Pauses(clock, [30] * 20 + [4000] + [30] * 59)
    watch.keep_checking()
    assert not ended
    assert [text.partition(';')[0] for text in said] == ['no progress for 210 s'] * 2  # before it was stopped, and after
    watch.ended = Pauses(clock, [30] * 2)
    watch.keep_checking()
    assert ended == [1800 + 30]


@pytest.fixture
def pair(tmp_path, clock):
    """The watches of two ranks on two nodes; a file of an earlier life of the run lies there."""
    one, other = (Heartbeat(tmp_path, Ranks(rank, 2, torch.device('cpu')), 30, print, None) for rank in range(2))
    other.write()
    clock.now += 30
    with one:
        one.now(TRAINING)
        yield one, other


BEATS = int(SILENCE / 30)  # after which a rank is gone


def beat(watch, clock, times=1):
    for _ in range(times):
        clock.now += 30
        watch.write()


def test_a_rank_that_has_begun_and_is_silent_is_gone(pair, clock):
    one, other = pair
    for _ in range(2 * BEATS):
        beat(one, clock)
        assert not one.waits_in_vain(), 'it is not here yet: its file is of an earlier life'
    for _ in range(2):
        beat(other, clock)
        for _ in range(BEATS):
            assert not one.waits_in_vain()
            beat(one, clock)
        assert one.waits_in_vain()
        clock.now += 3000
        assert one.waits_in_vain()
    beat(other, clock)
    clock.now += 3000  # in which this rank could not write either
    assert not one.waits_in_vain()
    beat(one, clock, BEATS)
    one.now(TRAINING)  # the next step
    assert not one.waits_in_vain()


def test_a_rank_that_has_ended_is_gone(pair, clock):
    one, other = pair
    other.now(AT_ITS_END)
    assert not one.waits_in_vain()
    beat(other, clock)
    assert one.waits_in_vain()


@pytest.mark.parametrize(('local_rank', 'seconds', 'is_ended'), [(0, 90, True), (0, 60, False), (1, 90, False)])
def test_a_rank_that_waits_in_vain_is_ended_soon_by_one_rank_of_its_node(tmp_path, clock, monkeypatch, local_rank, seconds,
                                                                         is_ended):
    ended = []
    monkeypatch.setenv('LOCAL_RANK', str(local_rank))
    monkeypatch.setattr(Heartbeat, 'end', lambda self, still, why: ended.append(why))
    other = Heartbeat(tmp_path, Ranks(0, 2, torch.device('cpu')), 30, print, None)
    other.now(AT_ITS_END)
    watch = Heartbeat(tmp_path, Ranks(1, 2, torch.device('cpu')), 30, print, None)
    watch.now(TRAINING)
    other.write()
    watch.ended = Pauses(clock, [30] * (seconds // 30))
    watch.keep_writing()
    watch.now(TRAINING)  # instead of the last words of keep_writing
    watch.since -= seconds
    watch.ended = Pauses(clock, [0])
    watch.keep_checking()
    assert bool(ended) == is_ended


def test_a_rank_that_does_something_else_waits_for_nobody(tmp_path, clock):
    """Such as at its own end, where the others may be done before it."""
    other = Heartbeat(tmp_path, Ranks(0, 2, torch.device('cpu')), 30, print, None)
    watch = Heartbeat(tmp_path, Ranks(1, 2, torch.device('cpu')), 30, print, None)
    other.now(AT_ITS_END)
    other.write()
    for doing, expected in ((TRAINING, True), ('waiting for the files to be written', False)):
        watch.now(doing)
        watch.since -= 90
        watch.ended = Pauses(clock, [0])
        watch.keep_writing()
        assert watch.is_in_vain == expected


def test_a_rank_that_goes_on_is_not_ended(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(Heartbeat, 'end', lambda self, *why: pytest.fail('ended'))
    watch = Heartbeat(tmp_path, Ranks(1, 2, torch.device('cpu')), 30, print, None)
    watch.is_in_vain = True  # of the step before
    watch.now(TRAINING)
    watch.ended = Pauses(clock, [30])
    watch.keep_checking()


def test_files_that_hang_do_not_keep_a_rank_from_its_end(tmp_path):
    (tmp_path / 'heartbeat').mkdir()
    os.mkfifo(tmp_path / 'heartbeat/rank_00001.json')  # reading it waits for ever
    code = f"""import threading
from pathlib import Path
from types import SimpleNamespace
original = threading.Timer
threading.Timer = lambda seconds, *rest: original(seconds / 10, *rest)
from common.reliability.heartbeat import Heartbeat
Heartbeat(Path({str(tmp_path)!r}), SimpleNamespace(rank=0, size=2, is_main=True), 1, print, None).end(90.0)"""
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=600).returncode == STALLED


def test_the_code_of_stalls_is_left_for_the_launcher(tmp_path):
    code = f"""from pathlib import Path
from types import SimpleNamespace
from common.reliability.heartbeat import Heartbeat
Heartbeat(Path({str(tmp_path)!r}), SimpleNamespace(rank=0, size=1, is_main=True), 1, print, None).end(90.0)"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=600, capture_output=True,
                          env={**os.environ, 'RUN_EXIT_CODE_FILE': str(tmp_path / 'code')})
    assert done.returncode == STALLED and (tmp_path / 'code').read_text() == str(STALLED)


def test_a_process_that_hangs_is_ended_with_the_code_of_stalls(tmp_path):
    code = f"""import time
from pathlib import Path
from types import SimpleNamespace
from common.reliability.heartbeat import Heartbeat
with Heartbeat(Path({str(tmp_path)!r}), SimpleNamespace(rank=0, size=1, is_main=True), 0.02,
           lambda text: print(text, flush=True), None) as watch:
    time.sleep(600)"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == STALLED
    assert re.search(r'no progress for [\d.]+ minutes \(--stall_minutes\); rank 0', done.stderr)
    assert 'no progress for' in done.stdout  # the warning before


def test_processes_whose_launcher_is_gone_stop(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'x')
    asked, parent = [], os.getppid()
    watch = Heartbeat(tmp_path, ALONE, 30, print, asked.append)
    watch.pause = 0.01
    monkeypatch.setattr(os, 'getppid', lambda: parent + 1)
    with watch:
        until(lambda: asked)
    assert asked[0] == 'the end of torchrun'
