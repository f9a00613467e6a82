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
from common.cli import errors_in_one_sentence
from common.distributed import joined, time_limit
from common.reliability.rendezvous import LEADER, SIGNALS_OF_NCCL, store_of_this_start
from tests.common.runs import until
from tests.conftest import ROOT

SECONDS = timedelta(seconds=60)
# What a rank does: it waits for so many seconds, joins the others, and ends with a code.
RANK = """
import os, sys, time
import torch
from common.distributed import joined
time.sleep(float(sys.argv[1]))
ranks = joined(int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), patience=1)
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
        environment = {**os.environ, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(len(delays)),
                       'CUDA_VISIBLE_DEVICES': ''}
        processes.append(subprocess.Popen([sys.executable, '-c', RANK, str(delay), str(code)], cwd=ROOT, env=environment,
                                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        return [(process.communicate(timeout=300)[0], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


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
    first, second = stores_of(3), stores_of(3)
    for number, stores in enumerate((first, second)):
        assert not any(store.check(['key']) for store in stores)
        stores[1].set('key', f'start {number}')
    for number, stores in enumerate((first, second)):
        assert {store.get('key').decode() for store in stores} == {f'start {number}'}


def test_what_a_watchdog_of_nccl_looks_for_is_gone(agent):
    """It looks in the whole store, and ends its process where a process of the first start has set it."""
    stores_of(2)
    for key in SIGNALS_OF_NCCL:
        agent.set(key, 'set')
    stores_of(2)
    assert not any(agent.check([key]) for key in SIGNALS_OF_NCCL)


def test_a_rank_that_is_started_again_before_all_have_come_goes_with_them(agent):
    """The first process of rank 1 has ended after it came; rank 2 comes last."""
    found = {}

    def come(key, rank):
        found[key] = store_of_this_start(rank, 3, SECONDS)

    leader = threading.Thread(target=come, args=('leader', 0))
    leader.start()
    until(lambda: agent.check([LEADER]))
    name = agent.get(LEADER).decode()
    agent.set(f'{name}_1', 'a process that has ended')
    others = [threading.Thread(target=come, args=(rank, rank)) for rank in (1, 2)]
    others[0].start()
    until(lambda: agent.get(f'{name}_1') != b'a process that has ended')
    others[1].start()
    for thread in (leader, *others):
        thread.join()
    found['leader'].set('key', 'value')
    assert found[1].get('key') == found[2].get('key') == b'value'


def test_a_rank_follows_a_leader_that_is_started_again(agent):
    """It came to a start whose rank 0 has ended meanwhile."""
    agent.set(LEADER, 'start_that_was_given_up')
    found = {}
    follower = threading.Thread(target=lambda: found.update(store=store_of_this_start(1, 2, SECONDS)))
    follower.start()
    until(lambda: agent.check(['start_that_was_given_up_1']))
    store_of_this_start(0, 2, SECONDS).set('key', 'value')
    follower.join()
    assert found['store'].get('key') == b'value'


def test_ranks_that_do_not_come_are_named(agent):
    with pytest.raises(dist.DistNetworkError, match=r'of 3 ranks these have not come within 0.1 minutes: 2 \(1, 2\)'):
        store_of_this_start(0, 3, timedelta(seconds=6))
    with pytest.raises(dist.DistNetworkError, match='rank 0 has not answered within 0.1 minutes'):
        store_of_this_start(1, 3, timedelta(seconds=6))


def test_the_error_of_a_rank_that_is_alone_is_a_sentence(agent, monkeypatch):
    monkeypatch.setattr(distributed_module, 'time_limit', lambda patience: timedelta(seconds=6))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('LOCAL_RANK', '1')
    with pytest.raises(SystemExit, match='error: rank 1 of 2 waited for the others in vain: rank 0 has not answered'), \
            errors_in_one_sentence(resumes=True):
        joined(1, 2, 0)


def test_without_a_limit_ranks_wait_for_each_other_for_days():
    """NCCL's own limit is ten minutes, which the check of a large data set by one rank may take."""
    assert time_limit(0) > timedelta(days=10) and time_limit(30) == timedelta(minutes=35)
    assert time_limit(float('inf')) == time_limit(1e6) == time_limit(0)
