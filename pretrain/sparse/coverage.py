"""Checks every network of timm that gives feature maps, and writes docs/coverage.md.

    python -m pretrain.check --all [--jobs=2]        (or: make coverage)

Each network is checked in a process of its own, with limits of time and memory. What is found is kept in
docs/coverage.jsonl, one line a network, with the versions that found it: run it again, and it goes on where it stopped.
A network that has a line is not checked again, by whatever versions; take the line away for that.

Networks are checked at four cells each way, those above LARGE parameters at three, those that take no such image at
their own size. One with attention that is right there is also tried at its usual size, since a window may hold all of
a smaller image. Networks above TOO_LARGE parameters are not checked, but listed with the largest checked network of
their family.
"""
import json
import multiprocessing
import resource
import signal
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import timm
import torch
from torch import nn

from common.feature_maps import find_taps
from common.networks.create import create_cnn
from common.words import first_line
from pretrain.sparse.coverage_page import page
from pretrain.sparse.probe import probe, run_densely
from pretrain.sparse.refused import PLAIN_TRANSFORMER

DOCS = Path(__file__).resolve().parents[2] / 'docs'
LARGE = 60e6
TOO_LARGE = 250e6
USUAL = 224  # pixels
SECONDS, GIGABYTES = 1200, 14  # limits for one network; the time is that of its processor
PATIENCE = 6 * SECONDS  # on a machine that does other things too
# Families in which no operator betrays that positions are mixed: by attention without a product of matrices, and by
# linear layers and LSTMs.
WITHOUT_PRODUCT = ('mobilevit', 'swiftformer')
MLPS = ('mlp_mixer', 'sequencer')


class Kind(Enum):
    """What a network is made of."""
    CONVOLUTIONAL = 'convolutional'
    HYBRID = 'hybrid'  # attention, and maps of several sizes: transformers with a pyramid as well
    PLAIN = 'plain transformer'  # attention, and maps of one size
    OTHER = 'other'  # MLPs, and what gives no feature maps


def described(name):
    """What is known of a network without running it: a record, see `cover`.

    It is run on torch's meta device, without values. `side` is the side of the images that it will be checked on; None
    for those that `check` chooses.
    """
    family = timm.models.model_entrypoint(name).__module__.rpartition('.')[2]
    record = {'name': name, 'family': family}
    try:
        with torch.device('meta'):
            network = timm.create_model(name)
        own = network.default_cfg['input_size'][-1]
        record |= {'parameters': sum(p.numel() for p in network.parameters()), 'side': None}
        measured = on_meta(network, own)
    except Exception as error:  # whatever a network can raise
        return record | {'kind': Kind.OTHER.value, 'why': first_line(error)}
    kind = Kind.CONVOLUTIONAL
    if family in MLPS or not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        kind = Kind.OTHER
    elif measured.is_plain_transformer:
        kind = Kind.PLAIN
    elif measured.attention or family in WITHOUT_PRODUCT:
        kind = Kind.HYBRID
    if kind is Kind.HYBRID:
        record['side'] = smallest(name, (96 if record['parameters'] > LARGE else 128, own))
        record['usual'] = smallest(name, (USUAL, own))
    elif record['parameters'] > LARGE:
        record['side'] = 96
    return record | {'kind': kind.value}


def on_meta(network, side):
    """What a forward on the meta device shows, see `Measured`."""
    images = torch.zeros(2, 3, side, side, device='meta')
    return run_densely(network.eval(), images, find_taps(network), aligned=False)


def smallest(name, sides):
    """The first of some sides of images that a network can be made for; the last of them in any case."""
    for side in sides[:-1]:
        try:
            with torch.device('meta'):
                on_meta(create_cnn(name, input_size=side), side)
        except Exception:  # whatever a network can raise
            continue
        return side
    return sides[-1]


