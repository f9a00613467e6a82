"""A heartbeat for each rank of a run: a thread that writes what the rank does, and ends it if it does nothing for long."""
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress

from common.reliability.stopping import STALLED, write_exit_code

PAUSE = 30.0  # the most seconds between two heartbeats
TRAINING = 'in the computation'
AT_ITS_END = 'at its end'
SILENCE = 300.0  # seconds after which a rank that gives no sign of life is taken for gone


class Heartbeat:
    """Within it, a thread writes what this rank does into heartbeat/rank_<number>.json of the run folder.

    The file holds {"rank", "host", "pid", "doing", "step", "since", "time"}, with times in seconds since 1970.

    A second thread ends this process with the code STALLED after `patience` minutes in one activity, such as
    waiting for another rank. It warns at a tenth of that. Both messages say what each rank does, so they name
    a rank that is stopped, dead, or waits for its images. Where a step waits for a rank that is gone, it ends this
    process much sooner (`waits_in_vain`).

    folder: the run folder. ranks: a Ranks.
    patience: in minutes; 0 means that the process is never ended.
    warn: called with the text of a warning, on the main rank.
    ask_to_stop: called with a reason when torchrun, which started this process, is gone.
    """

    def __init__(self, folder, ranks, patience, warn, ask_to_stop):
        self.folder = folder / 'heartbeat'
        self.ranks = ranks
        self.patience = 60 * patience  # seconds
        self.warn = warn
        self.ask_to_stop = ask_to_stop
        self.pause = min(PAUSE, self.patience / 20) if patience else PAUSE
        self.ended = threading.Event()
        self.warned = False
        self.writes = 0  # of this rank's file
        self.is_in_vain = False  # whether a step waits for a rank that is gone
        self.seen = {}  # {rank: (content of its file when it was last another one, `writes` then)}
        self.begun = set()  # ranks that were seen to write in this life of the run
        self.looks = ranks.size > 1 and int(os.environ.get('LOCAL_RANK', 0)) == 0  # one rank of a node is enough
        self.step = None  # the last step that is done
        self.launcher = os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None
        self.now('starting')
        # The files have a thread of their own, since writing them may hang with the storage.
        self.threads = [threading.Thread(target=target, daemon=True)
                        for target in (self.keep_checking, self.keep_writing)]

    def now(self, doing):
        """Note what this rank begins to do. It is called often, so it does no more than that."""
        self.doing = doing
        self.since = time.monotonic()

    def is_stuck(self, seconds):
        """Whether this rank has been in a single step for so long. In no other activity it waits for others alone."""
        return self.doing == TRAINING and time.monotonic() - self.since > seconds

    def __enter__(self):
        if self.looks:
            self.seen = {beat['rank']: (beat, 0) for beat in self.beats()}  # maybe of an earlier life
        self.write()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        for thread in self.threads:
            thread.join(5)

    def keep_writing(self):
        """Write the file again after each pause, until the end."""
        while not self.ended.wait(self.pause):
            self.write()
            self.is_in_vain = self.is_stuck(2 * self.pause) and self.waits_in_vain()
        self.now(AT_ITS_END)
        self.write()

    def keep_checking(self):
        """Check after each pause whether this rank makes progress, until the end."""
        last = time.monotonic()
        while not self.ended.wait(self.pause):
            was_stopped = time.monotonic() - last > 10 * self.pause  # as a laptop that slept
            last = time.monotonic()
            if was_stopped:  # The rank could do nothing in that time, so it does not count.
                self.since = last
            if self.launcher not in (None, os.getppid()):  # Nobody would end or restart this rank any more.
                self.launcher = None
                self.ask_to_stop('the end of torchrun')
            if self.patience:
                self.check(last - self.since)

    def check(self, seconds):
        """Warn or end the process, given the seconds that it has spent in one activity."""
        if self.is_in_vain and self.is_stuck(2 * self.pause):
            self.end(seconds, 'waits in vain')
        elif seconds > self.patience:
            self.end(seconds)
        elif seconds <= self.patience / 10:
            self.warned = False
        elif not self.warned:
            self.warned = True
            if self.ranks.is_main:
                self.warn(f'no progress for {seconds:.0f} s; {self.describe_ranks()}')

    def waits_in_vain(self):
        """Whether another rank has ended, or is silent since SILENCE seconds, in all of which this one was in one step.

        Then nobody will answer this rank. NCCL would not tell it: its watchdog does not see the collectives of a CUDA
        graph. Silence is counted in this rank's own writes, so clocks need not agree, and a file system that hangs stops
        the count. A file that has not changed since this rank began may be of an earlier life of the run, and does not count.
        """
        if not self.looks:
            return False
        for beat in self.beats():
            rank = beat['rank']
            before, at = self.seen.get(rank, (None, 0))
            if beat != before:
                self.seen[rank] = beat, self.writes
                self.begun.add(rank)
            if rank in self.begun and rank != self.ranks.rank and (
                    beat['doing'] == AT_ITS_END
                    or beat == before and (self.writes - at) * self.pause >= SILENCE and self.is_stuck(SILENCE)):
                return True
        return False

    def beats(self):
        """The contents of the files of all ranks that have one."""
        for rank in range(self.ranks.size):
            with suppress(OSError, ValueError):
                yield json.loads((self.folder / f'rank_{rank:05}.json').read_text())

    def write(self):
        """Write this rank's file."""
        now = time.time()
        since = now - (time.monotonic() - self.since)
        text = json.dumps({'rank': self.ranks.rank, 'host': socket.gethostname(), 'pid': os.getpid(),
                           'doing': self.doing, 'step': self.step, 'since': since, 'time': now})
        with suppress(OSError):  # A full disk is reported where something is lost by it.
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f'rank_{self.ranks.rank:05}.json'
            path.with_suffix('.writing').write_text(text)
            path.with_suffix('.writing').replace(path)
            self.writes += 1

    def describe_ranks(self):
        """What the ranks do by their files, as a text; those that the others probably wait for come first.

        Ranks that do the same are put together: the first of them is described, and the others are counted.
        """
        now = time.time()
        groups = {}  # {(order, activity): [(content of the file, description)]}
        for beat in self.beats():
            order, description = self.describe(beat, now)
            activity = 'train' if order == 2 else description
            groups.setdefault((order, activity), []).append((beat, description))
        described = []
        for (order, _), group in sorted(groups.items()):
            beat, description = group[0]
            others = f' and {len(group) - 1} more' if len(group) > 1 else ''
            reason = ', which waits for the device or for the other ranks' if order == 2 else ''
            described.append(f'rank {beat["rank"]} (process {beat["pid"]} on {beat["host"]}){others} '
                             f'{description}{reason}')
        return '; '.join(described)

    def describe(self, beat, now):
        """(order, description) of a rank, given the content of its file. Order 0: silent, 1: not training, 2: training."""
        silence = now - beat['time']
        if silence > 3 * self.pause:
            return 0, (f'has given no sign of life for {silence:.0f} s: it or its machine is stopped or '
                       'dead')
        done = 'no step done yet' if beat['step'] is None else f'the last step done being {beat["step"]}'
        description = f'is {beat["doing"]} since {now - beat["since"]:.0f} s, {done}'
        return 2 if beat['doing'] == TRAINING else 1, description

    def end(self, seconds, why='no progress'):
        """End the process at once: its main thread is stuck in a call that nothing interrupts."""
        # Reading the files of the other ranks may hang too, so a timer ends the process in any case.
        threading.Timer(10, os._exit, (STALLED,)).start()
        limit = ' (--stall_minutes)' if why == 'no progress' else ''
        sys.stderr.write(f'error: rank {self.ranks.rank}: {why} for {seconds / 60:.1f} minutes{limit}; '
                         f'{self.describe_ranks()}. The same command goes on from the last checkpoint\n')
        sys.stderr.flush()
        write_exit_code(STALLED)
        os._exit(STALLED)
