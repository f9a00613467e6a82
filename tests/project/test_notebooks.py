"""The notebooks run from top to bottom, without a network, and show pictures."""
import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize('name, pictures, changes', [
    ('viz_spconv', 5, {}), pytest.param('viz_reconstruction', 5, {
        'STEPS = 300': 'STEPS = 30', 'train=960, val=48': 'train=64, val=8'}, marks=pytest.mark.slow)])
def test_a_notebook_runs(name, pictures, changes):
    nbformat = pytest.importorskip('nbformat', reason='pip install -r pretrain/requirements.txt')
    client = pytest.importorskip('nbclient', reason='pip install -r pretrain/requirements.txt')
    pytest.importorskip('ipykernel', reason='pip install -r pretrain/requirements.txt')
    notebook = nbformat.read(ROOT / f'pretrain/{name}.ipynb', as_version=4)
    for before, after in changes.items():  # smaller, so that it takes seconds
        assert sum(before in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(before, after)
    client.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(ROOT / 'pretrain')}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get('outputs', ()) if 'image/png' in output.get('data', {})]
    assert len(shown) == pictures
