"""The commands that read a run, on a run of A2MIM: what they show and say is that method's, and files are not mixed up."""
import json
import shutil

import numpy as np
import pytest
import timm
import torch

from common.networks.load import load_found
from common.reliability.checkpoint import plain_state
from pretrain import demo, export, features, plan, reconstruct, report
from pretrain.a2mim import A2MIM, build_a2mim
from pretrain.a2mim_options import A2MIMOptions
from pretrain.main import pretrain
from pretrain.masking import is_visible, patchify
from pretrain.methods import METHODS, recommended
from pretrain.playground import Playground
from pretrain.results import pictures
from pretrain.results.card import recipe, write_card
from pretrain.saved import read_saved
from pretrain.spark_weights import load_init
from tests.pretrain.runs import needs_a_hub, saved_as_of, saved_run

MODEL = 'test_resnet'


@pytest.fixture(scope='module')
def run(world, tmp_path_factory):
    """The folder of a finished run of A2MIM: 2 epochs of 5 steps, with a picture."""
    folder = tmp_path_factory.mktemp('a2mim') / 'output_dense'
    return pretrain(recommended(method='a2mim', name='dense', model=MODEL, input_size=64, batch_size=8, epochs=2, lr=1e-3,
                                workers=0, val_every=1, picture_every=2, run_dir=str(folder), data_path=str(world)))


@pytest.fixture(scope='module')
def saved(run):
    return read_saved(run)


# -- reading --------------------------------------------------------------------------------------------------

def test_a_run_is_read_by_its_own_method(run, saved):
    content = torch.load(run / f'{MODEL}_still_pretraining.pth', weights_only=True)
    assert saved.method is METHODS['a2mim'] and isinstance(saved.network, A2MIM) and isinstance(saved.options, A2MIMOptions)
    assert saved.has_decoder and (saved.step, saved.images, saved.folder) == (10, 40, run)
    own = saved.network.state_dict()
    assert own.keys() == content['model'].keys()
    assert all(torch.equal(own[key], value) for key, value in content['model'].items())
    assert saved.network.visible_cells == 1 and read_saved(run, mask_ratio=0.3).network.visible_cells == 2


def test_the_encoder_alone_is_of_the_method_in_the_log_beside_it_or_of_the_one_noted_or_given(run, saved, tmp_path):
    file = run / f'{MODEL}_1kpretrained.pth'
    beside = read_saved(file)
    assert beside.method.name == 'a2mim' and not beside.has_decoder and beside.options.input_size == 64
    with pytest.raises(ValueError, match='give the run folder .* or a file of the authors'):
        beside.require_decoder()
    alone = shutil.copy(file, tmp_path / 'alone.pth')
    given = read_saved(alone, method='a2mim', model=MODEL, input_size=64, token='residual')
    assert given.method.name == 'a2mim' and given.options.token == 'residual'
    assert read_saved(alone, model=MODEL, input_size=64).method.name == 'a2mim'  # by the note in the file
    torch.save(dict(torch.load(alone, weights_only=True)), alone)
    assert read_saved(alone, model=MODEL, input_size=64).method.name == 'spark'
    state = plain_state(saved.network.encoder.cnn)
    assert all(torch.equal(value, state[key]) for key, value in given.weights.items())


def test_a_whole_network_in_any_file_is_known_by_its_tensors(saved, tmp_path):
    torch.save({'weights': plain_state(saved.network)}, tmp_path / 'w.pth')
    again = read_saved(tmp_path / 'w.pth', model=MODEL, input_size=64)
    assert again.method.name == 'a2mim' and again.has_decoder and again.is_encoder
    images, visible = torch.randn(1, 3, 64, 64), torch.tensor([[2]])
    with torch.no_grad():
        assert torch.equal(again.network.predict(images, visible), saved.network.predict(images, visible))


