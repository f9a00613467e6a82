"""--target=pixels beside normalised cells: loss, pictures, what a run keeps, what is said of it."""
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common.reliability.checkpoint import plain_state, save
from pretrain import reconstruct, report
from pretrain.export import export
from pretrain.main import pretrain
from pretrain.masking import patchify, unpatchify
from pretrain.playground import Playground
from pretrain.results import pictures
from pretrain.results.card import recipe
from pretrain.saved import read_saved
from pretrain.spark import build_spark
from tests.conftest import TINY, Options, log_of, randomise, saved


def small(**changes):
    return randomise(build_spark('your_convnet', **{'input_size': (32, 48), 'decoder_width': 16, **changes}))


@pytest.fixture(scope='module')
def run(world, tmp_path_factory):
    """The folder of a finished run that predicts pixels."""
    folder = tmp_path_factory.mktemp('pixels') / 'output_pixels'
    given = {**TINY, 'name': 'pixels', 'target': 'pixels', 'run_dir': str(folder), 'data_path': str(world)}
    return pretrain(Options(**given, val_every=1, picture_every=1))


def old(folder, to):
    """A copy of a run as it was before there was a choice of targets."""
    shutil.copytree(folder, to)
    path = to / 'your_convnet_still_pretraining.pth'
    content = torch.load(path, weights_only=True)
    content['config'].pop('target')
    save(path, content)
    for other in to.glob('*_step*.pth'):
        other.unlink()
    lines = [json.loads(line) for line in (to / 'pretrain_log.txt').read_text().splitlines()]
    for line in lines:
        line.get('config', {}).pop('target', None)
    (to / 'pretrain_log.txt').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return to


@pytest.mark.parametrize('in_chans', [1, 3])
def test_the_loss_is_the_squared_error_of_hidden_pixels(in_chans):
    spark = small(target='pixels', in_chans=in_chans).double()
    images = 3 + 2 * torch.randn(2, in_chans, 32, 48, dtype=torch.float64)
    visible, output, errors = spark.draw_visible(2), torch.randn_like(images), []
    for b in range(2):
        for cell in set(range(24)) - set(visible[b].tolist()):
            y, x = cell // 6 * 8, cell % 6 * 8
            errors.append(((output[b, :, y:y + 8, x:x + 8] - images[b, :, y:y + 8, x:x + 8]) ** 2).mean())
    loss = spark.loss(images, output, visible)
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(spark.loss(images, images, visible), torch.zeros_like(loss))


def test_forward_is_the_loss_of_what_is_predicted():
    spark = small(target='pixels').eval()
    images, visible = torch.randn(2, 3, 32, 48), spark.draw_visible(2)
    hidden = ~spark.is_visible(visible)[..., 0]
    error = patchify(spark.predict(images, visible) - images, 8).square().mean(2)
    torch.testing.assert_close(spark(images, visible), error[hidden].mean())


def test_nothing_of_a_hidden_cell_is_in_the_reconstruction():
    spark = small(target='pixels').eval()
    images, visible = torch.randn(2, 3, 32, 48), spark.draw_visible(2)
    seen = spark.is_visible(visible)
    other = unpatchify(torch.where(seen, patchify(images, 8), 5 + 7 * torch.randn(2, 24, 192)), (4, 6), 8)
    one, two = (spark.reconstruct(x, visible) for x in (images, other))
    assert torch.equal(one, two)
    assert torch.equal(patchify(one, 8), torch.where(seen, patchify(images, 8), patchify(spark.predict(images, visible), 8)))


def test_noise_in_a_black_border_counts_little():
    """`normalise` adds 1e-6, the variance of this noise: that of a normalised cell of it is 0.5, of its pixels 1e-6."""
    generator = torch.Generator().manual_seed(0)
    noise = 1e-3 * torch.randn(1, 3, 32, 48, generator=generator)
    images = noise - 1.0
    images[..., 8:24, 8:40] += torch.randn(1, 3, 16, 32, generator=generator)
    border = torch.ones(4, 6, dtype=torch.bool)
    border[1:3, 1:5] = False
    visible = (~border).flatten().nonzero().flatten()[None]  # the border is what is hidden
    constant = torch.full_like(images, -1.0)
    losses = {}
    for target in ('normalised', 'pixels'):
        spark = small(target=target)
        says_the_mean = constant if target == 'pixels' else torch.zeros_like(images)
        losses[target] = spark.loss(images, says_the_mean, visible).item()
        assert spark(images.repeat(2, 1, 1, 1), visible.repeat(2, 1)).isfinite()
    assert losses['normalised'] == pytest.approx(0.5, rel=0.1) and losses['pixels'] == pytest.approx(1e-6, rel=0.1)
    black = torch.zeros(2, 3, 32, 48)
    assert small(target='pixels').loss(black, black, visible.repeat(2, 1)) == 0


def test_a_target_that_is_none_is_refused():
    with pytest.raises(ValueError, match="normalised or pixels, not 'pixel'"):
        build_spark('your_convnet', 32, decoder_width=16, target='pixel')
    with pytest.raises(ValueError, match="target is one of .*, not raw"):
        Options(name='x', target='raw')


