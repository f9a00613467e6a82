"""GPUs are counted as torch counts them, without loading it where that is possible."""
import os

import pytest

from common import gpus

TWO = ['GPU 0: NVIDIA H100 (UUID: GPU-1)', 'GPU 1: NVIDIA H100 (UUID: GPU-2)']
IN_PARTS = [TWO[0], '  MIG 1g.10gb     Device  0: (UUID: MIG-3)']


@pytest.mark.parametrize(('listed', 'visible', 'number'), [
    (TWO, None, 2), (TWO, '1', 1), (TWO, '1,0', 2), (TWO, '', 0), (TWO, '0,5,1', 1), ([], None, 0), (TWO, ' 0 , 1 ', 2),
    (TWO, '-1', None), (TWO, 'GPU-1', None), (TWO, '0,0', None), (IN_PARTS, None, None), (IN_PARTS, '0', None),
])
def test_the_gpus_that_a_process_may_use(listed, visible, number):
    assert gpus.chosen(listed, visible) == number


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Makes a program nvidia-smi that prints lines and ends with a code; the only one on the path."""
    monkeypatch.setattr(gpus, 'torch_is_for_gpus', lambda: True)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def make(lines, code=0):
        path = tmp_path / 'nvidia-smi'
        path.write_text('#!/bin/sh\n' + ''.join(f'echo "{line}"\n' for line in lines) + f'exit {code}\n')
        path.chmod(0o755)
        monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    return make


@pytest.fixture
def from_torch(monkeypatch):
    """torch counts seven."""
    monkeypatch.setattr(gpus, 'torch_count', lambda: 7)


def test_the_driver_is_asked_before_torch(driver, from_torch, monkeypatch):
    driver(TWO)
    assert gpus.number_of_gpus() == 2
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    assert gpus.number_of_gpus() == 1


@pytest.mark.parametrize(('lines', 'code'), [(IN_PARTS, 0), (['No devices were found'], 6)])
def test_torch_is_asked_where_the_driver_does_not_say(lines, code, driver, from_torch):
    driver(lines, code)
    assert gpus.number_of_gpus() == 7


def test_without_a_driver_there_are_no_gpus(from_torch, monkeypatch):
    monkeypatch.setattr(gpus, 'torch_is_for_gpus', lambda: True)
    monkeypatch.setattr(gpus.shutil, 'which', lambda name: None)
    monkeypatch.setattr(gpus, 'DEVICES', ('/nowhere',))
    assert gpus.number_of_gpus() == 0
    monkeypatch.setattr(gpus, 'DEVICES', ('/nowhere', '/'))
    assert gpus.number_of_gpus() == 7


@pytest.mark.parametrize(('text', 'for_gpus'), [
    ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", True),
    ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", True),
    ("cuda = '12.1'\n", True), ('cuda: Optional[str] = None\nhip: Optional[str] = None\nxpu: Optional[str] = None\n', False),
    ("__version__ = '9'\n", True),
])
def test_a_torch_for_cpus_alone_sees_no_gpus(text, for_gpus, tmp_path, monkeypatch):
    (tmp_path / 'version.py').write_text(text)
    (tmp_path / '__init__.py').touch()
    monkeypatch.setattr(gpus.importlib.util, 'find_spec', lambda name: type('Spec', (), {'origin': tmp_path / '__init__.py'}))
    assert gpus.torch_is_for_gpus() is for_gpus
    if not for_gpus:
        assert gpus.number_of_gpus() == 0
