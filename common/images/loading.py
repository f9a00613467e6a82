"""Batches of images from loading processes, and messages about the processes that die."""
import multiprocessing
import re
import signal
import time
from contextlib import contextmanager, suppress

import torch
from torch.utils.data import DataLoader

from common.images.augmented import collate
from common.words import printable

NAMED = 3  # images that cannot be read of which is said why


def loader(augmented, batches, workers, device, collate=collate):
    """A DataLoader of batches of images, made ahead of time in loading processes.

    augmented: an Augmented. batches: yields the indices of each batch, in order. workers: the number of processes.
    device: that the batches will be moved to.

    The processes start at the first iter() of it. Use it inside naming_the_file(augmented), so that errors of
    these processes say which file was at fault.
    """
    # No signal interrupts a read from a file system that hangs. So a batch may take 30 times what one image may.
    timeout = 0 if not workers or augmented.timeout is None else 30 * augmented.timeout
    # The loader draws a seed when it starts, in the middle of a step's random numbers, so it has its own generator.
    return DataLoader(augmented, batch_sampler=batches, num_workers=workers, collate_fn=collate,
                      generator=torch.Generator(), pin_memory=device.type == 'cuda', timeout=timeout,
                      worker_init_fn=outlive_stops)


def outlive_stops(worker):
    """Let a loading process ignore the signals that ask its whole group to stop: the training process ends it later.

    worker: its number, which is not used.
    """
    signal.set_wakeup_fd(-1)  # Its signals do not concern the watchdog of the training process.
    for name in ('SIGINT', 'SIGHUP', 'SIGUSR1'):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # SIGTERM is ignored only once. The loader ends a stuck process by SIGTERM, and so does multiprocessing at
    # exit, which waits until the process is gone. This replaces a handler in C that torch has set just before.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextmanager
def naming_the_file(*augmented):
    """Within it, the death of a loading process becomes a ValueError that names the file it was reading.

    It belongs around all that happens while loaders of `augmented` are in use. torch reports a death by a
    RuntimeError anywhere in the main thread, since a signal brings the news, and a batch that does not come
    in time by a RuntimeError in the loop over the batches. Other errors are raised as they are. Any error
    ends the loading processes that were started within it.
    """
    others = multiprocessing.active_children()
    try:
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            died = death(error, augmented)
            if died:
                how, pids = died
                raise ValueError(death_message(how, at_work(augmented, pids))) from error
            # torch has no exception of its own for this.
            if not str(error).startswith('DataLoader timed out'):
                raise
            files = at_work(augmented, [child.pid for child in multiprocessing.active_children()])
            raise ValueError(f'{str(error).replace("DataLoader", "loading")}, reading '
                             f'{", ".join(files) or "no file"}: is the storage still there? If it is only '
                             'slow, allow an image more time: --read_timeout') from error
    except BaseException:
        end_processes(others)
        raise


def death_message(how, files):
    """What to say of a loading process that died. how: in words. files: the names of those that it was reading."""
    if files:
        what = (f'while it read {", ".join(files)}. If that repeats with this file, the file is at fault: '
                'remove it; with others, memory')
    else:
        what = 'between two images: memory'
    return f'a loading process died ({how}) {what} or /dev/shm ran out: give fewer --workers'


def end_processes(others):
    """Kill all loading processes but those in the list `others`. They are daemons, in Python's terms.

    An error keeps their loader alive. At its exit Python would send each of them SIGTERM, which outlive_stops
    lets them ignore once, and wait for them for ever.
    """
    for child in multiprocessing.active_children():
        if child.daemon and child not in others:
            with suppress(RuntimeError):  # torch reports this death.
                child.kill()
                child.join(5)


def death(error, augmented):
    """(how, process ids) of the death of loading processes that an error reports; None if it reports none."""
    gone = []
    if not isinstance(error, RuntimeError):
        # A process may have died while it handed over a batch. The signal that reports it follows as a
        # RuntimeError, or has been lost, since Python ignores errors in destructors.
        try:
            gone = wait_for_death(augmented)
        except RuntimeError as report:
            error = report
    pattern = r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?([^.]*)'
    # In the loop over the batches the loader hides the first report, which says how, in one of its own.
    first = re.match(pattern, str(error.__cause__))
    last = re.match(pattern, str(error))
    if last:
        how = (first or last)[2]
        return how, [int(pid) for pid in last[1].split(', ')]
    return ('exited unexpectedly', gone) if gone else None


def wait_for_death(augmented):
    """The ids of loading processes that are gone although they were at an image, [] if there are none after 5 s."""
    for _ in range(50):
        time.sleep(0.1)
        living = {child.pid for child in multiprocessing.active_children()}
        busy = [pid for one in augmented for pid, index in one.at_work.tolist() if index >= 0]
        gone = [pid for pid in busy if pid not in living]
        if gone:
            return gone
    return []


def at_work(augmented, pids):
    """The names of the images that the processes with these ids are at, or were at when they died."""
    names = []
    for pid in pids:
        for one in augmented:
            owner, index = one.at_work[pid % len(one.at_work)].tolist()
            if owner == pid and index >= 0:
                names.append(printable(one.name(index)))
    return names


def each_once(augmented, batch, workers, ranks, warn, collate=collate, key=None, go_on=None, count=None):
    """Yield (images, labels) of this rank's share of a data set, with each image once.

    augmented: an Augmented without stand-ins. Images that cannot be read are left out, and warned of.
    batch: images in a batch. workers: the number of loading processes. warn: called with the text of a warning.
    collate: as of loader(). key: called with an index; the indices are sorted by it, and are in order if it
    is not given.
    go_on: called after each batch, if given; returns whether to go on with the next one.
    count: a Count (common/live_facts.py) of the images of all ranks, if given.
    """
    own = sorted(range(ranks.rank, len(augmented), ranks.size), key=key)
    batches = [[(0, index) for index in own[start:start + batch]] for start in range(0, len(own), batch)]
    for images, labels, failures in loader(augmented, batches, workers, ranks.device, collate):
        for index, error in failures:
            warn(f'unreadable image {printable(augmented.name(index))} ({error}): it is left out')
        if len(images):
            yield images, labels
        if count:
            count.add((len(images) + len(failures)) * ranks.size)
        if go_on and not go_on():
            return


def without_failures(batches, augmented, named, log):
    """Yield (images, classes) of each batch, and warn once of each image that could not be read.

    The arguments are those of tell_failures.
    """
    for images, classes, failures in batches:
        tell_failures(failures, augmented, named, log)
        yield images, classes


def tell_failures(failures, augmented, named, log):
    """Warn once of each image that could not be read; after the first NAMED of them in fewer words.

    failures: [(index, what is wrong)]. named: the set of the names of such images, which is added to. log: a RunLog.
    """
    for index, error in failures:
        name = augmented.name(index)
        if name not in named:
            named.add(name)
            why = f' ({error}): the next one stands in for it' if len(named) <= NAMED else ''
            log.warn(f'unreadable image {printable(name)}{why}; {len(named)} so far')
