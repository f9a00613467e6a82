"""Signs of life of a run, and the end of one that has come to a halt: a thread beside the training of each rank."""
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress

from common.reliability.stopping import STALLED, tell

PAUSE = 30.0  # seconds between signs of life, at most


class Watch:
    """Writes what a rank does into heartbeat/rank_<number>.json of the run folder, and ends it when it has long done nothing.

    patience: minutes in one and the same activity, such as waiting for another rank, after which the process exits with
    STALLED; at a tenth of that it warns. Both say what each rank does, so that one that is stopped, dead, or waits for its
    images is named. 0: never. A file: {"rank", "host", "pid", "doing", "step", "since", "time"}, seconds since 1970.
    """

    def __init__(self, folder, ranks, patience, warn, ask_to_stop):
        self.folder, self.ranks, self.patience = folder / 'heartbeat', ranks, 60 * patience
        self.warn, self.ask_to_stop = warn, ask_to_stop
        self.pause = min(PAUSE, self.patience / 20) if patience else PAUSE
        self.ended, self.warned, self.step = threading.Event(), False, None
        self.launcher = os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None
        self.now('starting')
        # The files are a thread's of their own: writing them may hang with the storage, of all things.
        self.threads = [threading.Thread(target=each, daemon=True) for each in (self.watch, self.sign_again)]

    def now(self, doing):
        """What this rank begins to do; called often, so it does no more than that."""
        self.doing, self.since = doing, time.monotonic()

    def __enter__(self):
        self.sign()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        for thread in self.threads:
            thread.join(5)

    def sign_again(self):
        while not self.ended.wait(self.pause):
            self.sign()
        self.now('at its end')
        self.sign()

    def watch(self):
        last = time.monotonic()
        while not self.ended.wait(self.pause):
            late, last = time.monotonic() - last > 10 * self.pause, time.monotonic()
            if late:  # this process was stopped itself (a laptop that slept): what it did not do then counts for nothing
                self.since = last
            if self.launcher not in (None, os.getppid()):  # nobody would end or restart this rank any more
                self.launcher = None
                self.ask_to_stop('the end of torchrun')
            still = last - self.since
            if self.patience and still > self.patience:
                self.end(still)
            elif not (self.patience and still > self.patience / 10):
                self.warned = False
            elif not self.warned:
                self.warned = True
                if self.ranks.is_main:
                    self.warn(f'no progress for {still:.0f} s; {self.story()}')

    def sign(self):
        text = json.dumps({'rank': self.ranks.rank, 'host': socket.gethostname(), 'pid': os.getpid(), 'doing': self.doing,
                           'step': self.step, 'since': time.time() - (time.monotonic() - self.since), 'time': time.time()})
        with suppress(OSError):  # a full disk is told of where it matters
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f'rank_{self.ranks.rank:05}.json'
            path.with_suffix('.writing').write_text(text)
            path.with_suffix('.writing').replace(path)

    def story(self):
        """What the ranks do, for a person: those first that are to blame, as far as their files tell."""
        signs = []
        for rank in range(self.ranks.size):
            with suppress(OSError, ValueError):
                signs.append(json.loads((self.folder / f'rank_{rank:05}.json').read_text()))
        now, lines = time.time(), {}
        for sign in signs:
            silent = now - sign['time'] > 3 * self.pause
            done = 'no step done yet' if sign['step'] is None else f'the last step done being {sign["step"]}'
            what = f'has given no sign of life for {now - sign["time"]:.0f} s: it or its machine is stopped or dead' if silent \
                else f'is {sign["doing"]} since {now - sign["since"]:.0f} s, {done}'
            order = 0 if silent else 1 if sign['doing'] != TRAINING else 2
            lines.setdefault((order, what if order < 2 else 'train'), []).append((sign, what))
        told = []
        for (order, _), alike in sorted(lines.items()):
            sign, what = alike[0]
            others = f' and {len(alike) - 1} more' if len(alike) > 1 else ''
            told.append(f'rank {sign["rank"]} (process {sign["pid"]} on {sign["host"]}){others} {what}'
                        + (', which waits for the device or for the other ranks' if order == 2 else ''))
        return '; '.join(told)

    def end(self, still):
        """Leave at once: the main thread is stuck in a call that nothing interrupts."""
        threading.Timer(10, os._exit, (STALLED,)).start()  # the files of the others may hang too
        sys.stderr.write(f'error: rank {self.ranks.rank}: no progress for {still / 60:.1f} minutes (--stall_minutes); '
                         f'{self.story()}. The same command goes on from the last checkpoint\n')
        sys.stderr.flush()
        tell(STALLED)
        os._exit(STALLED)


TRAINING = 'in the computation'
