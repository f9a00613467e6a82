"""The playground: what the page does, and the page itself in a browser."""
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from pretrain import playground
from pretrain.playground import Playground
from pretrain.saved import read_saved
from tests.conftest import ROOT
from tests.test_export import saved_run


@pytest.fixture(scope='module')
def play(finished, tmp_path_factory):
    """The page of a run with cells of 8 px, 4 x 4, beside a network with cells of 32 px, 2 x 2."""
    return Playground([read_saved(finished), saved_run(tmp_path_factory.mktemp('other'), 'test_resnet')])


def test_masks_by_ratio_and_by_click(play):
    assert play.draw(0.6, 0).count(True) == 6 and play.draw(0, 0).count(False) == 1 and play.draw(1, 0).count(True) == 1
    assert play.draw(0.6, 0) == play.draw(0.6, 0) != play.draw(0.6, 1)
    mask = play.draw(0.6, 0)
    scale = playground.SIDE // 32
    turned = play.toggle(mask, 3 * 8 * scale + 1, 2 * 8 * scale - 1)  # column 3, row 1
    assert [i for i in range(16) if turned[i] != mask[i]] == [7]
    assert play.toggle(turned, 3 * 8 * scale + 1, 2 * 8 * scale - 1) == mask
    one = [i == 0 for i in range(16)]
    assert play.toggle(one, 0, 0) == one  # the last visible cell stays


def test_what_is_seen(play):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))
    left = [i % 4 < 2 for i in range(16)]
    masked, results = play.look(image, left)
    assert masked.size == (448, 448) and len(results) == 2
    pixels = np.asarray(masked)
    assert pixels[100, 300].tolist() == pixels[400, 420].tolist() != pixels[100, 20].tolist()
    for saved, (*pictures, levels, loss) in zip(play.networks, results):
        assert len(levels) == len(saved.spark.encoder.reductions) and loss > 0
        assert all(picture.size[0] >= 400 for picture in pictures)
    error = np.asarray(results[1][2])
    assert not error[:, :224].any() and error[:, 224:].any()  # the mask is the left half on the other grid too


def test_an_emptied_or_a_huge_seed(play):
    assert play.draw(0.6, None) == play.draw(0.6, 0) and play.draw(0.6, 1e30).count(True) == 6


@pytest.mark.parametrize('host, port, message', [('127.0.0.1', 99999, '1 to 65535'), ('127.0.0.1', 0, '1 to 65535'),
                                                 ('no.such.host.invalid', 7860, '--host=no.such.host.invalid')])
def test_an_address_that_is_none(host, port, message):
    with pytest.raises(ValueError, match=message):
        playground.check_address(host, port)


def test_an_encoder_alone_cannot_play(finished):
    with pytest.raises(ValueError, match='without its decoder'):
        Playground([read_saved(finished / 'your_convnet_1kpretrained.pth')])


def test_a_port_in_use(finished):
    pytest.importorskip('gradio', reason='pip install -r pretrain/requirements.txt')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f'port {port} .*give another --port'):
            playground.main([str(finished), f'--port={port}'])


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def until_served(port, server, log):
    """Wait until a playground answers; fail with its log if it ends before."""
    for _ in range(240):
        try:
            urllib.request.urlopen(f'http://127.0.0.1:{port}', timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)


@pytest.fixture(scope='module')
def address(finished, tmp_path_factory):
    """A playground that is served as a user would."""
    pytest.importorskip('gradio', reason='pip install -r pretrain/requirements.txt')
    port, log = free_port(), tmp_path_factory.mktemp('log') / 'log.txt'
    with open(log, 'w') as file:
        server = subprocess.Popen([sys.executable, '-m', 'pretrain.playground', str(finished), str(finished), f'--port={port}'],
                                  cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        until_served(port, server, log)
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if program is None:
        pytest.skip('no Chromium on this machine: apt-get install chromium')
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=['--no-sandbox', '--disable-gpu',
                                                                             '--disable-background-networking'])
        yield chromium
        chromium.close()


def test_the_page_in_a_browser(address, browser, tmp_path):
    from playwright.sync_api import expect
    page = browser.new_page(viewport={'width': 1280, 'height': 900})
    page.set_default_timeout(120_000)
    expect.set_options(timeout=60_000)
    outside = []
    page.on('request', lambda request: outside.append(request.url) if not request.url.startswith((address, 'data:', 'blob:'))
            else None)
    page.goto(address)
    hidden, loss = page.locator('#hidden'), page.locator('#loss0')
    expect(hidden).to_contain_text('10 of 16 cells hidden')
    expect(loss).to_contain_text('loss on the hidden cells')
    for name in ('masked', 'reconstruction0', 'own0', 'error0', 'reconstruction1'):
        expect(page.locator(f'#{name} img').first).to_be_visible()

    def settled():  # no veil of progress over the page
        page.wait_for_function("!document.body.innerText.includes('loading') && !document.querySelector('.generating')")
        page.wait_for_timeout(1000)
        return loss.inner_text()
    before = settled()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(tmp_path / 'noise.png')
    page.locator('#file input[type=file]').set_input_files(tmp_path / 'noise.png')
    expect(loss).not_to_have_text(before)
    expect(page.locator('#loss1')).to_have_text(settled())  # the same run twice

    page.locator('#masked img').first.scroll_into_view_if_needed()
    box = page.locator('#masked img').first.bounding_box()
    side = min(box['width'], box['height'])  # the picture is square, in the middle of its box
    left, top = box['x'] + (box['width'] - side) / 2, box['y'] + (box['height'] - side) / 2
    page.mouse.click(left + side / 8, top + side / 8)
    expect(hidden).not_to_contain_text('10 of 16')
    assert hidden.inner_text() in ('9 of 16 cells hidden', '11 of 16 cells hidden')
    for row in (1, 3, 5):  # one after the other, without waiting: none is lost
        page.mouse.click(left + side * 3 / 8, top + side * row / 8)
    for row in (1, 3, 5):
        page.mouse.click(left + side * 3 / 8, top + side * row / 8)
    page.mouse.click(left + side / 8, top + side / 8)
    expect(hidden).to_contain_text('10 of 16')

    slider = page.locator('#ratio input[type=range]')
    box = slider.bounding_box()
    page.mouse.click(box['x'] + box['width'] - 3, box['y'] + box['height'] / 2)
    expect(hidden).to_contain_text('15 of 16 cells hidden')  # one stays visible

    before = loss.inner_text()
    (tmp_path / 'text.png').write_text('no image')
    page.get_by_label('Clear').first.click()
    page.locator('#file input[type=file]').set_input_files(tmp_path / 'text.png')
    expect(page.get_by_text('text.png is no image that can be read')).to_be_visible()
    assert before in loss.inner_text()
    assert not outside, f'the page asked for {outside}'
    page.close()
