"""Weight files of ConvMAE and MAE: the authors', strictly, and what each kind of file fills."""
from dataclasses import replace

import pytest
import timm
import torch

import tests.small_convvit  # noqa: F401
from common.networks.keys import unwrap
from common.networks.load import load_classifier
from downstream_imagenet.tuned import read_tuned
from pretrain import export
from pretrain.a2mim import build_a2mim
from pretrain.convmae import build_convmae
from pretrain.convmae_options import ConvMAEOptions
from pretrain.mae import build_mae
from pretrain.mae_options import MAEOptions
from pretrain.main import pretrain
from pretrain.masked_autoencoder_weights import (
    find_init,
    is_part_of_whole,
    load_init,
    load_official,
    method_of,
    options_in_weights,
)
from pretrain.methods import METHODS
from pretrain.saved import likely_method, read_saved
from pretrain.spark_weights import load_init as load_into_spark
from tests.common.networks.test_autoencoders import as_checkpoint, as_probe
from tests.common.networks.test_weights import holds, randomised, spark_of, under
from tests.conftest import log_of, randomise
from tests.pretrain.official_convmae import convvit, golden, official_state
from tests.pretrain.runs import assert_encoder_is_read, saved_as_of

MODELS = {'convmae': 'tiny_convvit', 'mae': 'test_vit'}
BUILD = {'convmae': build_convmae, 'mae': build_mae}
DECODER = {'decoder_width': 24, 'decoder_depth': 2, 'decoder_heads': 2}


def small(method, size=64, **changes):
    return randomise(BUILD[method](MODELS[method], size, **{**DECODER, **changes}))


def unused(network):
    return {f'encoder.cnn.{name}' for name in network.encoder.unused}


def official(network):
    """The entries that a file of the authors' program has for a network of ours."""
    return {key.removeprefix('encoder.cnn.'): value for key, value in used(network).items()}


def used(network):
    return {key: value for key, value in network.state_dict().items() if key not in unused(network)}


# -- golden key lists -------------------------------------------------------------------------------------------------

def golden_network(want, classes=0, **changes):
    made = want['constructor']
    arguments = {'decoder_width': made['decoder_embed_dim'], 'decoder_depth': made['decoder_depth'],
                 'decoder_heads': made['decoder_num_heads']}
    return build_convmae(convvit(want, classes), 224, **{**arguments, **changes})


@pytest.fixture(scope='module')
def case():
    """(a ConvMAE with a classifier as drawn, the authors' state_dict for it in float32)."""
    want = golden('convmae_small_224')
    state = {key: value.float() for key, value in official_state(want['keys']).items()}
    return golden_network(want, want['finetune']['num_classes']), state


def test_every_entry_of_the_authors_program_is_loaded(case):
    convmae, state = case
    drawn = {key: value.clone() for key, value in convmae.state_dict().items()}
    for content in (state, as_checkpoint(state), {'model': under('module.', state), 'epoch': 3}):
        convmae.load_state_dict(drawn)
        report = load_official(content, convmae)
        assert len(report.matched) == len(state) and not report.left_out and set(report.missing) == unused(convmae)
        assert official(convmae).keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in official(convmae).items())


def test_what_starts_anew_is_what_the_released_file_lacks(case):
    convmae, state = case
    encoder = {key: value for key, value in state.items() if f'encoder.cnn.{key}' in convmae.state_dict()}
    number = golden('convmae_small_224')['finetune']['left_over_of_pretraining']
    assert f'{number} entries of fusion and decoder start anew' in str(load_init(convmae, {'model': encoder}))


def test_what_is_wrong_is_named(case):
    convmae, state = case
    before = {key: value.clone() for key, value in convmae.state_dict().items()}
    for changes, message in (({'decoder_more.weight': torch.zeros(1)}, 'not in the network: decoder_more.weight'),
                             ({'blocks1.7.conv1.bias': torch.zeros(2)}, 'not in the network: blocks1.7.conv1.bias'),
                             ({'cls_token': torch.zeros(1, 1, 96)}, '(?s)not in the network: cls_token'),
                             ({'stage2_output_decode.bias': torch.zeros(7)}, r'stage2_output_decode.bias is \(7,\)'),
                             ({'mask_token': torch.zeros(1, 1, 7)},
                              r'(?s)mask_token is \(1, 1, 7\).*--decoder_width, .*FILE:encoder')):
        with pytest.raises(ValueError, match=message):
            load_official({**state, **changes}, convmae)
    for missing, ours in (('patch_embed4.bias', 'encoder.cnn.patch_embed4.bias'), ('norm.bias', 'norm.bias')):
        with pytest.raises(ValueError, match=f'missing: {ours}'):
            load_official({key: value for key, value in state.items() if key != missing}, convmae)
    with pytest.raises(ValueError, match='no whole ConvMAE or MAE'):
        load_official(randomised(convmae.encoder.cnn), convmae)
    assert holds(convmae, before)


