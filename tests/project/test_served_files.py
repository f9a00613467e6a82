"""The playground serves and reads no file that was not uploaded to it."""
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain import playground
from tests.conftest import ROOT
from tests.pretrain.served import free_port, until_served
from tests.project.foreign import POSTSCRIPT, SECRET, ghostscript, png


@pytest.fixture(scope='module')
def served(finished, tmp_path_factory):
    """(address, folder): a playground, and a folder with secrets wherever gradio looks by itself; it works in cwd/."""
    pytest.importorskip('gradio', reason='pip install -r pretrain/requirements.txt')
    folder, port = tmp_path_factory.mktemp('served'), free_port()
    run = shutil.copytree(finished, folder / 'cwd/output_tiny')
    (run / 'notes.txt').write_text(SECRET)
    for place in ('cwd', 'cwd/.gradio/cached_examples', 'tmp/gradio', 'allowed'):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / 'secret.txt').write_text(SECRET)
        Image.new('RGB', (40, 40), 'red').save(folder / place / 'secret.png')
    ghostscript(folder / 'bin')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'TMPDIR': str(folder / 'tmp'),
                   'PATH': f'{folder / "bin"}:{os.environ["PATH"]}',
                   'GRADIO_ALLOWED_PATHS': str(folder / 'allowed'), 'GRADIO_SERVER_NAME': '0.0.0.0'}
    environment.pop('GRADIO_TEMP_DIR', None)
    with open(folder / 'log.txt', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'pretrain.playground', 'output_tiny', f'--port={port}'],
                                  cwd=folder / 'cwd', env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        until_served(port, server, folder / 'log.txt')
        yield f'http://127.0.0.1:{port}', folder
    finally:
        server.terminate()
        server.wait(600)


def asked(address, path, content=None, kind='application/json'):
    """(status, body) of a request; what the address answers to a path that stays as it is written."""
    request = urllib.request.Request(address + path, content, {'Content-Type': kind} if content is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def called(address, api, *data, route='call'):
    """What the page's function of this name makes of some values that come from outside."""
    status, body = asked(address, f'/gradio_api/{route}/{api}', json.dumps({'data': data, 'session_hash': 'test'}).encode())
    if status != 200 or route != 'call':
        return body.decode()
    return asked(address, f'/gradio_api/call/{api}/{json.loads(body)["event_id"]}')[1].decode()


def as_file(path, **more):
    return {'path': str(path), 'meta': {'_type': 'gradio.FileData'}, **more}


def uploaded(address, name, content):
    """The path that the server gives to an uploaded file."""
    head = f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    body = head.encode() + content + b'\r\n--cut--\r\n'
    status, answer = asked(address, '/gradio_api/upload', body, 'multipart/form-data; boundary=cut')
    assert status == 200, answer
    return json.loads(answer)[0]


def test_the_playground_serves_no_files(served):
    address, folder = served
    files = ['/etc/passwd', '../../../../../../../../etc/passwd', 'secret.txt', './secret.txt', '../cwd/secret.txt',
             '.gradio/cached_examples/secret.txt', folder / 'cwd/.gradio/cached_examples/secret.txt',
             folder / 'cwd/secret.txt', folder / 'tmp/gradio/secret.txt', folder / 'allowed/secret.txt', folder / 'log.txt',
             'output_tiny/notes.txt', folder / 'cwd/output_tiny/notes.txt', 'output_tiny/your_convnet_still_pretraining.pth',
             folder / 'cwd/output_tiny/your_convnet_1kpretrained.pth', ROOT / 'pretrain/playground.py', ROOT / 'README.md',
             '/proc/self/environ', '/proc/self/cwd/secret.txt', f'file://{folder}/cwd/secret.txt', f'{address}/config']
    for file in files:
        for written in (str(file), urllib.parse.quote(str(file), safe=''), urllib.parse.quote(str(file)).replace('.', '%2e')):
            for route in ('/gradio_api/file=', '/gradio_api/file/', '/file=', '/static/', '/assets/', '/gradio_api/proxy=',
                          '/svelte/', '/gradio_api/custom_component/1/client/component/'):
                status, body = asked(address, route + written)
                assert status >= 400 and SECRET.encode() not in body and b'root:' not in body, (route, written, status)
    for path in ('/monitoring', '/monitoring/summary', '/gradio_api/runs', '/gradio_api/vibe-code'):
        assert asked(address, path)[0] >= 400, path


def test_the_playground_reads_no_image_that_was_not_uploaded(served):
    address, folder = served
    files = [folder / 'cwd/secret.png', 'secret.png', './secret.png', '../cwd/secret.png', folder / 'tmp/gradio/secret.png',
             folder / 'allowed/secret.png', folder / 'cwd/.gradio/cached_examples/secret.png',
             'output_tiny/reconstructions/epoch_0001.png', f'file://{folder}/cwd/secret.png', ROOT / 'docs/playground.png',
             f'{address}/static/img/logo.svg', '/etc/passwd']
    for file in files:
        for given in (as_file(file), as_file(file, url=f'file://{file}', orig_name='a.png'), [as_file(file)], str(file),
                      {'path': str(file)}):
            for route in ('call', 'run', 'api'):
                said = called(address, 'opened', given, route=route)
                assert 'image.png' not in said and SECRET not in said and 'event: complete' not in said, (file, route, said)
    secret, picture = uploaded(address, 'a.png', png('red')), uploaded(address, 'a.png', png('blue'))
    assert secret != picture
    said = called(address, 'opened', as_file(picture))  # what was uploaded is read
    assert 'event: complete' in said and 'loss on the hidden cells' in said
    shown = json.loads(said.partition('data: ')[2].splitlines()[0])[1]['url']
    status, body = asked(address, shown.removeprefix(address))
    colour = np.asarray(Image.open(io.BytesIO(body)).convert('RGB')).reshape(-1, 3).mean(0)
    assert status == 200 and colour[2] > colour[0] + 20


def test_what_is_uploaded_stays_in_a_folder_that_no_other_program_has(served):
    address, folder = served
    before = {path for path in folder.rglob('*') if 'tmp/playground' not in str(path)}
    paths = [Path(uploaded(address, name, png('green'))) for name in (
        'a.png', '../../../escaped.png', f'{folder}/cwd/escaped.png', '..%2f..%2fescaped.png', '$(touch X).png', 'a;b`c`.png')]
    for path in paths:
        own, = (folder / 'tmp').glob('playground*')
        assert path.resolve().is_relative_to(own) and own.stat().st_mode & 0o77 == 0 and path.is_file()
    assert {path for path in folder.rglob('*') if 'tmp/playground' not in str(path)} == before
    said = called(address, 'opened', as_file(uploaded(address, 'a.png', POSTSCRIPT)))
    assert 'is no image that can be read' in said and 'image.png' not in said
    assert not (folder / 'bin/was_called').exists()


def test_the_playground_is_on_this_machine_alone(served, finished, monkeypatch):
    address, _ = served
    with pytest.raises(OSError), socket.create_connection(('127.0.0.2', int(address.rpartition(':')[2])), 5):
        pass  # a server on all addresses is on this one too
    gradio, told = pytest.importorskip('gradio'), []
    monkeypatch.setattr(gradio.Blocks, 'launch', lambda self, **given: told.append(given))
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    for words in ([], ['--host=0.0.0.0']):
        playground.main([str(finished), f'--port={free_port()}', *words])
    assert [given['server_name'] for given in told] == ['127.0.0.1', '0.0.0.0']
    assert all(given['share'] is False and not {'allowed_paths', 'auth'} & given.keys() for given in told)
