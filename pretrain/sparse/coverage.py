"""Checks every convolutional network of timm, smallest first, and writes docs/coverage.md.

    python -m pretrain.check --all [--jobs=2]        (or: make coverage)

Each network is checked in a process of its own, with limits of time and memory. What is found is kept in
docs/coverage.jsonl, one line a network: run it again, and it goes on where it stopped. Networks above LARGE
parameters are checked at 96 px, three cells each way. Those above TOO_LARGE are not checked, but listed with
the largest checked network of their family.
"""
import json
import multiprocessing
import resource
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from common.feature_maps import feature_maps
from pretrain.sparse.refused import AttentionRefused
from pretrain.sparse.watch import OperatorWatch

DOCS = Path(__file__).resolve().parents[2] / 'docs'
LARGE = 60e6
TOO_LARGE = 250e6
SECONDS, GIGABYTES = 1200, 14  # limits for one network
# Families that mix positions by linear layers, LSTMs or attention without a product of matrices. No operator
# betrays that.
NOT_CONVOLUTIONAL = ('mlp_mixer', 'sequencer', 'mobilevit', 'swiftformer')


def survey():
    """[(parameters, name, family)] of all convolutional networks of timm, smallest first.

    They are run on torch's meta device, without values.
    """
    found = []
    for name in timm.list_models():
        module = timm.models.model_entrypoint(name).__module__
        family = module.rpartition('.')[2]
        if family in NOT_CONVOLUTIONAL or not module.startswith('timm.'):
            continue
        with torch.device('meta'):
            network = timm.create_model(name).eval()
        if not any(isinstance(module, torch.nn.Conv2d) for module in network.modules()):
            continue
        if is_convolutional(network):
            found.append((sum(p.numel() for p in network.parameters()), name, family))
    return sorted(found)


def is_convolutional(network):
    """Whether a dense forward meets no attention."""
    side = getattr(network, 'default_cfg', {}).get('input_size', (3, 224, 224))[-1]
    try:
        OperatorWatch(network).run(torch.zeros(2, 3, side, side, device='meta'), feature_maps)
    except AttentionRefused:
        return False
    return True


def check_one(check, name, input_size, queue):
    """In a process of its own: one record into the queue."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(GIGABYTES * 2 ** 30),) * 2)
    start = time.monotonic()
    try:
        report = check(name, input_size)
    except Exception as error:  # a network must not end the others
        queue.put({'verdict': 'not checked', 'why': f'{type(error).__name__}: {error}'.splitlines()[0]})
        return
    failed = [f'{part.asked} {part.found}' for part in report.parts if not part.holds]
    why = report.refused or '; '.join(map(str, failed or report.notes))
    queue.put({'verdict': verdict_of(report), 'error': report.worst, 'why': why,
               'cells': dict(report.facts).get('cells', ''), 'seconds': round(time.monotonic() - start, 1)})


def verdict_of(report):
    if report.refused:
        return 'refused'
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
        return time.monotonic() - self.start > SECONDS

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


def cover(check, jobs):
    """Check what is not yet checked, in so many processes, then write the page.

    check(name, input_size) -> Report, as in pretrain/check.py.
    """
    DOCS.mkdir(exist_ok=True)
    path = DOCS / 'coverage.jsonl'
    versions = {'timm': timm.__version__, 'torch': torch.__version__}
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {line['name']: line for line in lines if line['versions'] == versions}
    networks = survey()
    todo = [network for network in networks if network[1] not in done and network[0] <= TOO_LARGE]
    print(f'{len(networks)} convolutional networks in timm {timm.__version__}; {len(todo)} to check')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['pretrain.check'])
    running = []
    while todo or running:
        while todo and len(running) < jobs:
            running.append(start_check(context, check, *todo.pop(0), versions))
        time.sleep(0.05)
        for one in [one for one in running if one.has_ended]:
            running.remove(one)
            record = one.end()
            done[record['name']] = record
            with path.open('a') as file:
                file.write(json.dumps(record) + '\n')
            print(f'{len(done):4} of {len(networks)}  {record["name"]:36} {record["verdict"]:20} '
                  f'{record.get("seconds", "")}', flush=True)
    (DOCS / 'coverage.md').write_text(page(networks, done))


def start_check(context, check, parameters, name, family, versions):
    queue = context.Queue()
    side = 96 if parameters > LARGE else None
    process = context.Process(target=check_one, args=(check, name, side, queue), daemon=True)
    process.start()
    record = {'name': name, 'family': family, 'parameters': parameters, 'versions': versions}
    return Running(process, queue, time.monotonic(), record)


def page(networks, done):
    """The Markdown page."""
    families = {}
    for parameters, name, family in networks:
        families.setdefault(family, []).append((parameters, name, done.get(name)))
    rows, totals, total = [], [], Counter()
    for family, members in sorted(families.items()):
        count = Counter()
        for parameters, name, record in members:
            record = record or unchecked_record(members)
            count['larger' if record['verdict'].startswith('as ') else record['verdict']] += 1
            largest = f'{record["error"]:.0e}' if record.get('error') else ''
            rows.append(f'| {name} | {family} | {parameters / 1e6:.1f} | {record["verdict"]} | {largest} | '
                        f'{record["why"]} |')
        total += count
        totals.append((family, count))
    kinds = ('exact', 'exact, with a note', 'larger', 'refused', 'wrong', 'not checked')
    head = ' | '.join(('family', 'networks', *kinds))
    table = [f'| {head} |', '|' + '---|' * (len(kinds) + 2)]
    for family, count in [*totals, ('**all**', total)]:
        numbers = ' | '.join(str(count[kind] or '') for kind in kinds)
        table.append(f'| {family} | {count.total()} | {numbers} |')
    exact = total['exact'] + total['exact, with a note']
    return f"""# Which networks of timm can be pretrained

Written by `make coverage`, with timm {timm.__version__} and torch {torch.__version__}.
{exact} of the {total.total()} convolutional networks were checked one by one and equal their own dense selves
(`python -m pretrain.check NAME` shows how): with all cells visible, and on a visible rectangle, in features,
gradients and running statistics, to a relative error of 1e-8 in float64 (1e-5 for a few that compute in
float32 by themselves). {total['larger']} more have over {TOO_LARGE / 1e6:.0f} M parameters and were not run:
"as NAME" is the largest checked network of the same family.

"Convolutional" is a network whose features meet no attention; transformers, hybrids and MLPs are no part of
this list, and refused by the module at fault.

{chr(10).join(table)}

## Every network

| network | family | M parameters | verdict | largest error | note |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def unchecked_record(members):
    """The record of a network too large to be checked, by the [(parameters, name, record)] of its family."""
    exact = [(parameters, name) for parameters, name, record in members
             if record and record['verdict'].startswith('exact')]
    return {'verdict': f'as {max(exact)[1]}' if exact else 'not checked',
            'why': f'more than {TOO_LARGE / 1e6:.0f} M parameters'}
