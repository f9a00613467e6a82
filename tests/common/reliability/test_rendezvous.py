"""Processes that torchrun starts again find each other, and not those that ended."""
import os
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from common import distributed as distributed_module
from common.distributed import joined, time_limit
from common.reliability.rendezvous import store_of_this_start
from tests.conftest import ROOT

SECONDS = timedelta(seconds=60)
# What a rank does: it joins the others by the name of the first argument, and ends as the second one says.
RANK = """
import os, sys, time
import torch, torch.distributed as dist
from common.distributed import joined
time.sleep(float(sys.argv[1]))
ranks = joined(int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), patience=0)
total = ranks.all_reduce(torch.ones(1))
print('sum', int(total), flush=True)
os._exit(int(sys.argv[2]))  # as a process that is killed: nothing is taken back
"""


@pytest.fixture
def agent(monkeypatch):
    """The store of a torchrun that may start its processes again, with the environment that it gives them."""
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    about = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(store.port), 'TORCHELASTIC_USE_AGENT_STORE': 'True',
             'TORCHELASTIC_MAX_RESTARTS': '3', 'TORCHELASTIC_RUN_ID': 'test', 'OMP_NUM_THREADS': '1'}
    for name, value in about.items():
        monkeypatch.setenv(name, value)
    return store


def start(code, *delays):
    """Start a process for each rank, after so many seconds, that ends with `code`. Returns what each says, and its code."""
    processes = []
    for rank, delay in enumerate(delays):
        environment = {**os.environ, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(len(delays))}
        processes.append(subprocess.Popen([sys.executable, '-c', RANK, str(delay), str(code)], cwd=ROOT, env=environment,
                                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    return [(process.communicate(timeout=300)[0], process.returncode) for process in processes]


def stores_of(size):
    """The stores that so many ranks get who start at the same time."""
    stores = {}

    def join(rank):
        stores[rank] = store_of_this_start(rank, size, SECONDS)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [stores[rank] for rank in range(size)]


@pytest.mark.parametrize('late', [0, 1])
def test_a_second_start_does_not_meet_the_first(agent, late):
    """The store still has what both ranks of the first start wrote, when one of the second start looks there."""
    first = start(1, 0, 0)
    assert all('sum 2' in said and code == 1 for said, code in first), first
    delays = [0, 0]
    delays[late] = 3
    second = start(0, *delays)
    assert all('sum 2' in said and code == 0 for said, code in second), second


def test_all_ranks_get_the_same_store_and_each_start_another(agent):
    """A question that was left by a process that ended is answered, and does not count as a rank that came."""
    agent.set('ask_1', 'answer_of_a_process_that_ended')
    first, second = stores_of(3), stores_of(3)
    for number, stores in enumerate((first, second)):
        assert not any(store.check(['key']) for store in stores)
        stores[1].set('key', f'start {number}')
    for number, stores in enumerate((first, second)):
        assert {store.get('key').decode() for store in stores} == {f'start {number}'}


def test_ranks_that_do_not_come_are_named(agent):
    agent.set('ask_2', 'answer_of_a_process_that_ended')
    with pytest.raises(dist.DistNetworkError, match=r'ranks \[1, 2\] of 3 have not come within 0 minutes'):
        store_of_this_start(0, 3, timedelta(seconds=1))
    with pytest.raises(dist.DistStoreError):
        store_of_this_start(1, 3, timedelta(seconds=1))


def test_the_error_of_a_rank_that_is_alone_is_a_sentence(agent, monkeypatch):
    monkeypatch.setattr(distributed_module, 'time_limit', lambda patience: timedelta(seconds=1))
    with pytest.raises(ConnectionError, match=r'rank 0 of 2 waited for the others in vain: ranks \[1\] of 2 have not come'):
        joined(0, 2, 0)


def test_without_a_limit_ranks_wait_for_each_other_for_days():
    """NCCL's own limit is ten minutes, which the check of a large data set by one rank may take."""
    assert time_limit(0) > timedelta(days=10) and time_limit(30) == timedelta(minutes=35)


def test_gradients_in_bf16_that_torch_does_not_have_are_refused_in_a_sentence(monkeypatch):
    class Parallel:
        """Stands in for the DistributedDataParallel of a build for CPUs alone."""

        def __init__(self, module, **options):
            pass

        def register_comm_hook(self, state, hook):
            raise TypeError('BF16 all reduce communication hook required CUDA 11+ and NCCL 2.10+')

    monkeypatch.setattr(distributed_module, 'DistributedDataParallel', Parallel)
    with pytest.raises(ValueError, match='leave out --bf16_gradients'):
        distributed_module.in_ddp(None, torch.device('cpu'), True, in_bf16=True)