def test_files_of_one_method_are_not_taken_for_another(run, saved, finished, tmp_path):
    with pytest.raises(ValueError, match='method is a2mim there, not spark.*a run says itself what it is'):
        read_saved(run, method='spark')
    with pytest.raises(ValueError, match='method is spark there, not a2mim'):
        read_saved(finished, method='a2mim')
    with pytest.raises(ValueError, match='is of A2MIM, not of SparK: leave --method=spark away'):
        read_saved(run / f'{MODEL}_1kpretrained.pth', method='spark')
    torch.save(plain_state(saved.network), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='is of A2MIM, not of SparK'):
        read_saved(tmp_path / 'w.pth', model=MODEL, input_size=64, method='spark')
    with pytest.raises(ValueError, match='--levels is no option of A2MIM'):
        read_saved(tmp_path / 'w.pth', model=MODEL, input_size=64, levels='layer1,layer2')


def test_a_network_that_spark_refuses_is_said_to_be_of_another_method(tmp_path):
    torch.save(timm.create_model('test_vit').state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(ValueError, match='If it was pretrained with another method than SparK, say so: --method=a2mim'):
        read_saved(tmp_path / 'vit.pth', model='test_vit', input_size=160)


@pytest.mark.parametrize('method', ['unheard_of', ['spark']])
def test_a_method_that_is_not_known_is_refused_by_name(run, tmp_path, method):
    folder = shutil.copytree(run, tmp_path / 'run')
    path = folder / f'{MODEL}_still_pretraining.pth'
    content = torch.load(path, weights_only=True)
    content['config']['method'] = method
    torch.save(content, path)
    log = (folder / 'pretrain_log.txt').read_text().replace('"method": "a2mim"', f'"method": {json.dumps(method)}')
    (folder / 'pretrain_log.txt').write_text(log)
    for read in (lambda: read_saved(folder), lambda: report.report([folder], tmp_path / 'r.html'),
                 lambda: plan.plan(plan.plan_options(model='your_convnet', log=str(folder), images=99))):
        with pytest.raises(ValueError, match=r'run.* is of another program or version: method is one of spark, a2mim'):
            read()


def test_spark_starts_from_the_encoder_of_an_a2mim(run, saved, tmp_path):
    spark = saved_run(tmp_path, MODEL).network
    decoder = spark.dense_decoder.state_dict()
    before = {key: value.clone() for key, value in decoder.items()}
    said = str(load_init(spark, run / f'{MODEL}_still_pretraining.pth', MODEL))
    own = saved.network.encoder.cnn.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in spark.encoder.cnn.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in spark.dense_decoder.state_dict().items())
    assert "begin with 'encoder.cnn.'" in said and 'encoder.mask_token' in said and 'decoder besides, not loaded' in said


def test_a_run_of_one_method_is_not_gone_on_with_as_another(run, world, tiny):
    with pytest.raises(ValueError, match='method was a2mim and is spark now. Give --method=a2mim'):
        pretrain(tiny(model=MODEL, input_size=64, resume=str(run / f'{MODEL}_still_pretraining.pth'), data_path=str(world)))


# -- pictures -------------------------------------------------------------------------------------------------

def test_hidden_cells_have_the_mean_colour_and_predicted_pixels(saved):
    network, normalisation = saved.network, saved.options.normalisation
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 2
    visible = torch.tensor([[1], [2]])
    view = pictures.views(network, images, visible, normalisation)
    seen = is_visible(visible, network.cells)
    colour = pictures.to_rgb(images.mean((2, 3), keepdim=True).expand_as(images), normalisation)
    with torch.no_grad():
        predicted = pictures.to_rgb(network.predict(images, visible), normalisation)
        torch.testing.assert_close(view.loss.mean(), network.terms(images, visible)['spatial'])
        assert torch.equal(view.reconstruction, pictures.to_rgb(network.reconstruct(images, visible), normalisation))
    for picture, hidden in ((view.masked, colour), (view.reconstruction, predicted), (view.own, predicted)):
        assert torch.equal(patchify(picture, 32)[seen], patchify(view.image, 32)[seen])
        torch.testing.assert_close(patchify(picture, 32)[~seen], patchify(hidden, 32)[~seen])
    assert list(pictures.captions(network)) == ['image', 'masked', 'reconstruction', 'error']
    levels = pictures.level_pictures(network, images, visible)
    assert list(levels) == list(network.encoder.reductions) and levels[32].shape == (2, 3, 2, 2)