def check_one(check, record, queue):
    """In a process of its own: what is found of a network into the queue."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(GIGABYTES * 2 ** 30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 10))
    start = time.monotonic()
    try:
        report = check(record['name'], record['side'])
        refused = report.refused
        if report.ok and record['kind'] == Kind.HYBRID.value:
            refused = refused_at(record['name'], record['usual'])
    except Exception as error:  # a network must not end the others
        queue.put({'verdict': 'not checked', 'why': first_line(f'{type(error).__name__}: {error}')})
        return
    failed = [f'{part.asked} {part.found}' for part in report.parts if not part.holds]
    why = refused or '; '.join(map(str, failed or report.notes))
    queue.put({'verdict': 'refused' if refused else verdict_of(report), 'error': report.worst, 'why': why,
               'cells': dict(report.facts).get('cells', ''), 'seconds': round(time.monotonic() - start, 1)})


def refused_at(name, side):
    """Why a network is refused for images of a side, or ''."""
    try:
        probe(create_cnn(name, input_size=side), (side, side), in_chans=3, cell_size=None, levels=None)
    except ValueError as error:
        return f'at {side} px: {error}'
    return ''


def verdict_of(report):
    if not report.ok:
        return 'wrong'
    return 'exact, with a note' if report.notes else 'exact'


@dataclass
class Running:
    """A check that is running. record: what is known of the network beforehand, as it will be kept."""
    process: multiprocessing.Process
    queue: multiprocessing.Queue
    start: float
    record: dict

    @property
    def is_late(self):
        return time.monotonic() - self.start > PATIENCE or self.process.exitcode == -signal.SIGXCPU

    @property
    def has_ended(self):
        return self.is_late or not self.queue.empty() or not self.process.is_alive()

    def end(self):
        """End the process. Returns the record with what was found."""
        if not self.queue.empty():
            found = self.queue.get()
        else:
            why = f'took more than {SECONDS} s' if self.is_late else 'its process was ended'
            found = {'verdict': 'not checked', 'why': why}
        self.process.kill()
        self.process.join()
        return self.record | found


def cover(check, jobs, names=None):
    """Check what is not yet checked, in so many processes, then write the page.

    check(name, input_size) -> Report, as in pretrain/check.py. names: of networks, all of timm's if not given. A line of
    docs/coverage.jsonl is a dict: the name, family, number of parameters and kind of a network; the versions that
    checked it; the verdict, the largest error and why. jobs: 0 writes the page of what is there, which then says how many
    are left.
    """
    DOCS.mkdir(exist_ok=True)
    path = DOCS / 'coverage.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {line['name']: line for line in lines}

    def keep(record):
        record = {'versions': {'timm': timm.__version__, 'torch': torch.__version__}} | record
        done[record['name']] = record
        with path.open('a') as file:
            file.write(json.dumps(record) + '\n')
        print(f'{len(done):5}  {record["name"]:44} {record["verdict"]:20} {record.get("seconds", "")}', flush=True)

    left = [name for name in (timm.list_models() if names is None else names) if name not in done and is_of_timm(name)]
    print(f'{len(left)} networks of timm {timm.__version__} to look at', flush=True)
    if jobs:
        run_checks(check, networks_to_check(left, keep), jobs, keep)
        left = []
    (DOCS / 'coverage.md').write_text(page(list(done.values()), TOO_LARGE, len(left)))


def is_of_timm(name):
    return timm.models.model_entrypoint(name).__module__.partition('.')[0] == 'timm'


def networks_to_check(names, keep):
    """The records of the networks that have to be run; keep(record) gets those of the others."""
    for name in names:
        record = described(name)
        verdict = verdict_without_check(record)
        if verdict is None:
            yield record
        else:
            keep(record | verdict)


def verdict_without_check(record):
    """The verdict and its reason for a network that is not run, or None."""
    if record['kind'] == Kind.OTHER.value:
        return {'verdict': 'left out', 'why': record.get('why', '')}
    if record['kind'] == Kind.PLAIN.value:
        return {'verdict': 'refused', 'why': PLAIN_TRANSFORMER}
    if record['parameters'] > TOO_LARGE:
        return {'verdict': 'larger', 'why': f'more than {TOO_LARGE / 1e6:.0f} M parameters'}
    return None


def run_checks(check, todo, jobs, keep):
    """Check networks, in so many processes. todo: an iterator of records. keep(record) gets what is found of each."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['pretrain.check'])
    running, is_last = [], False
    while running or not is_last:
        if len(running) < jobs and not is_last:
            record = next(todo, None)
            is_last = record is None
            running += [] if is_last else [start_check(context, check, record)]
        time.sleep(0.05)
        for one in [one for one in running if one.has_ended]:
            running.remove(one)
            keep(one.end())


def start_check(context, check, record):
    queue = context.Queue()
    process = context.Process(target=check_one, args=(check, record, queue), daemon=True)
    process.start()
    return Running(process, queue, time.monotonic(), record)