def test_a_run_says_what_it_predicts_and_its_loss_is_of_that(run, finished):
    said = (run / 'stdout_backup.txt').read_text()
    assert 'target      pixels, normalised with the mean and std of their channels alone\n' in said
    assert 'target      pixels, each cell normalised by its own mean' in (finished / 'stdout_backup.txt').read_text()
    content, own = saved(run), read_saved(run)
    assert content['config']['target'] == 'pixels' == own.options.target == own.network.target
    assert log_of(run)[0][-1]['val_loss'] != log_of(finished)[0][-1]['val_loss']
    assert read_saved(run / 'your_convnet_1kpretrained.pth').options.target == 'pixels'  # by the log beside it


def test_views_of_predicted_pixels(run, world, tmp_path):
    own = read_saved(run)
    images = own.prepare(Image.open(next((world / 'val').rglob('*.*'))))
    visible = own.network.draw_visible(1, torch.Generator().manual_seed(0))
    view = pictures.views(own.network, images, visible, own.options.normalisation)
    with torch.no_grad():
        picture = pictures.to_rgb(own.network.reconstruct(images, visible), own.options.normalisation)
        assert torch.equal(view.reconstruction, picture)
        torch.testing.assert_close(view.loss.mean(), own.network(images, visible))
    assert torch.equal(view.own, view.reconstruction)
    assert list(pictures.captions(own.network)) == ['image', 'masked', 'reconstruction', 'error']
    assert 'mean' not in ''.join(pictures.captions(own.network).values())
    reconstruct.reconstruct(own, [world / 'val'], tmp_path / 'out', say=lambda _: None)
    assert Image.open(tmp_path / 'out/contact_sheet.png').width > 4 * 224


def test_the_playground_shows_both_kinds_each_in_its_own_panels(run, finished):
    play = Playground([read_saved(run), read_saved(finished)])
    looks = play.look(Image.fromarray(np.zeros((32, 32, 3), np.uint8)), play.draw(0.6, 0))
    assert [list(look.pictures)[2:] for look in looks] == [['reconstruction', 'error'], ['reconstruction', 'own', 'error']]
    assert 'mean' not in pictures.explanation(play.networks[0].network)
    assert "true cell's mean" in pictures.explanation(play.networks[1].network)


def test_another_target_is_another_run(run, finished, tiny, tmp_path):
    with pytest.raises(ValueError, match='target was pixels and is normalised now.*--fresh'):
        pretrain(tiny(run_dir=str(run)))
    with pytest.raises(ValueError, match='target was normalised and is pixels now.*--fresh'):
        pretrain(tiny(run_dir=str(finished), target='pixels'))
    with pytest.raises(ValueError, match='target was normalised and is pixels now.*--fresh'):
        pretrain(tiny(run_dir=str(old(finished, tmp_path / 'old')), target='pixels'))


def test_a_run_from_before_there_was_a_choice(finished, tiny, tmp_path):
    folder = old(finished, tmp_path / 'old')
    again, now = read_saved(folder), read_saved(finished)
    assert again.options.target == 'normalised'
    images, visible = torch.randn(1, 3, 32, 32), now.network.draw_visible(1)
    with torch.no_grad():
        assert torch.equal(again.network.reconstruct(images, visible), now.network.reconstruct(images, visible))
    pretrain(tiny(run_dir=str(folder), val_every=1, picture_every=1))
    assert 'This run is finished' in (folder / 'stdout_backup.txt').read_text()


def test_the_report_says_which_losses_are_comparable(run, finished, tmp_path):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    def page(*folders):
        return report.report(folders, tmp_path / 'report.html').read_text()
    both, alone, other = page(run, old(finished, tmp_path / 'old')), page(run), page(finished)
    assert 'cannot be compared' in both and '<tr><th>target</th><td>pixels</td><td>normalised</td></tr>' in both
    assert 'the pixels that the network predicts' in both and "the true cell's mean and deviation" in both
    assert 'near 1 at the start' not in alone and "the true cell's mean" not in alone and 'says nothing' not in alone
    assert 'near 1 at the start' in other and 'says nothing' in other and 'pixels that' not in other


def test_the_card_says_what_was_predicted(run, finished):
    assert dict(recipe(read_saved(run), None))['target'].startswith('pixels, normalised with')
    assert 'its own mean and' in dict(recipe(read_saved(finished), None))['target']


def test_exports(run, finished, tmp_path):
    """The encoder's are what they were; a decoder that predicts pixels is not written for programs that do not know of it."""
    own = read_saved(run)
    export(own, 'timm', tmp_path, '.pth')
    state = torch.load(tmp_path / 'your_convnet_timm.pth', weights_only=True)
    trained = {key: value for key, value in plain_state(own.network.encoder.cnn).items() if not key.startswith('head.')}
    assert state.keys() == trained.keys() and all(torch.equal(state[key], value) for key, value in trained.items())
    spark = randomise(build_spark('resnet18', 64, decoder_width=32, target='pixels')).eval()
    options = Options(name='r', model='resnet18', input_size=64, decoder_width=32, target='pixels')
    saved = dataclasses.replace(own, network=spark, options=options, weights=plain_state(spark.encoder.cnn),
                                head=('fc.weight', 'fc.bias'))
    said = export(saved, 'official', tmp_path)
    assert 'no file with the decoder' in ' '.join(said) and 'predicts pixels' in ' '.join(said)
    assert [path.name for path in tmp_path.glob('resnet18*')] == ['resnet18_1kpretrained_timm_style.pth']