def test_reconstruct_says_what_is_shown_and_which_term_it_measures(run, world, tmp_path, capsys):
    reconstruct.main([str(run), str(world / 'val'), f'--out={tmp_path}', '--grid'])
    said = capsys.readouterr().out
    assert 'spatial loss' in said and 'on 3 hidden cells of 4' in said and (tmp_path / 'contact_sheet.png').exists()
    about = pictures.explanation(read_saved(run).network, METHODS['a2mim'].masked_images(A2MIMOptions(name='x')))
    assert 'pixels that the network predicts' in about and 'mean colour of the image' in about and 'deviation' not in about


def test_features_are_the_same_from_every_file_of_a_run(run, saved, world, tmp_path):
    shutil.copy(run / f'{MODEL}_1kpretrained.pth', tmp_path / 'alone.pth')
    sources = (saved, read_saved(run / f'{MODEL}_1kpretrained.pth'),
               read_saved(tmp_path / 'alone.pth', model=MODEL, input_size=64, method='a2mim'),
               read_saved(tmp_path / 'alone.pth', model=MODEL, input_size=64))  # a dense pass is the same by any method
    found = [features.features(source, [world / 'val'], tmp_path / str(number), say=lambda _: None)[1]
             for number, source in enumerate(sources)]
    assert found[0].shape == (10, saved.network.encoder.channels[-1])
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-5, atol=1e-6)
    maps = np.load(next((tmp_path / '0').glob('0000_*.npz')))
    assert set(maps) == {'pooled', *(f'stride_{stride}' for stride in saved.network.encoder.reductions)}


def test_the_playground_has_both_methods(saved, tmp_path):
    play = Playground([saved, saved_run(tmp_path, MODEL)])
    dense, sparse = play.look(torch.rand(3, 64, 64), play.draw(0.5, 0))
    assert list(dense.pictures) == ['image', 'masked', 'reconstruction', 'error'] and 'own' in sparse.pictures
    assert (dense.loss_name, sparse.loss_name) == ('spatial loss', 'loss') and dense.hidden == sparse.hidden == 2


@pytest.mark.slow  # gradio alone takes ten seconds to load
def test_the_page_of_a_playground_names_its_methods(saved, tmp_path):
    pytest.importorskip('gradio', reason='pip install -r pretrain/requirements.txt')
    from pretrain.playground_page import page
    sparse = saved_run(tmp_path, MODEL)
    titles = [page(Playground(networks))[0].title for networks in ([saved], [sparse], [saved, sparse, saved])]
    assert titles == ['A2MIM playground', 'SparK playground', 'A2MIM and SparK playground']


# -- report, card, export -------------------------------------------------------------------------------------

def test_a_report_says_what_the_losses_of_each_method_are(run, finished, tmp_path):
    pytest.importorskip('plotly', reason='pip install -r pretrain/requirements.txt')
    alone = report.report([run], tmp_path / 'a.html').read_text()
    assert 'focal L1 error of hidden pixels' in alone and '<th>method</th><td>A2MIM</td>' in alone
    assert 'says nothing' not in alone and 'SparK' not in alone and 'normalised cells' not in alone
    both = report.report([run, finished], tmp_path / 'b.html').read_text()
    assert 'A2MIM: The loss is the focal L1' in both and 'SparK: The loss is a squared error on normalised cells' in both
    assert 'Losses of different methods cannot be compared' in both
    assert 'a decoder that says nothing' not in both.split('<h2>Curves')[1].split('<div')[1]
    assert '<td>A2MIM</td><td>SparK</td>' in both