# -- other kinds of files ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', ['ours', 'official'])
@pytest.mark.parametrize('method', MODELS)
def test_a_whole_file_fills_everything(tmp_path, method, kind):
    network, other, third = small(method), small(method), small(method)
    ours = kind == 'ours'
    content = {'model': network.state_dict(), 'optimizer': {}} if ours else as_checkpoint(official(network))
    torch.save(content, tmp_path / 'w.pth')
    report = load_init(other, tmp_path / 'w.pth')
    assert holds(other, network.state_dict() if ours else used(network)) and 'start anew' not in str(report)
    decoder = {key: value.clone() for key, value in third.state_dict().items() if not key.startswith('encoder.cnn.')}
    for key in ('encoder', 'encoder.cnn') if ours else ('encoder',):
        report = load_init(third, f'{tmp_path / "w.pth"}:{key}')
        assert holds(third, {key: value for key, value in used(network).items() if key.startswith('encoder.cnn.')})
        assert holds(third, decoder) and f'{len(decoder)} entries of ' in str(report) and 'start anew' in str(report)


@pytest.mark.parametrize('method', MODELS)
def test_an_encoder_says_how_much_starts_anew(method):
    network, other = small(method), small(method)
    cnn = network.encoder.cnn
    contents = [{'model': {key: value for key, value in cnn.state_dict().items() if key not in network.encoder.unused}},
                randomised(cnn), as_probe(cnn, 1000)[0]]
    for content in contents:
        others = [key for key in other.state_dict() if not key.startswith('encoder.cnn.')]
        what = {'convmae': 'fusion and decoder', 'mae': 'the decoder'}[method]
        assert f'{len(others)} entries of {what} start anew' in str(load_init(other, content))


@pytest.mark.parametrize('kind', ['ours', 'official'])
@pytest.mark.parametrize('size', [96, (64, 128)])
@pytest.mark.parametrize('method', MODELS)
def test_a_whole_file_for_images_of_another_size(method, size, kind):
    network, other = small(method), small(method, size)
    own, positions = other.decoder_pos_embed.clone(), other.encoder.cnn.pos_embed.clone()
    report = load_init(other, {'model': network.state_dict() if kind == 'ours' else official(network)})
    assert 'the positions in the file are left out, since this pretraining has fixed ones' in str(report)
    number, new = network.decoder_pos_embed.shape[1], own.shape[1]
    assert f'a fixed table of {number} positions: the network keeps its own of {new}' in str(report)
    tables = ('encoder.cnn.pos_embed', 'decoder_pos_embed')
    assert holds(other, {key: value for key, value in used(network).items() if key not in tables})
    assert torch.equal(other.decoder_pos_embed, own) and 'start anew' not in str(report)
    assert torch.equal(other.encoder.cnn.pos_embed, positions)


@pytest.mark.parametrize('method', MODELS)
def test_another_decoder_is_refused_with_the_remedy(tmp_path, method):
    network, before = small(method), small(method, decoder_depth=1)
    torch.save(as_checkpoint(official(network)), tmp_path / 'w.pth')
    for other in (before, small(method, decoder_width=16)):
        with pytest.raises(ValueError, match='(?s)decoder.*Give the --decoder_width, --decoder_depth .*FILE:encoder'):
            load_init(other, tmp_path / 'w.pth')
        assert 'start anew' in str(load_init(other, f'{tmp_path / "w.pth"}:encoder'))


def test_colour_weights_start_a_grey_pretraining():
    colour, grey = small('convmae'), small('convmae', in_chans=1)
    for content in (colour.state_dict(), official(colour)):
        with pytest.raises(ValueError, match='--adapt_input_conv'):
            load_init(grey, {'model': content})
        report = load_init(grey, {'model': content}, adapt=True)
        assert report.adapted and 'start anew' in str(report)


