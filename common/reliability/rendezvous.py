"""Where the processes that torchrun has started again find each other.

torchrun keeps one key-value store while it starts its processes again (`--max_restarts`). In it, torch looks
for the addresses of the other ranks under the same keys as before. It may then find those of processes that
have ended, with gloo as with NCCL, and the restart fails or hangs
(https://github.com/pytorch/pytorch/issues/135712). torchrun's own count of restarts cannot tell one start
from the next, since each node counts for itself. So the ranks agree on a name for each start, and torch's keys
are put after it.
"""
import json
import os
import time
from uuid import uuid4

import torch.distributed as dist

from common.words import counted, number_and_first_of

PAUSE = 0.2  # seconds between two looks at the store
LEADER = 'name_of_this_start'  # the key of the name that rank 0 has given
# NCCL's watchdogs look for these in the whole store, and end their process where an earlier start has set them.
SIGNALS_OF_NCCL = 'exception_dump', 'remote_error'


def may_start_again():
    """Whether torchrun has started this process, keeps the store, and may start the processes again."""
    return (os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
            and int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)) > 0)


def store_of_this_start(rank, size, timeout):
    """A store for `torch.distributed.init_process_group` in which torch finds nothing that an earlier start has left.

    rank: of this process among the `size` that torchrun has started. timeout: a timedelta, for the others to come.
    Raises torch.distributed.DistNetworkError if they do not come.
    """
    store = dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False, timeout=timeout)
    name = lead(store, size, timeout) if rank == 0 else follow(store, rank, timeout)
    return dist.PrefixStore(name, store)


def lead(store, size, timeout):
    """Give this start a name, wait until all other ranks have come to it, and let them go. Returns the name.

    Raises torch.distributed.DistNetworkError if some do not come in time.
    """
    name = f'start_{uuid4().hex}'
    store.set(LEADER, name)
    others = [f'{name}_{rank}' for rank in range(1, size)]
    end = time.monotonic() + timeout.total_seconds()
    while others and not store.check(others):
        if time.monotonic() > end:
            missing = [key.removeprefix(f'{name}_') for key in others if not store.check([key])]
            raise dist.DistNetworkError(f'of {size} ranks these have not come within {minutes(timeout)}: '
                                        f'{number_and_first_of(missing)}')
        time.sleep(PAUSE)
    for key in SIGNALS_OF_NCCL:  # All that could have set them have ended, for others are here in their place.
        store.delete_key(key)
    # A rank may have been started again since it came: the last one that came counts.
    store.set(f'{name}_go', json.dumps([store.get(key).decode() for key in others]))
    return name


def follow(store, rank, timeout):
    """Come to the start that rank 0 has given a name, and wait until it lets all ranks go. Returns the name.

    The name, and that the ranks may go, can have been left by an earlier start. Those who may go are told by
    what they are called, which is new for each process.

    Raises torch.distributed.DistNetworkError if rank 0 does not let this one go in time.
    """
    me, name = uuid4().hex, None
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        if store.check([LEADER]):
            latest = store.get(LEADER).decode()
            if latest != name:
                name = latest
                store.set(f'{name}_{rank}', me)
            if store.check([f'{name}_go']) and me in json.loads(store.get(f'{name}_go')):
                return name
        time.sleep(PAUSE)
    raise dist.DistNetworkError(f'rank 0 has not answered within {minutes(timeout)}, or still waits for others')


def minutes(timeout):
    return counted(timeout.total_seconds() / 60, 'minute')