def test_the_card_is_of_the_method(run, saved, tmp_path):
    write_card(saved, tmp_path)
    text = ' '.join((tmp_path / 'README.md').read_text().split())
    assert 'pretrained with A2MIM' in text and 'arxiv.org/abs/2205.13943' in text and 'ICML 2023' in text
    assert 'From ViT back to CNN' in text and 'tags: [timm, a2mim,' in text and 'SparK' not in text
    rows = dict(recipe(saved, None))
    assert rows['token'] == 'gain, after layer3' and rows['hidden pixels'] == "the image's mean colour"
    assert 'focal' in rows['loss'] and 'decoder' not in rows and rows['target'].startswith('pixels')


@pytest.mark.parametrize('model, size, trained', [
    ('test_convnext', 64, '`head.norm`'), ('test_efficientnet', 64, '`conv_head`, `bn2`'), ('test_vit', 160, '`norm`')])
def test_the_card_says_what_was_trained_behind_the_last_map(tmp_path, model, size, trained):
    dense = saved_as_of(tmp_path, A2MIMOptions(name='r', model=model, input_size=size))
    write_card(dense, tmp_path)
    text = ' '.join((tmp_path / 'README.md').read_text().split())
    assert f'also trained what comes after the last feature map: {trained}. It is part' in text
    said = ' '.join(export.export(dense, 'timm', tmp_path / 'export'))
    assert 'strictly; the same features' in said and trained.strip('`').split('`')[0] not in said


def test_the_card_of_a_spark_says_nothing_of_what_it_did_not_train(tmp_path):
    write_card(saved_run(tmp_path, 'test_convnext'), tmp_path)
    text = (tmp_path / 'README.md').read_text()
    assert 'head.norm' not in text and 'pretrained with SparK' in text and 'arxiv.org/abs/2301.03580' in text


def test_a_vit_of_another_size_goes_to_a_hub(tmp_path):
    """timm would make it for the size of the config, where this one takes any size with the positions of its own."""
    needs_a_hub()
    saved = saved_as_of(tmp_path, A2MIMOptions(name='r', model='test_vit', input_size=128))
    said = ' '.join(export.export(saved, 'hf', tmp_path / 'export'))
    assert 'the same' in said and (tmp_path / 'export' / 'test_vit_hf' / 'config.json').exists()


@pytest.mark.parametrize('to', ['timm', pytest.param('onnx', marks=pytest.mark.slow)])
def test_exports_are_what_was_trained(saved, tmp_path, to):
    if to == 'onnx':
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            pytest.importorskip(package, reason='pip install -r pretrain/requirements.txt')
    said = ' '.join(export.export(saved, to, tmp_path))
    assert 'the same' in said and 'was not trained, and is left out' in said
    if to == 'timm':
        theirs = timm.create_model(MODEL, num_classes=0, checkpoint_path=str(tmp_path / f'{MODEL}_timm.safetensors')).eval()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(theirs.forward_features(images), saved.network.encoder(images))


def test_what_is_sparks_alone_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match='official code of SparK, ConvMAE and MAE, and .* with A2MIM: give --to=timm'):
        export.export(saved, 'official', tmp_path)
    assert not any(tmp_path.iterdir())


# -- plan, demo -----------------------------------------------------------------------------------------------

PLAN = ('--method=a2mim', f'--model={MODEL}', '--input_size=64', '--bs=32', '--ep=2', '--gpus=2', '--images=320')


def test_a_plan_of_a2mim(run, capsys):
    plan.main([*PLAN, f'--log={run}'])
    said = capsys.readouterr().out
    assert 'token gain, loss on spectra focal' in said and 'decoder' not in said and 'images/s' in said