def test_files_of_other_methods_fill_the_network_and_theirs_take_ours():
    convmae, spark = small('convmae'), spark_of('tiny_convvit')
    spark.load_state_dict(randomised(spark))
    positions = convmae.encoder.cnn.pos_embed.clone()
    report = load_init(convmae, {'model': spark.state_dict()})
    trained = {key: value for key, value in spark.encoder.cnn.state_dict().items() if key != 'pos_embed'}
    assert holds(convmae.encoder.cnn, trained) and 'start anew' in str(report)
    assert torch.equal(convmae.encoder.cnn.pos_embed, positions)  # SparK's are learned, ConvMAE's fixed
    assert 'the positions in the file are left out' in str(report)
    for content in (convmae.state_dict(), official(small('convmae'))):
        report = load_into_spark(spark, {'model': content})
        assert len(report.matched) >= len(spark.encoder.cnn.state_dict()) - len(spark.encoder.unused)
    a2mim = build_a2mim('test_vit', 64)
    with pytest.raises(ValueError, match='do not fit ConvViT'):
        load_init(convmae, {'model': a2mim.state_dict()})
    mae = small('mae')
    assert 'start anew' in str(load_init(mae, {'model': a2mim.state_dict()}))


def test_what_a_file_is_of():
    for method in MODELS:
        network = small(method)
        for content in ({'model': network.state_dict()}, as_checkpoint(official(network)), under('module.', official(network))):
            state = unwrap(content)
            assert method_of(state) == method and options_in_weights(state) == {'decoder_width': 24, 'decoder_depth': 2}
            assert [other for other in METHODS if METHODS[other].is_whole(state)] == [method]
            assert_encoder_is_read(network, *find_init(network, state))
            module, found, _ = find_init(network, state, which='encoder')
            assert module is network.encoder.cnn and is_part_of_whole(found)
            assert [other for other in METHODS if METHODS[other].is_part_of_whole(found)] == [method]
        _, found, _ = find_init(network, network.encoder.cnn.state_dict())
        assert not is_part_of_whole(found) and method_of(network.encoder.cnn.state_dict()) is None
    assert options_in_weights(spark_of('test_resnet').state_dict()) == {'decoder_width': None, 'decoder_depth': None}


# -- files that are read back -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', MODELS)
def test_a_file_says_itself_whether_it_can_reconstruct(tmp_path, method):
    network = small(method, decoder_heads=16, decoder_width=32)
    given = {'model': MODELS[method], 'input_size': 64}
    torch.save(as_checkpoint(official(network)), tmp_path / 'whole.pth')
    saved = read_saved(tmp_path / 'whole.pth', **given)
    assert saved.has_decoder and saved.method.name == method and saved.options.decoder_width == 32
    assert holds(saved.network, used(network)) and not saved.has_classifier
    for other in METHODS:
        if other != method:
            with pytest.raises(ValueError, match=f'is of {METHODS[method].title}, not of {METHODS[other].title}: leave'):
                read_saved(tmp_path / 'whole.pth', method=other, **given)
    torch.save({'model': {key: value for key, value in official(network).items()
                          if f'encoder.cnn.{key}' in network.state_dict()}}, tmp_path / 'encoder.pth')
    for source in (tmp_path / 'encoder.pth', f'{tmp_path / "whole.pth"}:encoder'):
        saved = read_saved(source, method=method, **given)
        assert not saved.has_decoder and not saved.has_classifier
        assert holds(saved.network.encoder.cnn, saved.weights)
        with pytest.raises(ValueError, match="encoder without its decoder.*a checkpoint of the authors' program"):
            saved.require_decoder()
    with pytest.raises(ValueError, match='without a trained classifier'):
        read_tuned(tmp_path / 'whole.pth', model=MODELS[method])


@pytest.mark.parametrize('model, method', [('tiny_convvit', 'spark'),
                                           pytest.param('convvit_small', 'convmae', marks=pytest.mark.slow)])
def test_an_encoder_is_taken_to_be_of_its_authors_method(tmp_path, model, method):
    torch.save(timm.create_model(model, num_classes=5, img_size=64).state_dict(), tmp_path / 'w.pth')
    saved = read_saved(tmp_path / 'w.pth', input_size=64, model=model if method == 'spark' else None)
    assert saved.method.name == method and saved.model == model and not saved.has_decoder and saved.has_classifier


@pytest.mark.parametrize('model, method', [('convvit_base', 'convmae'), ('vit_large_patch16_224', 'mae'), ('resnet50', 'spark'),
                                           ('vitamin_base_224', 'spark'), (None, 'spark')])
def test_the_likely_method_of_an_encoder(model, method):
    assert likely_method(model).name == method


def test_the_authors_fine_tuned_and_probe_files_classify(tmp_path):
    cnn = randomise(timm.create_model('tiny_convvit', num_classes=5)).eval()
    images = torch.randn(2, 3, 64, 64)
    probe, head = as_probe(cnn, 5)
    with torch.no_grad():
        logits = cnn(images), head(cnn.forward_head(cnn.forward_features(images), pre_logits=True).double()).float()
    for state, expected in zip((cnn.state_dict(), probe), logits, strict=True):
        torch.save(as_checkpoint(state), tmp_path / 'w.pth')
        tuned = read_tuned(tmp_path / 'w.pth', model='tiny_convvit', input_size=64)
        saved = read_saved(tmp_path / 'w.pth', model='tiny_convvit', input_size=64)
        assert len(tuned.classes) == 5 and saved.has_classifier
        for network in (tuned.model.logits, saved.network.encoder.cnn):
            with torch.no_grad():
                torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


