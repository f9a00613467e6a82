"""The playground: what the page does, and the page itself in a browser."""
import io
import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pretrain import playground
from pretrain.playground import Mask, Playground, read_upload
from pretrain.saved import read_saved
from tests.conftest import ROOT
from tests.pretrain.runs import saved_run
from tests.pretrain.served import free_port, until_served


@pytest.fixture(scope='module')
def play(finished, tmp_path_factory):
    """The page of a run with cells of 8 px, 4 x 4, beside a network with cells of 32 px, 2 x 2."""
    return Playground([read_saved(finished), saved_run(tmp_path_factory.mktemp('other'), 'test_resnet')])


def visible_in(mask):
    return mask.is_visible.count(True)


def test_masks_by_ratio_and_by_click(play):
    assert [visible_in(play.draw(ratio, 0)) for ratio in (0, 0.6, 1)] == [15, 6, 1]
    assert play.draw(0.6, 0) == play.draw(0.6, 0) != play.draw(0.6, 1)
    mask = play.draw(0.6, 0)
    scale = playground.SIDE // 32
    turned = play.toggle(mask, 0, 3 * 8 * scale + 1, 2 * 8 * scale - 1)  # column 3, row 1
    assert [i for i in range(16) if turned.is_visible[i] != mask.is_visible[i]] == [7]
    assert play.toggle(turned, 0, 3 * 8 * scale + 1, 2 * 8 * scale - 1) == mask
    one = Mask(0, [i == 0 for i in range(16)])
    assert play.toggle(one, 0, 0, 0) == one  # the last visible cell stays


def test_masks_by_buttons(play):
    mask = play.draw(0.6, 0)
    assert [a != b for a, b in zip(play.invert(mask).is_visible, mask.is_visible)] == [True] * 16
    hidden, shown = play.all_but_one(False), play.all_but_one(True)
    assert visible_in(hidden) == 1 and hidden.is_visible[10] and shown == play.invert(hidden)


def test_a_click_into_the_picture_of_another_network(play):
    """The mask is then that network's, and the first one sees the same area."""
    mask = play.toggle(Mask(0, [i in (0, 1, 4, 5) for i in range(16)]), 1, playground.SIDE - 1, 1)
    assert mask == Mask(1, [True, True, False, False])
    assert play.visible(mask, 0).tolist() == [list(range(8))] and play.visible(mask, 1).tolist() == [[0, 1]]
    assert play.toggle(mask, 1, playground.SIDE - 1, 1) == Mask(1, [True, False, False, False])
    assert play.toggle(mask, 0, 1, 1) == Mask(0, [0 < i < 8 for i in range(16)])


def test_what_is_seen(play):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))
    looks = play.look(image, Mask(0, [i % 4 < 2 for i in range(16)]))
    assert len(looks) == 2
    pixels = np.asarray(looks[0].pictures['masked'])
    assert pixels[100, 300].tolist() == pixels[400, 420].tolist() != pixels[100, 20].tolist()
    for saved, look in zip(play.networks, looks):
        assert list(look.pictures) == ['image', 'masked', 'reconstruction', 'own', 'error']
        assert len(look.levels) == len(saved.network.encoder.reductions) and look.loss > 0
        assert all(picture.size == (448, 448) for picture in look.pictures.values())
        original = np.asarray(look.pictures['image'])
        assert np.array_equal(original[:, :224], np.asarray(look.pictures['reconstruction'])[:, :224])
        assert len(np.unique(original[:, 224:])) > 100
    error = np.asarray(looks[1].pictures['error'])
    assert not error[:, :224].any() and error[:, 224:].any()  # the mask is the left half on the other grid too


