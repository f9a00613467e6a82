"""Runs of several processes, under launchers and clusters: their number changes, and they are killed."""
import dataclasses
import os
import shutil
import signal
import subprocess
import sys

import pytest

from benchmarks.chaos import chaos, is_alive, ranks_of
from common.reliability.stopping import STOPPED, Stopped
from pretrain.main import pretrain
from tests.common.runs import begins, begun, in_step, line_of, losses_of, trains, until
from tests.conftest import ROOT, assert_same_run, flags, log_of, main_sh, saved
from tests.pretrain.served import free_port


@pytest.mark.slow
def test_one_rank_becomes_two_and_two_become_one_in_the_middle_of_an_epoch(tiny, tmp_path, monkeypatch):
    """The same images, masks and order: losses are equal to rounding. Two processes are stopped by a signal, code 75."""
    options = tiny(epochs=20, batch_size=4, log_every=1, val_every=20, picture_every=0, save_every=20,
                   run_dir=str(tmp_path / 'output_many'))
    with monkeypatch.context() as patch:
        in_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            pretrain(options)
    shutil.copytree(tmp_path / 'output_many', tmp_path / 'alone')
    alone = losses_of(pretrain(dataclasses.replace(options, run_dir=str(tmp_path / 'alone'))))
    process = begun('many', *line_of(options), '--ngpu_per_node=2', cwd=tmp_path)
    until(lambda: begins((tmp_path / 'output_many/stdout_backup.txt').read_text().partition('2 ranks')[2]))
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == STOPPED and 'Traceback' not in said, said
    stopped = saved(tmp_path / 'output_many')['step']
    assert 5 <= stopped < 200
    pretrain(options)
    many = losses_of(tmp_path / 'output_many')
    assert many.keys() == alone.keys() == set(range(1, 201))
    for step in range(5, 8):  # two ranks after one
        assert many[step] == pytest.approx(alone[step], rel=1e-5)
    assert many[stopped + 1] == pytest.approx(alone[stopped + 1], rel=2e-2)  # by then roundings have grown
    runs = log_of(tmp_path / 'output_many')[1]
    assert [(run['step'], run['ranks']) for run in runs] == [(0, 1), (4, 2), (stopped, 1)]