# -- exports ----------------------------------------------------------------------------------------------------------

def options_of(method, folder, **changes):
    options = ConvMAEOptions if method == 'convmae' else MAEOptions
    return options(name='r', batch_size=8, epochs=1, lr=1e-4, workers=0, warmup_epochs=0.0, run_dir=str(folder),
                   **{'model': MODELS[method], 'input_size': 64, **DECODER, **changes})


@pytest.mark.parametrize('method, size', [pytest.param('convmae', 224, marks=pytest.mark.slow), ('mae', 64)])
def test_official_names_shapes_and_round_trip(tmp_path, method, size):
    saved = saved_as_of(tmp_path, options_of(method, tmp_path, input_size=size))
    said = ' '.join(export.export(saved, 'official', tmp_path))
    assert 'the official program itself was not run' in said
    stem = tmp_path / MODELS[method]
    whole = torch.load(f'{stem}_withdecoder_1kpretrained_official_style.pth', weights_only=True)['model']
    assert whole.keys() == official(saved.network).keys()
    if method == 'convmae':
        keys = golden('convmae_small_224')['keys']
        assert {key for key in whole if '.1.' not in key} == {key for key in keys if '.1.' not in key and '.2.' not in key}
    encoder = torch.load(f'{stem}_1kpretrained_official_style.pth', weights_only=True)['model']
    assert encoder.keys() == {key for key in whole if f'encoder.cnn.{key}' in saved.network.state_dict()}
    again = read_saved(f'{stem}_withdecoder_1kpretrained_official_style.pth', model=MODELS[method], input_size=size,
                       decoder_heads=2)
    assert again.has_decoder and holds(again.network, used(saved.network))


@pytest.mark.parametrize('changes, message', [
    ({'input_size': 96}, '224x224 pixels and 3 channels alone.* is for 96x96 and 3'),
    ({'input_size': 224, 'in_chans': 1, 'mean': (0.5,), 'std': (0.5,)}, 'is for 224x224 and 1: give --to=timm')])
def test_what_the_official_code_cannot_take(tmp_path, changes, message):
    saved = saved_as_of(tmp_path, options_of('convmae', tmp_path, **changes))
    with pytest.raises(ValueError, match=message):
        export.export(saved, 'official', tmp_path)


def test_a_convvit_for_another_size_is_exported_for_timm(tmp_path):
    saved = saved_as_of(tmp_path, options_of('convmae', tmp_path, input_size=(96, 128), model='test_convvit'))
    said = export.export(saved, 'timm', tmp_path)
    assert 'img_size=(96, 128)' in said[0] and 'needs common/convvit.py, and imports it first' in ' '.join(said)
    cnn = timm.create_model('test_convvit', num_classes=0, img_size=(96, 128),
                            checkpoint_path=str(tmp_path / 'test_convvit_timm.safetensors'))
    assert holds(cnn, {key: value for key, value in saved.weights.items() if not key.startswith('head.')})


# -- runs -------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('method', MODELS)
def test_a_run_starts_from_an_authors_file_and_another_from_its_files(world, tmp_path, capsys, method):
    options = options_of(method, tmp_path / 'a', data_path=str(world))
    network = randomise(BUILD[method](**options.network))
    torch.save(as_checkpoint(official(network)), tmp_path / 'w.pth')
    folder = pretrain(replace(options, init=str(tmp_path / 'w.pth')))
    out = capsys.readouterr().out
    assert f'{tmp_path / "w.pth"}: matched' in out and 'start anew' not in out
    assert len(log_of(folder)[0]) == 2
    model = MODELS[method]
    for file, is_whole in ((f'{model}_still_pretraining.pth', True), (f'{model}_1kpretrained.pth', False)):
        network = BUILD[method](**options.network)
        state = torch.load(folder / file, weights_only=True)
        assert ('start anew' in str(load_init(network, folder / file))) != is_whole
        assert holds(network, state['model']) if is_whole else holds(network.encoder.cnn, state)
        cnn = timm.create_model(model, num_classes=3, img_size=64)
        assert 'matched' in str(load_classifier(cnn, folder / file, model, (64, 64)))
        assert read_saved(folder / file).has_decoder == is_whole
