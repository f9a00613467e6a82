"""Benchmarks of a step run to their end, on a small network: their numbers are for people to look at."""
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize('benchmark', ['encoder', 'profile', 'step'])
def test_a_benchmark_gives_numbers(benchmark):
    done = subprocess.run([sys.executable, '-m', f'benchmarks.{benchmark}', 'test_resnet', '--batch=2', '--input_size=64',
                           '--rounds=1'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'test_resnet' in done.stdout and 'nan' not in done.stdout
