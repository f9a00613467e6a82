"""What a program says while it starts."""
import os
import subprocess
import sys
import threading

import pytest

from common import start
from tests.conftest import ROOT


def test_only_the_first_process_speaks(monkeypatch, capsys):
    start.say('one')
    monkeypatch.setenv('RANK', '0')
    start.say('two')
    monkeypatch.setenv('RANK', '1')
    start.say('three')
    assert capsys.readouterr().out == 'one\ntwo\n'


def test_loading_is_told_of_where_torch_is_not_loaded(monkeypatch, capsys):
    start.say_loading()
    assert capsys.readouterr().out == ''
    monkeypatch.delitem(sys.modules, 'torch')
    start.say_loading()
    assert capsys.readouterr().out == 'Starting: loading PyTorch ...\n'


@pytest.fixture
def said(monkeypatch):
    """The texts that are said; said.one is an Event that is set by the first of them."""
    class Said(list):
        one = threading.Event()

    texts = Said()
    monkeypatch.setattr(start, 'say', lambda text: (texts.append(text), texts.one.set()))
    return texts


def test_what_takes_long_is_told_while_it_lasts(said, monkeypatch):
    monkeypatch.setattr(start, 'PATIENCE', 0.0)
    with start.said_if_long('Building resnet50'):
        assert said.one.wait(60)
    assert said == ['Building resnet50 ...']


def test_what_is_done_at_once_is_not_told(said, monkeypatch):
    monkeypatch.setattr(start, 'PATIENCE', 3600.0)
    with start.said_if_long('Building resnet50'):
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(60)
    assert timers and not any(timer.is_alive() for timer in timers) and said == []


def test_an_error_ends_the_waiting_too(said, monkeypatch):
    monkeypatch.setattr(start, 'PATIENCE', 3600.0)
    with pytest.raises(ValueError, match='no network'), start.said_if_long('Building resnet50'):
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        raise ValueError('no network')
    for timer in timers:
        timer.join(60)
    assert not any(timer.is_alive() for timer in timers)


TOOLS = [path for folder in ('pretrain', 'downstream_imagenet', 'downstream_coco') for path in (ROOT / folder).glob('*.py')
         if 'start_tool()' in path.read_text(encoding='utf-8')]


@pytest.mark.parametrize('path', TOOLS, ids=lambda path: path.stem)
def test_a_tool_speaks_before_it_loads_torch(path, tmp_path):
    """torch cannot be imported here; what comes before it is said on stderr, since stdout may be the tool's result."""
    (tmp_path / 'torch.py').write_text("raise SystemExit('torch is imported')")
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, '-m', f'{path.parent.name}.{path.stem}', '--help'], env=environment, cwd=tmp_path,
                          capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('', 'Starting: loading PyTorch ...\ntorch is imported\n')
