"""Where the processes that torchrun has started again find each other.

torchrun keeps one key-value store while it starts its processes again (`--max_restarts`). In it, torch looks
for the addresses of the other ranks under the same keys as before. It may then find those of processes that
have ended, with gloo as with NCCL, and the restart fails or hangs
(https://github.com/pytorch/pytorch/issues/135712). torchrun's own count of restarts cannot tell one start
from the next, since each node counts for itself.
"""
import os
import time
from uuid import uuid4

import torch.distributed as dist

PAUSE = 0.05  # seconds between two looks at the store


def may_start_again():
    """Whether torchrun has started this process, keeps the store, and may start the processes again."""
    return (os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
            and int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)) > 0)


def store_of_this_start(rank, size, timeout):
    """A store for `torch.distributed.init_process_group` in which no earlier start has left anything.

    rank: of this process among the `size` that torchrun has started. timeout: a timedelta, for the others to
    come.
    Raises torch.distributed.DistStoreError or DistNetworkError if they do not come.
    """
    store = dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False, timeout=timeout)
    agree = lead if rank == 0 else follow
    return dist.PrefixStore(agree(store, rank, size, timeout), store)


def lead(store, rank, size, timeout):
    """Give all other ranks a name for this start. Returns the name.

    What a rank asks with may have been left by a process that ended. An answer to it does no harm: nobody
    reads it. So each rank is answered, again if it asks anew, until all have come under this name.
    """
    name = f'start_{uuid4().hex}'
    missing, answered = set(range(1, size)), set()
    end = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if not store.check([f'ask_{other}']):
                continue
            question = store.get(f'ask_{other}').decode()
            if question not in answered:
                store.set(question, name)
                answered.add(question)
            if store.check([f'{name}_{other}']):
                missing.discard(other)
        if missing and time.monotonic() > end:
            raise dist.DistNetworkError(f'ranks {sorted(missing)} of {size} have not come within '
                                        f'{timeout.total_seconds() / 60:.0f} minutes')
        time.sleep(PAUSE)
    return name


def follow(store, rank, size, timeout):
    """Ask rank 0 for the name of this start, under a key that no process has used before. Returns the name."""
    question = f'answer_{uuid4().hex}'
    store.set(f'ask_{rank}', question)
    name = store.get(question).decode()  # waits for it, as long as the store's timeout
    store.set(f'{name}_{rank}', '')
    return name
