"""python -m analysis.interaction: several classifiers, resumed bit for bit, and mistakes answered in a sentence."""
import json
import re

import pytest
import torch
from PIL import Image

from analysis import classified
from analysis.game import Game, finest_grid
from analysis.interaction import interaction, main
from analysis.networks import asked, open_classifier
from analysis.orders import draw_contexts, draw_pairs, log_odds, masked, pair_interactions
from tests.analysis.conftest import write_tuned

FEW = ['--pairs=3', '--contexts=2', '--grid=4']


@pytest.fixture
def options(pictures, tmp_path):
    return [f'--data_path={pictures}', '--input_size=32', '--crop=1', '--images=3', '--batch_size=16', '--workers=0',
            f'--out={tmp_path / "out"}', *FEW]


@pytest.fixture
def other(tmp_path):
    return write_tuned(tmp_path / 'other_1kfinetuned_best.pth', seed=2)


def test_several_networks_in_one_figure(options, tuned, other, tmp_path, capsys):
    main([f'your_convnet={tuned}', f'your_convnet={other}', '--names=a,b', *options])
    content = json.loads((tmp_path / 'out' / 'interaction.json').read_text())
    assert content['orders'] == [0, 1, 2, 4, 5, 7, 8, 9, 11, 12, 13, 14] and content['reward'] == 'log_odds'
    one, two = content['networks']
    assert (one['legend'], two['legend']) == ('a', 'b') and one['strength'] != two['strength']
    assert [image['name'] for image in one['images']] == [image['name'] for image in two['images']]
    for network in (one, two):
        assert sum(network['strength']) / len(network['strength']) == pytest.approx(1)
        assert len(network['images']) == 3 and min(network['standard_error']) > 0
    with Image.open(tmp_path / 'out' / 'interaction.png') as picture:
        assert picture.width == 560
    assert 'this takes about' in capsys.readouterr().out


def test_the_numbers_are_those_of_the_definition(settings, tuned, tmp_path):
    one, game = settings(images=2), Game((4, 4), 3, 2)
    content = interaction(asked([f'your_convnet={tuned}']), one, game, tmp_path, say=lambda text: None)
    module = open_classifier(asked([f'your_convnet={tuned}'])[0], one).module
    image = content['networks'][0]['images'][1]
    with Image.open(tmp_path.parent / one.data_path / 'val' / image['name']) as opened:
        x = one.augmented([opened.convert('RGB')])[0, 0][0]
    pairs = draw_pairs((4, 4), 3, 0, image['name'])
    contexts = draw_contexts(16, pairs, 7, 2, 0, image['name'])
    with torch.no_grad():
        found = pair_interactions(lambda visible: log_odds(module(masked(x, visible, (4, 4))), image['class']),
                                  16, pairs, contexts)
    assert image['interactions'][5] == pytest.approx(found.tolist(), rel=1e-3, abs=1e-5)


class Killed(BaseException):
    """Ends an analysis in the middle, as a kill would."""


def test_a_kill_in_the_middle_changes_nothing(options, tuned, tmp_path, monkeypatch):
    words = [f'your_convnet={tuned}', *options]
    main([*words, f'--out={tmp_path / "whole"}'])
    monkeypatch.setattr(classified, 'SAVE_EVERY', 0)
    of_order, done = classified.Classified.of_order, []

    def killed_in_the_second_image(self, image, place, order, count=None):
        if len(done) == 12 + 4:
            raise Killed
        done.append(order)
        return of_order(self, image, place, order, count)

    monkeypatch.setattr(classified.Classified, 'of_order', killed_in_the_second_image)
    with pytest.raises(Killed):
        main(words)
    done.clear()
    monkeypatch.setattr(classified.Classified, 'of_order', lambda self, image, place, order, count=None:
                        done.append(order) or of_order(self, image, place, order, count))
    main(words)
    assert len(done) == 3 * 12 - 12 - 4  # nothing is done twice
    one, two = ((tmp_path / name / 'interaction.json').read_text() for name in ('whole', 'out'))
    assert one == two


