"""Foreign names and texts: none shows as anything but text, or leads out of a folder."""
import json
import os
import re
import shutil
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import export, report
from pretrain.results.card import as_markdown, write_card
from pretrain.results.read_log import read_log
from pretrain.saved import read_saved
from tests.project.foreign import POSTSCRIPT, SECRET, ghostscript, png

SCRIPT = '<script>alert(1)</script>'
EVIL = (f'../../x{SCRIPT}\n---\nlicense: mit\n| a | ![](http://evil.example/a.png) [b](javascript:c) `d` '
        '</script><img src=x onerror=e>')


@pytest.fixture
def evil(finished, tmp_path):
    """A run whose log and checkpoint say evil things wherever there is a text."""
    folder = shutil.copytree(finished, tmp_path / 'runs' / 'output_evil')
    entries = [json.loads(line) for line in (folder / 'pretrain_log.txt').read_text().splitlines()]
    first, texts = entries[0], ('opt', 'init', 'data_path', 'val_path', 'run_dir', 'dataset', 'precision', 'levels')
    first.update(run=EVIL, commit=EVIL, machine=EVIL, precision=EVIL, time=EVIL, command=[EVIL, EVIL], ranks=EVIL,
                 versions={EVIL: EVIL})
    first['config'].update(dict.fromkeys(texts, EVIL), **{EVIL: EVIL}, weight_decay=EVIL)
    for entry in entries[1:]:
        entry.update({EVIL: EVIL, 'finish': EVIL, 'remaining': EVIL, 'unreadable': EVIL})
    (folder / 'pretrain_log.txt').write_text(''.join(json.dumps(entry) + '\n' for entry in (first, {**first}, *entries[1:])))
    content = torch.load(folder / 'your_convnet_still_pretraining.pth', weights_only=True)
    content['config'] |= {'name': EVIL, 'run_dir': EVIL, 'data_path': EVIL, 'model': 'your_convnet.<script>alert(1)\n---\n|a|'}
    torch.save(content, folder / 'your_convnet_still_pretraining.pth')
    return folder


def test_a_report_shows_texts_as_texts(evil, tmp_path):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    twin = shutil.copytree(evil, tmp_path / f'runs/{SCRIPT.replace("/", "")}')
    text = report.report([evil, twin], tmp_path / 'report.html').read_text()
    assert 'alert(1)' in text and '<script>alert' not in text and '<img src=x' not in text and '\\u003cscript' not in text
    assert '<a href' not in re.sub(r'<script.*?</script>', '', text, flags=re.DOTALL)
    assert text.count('</script>') == text.count('<script')  # none ends early
    assert text.count('../../x&lt;script&gt;alert(1)&lt;/script&gt;') > 10


@pytest.mark.parametrize('changes', [{'epoch': SCRIPT}, {'loss': SCRIPT}, {'lr': [1]}, {'seconds': {}}, {'step': SCRIPT},
                                     {'epoch': None}, {'val_loss': SCRIPT}])
def test_a_log_with_texts_for_numbers_is_none(finished, tmp_path, changes):
    lines = (finished / 'pretrain_log.txt').read_text().splitlines(keepends=True)
    (tmp_path / 'pretrain_log.txt').write_text(''.join(lines) + json.dumps({**json.loads(lines[-1]), **changes}) + '\n')
    with pytest.raises(ValueError, match='is not the log of a pretraining run'):
        read_log(tmp_path)


@pytest.mark.parametrize('changes', [{'versions': 'x'}, {'command': 7}, {'commit': 7}])
def test_a_log_of_other_kinds_of_values_is_one_sentence(finished, tmp_path, changes):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    lines = (finished / 'pretrain_log.txt').read_text().splitlines(keepends=True)
    (tmp_path / 'pretrain_log.txt').write_text(json.dumps({**json.loads(lines[0]), **changes}) + '\n' + ''.join(lines[1:]))
    with pytest.raises(SystemExit, match='error: .*not as this program writes it'):
        report.main([str(tmp_path), f'--out={tmp_path / "report.html"}'])


@pytest.mark.parametrize('write', [lambda path: path.write_text(SECRET), lambda path: path.symlink_to('/etc/passwd'),
                                   lambda path: path.write_bytes(POSTSCRIPT),
                                   lambda path: path.write_bytes(png('red')[:60]),
                                   lambda path: path.write_bytes(png('red', (60_000, 60_000)))],
                         ids=['text', 'link', 'postscript', 'cut', 'bomb'])
