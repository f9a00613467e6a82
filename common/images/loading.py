"""Batches of images from loading processes, and what is said of the processes that die."""
import multiprocessing
import re
import signal
import time
from contextlib import contextmanager, suppress

import torch
from torch.utils.data import DataLoader

from common.images.augmented import collate


def loader(augmented, batches, workers, device, collate=collate):
    """Batches of images, in the order of `batches`, ahead of time in `workers` processes.

    For errors of these processes that say which file was at fault, use it inside naming_the_file(augmented).
    """
    # No signal interrupts a read from a file system that hangs: then a batch that takes 30 times what one image may is the end.
    timeout = 0 if not workers or augmented.timeout is None else 30 * augmented.timeout
    # A generator of its own: the loader draws a seed when it starts, in the middle of a step's random numbers.
    return DataLoader(augmented, batch_sampler=batches, num_workers=workers, collate_fn=collate, generator=torch.Generator(),
                      pin_memory=device.type == 'cuda', timeout=timeout, worker_init_fn=outlive_stops)


def outlive_stops(worker):
    """Let a loading process go on when its whole group is told to stop: the training process saves, and then ends it itself."""
    signal.set_wakeup_fd(-1)  # its signals are none of the training process (common/reliability/watchdog.py)
    for name in ('SIGINT', 'SIGHUP', 'SIGUSR1'):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Not for good: the loader, and at exit multiprocessing, end a stuck process by SIGTERM, and the latter waits until it is
    # gone. So the first one only puts back the default. This replaces a handler in C that torch has set just before.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextmanager
def naming_the_file(*augmented):
    """Around all that happens while loaders of `augmented` are in use: what their processes die of, with the file.

    torch tells of a death by a RuntimeError anywhere in the main thread, since a signal brings the news; of a batch that never
    comes by one in the loop over the batches. Both become a ValueError. Other errors pass.
    """
    try:
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            died = death(error, augmented)
            if died:
                files = at_work(augmented, died[1])
                raise ValueError(f'a loading process died ({died[0]}) '
                                 + (f'while it read {", ".join(files)}. If that repeats with this file, the file is at fault: '
                                    'remove it; with others, memory' if files else 'between two images: memory')
                                 + ' or /dev/shm ran out: give fewer --workers') from error
            if not str(error).startswith('DataLoader timed out'):
                raise
            files = at_work(augmented, [child.pid for child in multiprocessing.active_children()])
            raise ValueError(f'{str(error).replace("DataLoader", "loading")}, reading {", ".join(files) or "no file"}: is the '
                             'storage still there? If it is only slow, allow an image more time: --read_timeout') from error
    except BaseException:
        end_processes(augmented)
        raise


def end_processes(augmented):
    """End the loading processes of an error that keeps their loader alive: at its exit Python sends each one SIGTERM, which
    outlive_stops lets them ignore once, and waits for it for ever."""
    pids = {pid for one in augmented for pid in one.at_work[:, 0].tolist()}
    for child in multiprocessing.active_children():
        if child.pid in pids:
            with suppress(RuntimeError):  # torch, telling of this death
                child.kill()
                child.join(5)


def death(error, augmented):
    """(how, process ids) of the death of loading processes that an error tells of; None for any other error."""
    gone = []
    if not isinstance(error, RuntimeError):  # a batch that was being handed over when its process died? The signal follows,
        try:  # or has been lost: Python ignores errors in destructors
            for _ in range(50):
                time.sleep(0.1)
                living = {child.pid for child in multiprocessing.active_children()}
                gone = [pid for one in augmented for pid, index in one.at_work.tolist() if index >= 0 and pid not in living]
                if gone:
                    break
        except RuntimeError as news:
            error = news
    told = [re.match(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?([^.]*)', str(one))
            for one in (error.__cause__, error)]  # in the loop over the batches the loader hides the first news in its own
    if told[1]:
        return (told[0] or told[1])[2], [int(pid) for pid in told[1][1].split(', ')]
    return ('exited unexpectedly', gone) if gone else None


def at_work(augmented, pids):
    """Names of the images that these processes are, or were, at."""
    rows = [(one, one.at_work[pid % len(one.at_work)].tolist(), pid) for pid in pids for one in augmented]
    return [one.name(index) for one, (owner, index), pid in rows if owner == pid and index >= 0]


def each_once(augmented, batch, workers, ranks, warn, collate=collate, key=None, go_on=None):
    """(images, labels) of this rank's share of a data set, each image once; in order, or in that of key(place).

    augmented: without stand-ins; what cannot be read is left out, and warn(text) told. go_on() -> whether to go on with the
    next batch.
    """
    mine = sorted(range(ranks.rank, len(augmented), ranks.size), key=key)
    places = [mine[i:i + batch] for i in range(0, len(mine), batch)]
    for images, labels, failures in loader(augmented, [[(0, place) for place in part] for part in places], workers,
                                           ranks.device, collate):
        for place, error in failures:
            warn(f'unreadable image {augmented.name(place)} ({error}): it is left out')
        if len(images):
            yield images, labels
        if go_on and not go_on():
            return


def without_failures(batches, augmented, named, log):
    """(images, classes) of each batch; what could not be read is warned of once, and added to the set `named`."""
    for images, classes, failures in batches:
        for index, error in failures:
            name = augmented.name(index)
            if name not in named:
                named.add(name)
                log.warn(f'unreadable image {name} ({error}): the next one stands in for it; {len(named)} so far')
        yield images, classes
