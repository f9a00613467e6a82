"""Words of a command line arrive as they were given, and none of them runs."""
import json
import os
import re
import subprocess
import sys

import pytest

from common.cli import LAUNCHER
from tests.conftest import ROOT

SHELLS = [path for path in (*sorted(ROOT.rglob('*.sh')), ROOT / '.ci/run') if '.venv' not in str(path.relative_to(ROOT))]
HARMLESS = {'$#', '$?', '$$', '$!'}


def bare_expansions(text):
    """Expansions outside of double quotes in a shell script, where the shell would split and glob what they hold.

    Within single quotes nothing is expanded; nor is anything split in an assignment or in arithmetic.
    """
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", '', line)
        line = re.sub(r'\$\(\(.*?\)\)', '', line)  # arithmetic, of numbers that were checked before
        line = re.sub(r'"\$\(cd "\$\(dirname "\$\{BASH_SOURCE\[0\]\}"\)(/\.\.)?" && pwd\)"', '', line)
        while (changed := re.sub(r'\$\((?:[^()"\']|"[^"]*"|\'[^\']*\')*\)', '', line)) != line:
            for inner in re.findall(r'\$\(((?:[^()"\']|"[^"]*"|\'[^\']*\')*)\)', line):
                yield from ((number, found) for _, found in bare_expansions(inner))
            line = changed
        line = re.sub(r"'[^']*'", '', line)
        line = re.sub(r'\$\{\w+\[@\]\+("\$\{\w+\[@\]\}")\}', '', line)  # an empty array is unset for old shells; quoted within
        line = re.sub(r'"(?:\\.|[^"\\])*"', '', line)
        line = re.sub(r'(^|\s|;)\w+=\S*', ' ', line)
        for found in re.findall(r'\$\{[^}]*\}|\$[\w@*#?!$]', line):
            if found not in HARMLESS:
                yield number, found


@pytest.mark.parametrize('path', SHELLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_evaluate_nothing(path):
    text = path.read_text()
    code = re.sub(r'(?m)(^|\s)#.*$', '', text)
    assert not re.search(r'(^|[\s;&|(])(eval|source|\.)\s|\bbash -c\b|\bsh -c\b|`', code, re.MULTILINE)
    assert not list(bare_expansions(text))


@pytest.mark.parametrize('line', ['python -m $module', 'exec "$a" ${options[@]}', 'rm -rf $1', 'cd $(dirname $0)', 'a "b" $@'])
def test_the_scan_of_shells_sees(line):
    assert list(bare_expansions(line))


WORDS = ['--data_path=$(touch X)', '--a=`touch X`', '; touch X', 'two words', '--b=1\n2\ntouch X', '*', '--c=[a-z]*.?', '-n',
         '--d="quoted" \'too\'', '\\', '', '--e=${HOME}', '--f=~', '&& touch X', '| touch X', '> X', '--g=a\tb', '!!', '{1,2}']


@pytest.mark.parametrize('program', ['pretrain', 'downstream_imagenet', 'downstream_coco', 'downstream_ade20k'])
@pytest.mark.parametrize('name', ['$(touch X)', '`touch X`;touch X', 'a b\n*'])
@pytest.mark.parametrize('processes', [1, 2])
def test_words_arrive_as_they_were_given(program, name, processes, tmp_path):
    (tmp_path / 'a.py').touch()  # what a glob would find
    python = tmp_path / 'print words'
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, 'PYTHON': str(python)}
    done = subprocess.run(['bash', str(ROOT / program / 'main.sh'), name, f'--ngpu_per_node={processes}', *WORDS], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])  # before it the process that checks the options, and the launcher's own line
    assert got[got.index(f'{program}.main') + 1:] == [f'--name={name}', *WORDS]
    assert {path.name for path in tmp_path.iterdir()} == {'a.py', 'print words'}


def test_the_options_of_the_launcher_are_known_to_the_programs():
    """By them a program says what is meant where one of them is misspelt, or given to it."""
    text = (ROOT / 'common/launch.sh').read_text()
    assert set(re.findall(r'^    (--\w+)=\*\)', text, re.MULTILINE)) == set(LAUNCHER)


@pytest.mark.parametrize('words', [
    ['--ngpu_per_node=$(touch X)'], ['--ngpu_per_node=BASH_VERSINFO[$(touch X)0]'], ['--ngpu_per_node=1;touch X'],
    ['--num_nodes=BASH_VERSINFO[$(touch X)0]'], ['--master_port=`touch X`'], ['--node_rank', 'BASH_VERSINFO[$(touch X)0]'],
    ['--num_nodes=2', '--node_rank=0', '--master_address=$(touch X)', '--master_port=1 2']])
def test_numbers_of_the_launcher_are_no_programs(words, tmp_path):
    environment = {**os.environ, 'PYTHON': 'false'}
    environment.pop('OMP_NUM_THREADS', None)  # the launcher computes it from the numbers: shell arithmetic evaluates
    done = subprocess.run(['bash', str(ROOT / 'pretrain/main.sh'), 'n', *words], cwd=tmp_path, capture_output=True, text=True,
                          env=environment, timeout=600)
    assert done.returncode and not list(tmp_path.iterdir())