def test_pictures_of_a_foreign_run_are_pictures(finished, tmp_path, monkeypatch, write):
    for module in ('plotly', 'matplotlib'):
        pytest.importorskip(module, reason='pip install -r pretrain/requirements.txt')
    folder = shutil.copytree(finished, tmp_path / 'run')
    (folder / 'reconstructions/epoch_0002.png').unlink()
    write(folder / 'reconstructions/epoch_0002.png')
    ghostscript(tmp_path / 'bin')
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    monkeypatch.setattr('PIL.EpsImagePlugin.gs_binary', None)  # not looked for yet
    with pytest.raises(SystemExit, match='error: .*epoch_0002.png is no picture that can be read'):
        report.main([str(folder), f'--out={tmp_path / "report.html"}'])
    (tmp_path / 'card').mkdir()
    with pytest.raises(ValueError, match='epoch_0002.png is no picture that can be read'):
        write_card(read_saved(folder), tmp_path / 'card')
    assert not (tmp_path / 'report.html').exists() and not (tmp_path / 'card/reconstructions.png').exists()
    assert not (tmp_path / 'bin/was_called').exists()


def test_a_card_shows_texts_as_texts(evil, tmp_path):
    pytest.importorskip('matplotlib')
    write_card(read_saved(evil), tmp_path, 'cc-by-4.0')
    card = (tmp_path / 'README.md').read_text()
    front, _, rest = card.removeprefix('---\n').partition('\n---\n')
    assert front.splitlines()[0] == 'license: cc-by-4.0' and front.count('license') == 1 and len(front.splitlines()) == 4
    assert '\n---\n' not in rest.replace('\n|---|---|\n', '') and '\nlicense' not in rest
    assert 'alert(1)' in rest and not re.search(r'(?<!\\)<|(?<!\\)!\[\]|(?<!\\)\]\(javascript', rest)
    assert all(len(re.findall(r'(?<!\\)\|', line)) == 3 for line in rest.splitlines() if line.startswith('|'))


def test_texts_as_markdown():
    assert as_markdown('a\n b|c') == r'a b\|c' and as_markdown(SCRIPT) == r'\<script\>alert(1)\</script\>'
    assert as_markdown('your_convnet, strides 2, 4') == 'your_convnet, strides 2, 4' and as_markdown(0.5) == '0.5'


@pytest.mark.parametrize('licence', ['mit\nextra: yes', 'mit # a', '[mit]', 'mit: x', '&a', '-', 'm it', 'mit\n'])
def test_a_licence_is_an_identifier(finished, tmp_path, licence):
    with pytest.raises(ValueError, match='--licence is an identifier'):
        write_card(read_saved(finished), tmp_path, licence)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('to', ['timm', 'mmdet', 'hf', 'official'])
def test_exports_stay_in_their_folder(evil, tmp_path, to):
    before = {path for path in tmp_path.rglob('*') if 'out' not in path.relative_to(tmp_path).parts[:1]}
    try:
        export.main([str(evil), f'--to={to}', f'--out={tmp_path / "out"}'])
    except SystemExit as stop:
        assert str(stop.code).startswith('error: ')
    else:
        assert {path.name for path in (tmp_path / 'out').iterdir()} == {f'your_convnet_{to}.safetensors'}
    assert {path for path in tmp_path.rglob('*') if 'out' not in path.relative_to(tmp_path).parts[:1]} == before


@pytest.mark.parametrize('name', ['../../escaped', '/tmp/escaped', 'your_convnet/../../escaped', 'hf-hub:a/b', 'local-dir:/tmp',
                                  '', '.', f'{SCRIPT}'])
def test_a_name_that_is_no_network_s_is_refused(finished, tmp_path, name):
    content = torch.load(finished / 'your_convnet_still_pretraining.pth', weights_only=True)
    content['config']['model'] = name
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(SystemExit, match='error: no network is called|error: model cannot be'):
        export.main([str(tmp_path / 'w.pth'), '--to=timm', f'--out={tmp_path / "out"}'])
    assert not (tmp_path / 'out').exists()


def test_images_of_any_name_stay_in_the_folder_of_the_output(finished, tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('$(touch X).png', 'a;b.png', 'x..png', f'{SCRIPT.replace("/", "")}.png', 'a\nb.png', '%2e%2e%2fup.png'):
        Image.new('RGB', (40, 40)).save(tmp_path / 'in' / name)
    saved, before = read_saved(finished), {path.name for path in tmp_path.iterdir()}
    import_module('pretrain.reconstruct').reconstruct(saved, [tmp_path / 'in'], tmp_path / 'out', say=lambda text: None)
    import_module('pretrain.features').features(saved, [tmp_path / 'in'], tmp_path / 'out', say=lambda text: None)
    assert {path.name for path in tmp_path.iterdir()} == before | {'out'}
    assert len(list((tmp_path / 'out').iterdir())) == 6 * 3 + 1 + 6 + 1
    assert len(np.load(tmp_path / 'out/pooled.npz')['names']) == 6  # texts, without pickles
