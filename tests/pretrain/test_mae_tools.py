"""The commands that read a run, on runs of MAE and ConvMAE: what they show, say and write."""
import shutil

import pytest
import timm
import torch

from common.reliability.checkpoint import plain_state
from pretrain import export, features, plan, reconstruct, report
from pretrain.main import pretrain
from pretrain.methods import METHODS, recommended
from pretrain.playground import Playground
from pretrain.results import pictures
from pretrain.results.card import recipe, write_card
from pretrain.saved import read_saved
from tests.pretrain.runs import line_of, needs_a_hub, saved_run

MODELS = {'mae': 'test_vit', 'convmae': 'test_convvit'}
STRIDES = {'mae': [16], 'convmae': [4, 8, 16]}
SMALL = {'input_size': 64, 'batch_size': 8, 'epochs': 1, 'decoder_width': 32, 'decoder_depth': 1, 'decoder_heads': 4}


@pytest.fixture(scope='module', params=MODELS)
def run(request, world, tmp_path_factory):
    """The folder of a finished run: 5 steps with four masks an image, and a picture."""
    method = request.param
    folder = tmp_path_factory.mktemp(method) / f'output_{method}'
    return pretrain(recommended(method=method, name=method, model=MODELS[method], lr=1e-3, workers=0, val_every=1,
                                picture_every=1, masks_per_image=4, run_dir=str(folder), data_path=str(world), **SMALL))


@pytest.fixture(scope='module')
def saved(run):
    return read_saved(run)


def test_a_run_and_its_files_are_read_by_their_method(run, saved, tmp_path):
    method, model = saved.method.name, saved.model
    assert MODELS[method] == model and saved.has_decoder and saved.options.masks_per_image == 4 and saved.step == 5
    assert saved.network.draw_visible(2).shape == (2, 4) and saved.network.draw_masks(2).shape == (2, 4, 4)
    beside = read_saved(run / f'{model}_1kpretrained.pth')
    assert beside.method is saved.method and not beside.has_decoder and beside.options.input_size == 64
    alone = read_saved(shutil.copy(run / f'{model}_1kpretrained.pth', tmp_path), method=method, input_size=64)
    torch.save(plain_state(saved.network), tmp_path / 'whole.pth')
    whole = read_saved(tmp_path / 'whole.pth', model=model, input_size=64, decoder_heads=4)
    assert whole.method is saved.method and whole.has_decoder and not alone.has_decoder
    images = torch.randn(2, 3, 64, 64)
    visible = saved.network.draw_visible(2)
    with torch.no_grad():
        assert torch.equal(whole.network.predict(images, visible), saved.network.predict(images, visible))
        for other in (beside, alone):
            assert all(map(torch.equal, other.network.pyramid(images), saved.network.pyramid(images)))


def test_a_file_for_other_images_is_resized_and_said(run, saved, tmp_path, world, capsys):
    """Of a file alone the size is not known: the positions are resized, which the command says."""
    alone = shutil.copy(run / f'{saved.model}_1kpretrained.pth', tmp_path)
    features.main([str(alone), str(world / 'val'), f'--method={saved.method.name}', '--input_size=96', f'--out={tmp_path}'])
    assert 'positions are resized from 4x4 patches to 6x6' in capsys.readouterr().out


def test_files_of_another_method_are_refused_by_name(run, saved):
    other = next(name for name in MODELS if name != saved.method.name)
    with pytest.raises(ValueError, match=f'method is {saved.method.name} there, not {other}'):
        read_saved(run, method=other)
    with pytest.raises(ValueError, match=f'is of {saved.method.title}, not of {METHODS[other].title}'):
        read_saved(run / f'{saved.model}_1kpretrained.pth', method=other)


def test_pictures_and_losses_are_those_of_the_network(saved, run, world, tmp_path, capsys):
    network = saved.network
    images, visible = torch.randn(2, 3, 64, 64), network.draw_visible(2)
    view = pictures.views(network, images, visible, saved.options.normalisation)
    with torch.no_grad():
        torch.testing.assert_close(view.loss.mean(), network(images, visible))
    assert 'own' in pictures.captions(network)
    assert list(pictures.level_pictures(network, images, visible)) == STRIDES[saved.method.name]
    reconstruct.main([str(run), str(world / 'val'), f'--out={tmp_path}', '--grid'])
    assert 'on 12 hidden cells of 16' in capsys.readouterr().out