def test_more_images_keep_what_the_first_ones_gave(options, tuned, tmp_path):
    def images(number):
        main([f'your_convnet={tuned}', *options, f'--images={number}'])
        return json.loads((tmp_path / 'out' / 'interaction.json').read_text())['networks'][0]['images']
    few = images(2)
    assert images(4)[:2] == few
    assert len({image['class'] for image in images(4)}) == 4  # evenly from the classes


def test_classes_are_counted_in_all_folders(options, tuned, tmp_path):
    """A file that does not name its classes: their order is that of all folders, though 3 images are of 3 of them."""
    content = torch.load(tuned, weights_only=True)
    del content['classes']
    torch.save(content, tmp_path / 'unnamed.pth')
    found = []
    for source in (tuned, tmp_path / 'unnamed.pth'):
        main([f'your_convnet={source}', *options])
        content = json.loads((tmp_path / 'out' / 'interaction.json').read_text())
        found.append(content['networks'][0]['images'])
    assert found[0] == found[1] and len({image['class'] for image in found[0]}) == 3


def test_an_unreadable_image_is_left_out(pictures, tuned, options, tmp_path, capsys):
    for label in ('arrow_waves', 'bar_stripes'):
        (tmp_path / 'some' / label).mkdir(parents=True)
    (tmp_path / 'some' / 'arrow_waves' / '0.png').write_bytes(b'no image')
    source = next((pictures / 'val' / 'bar_stripes').glob('*.png'))
    (tmp_path / 'some' / 'bar_stripes' / '0.png').write_bytes(source.read_bytes())
    main([f'your_convnet={tuned}', *options, f'--data_path={tmp_path / "some"}'])
    content = json.loads((tmp_path / 'out' / 'interaction.json').read_text())
    assert [image['name'] for image in content['networks'][0]['images']] == ['bar_stripes/0.png']
    assert content['networks'][0]['standard_error'] is None and 'unreadable image' in capsys.readouterr().out


def test_the_finest_grid_that_divides_an_image():
    assert [finest_grid((side, side))[0] for side in (224, 64, 96, 160, 192)] == [14, 8, 12, 10, 12]
    assert finest_grid((64, 96)) == (8, 12) and finest_grid((37, 37)) == (1, 1)


def test_orders_0_and_all_have_one_context():
    assert Game((14, 14), 50, 50).num_masked([0, 97, 194]) == 4 * 50 * (1 + 50 + 1)


@pytest.mark.parametrize(('more', 'message'), [
    (['--grid=5'], '32 x 32 pixels cannot be divided into 5 x 5 equal cells: give another --grid, such as --grid=8,8'),
    (['--grid=1'], '--grid is the number of cells along a side'),
    (['--grid=2', '--pairs=9'], '--pairs=9: a grid of 2 x 2 cells has 6 pairs'),
    (['--contexts=0'], '--contexts is 1 or more'),
    (['--images=0'], '--images is 1 or more'),
])
def test_mistakes_are_answered_in_one_sentence(more, message, options, tuned):
    with pytest.raises(SystemExit) as exit:
        main([f'your_convnet={tuned}', *options, *more])
    assert str(exit.value.code).startswith('error: ') and re.search(message, exit.value.code)


def test_a_network_without_a_classifier_is_refused(options):
    with pytest.raises(SystemExit, match='error: your_convnet without weights has no trained classifier'):
        main(['your_convnet', *options])


def test_images_without_classes_are_refused(options, tuned, tmp_path, pictures):
    source = next((pictures / 'val').rglob('*.png'))
    (tmp_path / 'flat').mkdir()
    (tmp_path / 'flat' / 'a.png').write_bytes(source.read_bytes())
    with pytest.raises(SystemExit, match='is in no folder of a class: this analysis needs images with classes'):
        main([f'your_convnet={tuned}', *options, f'--data_path={tmp_path / "flat"}'])
