"""Mistakes of a command line, and --help, are answered without torch: here whatever imports it fails."""
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAMS = ('pretrain', 'downstream_imagenet', 'downstream_coco', 'downstream_ade20k')
HEAVY = ('torch', 'torchvision', 'timm', 'numpy')


@pytest.fixture(scope='module')
def without_torch(tmp_path_factory):
    """The environment of a process in which none of HEAVY can be imported."""
    folder = tmp_path_factory.mktemp('heavy')
    for name in HEAVY:
        (folder / f'{name}.py').write_text(f"raise RuntimeError('{name} is imported')\n")
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}


def started(program, words, environment, cwd, through):
    """The finished process of a program, started through its main.sh or by Python."""
    command = ['bash', str(ROOT / program / 'main.sh'), 'n', *words] if through == 'main.sh' else \
        [sys.executable, '-m', f'{program}.main', '--name=n', *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize('through', ['main.sh', 'python'])
@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize(('words', 'code', 'answer'), [
    (['--modle=resnet50'], 2, 'unknown flag --modle: did you mean --model'),
    (['--keep=-1'], 2, 'keep must be 1 or more'),
    (['--workers=many', '--ngpu_per_node=2'], 2, 'workers'),
    (['--data_path=nowhere'], 1, 'nowhere'),
])
def test_a_mistake_is_answered_without_torch(program, words, code, answer, through, without_torch, tmp_path):
    if through == 'python':
        words = [word for word in words if 'ngpu' not in word]
    done = started(program, words, without_torch, tmp_path, through)
    assert (done.returncode, done.stdout) == (code, '') and answer in done.stderr
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('through', ['main.sh', 'python'])
@pytest.mark.parametrize('program', PROGRAMS)
def test_help_is_printed_without_torch(program, through, without_torch, tmp_path):
    done = started(program, ['--help'], without_torch, tmp_path, through)
    assert done.returncode == 0 and done.stderr == ''
    assert ('--ngpu_per_node=N' in done.stdout) == (through == 'main.sh')
    parts = ['examples:', f'  bash {program}/main.sh', 'most used:', '\n  --model ', '\n  --batch_size ', 'optimisation:',
             '\n  --stall_minutes ']
    places = [done.stdout.index(part, done.stdout.index('examples:')) for part in parts]
    assert places == sorted(places)


def test_the_first_word_of_a_run_comes_before_torch(without_torch, tmp_path):
    (tmp_path / 'images').mkdir()
    for through in ('main.sh', 'python'):
        done = started('pretrain', ['--data_path=images'], without_torch, tmp_path, through)
        assert done.stdout == 'Starting: loading PyTorch ...\n' and 'is imported' in done.stderr


def test_what_is_needed_of_a_run_that_begins_is_looked_for(without_torch, tmp_path):
    (tmp_path / 'images').mkdir()
    line = ['--data_path=images', '--init=gone.pth']
    done = started('pretrain', line, without_torch, tmp_path, 'python')
    assert (done.returncode, done.stderr) == (1, 'error: there is no file gone.pth\n')
    (tmp_path / 'output_n').mkdir()  # such a run may go on, and does not read its first weights again
    assert 'Starting' in started('pretrain', line, without_torch, tmp_path, 'python').stdout
    done = started('pretrain', [*line, '--fresh'], without_torch, tmp_path, 'python')
    assert (done.returncode, done.stderr) == (1, 'error: there is no file gone.pth\n')