def test_the_counts_of_a_plan_are_those_of_the_network():
    options = plan.plan_options(method='a2mim', model=MODEL, input_size=64, batch_size=32, epochs=2, gpus=2, images=320)
    found = plan.plan(options)
    network = build_a2mim(MODEL, 64)
    assert found.counts.gradients == sum(4 * p.numel() for name, p in network.named_parameters()
                                         if name.removeprefix('encoder.cnn.') not in network.encoder.unused)


@pytest.mark.parametrize('flags, message', [
    ((*PLAN, '--decoder_width=16'), '--decoder_width is an option of --method=spark'),
    (('--method=unheard_of',), '--method is one of'),
    ((*PLAN[1:], '--log=RUN'), '--method=a2mim, and this plan has spark: give the same'),
    ((*PLAN, '--fourier=none', '--log=RUN'), 'is of a run with --fourier=focal, and this plan has none'),
    ((*PLAN, '--memory=0.001', '--reserve=0'), 'give a smaller --input_size, or a GPU with more')])
def test_what_a_plan_refuses(run, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        plan.main([flag.replace('RUN', str(run)) for flag in flags])
    assert message in f'{stop.value}{capsys.readouterr().err}'


def test_the_demo_says_a2mims_losses(run, tmp_path, capsys):
    made = demo.Demo(tmp_path, train=40, val=10, epochs=2, seed=0, method='a2mim')
    made.claim_folder()
    with pytest.raises(ValueError, match='a demo with other options'):
        demo.Demo(tmp_path, train=40, val=10, epochs=2, seed=0).claim_folder()
    shutil.copytree(run, made.run)
    made.results.write_text(json.dumps({'knn': {'untrained': 31.5, 'pretrained': 92.5}}))
    demo.report(made)
    said = capsys.readouterr().out
    assert 'spatial loss on hidden cells' in said and 'says nothing' not in said and 'pixels that the network predicts' in said


def test_the_demo_starts_a_run_of_its_method(tmp_path, monkeypatch):
    started = []

    class Process:
        def __init__(self, command, **_):
            started.append(command)

        def wait(self):
            return 0

    monkeypatch.setattr(demo.subprocess, 'Popen', Process)
    for method in demo.OF_METHODS:
        demo.train(demo.Demo(tmp_path, train=40, val=10, epochs=2, seed=0, method=method))
    assert all(f'--method={method}' in command for method, command in zip(demo.OF_METHODS, started))
    assert ['--decoder_width=64' in command for command in started] == [method == 'spark' for method in demo.OF_METHODS]
    with pytest.raises(SystemExit):
        demo.main([str(tmp_path / 'other'), '--method=mae'])
    assert not (tmp_path / 'other').exists()


def test_a_note_of_a_demo_from_before_there_was_a_choice(tmp_path):
    (tmp_path / 'demo.json').write_text(json.dumps({'train': 40, 'val': 10, 'epochs': 2, 'seed': 0}))
    demo.Demo(tmp_path, train=40, val=10, epochs=2, seed=0).claim_folder()


@pytest.mark.parametrize('method', METHODS)
def test_what_a_method_finds_fills_what_it_built(method, tmp_path):
    """`find_init` and `is_whole` of each method agree on its own files."""
    model = {'convmae': 'test_convvit', 'mae': 'test_vit'}.get(method, MODEL)
    options = recommended(method=method, name='r', model=model, input_size=64)
    network = METHODS[method].build(options)
    state = plain_state(network)
    assert [name for name, other in METHODS.items() if other.is_whole(state)] == [method]
    module, found, may_miss = METHODS[method].find_init(network, state)
    assert module is network and not load_found(module, found, may_miss).missing
    module, found, may_miss = METHODS[method].find_init(network, state, which='encoder.cnn')
    assert module is network.encoder.cnn
    assert [name for name, other in METHODS.items() if other.is_part_of_whole(found)] == [method]
