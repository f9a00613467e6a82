"""torchrun's failures in one sentence."""
import os
import socket
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from common.reliability.stopping import STALLED, STOPPED
from common.torchrun import failure
from tests.conftest import ROOT


def failed(**codes):
    """A ChildFailedError of ranks rank_0=code, ..., which failed in this order."""
    failures = {}
    for time, (name, code) in enumerate(codes.items()):
        one = ProcessFailure(local_rank=0, pid=1000 + time, exitcode=code, error_file='none')
        one.timestamp = time
        failures[int(name.removeprefix('rank_'))] = one
    return ChildFailedError('program', failures)


@pytest.mark.parametrize(('error', 'said'), [
    (failed(rank_3=1, rank_0=-15), 'ended with the code 1, for the reason that stands above'),
    (failed(rank_3=STALLED), f'ended with the code {STALLED}, for the reason that stands above'),
    (failed(rank_3=-9, rank_0=-15), 'was ended by SIGKILL, which the system does too when memory runs out'),
    (failed(rank_3=-11), 'was ended by SIGSEGV')])
def test_the_process_that_failed_first_is_named(error, said):
    assert failure(error) == f'rank 3 (process 1000) {said}'


def test_processes_that_were_asked_to_stop_have_said_so():
    assert failure(failed(rank_0=STOPPED, rank_1=STOPPED)) is None


def run(folder, program, *flags):
    """torchrun with a program on this machine."""
    (folder / 'program.py').write_text(program)
    return subprocess.run([sys.executable, '-m', 'common.torchrun', *flags, 'program.py'], cwd=folder, capture_output=True,
                          text=True, timeout=600, env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})


def test_a_failed_process_leaves_no_traceback(tmp_path):
    done = run(tmp_path, 'import os, sys, time\n'
               'if os.environ["RANK"] == "1":\n    sys.exit("error: a sentence")\n'
               'time.sleep(600)', '--standalone', '--nproc_per_node=2')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stderr.index('error: a sentence') < done.stderr.index('error: rank 1 (process ')


def test_nodes_that_cannot_meet_are_told_what_to_give(tmp_path):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        done = run(tmp_path, '', '--nnodes=2', '--node_rank=0', '--master_addr=127.0.0.1',
                   f'--master_port={taken.getsockname()[1]}', '--nproc_per_node=1')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: the nodes cannot meet: ') and '--master_port' in done.stderr
