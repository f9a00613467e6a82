"""python -m analysis.fourier: several networks, resumed bit for bit, and mistakes answered in a sentence."""
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import measured
from analysis.blocks import each_map
from analysis.fourier import fourier, main
from analysis.images import drawn, find_images
from analysis.networks import asked, open_network
from analysis.spectra import log_amplitudes, relative, spatial_variances


@pytest.fixture
def options(pictures, tmp_path):
    return [f'--data_path={pictures}', '--input_size=32', '--crop=1', '--images=6', '--batch_size=4', '--workers=0',
            f'--out={tmp_path / "out"}']


def test_several_networks_in_one_figure(options, tuned, tmp_path, capsys):
    main(['your_convnet', f'your_convnet={tuned}', 'resnet18', '--names=a,b,c', *options])
    content = json.loads((tmp_path / 'out' / 'fourier.json').read_text())
    assert [one['legend'] for one in content['networks']] == ['a', 'b', 'c']
    assert [len(one['blocks']) for one in content['networks']] == [3, 3, 7]  # the last maps of resnet18 are of one position
    for network in content['networks']:
        assert network['images'] == 6 and all(block['relative_log_amplitude'][0] == 0 for block in network['blocks'])
        assert [network['blocks'][place]['depth'] for place in (0, -1)] == [0, 1]
    with Image.open(tmp_path / 'out' / 'fourier.png') as picture:
        assert picture.width == 3 * 560
    said = capsys.readouterr().out
    assert 'this takes about' in said and 'layer4.0, layer4.1 give no map' in said


def test_the_numbers_are_means_over_images(settings, tmp_path):
    """The image by image definition, with all maps in memory."""
    one = settings(images=5)
    content = fourier(asked(['your_convnet']), one, tmp_path, say=lambda text: None)
    cnn = open_network(asked(['your_convnet'])[0], one).module
    images = drawn(find_images(one), 5, 0)
    x = torch.stack([one.augmented(images)[0, place][0] for place in range(5)])
    maps = []
    each_map(cnn, x, ['stages.0', 'stages.1', 'stages.2'], lambda place, each: maps.append(each))
    for block, each in zip(content['networks'][0]['blocks'], maps):
        expected = relative(log_amplitudes(each).mean(0).tolist())
        assert block['relative_log_amplitude'] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert block['variance'] == pytest.approx(spatial_variances(each).mean().item(), rel=1e-5)


class Killed(BaseException):
    """Ends an analysis in the middle, as a kill would."""


def test_a_kill_in_the_middle_changes_nothing(options, tmp_path, monkeypatch):
    words = ['your_convnet', 'resnet18', *options]
    main([*words, f'--out={tmp_path / "whole"}'])
    monkeypatch.setattr(measured, 'SAVE_EVERY', 0)
    monkeypatch.setattr(measured.Measured, 'seconds_left', lambda *_: 0.0)
    batches, measure = [], measured.measure

    def killed_in_the_fourth(*arguments):
        batches.append(1)
        if len(batches) == 4:
            raise Killed
        return measure(*arguments)

    monkeypatch.setattr(measured, 'measure', killed_in_the_fourth)
    with pytest.raises(Killed):
        main(words)
    assert not (tmp_path / 'out' / 'fourier.json').exists()
    monkeypatch.setattr(measured, 'measure', lambda *arguments: batches.append(1) or measure(*arguments))
    main(words)
    assert len(batches) == 5  # two batches of each network, one of them begun twice
    one, other = ((tmp_path / name / 'fourier.json').read_text() for name in ('whole', 'out'))
    assert one == other
    main(words)
    assert len(batches) == 5  # nothing was left


def test_other_images_or_weights_are_measured_anew(options, tmp_path):
    def amplitudes(*more):
        main(['your_convnet', *options, *more])
        content = json.loads((tmp_path / 'out' / 'fourier.json').read_text())
        return [block['relative_log_amplitude'] for block in content['networks'][0]['blocks']]
    first = amplitudes()
    assert amplitudes('--seed=1') != first and amplitudes('--images=7') != first and amplitudes('--crop=0.9') != first
    assert amplitudes() == first


def test_unreadable_images_are_left_out(options, pictures, tmp_path, capsys):
    folder = tmp_path / 'some'
    folder.mkdir()
    for place in range(4):
        Image.fromarray(np.full((32, 32, 3), 40 * place, np.uint8)).save(folder / f'{place}.png')
    (folder / '9.png').write_bytes(b'no image')
    main(['your_convnet', *options, f'--data_path={folder}'])
    assert json.loads((tmp_path / 'out' / 'fourier.json').read_text())['networks'][0]['images'] == 4
    said = capsys.readouterr().out
    assert 'unreadable image' in said and 'there are 5 images, fewer than --images=6' in said


@pytest.mark.parametrize(('words', 'message'), [
    (['your_convnet', '--images=0'], '--images is 1 or more'),
    (['your_convnet', '--crop=2'], '--crop is more than 0'),
    (['your_convnet', '--data_path=nowhere'], 'there is no folder or list of images nowhere'),
    (['your_convnte'], 'no network is called "your_convnte".*your_convnet'),
    (['your_convnet=timm'], "timm's pretrained weights of your_convnet cannot be had"),
    (['resnet18', '--blocks=nothing*'], '--blocks=nothing.: no submodule of ResNet'),
    (['vit_tiny_patch16_224', '--input_size=8'], 'vit_tiny_patch16_224 cannot .* images of 8x8'),
    (['your_convnet', '--mean=0.5'], '--mean has one number for each channel'),
])
def test_mistakes_are_answered_in_one_sentence(words, message, options, tmp_path):
    with pytest.raises(SystemExit) as exit:
        main([*words[:1], *options, *words[1:]])
    assert str(exit.value.code).startswith('error: ')
    assert re.search(message, exit.value.code, re.DOTALL)


def test_a_damaged_file_of_results_is_named(options, tmp_path):
    main(['your_convnet', *options])
    kept = next((tmp_path / 'out' / 'kept').glob('*.json'))
    kept.write_text('{"looked_at"')
    with pytest.raises(SystemExit, match='remove it, and what it held is computed again'):
        main(['your_convnet', *options])


def test_values_that_are_not_finite_are_refused(options, tuned, tmp_path):
    content = torch.load(tuned, weights_only=True)
    content['model']['cnn.stages.1.bn2.weight'][0] = float('nan')
    torch.save(content, tmp_path / 'broken.pth')
    with pytest.raises(SystemExit, match='the map of stages.1 holds values that are not finite'):
        main([f'your_convnet={tmp_path / "broken.pth"}', *options])
