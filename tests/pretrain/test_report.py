"""The report on runs: one page that needs no network, true to the logs."""
import json
import shutil

import pytest

from pretrain import report
from pretrain.results.read_log import read_log


@pytest.fixture(scope='module')
def page(finished, tmp_path_factory):
    """The page of a run and of its twin with other options, restarted, with energy measured and a name to be escaped."""
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    other = tmp_path_factory.mktemp('runs') / 'output_other'
    shutil.copytree(finished, other)
    entries = [json.loads(line) for line in (other / 'pretrain_log.txt').read_text().splitlines()]
    entries[0]['run'], entries[0]['config']['mask_ratio'] = '<b>other</b>', 0.75
    for entry in entries[1:]:
        if entry.get('gpu_kwh', 0) is None:
            entry['gpu_kwh'] = 0.25
    entries.insert(3, {**entries[0], 'step': 5, 'time': '2026-01-02 03:04'})
    (other / 'pretrain_log.txt').write_text(''.join(json.dumps(entry) + '\n' for entry in entries) + '{"epoch": 3, "los')
    return report.report([finished, other], other.parent / 'report.html')


def test_the_page_lies_beside_the_run(finished, tmp_path, monkeypatch, capsys):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    for name in ('a/output_one', 'a/output_two'):
        shutil.copytree(finished, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    report.main(['a/output_one'])
    report.main(['a/output_one', 'a/output_two'])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith('a/output_one/report.html') and said[1].startswith('a/report.html')
    assert (tmp_path / 'a/output_one/report.html').exists() and (tmp_path / 'a/report.html').exists()


def test_what_the_page_says(page, finished):
    text, log = page.read_text(), read_log(finished)
    assert f'<td>{log.epochs[-1]["loss"]:.4f}</td>' in text and f'<td>{log.epochs[-1]["val_loss"]:.4f}</td>' in text
    assert '<td>not measured</td><td>0.50 kWh</td>' in text
    assert '<th>starts</th><td>1</td><td>2</td>' in text and '2026-01-02 03:04' in text
    assert '<tr><th>mask_ratio</th><td>0.6</td><td>0.75</td></tr>' in text.split('class="differing"')[1].split('</table>')[0]
    assert '&lt;b&gt;other&lt;/b&gt;' in text and '<th><b>other' not in text
    shown = text.split('<h2>Reconstructions')[1]
    assert shown.count('data:image/jpeg;base64') == 2 * 3  # two epochs, and the one that is shown first, of each run


def test_nothing_is_fetched_from_a_network_and_the_slider_slides(page, browser):
    for width in (1280, 390):
        tab = browser.new_page(viewport={'width': width, 'height': 844})
        asked, wrong = [], []
        tab.on('request', lambda request, asked=asked: asked.append(request.url))
        tab.on('pageerror', lambda error, wrong=wrong: wrong.append(str(error)))
        tab.goto(page.as_uri())
        tab.wait_for_selector('.main-svg')
        assert not [url for url in asked if not url.startswith(('file:', 'data:', 'blob:'))] and not wrong
        assert tab.evaluate('document.documentElement.scrollWidth') <= width  # nothing hangs over the edge of a phone
        assert tab.locator('.js-plotly-plot').count() == 4
        box = tab.locator('#picture0').bounding_box()
        assert 0.8 * min(width, 1200) < box['x'] + box['width'] <= width and box['height'] < 844
        picture = tab.locator('#picture0').get_attribute('src')
        tab.locator('#slider0').fill('0')
        assert tab.locator('#epoch0').inner_text() == '1' and tab.locator('#picture0').get_attribute('src') != picture
        tab.close()


def test_pictures_of_a_long_run_are_thinned_out(finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'long')
    for epoch in range(3, 60):
        shutil.copy(finished / 'reconstructions/epoch_0001.png', tmp_path / f'long/reconstructions/epoch_{epoch:04}.png')
    (tmp_path / 'long/reconstructions/epoch_best.png').write_text('not of ours')
    text = report.pictures(read_log(tmp_path / 'long'), 'long', 0, 'normalised')
    assert text.count('"epoch": ') == report.MAX_PICTURES
    assert '"epoch": 1,' in text and '"epoch": 59,' in text


@pytest.mark.parametrize('content, message', [(None, 'no pretrain_log.txt'), ('', 'not the log'), ('{"a": 1}\n', 'not the log'),
                                              ('[1]\n', 'not the log'), ('no json\n', 'not the log'),
                                              ('{"run": "x"}\n', 'not the log'),
                                              ('{"run": "x", "config": {}}\n', 'not the log')])
def test_what_is_no_run(tmp_path, content, message):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    if content is not None:
        (tmp_path / 'pretrain_log.txt').write_text(content)
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path), f'--out={tmp_path / "report.html"}'])
    assert message in str(stop.value) and not (tmp_path / 'report.html').exists()


def test_a_run_that_has_just_begun(finished, tmp_path):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    first = (finished / 'pretrain_log.txt').read_text().splitlines(keepends=True)[0]
    (tmp_path / 'pretrain_log.txt').write_text(first)
    assert '0 of 2' in report.report([tmp_path], tmp_path / 'report.html').read_text()
