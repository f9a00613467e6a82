"""Benchmarks of a step run to their end, on a small network: their numbers are for people to look at."""
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def said_by(benchmark, *arguments):
    """What a benchmark writes, on two images of 64 px."""
    command = [sys.executable, '-m', f'benchmarks.{benchmark}', *arguments, '--batch=2', '--input_size=64', '--rounds=1']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('benchmark', ['encoder', 'profile', 'step'])
def test_a_benchmark_gives_numbers(benchmark):
    said = said_by(benchmark, 'test_resnet')
    assert 'test_resnet' in said and 'nan' not in said


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'model'), [
    ('a2mim', 'test_resnet'), ('convmae', 'convvit_small'), ('mae', 'vit_tiny_patch16_224')])
def test_steps_of_other_methods_are_timed(method, model):
    said = said_by('step', model, '--mask_ratio=0.75', '--cases', method, 'supervised')
    assert f'images/s: {method} ' in said and f'time of {method}: ' in said and 'nan' not in said