@pytest.mark.slow
def test_four_processes_become_three(tiny, tmp_path):
    """24 images in 2 parts: 3 a rank and part, then 4; in 4 parts, which 8 images a rank can be cut into and 6 cannot, more."""
    options = tiny(epochs=40, batch_size=24, accum=2, log_every=1, val_every=40, picture_every=0)
    process = begun('x', *line_of(options), '--ngpu_per_node=4', cwd=tmp_path)
    until(lambda: trains(tmp_path / 'output_x'))
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == STOPPED, said
    stopped = saved(tmp_path / 'output_x')['step']
    for name in ('four', 'three'):
        shutil.copytree(tmp_path / 'output_x', tmp_path / f'output_{name}')
    losses = []
    for name, ranks in (('four', 4), ('three', 3)):
        done = main_sh(name, *line_of(options), f'--ngpu_per_node={ranks}', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        losses.append(losses_of(tmp_path / f'output_{name}'))
    for step in range(stopped + 1, min(stopped + 4, 81)):  # BatchNorm is shared by the ranks and sees the parts of all
        assert losses[1][step] == pytest.approx(losses[0][step], rel=1e-4)


@pytest.mark.slow
def test_a_killed_rank_ends_the_group_and_torchrun_starts_it_again(tiny, tmp_path):
    options = tiny(epochs=20, save_every_steps=1, val_every=20, picture_every=0)
    whole = main_sh('whole', *line_of(options), '--ngpu_per_node=2', cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = begun('cut', *line_of(options), '--ngpu_per_node=2', '--max_restarts=2', cwd=tmp_path)
    until(lambda: trains(tmp_path / 'output_cut'))
    first = ranks_of(process.pid)
    os.kill(first[-1], signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in first))
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert_same_run(tmp_path / 'output_whole', tmp_path / 'output_cut')
    assert len(log_of(tmp_path / 'output_cut')[1]) == 2


@pytest.mark.slow
def test_two_nodes_start_again_after_a_rank_of_one_was_killed(tiny, tmp_path):
    """Both are on this machine. The other node's torchrun knows nothing of it: its rank ends because it lost the killed one."""
    options = tiny(epochs=20, save_every_steps=1, val_every=20, picture_every=0)
    whole = main_sh('whole', *line_of(options), '--ngpu_per_node=2', cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    meet = '--num_nodes=2', '--ngpu_per_node=1', '--master_address=127.0.0.1', f'--master_port={free_port()}'
    nodes = [begun('cut', *line_of(options), *meet, '--max_restarts=2', f'--node_rank={node}', cwd=tmp_path)
             for node in range(2)]
    until(lambda: trains(tmp_path / 'output_cut'))
    killed, = ranks_of(nodes[1].pid)
    os.kill(killed, signal.SIGKILL)
    said = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], '\n'.join(said)
    assert_same_run(tmp_path / 'output_whole', tmp_path / 'output_cut')
    assert len(log_of(tmp_path / 'output_cut')[1]) == 2


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_and_the_run_ends(tiny, tmp_path):
    options = tiny(epochs=4000, val_every=4000, picture_every=0, save_every=4000, stall_minutes=0.25)
    process = begun('x', *line_of(options), '--ngpu_per_node=2', cwd=tmp_path)
    until(lambda: trains(tmp_path / 'output_x'))
    victim = ranks_of(process.pid)[1]
    os.kill(victim, signal.SIGSTOP)
    said, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert f'(process {victim} on ' in said and 'has given no sign of life for' in said and '(--stall_minutes)' in said
    assert not is_alive(victim)


@pytest.mark.slow
def test_slurm_puts_a_job_that_was_stopped_into_the_queue_again(tiny, tmp_path):
    """srun and scontrol are stood in for; the signal comes to the step's process group, as SLURM sends it."""
    tools = tmp_path / 'tools'
    tools.mkdir()
    (tools / 'scontrol').write_text('#!/bin/sh\nif [ "$1" = show ]; then echo localhost; else echo "$@" >> "$SAID"; fi\n')
    (tools / 'srun').write_text(f'#!{sys.executable}\n' + """import os, subprocess, sys
step = subprocess.Popen([word for word in sys.argv[1:] if not word.startswith('--cpus-per-task')], start_new_session=True)
open(os.environ['STEP'], 'w').write(str(step.pid))
sys.exit(step.wait())
""")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tools}:{os.environ["PATH"]}', 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1',
                   'SAID': str(tmp_path / 'said'), 'STEP': str(tmp_path / 'step'), 'SLURM_SUBMIT_DIR': str(ROOT),
                   'SLURM_JOB_NODELIST': 'node', 'SLURM_CPUS_PER_TASK': '1', 'SLURM_NNODES': '1', 'SLURM_GPUS_ON_NODE': '2',
                   'SLURM_NODEID': '0', 'SLURM_JOB_ID': '4711'}
    options = tiny(epochs=30, val_every=30, picture_every=0, save_every=30, run_dir=str(tmp_path / 'output_job'))
    command = ['bash', str(ROOT / 'pretrain/slurm.sh'), 'job', *flags(options)]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: trains(tmp_path / 'output_job'))
    os.killpg(int((tmp_path / 'step').read_text()), signal.SIGUSR1)
    said, _ = job.communicate(timeout=600)
    assert job.returncode == STOPPED, said
    assert (tmp_path / 'said').read_text() == 'requeue 4711\n' and 0 < saved(tmp_path / 'output_job')['step'] < 150
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert saved(tmp_path / 'output_job')['step'] == 150 and (tmp_path / 'said').read_text() == 'requeue 4711\n'


@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path):
    counts, wrong = chaos(3, 1, 0, tmp_path, say=lambda text: None)
    assert sum(counts.values()) == 3 and counts['inside a save'] >= 1 and not wrong