def test_each_network_shows_its_own_mask(play):
    """Beside a grid of 4 x 4 stands one of 2 x 2, of which a cell is visible if half of its area is."""
    image = Image.new('RGB', (64, 64), 'white')
    first, second = play.look(image, Mask(0, [i in (0, 1, 4, 5) for i in range(16)]))  # the upper left quarter
    assert (first.hidden, first.cells, second.hidden, second.cells) == (12, 16, 3, 4)
    first, second = play.look(image, Mask(0, [i % 2 == 0 for i in range(16)]))  # every other column
    assert (first.hidden, second.hidden) == (8, 1)

    def seen(look, cells):
        """For each cell, whether its middle is the white of the image."""
        masked = look.pictures['masked']
        side = masked.width // cells
        return [[masked.getpixel((side * x + side // 2 + 2, side * y + side // 2 + 2)) == (255, 255, 255)
                 for x in range(cells)] for y in range(cells)]
    assert seen(first, 4) == [[True, False] * 2] * 4
    assert sum(map(sum, seen(second, 2))) == 3


def photo(mode='RGB', size=(60, 40)):
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def claiming(path, width, height):
    """A small PNG that claims another size in its header."""
    file = io.BytesIO()
    photo().save(file, 'PNG')
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack('>II', width, height)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    path.write_bytes(content)


UNREADABLE = {
    'text.png': (lambda path: path.write_text('no image'), 'none of BMP, GIF'),
    'song.mp3': (lambda path: path.write_bytes(bytes(range(256)) * 9), 'none of BMP, GIF'),
    'empty.jpg': (lambda path: path.touch(), 'none of BMP, GIF'),
    'bomb.png': (lambda path: claiming(path, 60_000, 60_000), 'more than 67 million pixels'),
    'large.png': (lambda path: claiming(path, 9_000, 9_000), 'more than 67 million pixels'),
    'lies.png': (lambda path: claiming(path, 300, 300), 'OSError: '),
}


def write_cut(path, kind):
    whole = io.BytesIO()
    photo(size=(300, 200)).save(whole, kind)
    path.write_bytes(whole.getvalue()[:len(whole.getvalue()) // 2])


@pytest.mark.parametrize('name', UNREADABLE)
def test_an_upload_that_is_no_image(name, tmp_path):
    write, reason = UNREADABLE[name]
    write(tmp_path / name)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=reason):
        warnings.simplefilter('error')
        read_upload(tmp_path / name, Image.Image.copy)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP'])
def test_an_upload_that_is_cut_off(kind, tmp_path):
    write_cut(tmp_path / 'cut', kind)
    with pytest.raises(ValueError, match='^[A-Z]\\w+Error: |or damaged'):
        read_upload(tmp_path / 'cut', Image.Image.copy)


READABLE = {
    'one.png': lambda path: Image.new('RGB', (1, 1), 'red').save(path),
    'line.png': lambda path: photo(size=(3000, 1)).save(path),
    'sixteen.png': lambda path: Image.fromarray(np.full((40, 60), 40_000, dtype=np.uint16)).save(path),
    'cmyk.jpg': lambda path: photo('CMYK').save(path),
    'alpha.png': lambda path: photo('RGBA').save(path),
    'palette.png': lambda path: photo('P').save(path),
    'bits.png': lambda path: photo('1').save(path),
    'animated.gif': lambda path: photo('P').save(path, save_all=True, append_images=[photo('L')]),
    'animated.webp': lambda path: photo().save(path, save_all=True, append_images=[photo('1')]),
    'pages.tif': lambda path: photo().save(path, save_all=True, append_images=[photo('L')]),
}


@pytest.mark.parametrize('name', READABLE)
def test_an_upload_of_any_kind_is_looked_at_again_and_again(name, play, tmp_path):
    READABLE[name](tmp_path / name)
    image = play.opened(tmp_path / name)
    (tmp_path / name).unlink()  # every click looks at it
    looks = [play.look(image, play.draw(0.6, seed)) for seed in (0, 0, 1)]
    assert looks[0][0].loss == looks[1][0].loss and all(look.pictures['masked'].size == (448, 448) for look, _ in looks)


def test_an_upload_that_is_turned(play, tmp_path):
    tag = Image.Exif()
    tag[0x112] = 6
    photo(size=(60, 40)).save(tmp_path / 'turned.jpg', exif=tag)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / 'turned.jpg'))
    assert upright.size == (40, 60)
    assert all(torch.equal(seen, saved.prepare(upright))
               for seen, saved in zip(play.opened(tmp_path / 'turned.jpg'), play.networks, strict=True))


@pytest.fixture(scope='module')
def opened(play):
    """opened(file): {id of a part of the page: what an upload changes it to}, as the page's function says."""
    gr = pytest.importorskip('gradio', reason='pip install -r pretrain/requirements.txt')
    blocks, _ = playground.page(play)
    function, = (one for one in blocks.fns.values() if one.name == 'opened')
    names = [getattr(part, 'elem_id', None) or 'picture' for part in function.outputs]

    def upload(file):
        values = function.fn(str(file), play.draw(0.6, 0))
        assert len(values) == len(names)
        return dict(zip(names, values))
    upload.unchanged = gr.skip()
    return upload


def test_the_page_says_what_it_cannot_open_and_stays(opened, tmp_path):
    write_cut(tmp_path / 'photo *1*.jpg', 'JPEG')
    UNREADABLE['bomb.png'][0](tmp_path / 'bomb.png')
    for name, reason in (('photo *1*.jpg', 'truncated'), ('bomb.png', 'million pixels')):
        changes = opened(tmp_path / name)
        said = changes.pop('problem')
        assert 'is no image that can be read' in said and reason in said and 'is still here' in said
        assert all(value == opened.unchanged for value in changes.values())
    READABLE['cmyk.jpg'](tmp_path / 'cmyk.jpg')
    changes = opened(tmp_path / 'cmyk.jpg')
    assert changes['problem'] == '' and [image.shape[:2] for image in changes['picture']] == [(1, 3)] * 2
    assert changes['masked0'].size == (448, 448)


def test_the_page_has_the_mask_of_each_network(opened, tmp_path):
    READABLE['alpha.png'](tmp_path / 'a.png')
    changes = opened(tmp_path / 'a.png')
    assert '; 10 of 16 cells hidden' in changes['loss0'] and ' of 4 cells hidden' in changes['loss1']
    assert changes['masked1'].size == (448, 448) and changes['masked1'].tobytes() != changes['masked0'].tobytes()
    assert changes['image0'].size == changes['image1'].size == (448, 448)
    assert changes['levels0'].width > 2 * 224 and changes['levels0'].height > 224  # side by side


def test_an_emptied_or_a_huge_seed(play):
    assert play.draw(0.6, None) == play.draw(0.6, 0) and visible_in(play.draw(0.6, 1e30)) == 6


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


@pytest.fixture(scope='module')
def address(finished, tmp_path_factory):
    """A playground that is served as a user would."""
    pytest.importorskip('gradio', reason='pip install -r pretrain/requirements.txt')
    folder = tmp_path_factory.mktemp('served')
    port = free_port()
    log = folder / 'log.txt'
    command = [sys.executable, '-m', 'pretrain.playground', str(finished), str(finished), f'--port={port}']
    environment = {**os.environ, 'TMPDIR': str(folder)}  # what a server that is ended by a signal leaves behind
    with open(log, 'w') as file:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        until_served(port, server, log)
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        server.wait(600)


def test_the_page_in_a_browser(address, browser, tmp_path):
    from playwright.sync_api import expect
    page = browser.new_page(viewport={'width': 1280, 'height': 900})
    page.set_default_timeout(600_000)
    expect.set_options(timeout=600_000)
    outside = []
    page.on('request', lambda request: outside.append(request.url) if not request.url.startswith((address, 'data:', 'blob:'))
            else None)
    page.goto(address)
    loss = page.locator('#loss0')
    expect(loss).to_contain_text('10 of 16 cells hidden')
    for name in ('image0', 'masked0', 'reconstruction0', 'own0', 'error0', 'masked1', 'reconstruction1'):
        expect(page.locator(f'#{name} img').first).to_be_visible()

    before = loss.inner_text()
    picture = page.locator('#masked0 img').first
    source = picture.get_attribute('src')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(tmp_path / 'noise.png')
    page.locator('#file input[type=file]').set_input_files(tmp_path / 'noise.png')
    expect(loss).not_to_have_text(before)
    expect(picture).not_to_have_attribute('src', source)
    expect(page.locator('#loss1')).to_have_text(loss.inner_text())  # the same run twice

    def after(change):
        """Do something, and wait for the page that follows; the number of hidden cells."""
        before, source = loss.inner_text(), picture.get_attribute('src')
        change()
        expect(loss).not_to_have_text(before)
        expect(picture).not_to_have_attribute('src', source)
        return int(loss.inner_text().split('; ')[1].split(' of ')[0])

    def click(column, row, network=0):
        """Click into a masked picture; the number of hidden cells. Nothing may lie over the picture."""
        masked = page.locator(f'#masked{network} img').first
        box = masked.bounding_box()
        side = min(box['width'], box['height'])  # the picture is square, in the middle of its box
        place = {'x': (box['width'] - side) / 2 + side * column / 8, 'y': (box['height'] - side) / 2 + side * row / 8}
        return after(lambda: masked.click(position=place))
    assert click(1, 1) in (9, 11)
    assert [abs(click(3, row) - 10) for row in (1, 3, 1, 3)][-1] == 1  # each cell twice: as before
    assert click(1, 1, network=1) == 10

    assert after(page.locator('#invert').click) == 6
    assert after(page.locator('#hide').click) == 15 and after(page.locator('#show').click) == 1
    assert after(page.locator('#random').click) == 10
    expect(page.locator('#seed input')).to_have_value('1')

    slider = page.locator('#ratio input[type=range]')
    box = slider.bounding_box()
    slider.click(position={'x': box['width'] - 3, 'y': box['height'] / 2})
    expect(loss).to_contain_text('15 of 16 cells hidden')  # one stays visible

    before = loss.inner_text()
    (tmp_path / 'text.png').write_text('no image')
    page.get_by_label('Clear').first.click()
    page.locator('#file input[type=file]').set_input_files(tmp_path / 'text.png')
    problem = page.get_by_text('text.png is no image that can be read')
    expect(problem).to_be_visible()
    assert before in loss.inner_text() and not page.locator('.error').count()
    page.get_by_label('Clear').first.click()
    page.locator('#file input[type=file]').set_input_files(tmp_path / 'noise.png')
    expect(problem).to_be_hidden()

    page.set_viewport_size({'width': 390, 'height': 844})
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    boxes = [page.locator(f'#{name} img').first.bounding_box() for name in ('image0', 'masked0', 'reconstruction0')]
    assert boxes[0]['y'] == pytest.approx(boxes[1]['y'], abs=5) and boxes[0]['x'] + boxes[0]['width'] < boxes[1]['x']
    assert boxes[2]['y'] > boxes[0]['y'] + boxes[0]['height'] and all(box['width'] > 150 for box in boxes)
    assert not outside, f'the page asked for {outside}'
    page.close()