def test_features_are_the_mean_of_the_last_map(saved, world, tmp_path):
    _, pooled = features.features(saved, [world / 'val'], tmp_path, say=lambda _: None)
    (_, _, image), *_ = saved.each([world / 'val'])
    with torch.no_grad():
        last = saved.network.pyramid(image)[-1]
    assert pooled.shape == (10, last.shape[1])
    torch.testing.assert_close(torch.from_numpy(pooled[0]), last.mean((2, 3))[0])


def test_the_playground_shows_them_beside_a_spark(saved, tmp_path):
    play = Playground([saved, saved_run(tmp_path, 'test_resnet')])
    look, spark = play.look(torch.rand(3, 64, 64), play.draw(0.75, 0))
    assert [text.split(':')[0] for _, text in look.levels] == [f'stride {stride}' for stride in STRIDES[saved.method.name]]
    assert (look.hidden, look.cells, look.loss_name, spark.loss_name) == (12, 16, 'loss', 'loss')


def test_a_report_is_of_the_method(run, saved, tmp_path):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    text = report.report([run], tmp_path / 'r.html').read_text()
    assert f'<th>method</th><td>{saved.method.title}</td>' in text and 'SparK' not in text
    assert 'squared error on normalised cells' in text and '<th>masks_per_image</th><td>4</td>' in text


def test_the_card_says_how_to_do_and_use_it(saved, tmp_path):
    write_card(saved, tmp_path)
    text = ' '.join((tmp_path / 'README.md').read_text().split())
    assert f'pretrained with {saved.method.title}' in text and saved.method.paper.arxiv in text and 'SparK' not in text
    assert 'for another one with `img_size`' in text
    assert ('import convvit # convvit.py registers the network' in text) == (saved.model == 'test_convvit')
    rows = dict(recipe(saved, None))
    assert rows['decoder'] == '1 transformer block of 4 heads, 32 channels wide' and rows['masks'].startswith('4 of each image')


def test_an_export_for_timm_is_made_for_its_size(saved, tmp_path):
    said = export.export(saved, 'timm', tmp_path)
    assert 'strictly; the same features' in said[0] and 'img_size=64' in said[0]
    theirs = eval(line_of(said[0]), {'timm': timm}).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(saved.network.encoder.pyramid(images, cnn=theirs), saved.network.pyramid(images))


def test_a_folder_for_a_hub_is_made_for_other_sizes_too(saved, tmp_path):
    needs_a_hub()
    export.export(saved, 'hf', tmp_path)
    made = [timm.create_model(f'local-dir:{tmp_path / f"{saved.model}_hf"}', pretrained=True, num_classes=5, **size).eval()
            for size in ({}, {'img_size': (96, 32)})]
    for network, size in zip(made, ((64, 64), (96, 32))):
        assert network(torch.randn(1, 3, *size)).shape == (1, 5)
    own, other = (dict(network.named_parameters()) for network in made)
    assert all(torch.equal(own[key], value) for key, value in other.items() if key.split('.')[0] not in ('pos_embed', 'head'))


@pytest.mark.slow
def test_a_graph_of_attention(saved, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package, reason='pip install -r pretrain/requirements.txt')
    outputs = ', '.join([*(f'stride_{stride}' for stride in STRIDES[saved.method.name]), 'pooled'])
    assert f'the same {outputs}' in export.export(saved, 'onnx', tmp_path)[0]


# -- plan ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', MODELS)
def test_a_plan_counts_all_masks_of_an_image(method):
    """n masks cost the operations of n images, and no more weights."""
    given = {**SMALL, 'method': method, 'model': MODELS[method], 'images': 320, 'gpus': 1}
    one, four = (plan.plan(plan.plan_options(masks_per_image=masks, **given)) for masks in (1, 4))
    assert four.counts.operations == pytest.approx(4 * one.counts.operations)
    assert four.counts.kept.an_image == pytest.approx(4 * one.counts.kept.an_image, rel=0.1)
    assert four.counts.gradients == one.counts.gradients and four.counts.image == one.counts.image
    assert '4 masks an image' in str(four) and 'decoder 1 block, 32 wide' in str(one) and 'BatchNorm' not in str(one)


def test_a_plan_by_a_log_of_other_masks_is_refused(run, saved):
    given = {**SMALL, 'method': saved.method.name, 'model': saved.model, 'images': 320, 'gpus': 1}
    with pytest.raises(ValueError, match='is of a run with --masks_per_image=4, and this plan has 1: give the same'):
        plan.plan(plan.plan_options(log=str(run), **given))
